"""OpenAI's responses over video streams: requests read, answers written whole or as events. Bytes in, bytes out.

Nothing is kept between requests: a conversation comes along in `input`. The stream is chosen by the model's id, as in chat
completions, or by `metadata` (`{"stream": "door"}`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from protocols.chat import HISTORY_CHARACTERS, ROLES, chosen_stream, read_attachment
from protocols.conversation import Item, read_question
from protocols.fields import Metadata, Model, ProtocolError, Text, number, only, read_object, refusal
from protocols.json_format import TextSettings
from protocols.question import Attachment, Effort, Question, Sampling, Thinking

STATELESS = "can't be done: nothing is kept here, so send the whole conversation as 'input'"
STATUS = {"length": "incomplete", "cancelled": "cancelled", "failed": "failed"}
"""How an answer ended, as the wire has it; all else is completed."""


class _TextPart(Model):
    type: Literal["input_text", "output_text", "text"]
    text: Text


class _RefusalPart(Model):
    type: Literal["refusal"]
    refusal: Text


class _ImagePart(Model):
    type: Literal["input_image"]
    image_url: Text


_Parts = Annotated[
    list[Annotated[_TextPart | _RefusalPart | _ImagePart, Field(discriminator="type")]], Field(max_length=64)
]


class _Message(Model):
    type: Literal["message"]
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | _Parts


class _Call(Model):
    """An answer of the model's that asked for a tool; what the tool said comes behind it."""

    type: Literal["function_call", "reasoning"]


class _CallOutput(Model):
    type: Literal["function_call_output"]
    output: Text | _Parts


def _messages(value: Any) -> Any:
    """A text alone is a user's message, and so is an item without a type."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if isinstance(value, list):
        return [{"type": "message", **each} if isinstance(each, dict) and "role" in each else each for each in value]
    return value


_Items = Annotated[
    list[Annotated[_Message | _Call | _CallOutput, Field(discriminator="type")]], Field(min_length=1, max_length=256)
]


class _Reasoning(Model):
    effort: Effort | None = None


class _Body(Sampling):
    model: Text
    input: Annotated[_Items, BeforeValidator(_messages)]
    instructions: Text | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1), BeforeValidator(number)] | None = None
    metadata: Metadata | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    reasoning: _Reasoning | None = None
    text: TextSettings | None = None
    top_logprobs: Annotated[None, only(0, why="can't be done: no probabilities are told")] = None
    previous_response_id: Annotated[None, only(why=STATELESS)] = None
    conversation: Annotated[None, only(why=STATELESS)] = None
    prompt: Annotated[None, only(why="can't be done: no prompts are kept here, so send 'instructions'")] = None
    background: Annotated[None, only(False, why="can't be done: an answer lasts as long as its request")] = None


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """A question as responses put it; `streaming` asks for server-sent events. `settings` are told back."""

    model: str
    question: Question
    streaming: bool
    settings: Mapping[str, Any]


def read_response(body: bytes, model: str, streams: Collection[str]) -> ResponseRequest:
    """Reads the body of a `POST /v1/responses`. Raises ProtocolError."""
    data = read_object(body)
    try:
        asked = _Body.model_validate(data)
    except ValidationError as error:
        raise refusal(error, data) from None
    items: list[Item] = []
    attachments: list[Attachment] = []
    for index, each in enumerate(asked.input):
        if isinstance(each, _Call):
            continue
        told = isinstance(each, _CallOutput)
        path = f"input[{index}].{'output' if told else 'content'}"
        role = "user" if isinstance(each, _CallOutput) else each.role
        text, given = _read_content(each.output if isinstance(each, _CallOutput) else each.content, path)
        if role == "assistant":
            # Pictures that an answer was already given about are not looked at again.
            attachments.clear()
        elif given and role != "user":
            raise ProtocolError("invalid_value", "Only a user's message may hold pictures.", path)
        attachments += given
        items.append(Item(str(index), ROLES[role], text))
    question = read_question(items, HISTORY_CHARACTERS)
    if not question.text.strip():
        raise ProtocolError("empty_question", "There is no question: end the input with a user's text.", "input")
    effort = asked.reasoning.effort if asked.reasoning is not None else None
    lead = "\n".join(filter(None, (asked.instructions, question.instructions)))
    question = replace(
        question,
        stream=_stream(asked, model, streams),
        instructions=lead,
        attachments=tuple(attachments),
        sampling=asked.over(Sampling()),
        max_tokens=asked.max_output_tokens,
        thinking=Thinking(reasoning_effort=effort).tokens(),
        format=asked.text.form("text") if asked.text is not None else None,
    )
    settings = {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "reasoning": {"effort": effort, "summary": None},
        "temperature": asked.temperature,
        "text": {
            "format": {"type": "text"},
            **(asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}),
        },
        "top_p": asked.top_p,
    }
    return ResponseRequest(asked.model, question, bool(asked.stream), settings)


def _stream(asked: _Body, model: str, streams: Collection[str]) -> str | None:
    stream = chosen_stream(asked.model, model, streams)
    named = (asked.metadata or {}).get("stream")
    if stream is not None or named is None:
        return stream
    if named not in streams:
        known = ", ".join(sorted(streams)[:10]) or "none attached"
        raise ProtocolError("unknown_stream", f"There is no stream {named!r}; known: {known}.", "metadata.stream")
    return named


def _read_content(content: Any, path: str) -> tuple[str, list[Attachment]]:
    if isinstance(content, str):
        return content, []
    texts: list[str] = []
    attachments: list[Attachment] = []
    for index, part in enumerate(content):
        if isinstance(part, _ImagePart):
            attachments.append(read_attachment("image", part.image_url, f"{path}[{index}].image_url"))
        else:
            texts.append(part.refusal if isinstance(part, _RefusalPart) else part.text)
    return "\n".join(texts), attachments


class ResponseWriter:
    """Writes one answer, whole or as server-sent events, which are numbered. `created` is unix seconds."""

    def __init__(self, id: str, item_id: str, created: int, asked: ResponseRequest) -> None:
        self._id, self._item_id, self._created, self._asked = id, item_id, created, asked
        self._number = 0

    def whole(
        self,
        text: str,
        reason: str,
        prompt_tokens: int,
        completion_tokens: int,
        reasoning_tokens: int = 0,
        trouble: str | None = None,
    ) -> dict[str, Any]:
        """The body of an answer that is not streamed, and the response that ends a stream.

        `reason` is how it ended, `trouble` why it broke off; `reasoning_tokens` are part of `completion_tokens`.
        """
        status = STATUS.get(reason, "completed")
        usage = {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
            "total_tokens": prompt_tokens + completion_tokens,
        }
        item = self._item(text, "completed" if status == "completed" else "incomplete")
        return self._response(status, [item], usage, trouble)

    def begin(self) -> bytes:
        """What comes before the first word."""
        response = self._response("in_progress", [], None)
        return (
            self._event("response.created", response=response)
            + self._event("response.in_progress", response=response)
            + self._event("response.output_item.added", output_index=0, item=self._item(None, "in_progress"))
            + self._event("response.content_part.added", **self._place, part=_part(""))
        )

    def delta(self, text: str) -> bytes:
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def end(
        self,
        text: str,
        reason: str,
        prompt_tokens: int,
        completion_tokens: int,
        reasoning_tokens: int = 0,
        trouble: str | None = None,
    ) -> bytes:
        """What comes behind the last word; `text` is the whole answer, all else as in `whole`."""
        response = self.whole(text, reason, prompt_tokens, completion_tokens, reasoning_tokens, trouble)
        # A cancelled response has no closing event of its own.
        kind = "failed" if response["status"] in ("failed", "cancelled") else response["status"]
        return (
            self._event("response.output_text.done", **self._place, text=text, logprobs=[])
            + self._event("response.content_part.done", **self._place, part=_part(text))
            + self._event("response.output_item.done", output_index=0, item=response["output"][0])
            + self._event(f"response.{kind}", response=response)
        )

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _item(self, text: str | None, status: str) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _response(
        self, status: str, output: list[Any], usage: Mapping[str, Any] | None, trouble: str | None = None
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None if trouble is None else {"code": "server_error", "message": trouble},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._asked.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "usage": usage,
            "user": None,
            **self._asked.settings,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        return f"event: {kind}\ndata: {data}\n\n".encode()


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
