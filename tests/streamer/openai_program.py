"""A program that knows nothing of us, only the official `openai` client; run by `test_openai_client` in its own environment.

Prints one JSON object of what it saw.
"""

import asyncio
import json
import sys

from openai import APIStatusError, AsyncOpenAI, OpenAI


def completions(base_url: str) -> dict:
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    asked = {"model": "nano", "messages": [{"role": "user", "content": "What is there?"}], "max_tokens": 4}
    whole = client.chat.completions.create(**asked)
    events = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["colour", "n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": schema}}
    formed = client.chat.completions.create(**{**asked, "max_tokens": 60}, response_format=form)
    try:
        client.chat.completions.create(**{**asked, "model": "gpt-9"})
    except APIStatusError as error:
        refused = [type(error).__name__, error.status_code, error.code, error.param]
    return {
        "models": [model.id for model in client.models.list()],
        "whole": whole.choices[0].message.content,
        "finish_reason": whole.choices[0].finish_reason,
        "completion_tokens": whole.usage.completion_tokens,
        "streamed": "".join(event.choices[0].delta.content or "" for event in events if event.choices),
        "formed": json.loads(formed.choices[0].message.content),
        "formed_reason": formed.choices[0].finish_reason,
        "streamed_tokens": events[-1].usage.completion_tokens,
        "refused": refused,
    }


def responses(base_url: str) -> dict:
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    asked = {"model": "nano", "max_output_tokens": 4, "metadata": {"stream": "demo"}}
    whole = client.responses.create(**asked, input="What is there?", instructions="Be brief.")
    picture = {"type": "input_image", "image_url": sys.argv[2], "detail": "low"}
    parts = [picture, {"type": "input_text", "text": "What is this?"}]
    shown = client.responses.create(model="nano", max_output_tokens=2, input=[{"role": "user", "content": parts}])
    turns = [{"role": "user", "content": "Who?"}, *whole.output, {"role": "user", "content": "And now?"}]
    again = client.responses.create(**asked, input=turns)
    with client.responses.stream(**{**asked, "model": "nano/demo"}, input="What is there?") as stream:
        events = list(stream)
    try:
        client.responses.create(model="nano", input="x", previous_response_id=whole.id)
    except APIStatusError as error:
        refused = [type(error).__name__, error.status_code, error.code, error.param]
    return {
        "whole": whole.output_text,
        "status": whole.status,
        "output_tokens": whole.usage.output_tokens,
        "shown": shown.status,
        "again": again.status,
        "seen": [[event.type, type(event).__name__] for event in events],
        "streamed": events[-1].response.output_text,
        "refused": refused,
    }


async def realtime(base_url: str) -> dict:
    client = AsyncOpenAI(base_url=base_url, api_key="none")
    seen, text, statuses = [], "", []
    async with client.realtime.connect(model="nano") as connection:
        await connection.session.update(
            session={"type": "realtime", "output_modalities": ["text"], "instructions": "Be brief."}
        )
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is there?"}]}
        )
        await connection.response.create(response={"max_output_tokens": 4})
        async for event in connection:
            seen.append([event.type, type(event).__name__])
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                statuses.append(event.response.status)
                usage = event.response.usage.output_tokens
                said = event.response.output[0].content[0].text
                break
        await connection.response.cancel()
        refused = await connection.recv()
        await connection.response.create(
            response={
                "conversation": "none",
                "instructions": "Go on",
                "metadata": {"a": "b"},
                "max_output_tokens": 20_000,  # so that it is cancelled long before its end
            }
        )
        async for event in connection:
            if event.type == "response.output_text.delta":
                await connection.response.cancel(response_id=event.response_id)
                break
        async for event in connection:
            if event.type == "response.done":
                statuses.append(event.response.status)
                metadata = event.response.metadata
                break
    return {
        "seen": seen,
        "text": text,
        "said": said,
        "usage": usage,
        "statuses": statuses,
        "metadata": metadata,
        "refused": [refused.type, refused.error.code],
    }


if __name__ == "__main__":
    url = sys.argv[1] + "/v1"
    print(
        json.dumps(
            {"completions": completions(url), "responses": responses(url), "realtime": asyncio.run(realtime(url))}
        )
    )
