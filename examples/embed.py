"""An assistant inside a program: watch a source, ask about it, read the answer as it is spoken."""

import asyncio
import sys

from streamer import Assistant, parse_config


async def main(source: str) -> None:
    async with Assistant(parse_config({"streams": [{"name": "door", "source": source}]})) as assistant:
        while not assistant.newest_frame("door"):
            await asyncio.sleep(0.1)
        async for words in assistant.ask("What is happening?", stream="door", max_tokens=40):
            print(words, end="", flush=True)
        print()


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "demo:"))
