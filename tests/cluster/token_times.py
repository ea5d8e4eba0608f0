"""How much later the gateway's client has a small reply than the engine's: `token_times.py DIRECT BEARER GATEWAY`.

Echoes, which no model is asked for: an unknown item is retrieved, and the error comes back. A token goes the same way, once.
"""

import asyncio
import json
import sys
import time

from websockets.asyncio.client import connect

ROUNDS = 600
ASK = json.dumps({"type": "conversation.item.retrieve", "item_id": "nothing"})


async def main() -> None:
    direct, bearer, through = sys.argv[1:]
    times: dict[str, list[float]] = {"direct": [], "through": []}
    async with (
        connect(direct, additional_headers={"Authorization": bearer}, proxy=None, compression=None) as one,
        connect(through, proxy=None, compression=None) as two,
    ):
        for socket in (one, two):
            await socket.recv()
        for _ in range(ROUNDS):
            for name, socket in (("direct", one), ("through", two)):
                began = time.perf_counter()
                await socket.send(ASK)
                while json.loads(await socket.recv())["type"] != "error":
                    pass
                times[name].append(time.perf_counter() - began)
                await asyncio.sleep(0.006)
    # Both ways, there and back: a token goes one of them, so that this is more than it adds.
    first, second = (sorted(values) for values in times.values())
    at = [int(share * ROUNDS) for share in (0.5, 0.99)]
    print(json.dumps({
        "rounds": ROUNDS,
        "direct_p50_p99_ms": [round(first[each] * 1000, 3) for each in at],
        "through_p50_p99_ms": [round(second[each] * 1000, 3) for each in at],
        "added_p50_ms": round((second[at[0]] - first[at[0]]) * 1000, 3),
        "added_p99_ms": round((second[at[1]] - first[at[1]]) * 1000, 3),
    }))  # fmt: skip


asyncio.run(main())
