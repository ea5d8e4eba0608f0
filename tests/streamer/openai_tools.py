"""Tools through the official `openai` client: responses and the realtime dialect; prints as JSON what it saw.

Run by `test_tools.py` in an environment of its own: `python openai_tools.py URL MODEL TOOLS`, tools as flat JSON entries.
"""

import asyncio
import json
import sys

from openai import AsyncOpenAI, OpenAI


def responses(base_url: str, model: str, tools: list) -> dict:
    client = OpenAI(base_url=base_url, api_key="none")
    given = {"model": model, "tools": tools, "temperature": 1, "extra_body": {"seed": 1}, "max_output_tokens": 300}
    asked = [{"role": "user", "content": "What is there?"}]
    choice = {"type": "function", "name": "look"}
    whole = client.responses.create(input=asked, tool_choice=choice, **given)
    (call,) = whole.output
    seen, arguments = [], ""
    with client.responses.create(input=asked, tool_choice=choice, stream=True, **given) as stream:
        for event in stream:
            seen.append(event.type)
            if event.type == "response.function_call_arguments.delta":
                arguments += event.delta
            if event.type == "response.output_item.done":
                item = event.item.model_dump()
    given["max_output_tokens"] = 3
    alone = client.responses.create(input=asked, **given).usage.input_tokens
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "A red door."}
    back = [*asked, call.model_dump(exclude_none=True), result]
    read = client.responses.create(input=back, **given).usage.input_tokens
    return {
        "call": call.model_dump(),
        "status": whole.status,
        "events": seen,
        "arguments": arguments,
        "item": item,
        "back": read - alone,
    }


async def realtime(base_url: str, model: str, tools: list) -> dict:
    client = AsyncOpenAI(base_url=base_url, api_key="none")
    seen, arguments = [], ""
    async with client.realtime.connect(model=model) as connection:
        await connection.session.update(session={"type": "realtime", "tools": tools, "tool_choice": "auto"})
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is there?"}]}
        )
        choice = {"type": "function", "name": "look"}
        await connection.response.create(response={"tool_choice": choice, "temperature": 1, "max_output_tokens": 300})
        async for event in connection:
            seen.append([event.type, type(event).__name__])
            if event.type == "session.updated":
                session = event.session.model_dump()
            if event.type == "response.function_call_arguments.delta":
                arguments += event.delta
            if event.type == "response.function_call_arguments.done":
                done = event.model_dump()
            if event.type == "response.done":
                (call,), first = event.response.output, event.response.usage.input_tokens
                break
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "A red door."}
        await connection.conversation.item.create(item=result)
        await connection.response.create(response={"tool_choice": "auto", "max_output_tokens": 3})
        async for event in connection:
            if event.type == "error":
                raise SystemExit(event.error.message)
            if event.type == "response.done":
                back = event.response.usage.input_tokens
                break
    return {
        "events": seen,
        "arguments": arguments,
        "done": done,
        "call": call.model_dump(),
        "session": session,
        "back": back - first,
    }


if __name__ == "__main__":
    url, model, tools = sys.argv[1] + "/v1", sys.argv[2], json.loads(sys.argv[3])
    print(json.dumps({"responses": responses(url, model, tools), "realtime": asyncio.run(realtime(url, model, tools))}))
