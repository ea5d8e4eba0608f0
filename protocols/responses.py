"""OpenAI's responses over video streams: requests read, answers written whole or as events. Bytes in, bytes out.

Nothing is kept between requests: a conversation comes along in `input`. The stream is chosen by the model's id, as in chat
completions, or by `metadata` (`{"stream": "door"}`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from protocols.chat import HISTORY_CHARACTERS, ROLES, chosen_recording, chosen_stream, read_attachment
from protocols.conversation import Item, read_question
from protocols.fields import Metadata, Model, Moment, ProtocolError, Text, number, only, read_object, refusal
from protocols.json_format import TextSettings
from protocols.question import Attachment, Effort, Question, Sampling, Thinking
from protocols.tools import FlatToolChoice, FlatTools, chosen

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


class _Reasoned(Model):
    """What an answer of some other daemon thought."""

    type: Literal["reasoning"]


class _Call(Model):
    """A call that the model made; what came of it stands behind it."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text


class _CallOutput(Model):
    type: Literal["function_call_output"]
    call_id: Text
    output: Text | _Parts


def _messages(value: Any) -> Any:
    """A text alone is a user's message, and so is an item without a type."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if isinstance(value, list):
        return [{"type": "message", **each} if isinstance(each, dict) and "role" in each else each for each in value]
    return value


_Items = Annotated[
    list[Annotated[_Message | _Reasoned | _Call | _CallOutput, Field(discriminator="type")]],
    Field(min_length=1, max_length=256),
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
    at: Moment | None = None
    """Ours: the moment of the past that is asked about; or its span, as the next two say."""
    since: Moment | None = Field(default=None, alias="from")
    until: Moment | None = Field(default=None, alias="to")
    tools: FlatTools | None = None
    tool_choice: FlatToolChoice | None = None
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


def read_response(
    body: bytes, model: str, streams: Collection[str], recordings: Collection[str] = ()
) -> ResponseRequest:
    """Reads the body of a `POST /v1/responses`. Raises ProtocolError."""
    data = read_object(body)
    try:
        asked = _Body.model_validate(data)
    except ValidationError as error:
        raise refusal(error, data) from None
    tools, call = chosen(asked.tools or (), asked.tool_choice)
    items: list[Item] = []
    attachments: list[Attachment] = []
    for index, each in enumerate(asked.input):
        match each:
            case _Call():
                called = Item(
                    str(index), "assistant", each.arguments, kind=each.type, call_id=each.call_id, name=each.name
                )
                items.append(called)
            case _CallOutput():
                text, given = _read_content(each.output, f"input[{index}].output")
                attachments += given
                items.append(Item(str(index), "user", text, kind=each.type, call_id=each.call_id))
            case _Message():
                path = f"input[{index}].content"
                text, given = _read_content(each.content, path)
                if each.role == "assistant":
                    # Pictures that an answer was already given about are not looked at again.
                    attachments.clear()
                elif given and each.role != "user":
                    raise ProtocolError("invalid_value", "Only a user's message may hold pictures.", path)
                attachments += given
                items.append(Item(str(index), ROLES[each.role], text))
    question = read_question(items, HISTORY_CHARACTERS, tools=bool(tools))
    if not question.text.strip():
        raise ProtocolError("empty_question", "There is no question: end the input with a user's text.", "input")
    effort = asked.reasoning.effort if asked.reasoning is not None else None
    lead = "\n".join(filter(None, (asked.instructions, question.instructions)))
    stream, recording, shown = chosen_recording(_stream(asked, model, streams, recordings), streams, attachments)
    question = replace(
        question,
        stream=stream,
        recording=recording,
        instructions=lead,
        attachments=shown,
        sampling=asked.over(Sampling()),
        max_tokens=asked.max_output_tokens,
        thinking=Thinking(reasoning_effort=effort).tokens(),
        format=asked.text.form("text") if asked.text is not None else None,
        tools=tools,
        call=call,
        at=asked.at,
        since=asked.since,
        until=asked.until,
    )
    choice = asked.tool_choice or "auto"
    settings = {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "reasoning": {"effort": effort, "summary": None},
        "temperature": asked.temperature,
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [{"strict": None, **tool.model_dump()} for tool in asked.tools or ()],
        "text": {
            "format": {"type": "text"},
            **(asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}),
        },
        "top_p": asked.top_p,
    }
    return ResponseRequest(asked.model, question, bool(asked.stream), settings)


def _stream(asked: _Body, model: str, streams: Collection[str], recordings: Collection[str]) -> str | None:
    stream = chosen_stream(asked.model, model, [*streams, *recordings])
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
    """Writes one answer, whole or as server-sent events, which are numbered. `created` is unix seconds.

    Its items are messages and calls, in the order in which they come; a message's id is `item_id`, then `item_id_1`, ….
    `moment` is what it tells of the past, as that is reached by now.
    """

    def __init__(self, id: str, item_id: str, created: int, asked: ResponseRequest) -> None:
        self._id, self._item_id, self._created, self._asked = id, item_id, created, asked
        self.moment: Mapping[str, Any] | None = None
        self._number = 0
        self._items: list[dict[str, Any]] = []

    def whole(
        self,
        text: str,
        reason: str,
        prompt_tokens: int,
        completion_tokens: int,
        reasoning_tokens: int = 0,
        trouble: str | None = None,
        calls: Sequence[tuple[str, str]] = (),
    ) -> dict[str, Any]:
        """The body of an answer that is not streamed.

        `reason` is how it ended, `trouble` why it broke off; `reasoning_tokens` are part of `completion_tokens`, `calls`
        are (name, arguments).
        """
        if text or not calls:
            self._items.append(self._message(text))
        for name, arguments in calls:
            self._items.append({**self._call(name), "arguments": arguments})
        for item in self._items:
            item["status"] = "completed"
        return self._ended(reason, prompt_tokens, completion_tokens, reasoning_tokens, trouble)

    def begin(self) -> bytes:
        """What comes before the first word or call."""
        response = self._response("in_progress", [], None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def replaying(self, shown: int, of: int) -> bytes:
        """How many steps of the past have been shown to the model, which answers after them."""
        return self._event("response.replaying", response_id=self._id, shown=shown, of=of, moment=self.moment)

    def delta(self, text: str) -> bytes:
        """More of what is said."""
        out = b""
        if not self._items or self._items[-1]["type"] != "message":
            out = self._close() + self._open(self._message(None))
            out += self._event("response.content_part.added", **self._part, part=_part(""))
            self._items[-1]["content"] = [_part("")]
        self._items[-1]["content"][0]["text"] += text
        return out + (self._event("response.output_text.delta", **self._part, delta=text, logprobs=[]) if text else b"")

    def call(self, name: str) -> bytes:
        """The beginning of a call."""
        return self._close() + self._open(self._call(name))

    def arguments(self, text: str) -> bytes:
        """More of the newest call's arguments."""
        self._items[-1]["arguments"] += text
        return self._event("response.function_call_arguments.delta", **self._place, delta=text)

    def end(
        self,
        reason: str,
        prompt_tokens: int,
        completion_tokens: int,
        reasoning_tokens: int = 0,
        trouble: str | None = None,
    ) -> bytes:
        """What comes behind the last word or call; all as in `whole`."""
        out = b"" if self._items else self.delta("")
        out += self._close("incomplete" if reason in STATUS else "completed")
        response = self._ended(reason, prompt_tokens, completion_tokens, reasoning_tokens, trouble)
        # A cancelled response has no closing event of its own.
        kind = "failed" if response["status"] in ("failed", "cancelled") else response["status"]
        return out + self._event(f"response.{kind}", response=response)

    def _open(self, item: dict[str, Any]) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _close(self, status: str = "completed") -> bytes:
        """The end of the newest item, if there is one."""
        if not self._items:
            return b""
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            out = self._event("response.output_text.done", **self._part, text=part["text"], logprobs=[])
            out += self._event("response.content_part.done", **self._part, part=part)
        else:
            fields = {**self._place, "name": item["name"], "arguments": item["arguments"]}
            out = self._event("response.function_call_arguments.done", **fields)
        return out + self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _ended(self, reason: str, prompt: int, completion: int, reasoning: int, trouble: str | None) -> dict[str, Any]:
        status = STATUS.get(reason, "completed")
        if status != "completed" and self._items:
            self._items[-1]["status"] = "incomplete"
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": prompt + completion,
        }
        return self._response(status, self._items, usage, trouble)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    @property
    def _part(self) -> dict[str, Any]:
        return {**self._place, "content_index": 0}

    def _message(self, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        item_id = f"{self._item_id}_{len(self._items)}" if self._items else self._item_id
        return {"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": content}

    def _call(self, name: str) -> dict[str, Any]:
        own = f"{self._id.removeprefix('resp_')}_{len(self._items)}"
        return {
            "id": f"fc_{own}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": f"call_{own}",
            "name": name,
            "arguments": "",
        }

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
            "truncation": "disabled",
            "usage": usage,
            "user": None,
            **self._asked.settings,
            **({} if self.moment is None else {"moment": self.moment}),
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        return f"event: {kind}\ndata: {data}\n\n".encode()


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
