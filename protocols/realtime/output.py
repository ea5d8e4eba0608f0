"""One answer of a realtime session while it is given: its items (words, thoughts, calls) and the events that tell of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from protocols.conversation import Conversation, Item
from protocols.realtime import server_events as told
from protocols.realtime.decisions import Send
from protocols.realtime.server_events import ResponseView, ServerEvent, UsageView


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer; `image_tokens` counts those of pictures given with the question."""

    input_tokens: int = 0
    output_tokens: int = 0
    image_tokens: int = 0

    def view(self) -> UsageView:
        return {
            "total_tokens": self.input_tokens + self.output_tokens,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "input_token_details": {
                "text_tokens": self.input_tokens - self.image_tokens,
                "image_tokens": self.image_tokens,
                "audio_tokens": 0,
                "cached_tokens": 0,
            },
            "output_token_details": {"text_tokens": self.output_tokens, "audio_tokens": 0},
        }


@dataclass(slots=True)
class OpenAnswer:
    """An answer between its request and its `response.done`; its items go into `conversation`, if it is in one."""

    id: str
    event_id: str | None
    conversation: Conversation | None
    stream: str | None
    max_output_tokens: int | Literal["inf"]
    metadata: dict[str, str] | None
    new_id: Callable[[str], str]
    moment: dict[str, Any] | None = None
    items: list[Item] = field(default_factory=list)
    _thoughts: str = ""

    def words(self, text: str) -> list[Send]:
        """More of what it says."""
        out = [*self._message(), *self._thought()]
        self.items[-1].text += text
        return [*out, self._send(told.OutputTextDelta, **self._part, delta=text)]

    def thought(self, text: str) -> list[Send]:
        """More of what the model thinks before it answers."""
        out = self._message()
        self._thoughts += text
        return [*out, self._send(told.ReasoningTextDelta, **self._part, delta=text)]

    def call(self, name: str) -> list[Send]:
        """The beginning of a call."""
        item = Item(
            self.new_id("item"),
            "assistant",
            status="in_progress",
            kind="function_call",
            call_id=self.new_id("call"),
            name=name,
        )
        return [*self._close("completed"), *self._open(item)]

    def arguments(self, text: str) -> list[Send]:
        """More of the newest call's arguments."""
        item = self.items[-1]
        item.text += text
        return [self._send(told.CallArgumentsDelta, **self._place, call_id=item.call_id, delta=text)]

    def end(self, *, whole: bool, answered: bool) -> list[Send]:
        """The end of its newest item; one that was `answered` without a word has an item all the same."""
        out = self._message() if answered and not self.items else []
        return [*out, *self._close("completed" if whole else "incomplete")]

    def view(
        self, conversation: str, status: str, details: dict[str, Any] | None = None, usage: Usage | None = None
    ) -> ResponseView:
        """The answer as the wire shows it; `conversation` is the id of the session's own."""
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": [item.view() for item in self.items],
            "conversation_id": conversation if self.conversation else None,
            "output_modalities": ["text"],
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata,
            "usage": usage.view() if usage else None,
            "stream": self.stream,
            "moment": self.moment,
        }

    def _message(self) -> list[Send]:
        """The events that come before the first word of a message, once."""
        if self.items and self.items[-1].kind == "message":
            return []
        out = [*self._close("completed"), *self._open(Item(self.new_id("item"), "assistant", status="in_progress"))]
        return [*out, self._send(told.ContentPartAdded, **self._part, part={"type": "text", "text": ""})]

    def _thought(self) -> list[Send]:
        """The event at the end of the model's thoughts, once."""
        thoughts, self._thoughts = self._thoughts, ""
        return [self._send(told.ReasoningTextDone, **self._part, text=thoughts)] if thoughts else []

    def _open(self, item: Item) -> list[Send]:
        self.items.append(item)
        view = item.view(content=False)
        out = [self._send(told.OutputItemAdded, response_id=self.id, output_index=self._index, item=view)]
        if self.conversation is not None:
            previous = self.conversation.insert(item)
            out.append(self._send(told.ItemAdded, previous_item_id=previous, item=view))
        return out

    def _close(self, status: Literal["completed", "incomplete"]) -> list[Send]:
        if not self.items:
            return []
        out, item = self._thought(), self.items[-1]
        item.status = status
        if item.kind == "function_call":
            fields = {**self._place, "call_id": item.call_id, "name": item.name, "arguments": item.text}
            out.append(self._send(told.CallArgumentsDone, **fields))
        else:
            out.append(self._send(told.OutputTextDone, **self._part, text=item.text))
            out.append(self._send(told.ContentPartDone, **self._part, part={"type": "text", "text": item.text}))
        if self.conversation is not None and self.conversation.find(item.id):
            out.append(self._send(told.ItemDone, previous_item_id=self.conversation.before(item), item=item.view()))
        done = {"response_id": self.id, "output_index": self._index, "item": item.view()}
        return [*out, self._send(told.OutputItemDone, **done)]

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    @property
    def _place(self) -> dict[str, Any]:
        return {"response_id": self.id, "item_id": self.items[-1].id, "output_index": self._index}

    @property
    def _part(self) -> dict[str, Any]:
        return {**self._place, "content_index": 0}

    def _send(self, event: type[ServerEvent], **fields: Any) -> Send:
        return Send(event(event_id=self.new_id("event"), **fields))
