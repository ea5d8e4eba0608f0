"""What the daemon sends over the realtime dialect, one class an event; `asyncapi.yaml` says the same for clients.

The nested objects are the wire's own shapes: a session, an item, a response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypedDict

from protocols.conversation import ItemView


class SessionView(TypedDict):
    """Object `realtime.session`."""

    type: Literal["realtime"]
    object: Literal["realtime.session"]
    id: str
    model: str
    output_modalities: list[str]
    instructions: str
    max_output_tokens: int | Literal["inf"]
    temperature: float | None
    tools: list[Any]
    tool_choice: str | dict[str, str]
    truncation: Literal["auto"]
    text: dict[str, Any]
    stream: str | None


class UsageView(TypedDict):
    """Tokens of one answer."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_token_details: dict[str, int]
    output_token_details: dict[str, int]


class ResponseView(TypedDict):
    """Object `realtime.response`; `conversation_id` is None beside the conversation, `stream` is as it was asked for."""

    object: Literal["realtime.response"]
    id: str
    status: str
    status_details: dict[str, Any] | None
    output: list[ItemView]
    conversation_id: str | None
    output_modalities: list[str]
    max_output_tokens: int | Literal["inf"]
    metadata: dict[str, str] | None
    usage: UsageView | None
    stream: str | None
    moment: dict[str, Any] | None


class PartView(TypedDict):
    """A part of an answer's content."""

    type: Literal["text"]
    text: str


class ErrorView(TypedDict):
    """Why a message is refused; `param` is the field's path, `event_id` the client's own id of its event."""

    type: Literal["invalid_request_error", "server_error"]
    code: str
    message: str
    param: str | None
    event_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """One event; `event_id` is the daemon's own."""

    type: ClassVar[str]
    event_id: str

    def wire(self) -> dict[str, Any]:
        """The JSON object that is sent."""
        return {"type": self.type, **{each.name: getattr(self, each.name) for each in fields(self)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCreated(ServerEvent):
    type = "session.created"
    session: SessionView


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdated(ServerEvent):
    type = "session.updated"
    session: SessionView


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemAdded(ServerEvent):
    type = "conversation.item.added"
    previous_item_id: str | None
    item: ItemView


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDone(ServerEvent):
    type = "conversation.item.done"
    previous_item_id: str | None
    item: ItemView


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRetrieved(ServerEvent):
    type = "conversation.item.retrieved"
    item: ItemView


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDeleted(ServerEvent):
    """By the client, or the oldest of a transcript that grew too long."""

    type = "conversation.item.deleted"
    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTruncated(ServerEvent):
    type = "conversation.item.truncated"
    item_id: str
    content_index: int = 0
    audio_end_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseCreated(ServerEvent):
    type = "response.created"
    response: ResponseView


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitsUpdated(ServerEvent):
    type = "rate_limits.updated"
    rate_limits: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputItemAdded(ServerEvent):
    type = "response.output_item.added"
    response_id: str
    output_index: int = 0
    item: ItemView


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputItemDone(ServerEvent):
    type = "response.output_item.done"
    response_id: str
    output_index: int = 0
    item: ItemView


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentEvent(ServerEvent):
    """About one part of an answer's item."""

    response_id: str
    item_id: str
    output_index: int = 0
    content_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentPartAdded(ContentEvent):
    type = "response.content_part.added"
    part: PartView


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentPartDone(ContentEvent):
    type = "response.content_part.done"
    part: PartView


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningTextDelta(ContentEvent):
    """What the model thinks before its answer, which is no part of it."""

    type = "response.reasoning_text.delta"
    delta: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningTextDone(ContentEvent):
    type = "response.reasoning_text.done"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTextDelta(ContentEvent):
    type = "response.output_text.delta"
    delta: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTextDone(ContentEvent):
    type = "response.output_text.done"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEvent(ServerEvent):
    """About one call of a tool."""

    response_id: str
    item_id: str
    output_index: int
    call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArgumentsDelta(CallEvent):
    type = "response.function_call_arguments.delta"
    delta: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArgumentsDone(CallEvent):
    type = "response.function_call_arguments.done"
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseDone(ServerEvent):
    type = "response.done"
    response: ResponseView


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamListed(ServerEvent):
    type = "stream.listed"
    streams: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent(ServerEvent):
    """About one stream; `told` are the event's other keys, whose names carry their units."""

    stream: str
    told: Mapping[str, Any]

    def wire(self) -> dict[str, Any]:
        return {"type": self.type, "event_id": self.event_id, "stream": self.stream, **self.told}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamAttached(StreamEvent):
    type = "stream.attached"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDetached(StreamEvent):
    type = "stream.detached"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus(StreamEvent):
    type = "stream.status"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFrame(StreamEvent):
    type = "stream.frame"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDropped(StreamEvent):
    type = "stream.dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReset(StreamEvent):
    type = "stream.reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResumed(StreamEvent):
    type = "stream.resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseReplaying(ServerEvent):
    """Before an answer about the past: how many of its steps the model has been shown again."""

    type = "response.replaying"
    response_id: str
    shown: int
    of: int
    moment: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryListed(ServerEvent):
    """What happened to a stream, the newest first; whether there is `more` of what was asked for."""

    type = "memory.listed"
    stream: str
    entries: Sequence[Mapping[str, Any]]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySubscribed(ServerEvent):
    type = "memory.subscribed"
    stream: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAdded(ServerEvent):
    type = "memory.added"
    stream: str
    entry: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryForgotten(ServerEvent):
    """A stream's entries from `since` to `until` are gone; None is the beginning, or the end, of all."""

    type = "memory.forgotten"
    stream: str
    since: float | None
    until: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchListed(ServerEvent):
    type = "watch.listed"
    watches: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSubscribed(ServerEvent):
    type = "watch.subscribed"
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchMissed(ServerEvent):
    """So many events were not told, as this client reads too slowly; `after` is the id that they come after."""

    type = "watch.missed"
    missed: int
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchAdded(ServerEvent):
    type = "watch.added"
    watch: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchUpdated(ServerEvent):
    type = "watch.updated"
    watch: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRemoved(ServerEvent):
    type = "watch.removed"
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchJudged(ServerEvent):
    type = "watch.judged"
    id: str
    feedback: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchNews(ServerEvent):
    """What a watch has to tell; `told` are the event's other keys, its own `id` among them."""

    told: Mapping[str, Any]

    def wire(self) -> dict[str, Any]:
        return {"type": self.type, "event_id": self.event_id, **self.told}


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStarted(WatchNews):
    type = "watch.started"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEnded(WatchNews):
    type = "watch.ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchChanged(WatchNews):
    type = "watch.changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvidence(WatchNews):
    """The recording around an event is whole: see its `clip`."""

    type = "watch.evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchDescribed(WatchNews):
    """What was seen at an event, in words: see its `description`."""

    type = "watch.described"


@dataclass(frozen=True, slots=True, kw_only=True)
class Error(ServerEvent):
    type = "error"
    error: ErrorView


STREAM_NEWS: Mapping[str, type[StreamEvent]] = {
    each.type: each for each in (StreamStatus, StreamDropped, StreamReset, StreamResumed)
}
"""What is told of streams unasked."""
WATCH_NEWS: Mapping[str, type[WatchNews]] = {
    each.type: each for each in (WatchStarted, WatchEnded, WatchChanged, WatchEvidence, WatchDescribed)
}
"""What is told of watches to a session that has subscribed to them."""
