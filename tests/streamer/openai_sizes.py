"""Tool calls, a JSON schema, a thinking question and a plain one through the official `openai` client; prints as JSON what it saw.

Run by `test_sizes.py` in an environment of its own: `python openai_sizes.py URL MODEL SCHEMA`.
"""

import json
import sys
import time

from openai import OpenAI


def main(base_url: str, model: str, schema: dict) -> dict:
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=900)
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": schema}}
    asked = {
        "tool": {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "look"}}, "max_tokens": 200},
        "required": {"tools": [tool], "tool_choice": "required", "max_tokens": 200},
        "schema": {"response_format": form, "max_tokens": 200},
        "thinking": {"reasoning_effort": "low", "max_completion_tokens": 262},
        "plain": {"max_tokens": 12},
    }
    seen = {}
    for name, given in asked.items():
        began, first, text, thoughts, calls = time.monotonic(), None, "", "", []
        messages = [{"role": "user", "content": "What is there to see in the picture right now?"}]
        stream = client.chat.completions.create(
            model=model, messages=messages, seed=1, stream=True, stream_options={"include_usage": True}, **given
        )
        for chunk in stream:
            for choice in chunk.choices:
                delta = choice.delta
                thought = getattr(delta, "reasoning_content", None) or ""
                if first is None and (delta.content or thought or delta.tool_calls):
                    first = time.monotonic()
                text, thoughts = text + (delta.content or ""), thoughts + thought
                calls += [[call.function.name, call.function.arguments] for call in delta.tool_calls or []]
                reason = choice.finish_reason or None
            usage = chunk.usage
        seen[name] = {
            "text": text,
            "thoughts": thoughts,
            "calls": calls,
            "reason": reason,
            "tokens": usage.completion_tokens,
            "first_s": (first or time.monotonic()) - began,
            "whole_s": time.monotonic() - began,
        }
    return seen


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1] + "/v1", sys.argv[2], json.loads(sys.argv[3]))))
