"""OpenAI's chat completion: one answer, whole or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocols.chat import error_body


@dataclass(frozen=True, slots=True)
class ChatWriter:
    """Writes one answer, whole or as server-sent events. `created` is unix seconds, `moment` what it tells of the past."""

    id: str
    created: int
    model: str
    include_usage: bool = False
    moment: Mapping[str, Any] | None = None

    def whole(
        self,
        text: str,
        reason: str,
        prompt_tokens: int,
        completion_tokens: int,
        thoughts: str = "",
        reasoning_tokens: int = 0,
        calls: Sequence[tuple[str, str]] = (),
    ) -> dict[str, Any]:
        """The body of an answer that is not streamed; `reasoning_tokens` are part of `completion_tokens`, `calls` (name, arguments)."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        if calls:
            message["content"] = text or None
            message["tool_calls"] = [
                {"id": self.call_id(i), "type": "function", "function": {"name": name, "arguments": arguments}}
                for i, (name, arguments) in enumerate(calls)
            ]
        if thoughts:
            message["reasoning_content"] = thoughts
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reason)}
        usage = _usage(prompt_tokens, completion_tokens, reasoning_tokens)
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    def call(self, index: int, name: str) -> bytes:
        """The head of a call."""
        function = {"name": name, "arguments": ""}
        return self._chunk(
            {"tool_calls": [{"index": index, "id": self.call_id(index), "type": "function", "function": function}]}
        )

    def arguments(self, index: int, text: str) -> bytes:
        """More of a call's arguments."""
        return self._chunk({"tool_calls": [{"index": index, "function": {"arguments": text}}]})

    def call_id(self, index: int) -> str:
        """The id of the answer's call at `index`."""
        return f"call_{self.id.removeprefix('chatcmpl-')}_{index}"

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def replaying(self, shown: int, of: int) -> bytes:
        """How many steps of the past have been shown to the model, which answers after them: a chunk without words."""
        return self._chunk({}, replaying={"shown": shown, "of": of})

    def delta(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def thought(self, text: str) -> bytes:
        """What the model thinks, which is no part of its answer."""
        return self._chunk({"reasoning_content": text})

    def end(self, reason: str, prompt_tokens: int, completion_tokens: int, reasoning_tokens: int = 0) -> bytes:
        """The last chunks, and the end mark."""
        out = self._chunk({}, _finish(reason))
        if self.include_usage:
            usage = _usage(prompt_tokens, completion_tokens, reasoning_tokens)
            out += _event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})
        return out + b"data: [DONE]\n\n"

    def broken(self, message: str) -> bytes:
        """What ends a stream that fails after it began."""
        return _event(error_body("server_error", message)) + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        head = self._head("chat.completion.chunk")
        return _event({**head, "choices": [choice], **({"usage": None} if self.include_usage else {}), **more})

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": None}
        return head if self.moment is None else {**head, "moment": self.moment}


def _finish(reason: str) -> str:
    return reason if reason in ("length", "tool_calls") else "stop"


def _usage(prompt_tokens: int, completion_tokens: int, reasoning_tokens: int) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return usage | ({"completion_tokens_details": {"reasoning_tokens": reasoning_tokens}} if reasoning_tokens else {})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
