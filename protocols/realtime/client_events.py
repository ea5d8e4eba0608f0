"""What a client of the realtime dialect may send, one model an event: unknown keys pass, wrong values are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from protocols.fields import (
    ItemId,
    Metadata,
    Modalities,
    Model,
    Moment,
    Picture,
    ProtocolError,
    StreamName,
    Temperature,
    Text,
    Tokens,
    number,
    read_picture,
    refusal,
)
from protocols.json_format import TextSettings
from protocols.question import Sampling, Thinking
from protocols.tools import FlatToolChoice, FlatTools


class TextPart(Model):
    type: Literal["input_text", "output_text"]
    text: Text


class ImagePart(Model):
    type: Literal["input_image"]
    image_url: Annotated[Picture, BeforeValidator(read_picture)]


class MessageItem(Model):
    """A message that a client adds to a conversation."""

    type: Literal["message"] = "message"
    id: ItemId | None = None
    role: Literal["system", "user", "assistant"]
    content: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(min_length=1, max_length=32)
    ]


class CallItem(Model):
    """A call of a tool, as an answer had it."""

    type: Literal["function_call"]
    id: ItemId | None = None
    call_id: ItemId | None = None
    name: Text
    arguments: Text


class CallOutputItem(Model):
    """What came of a call."""

    type: Literal["function_call_output"]
    id: ItemId | None = None
    call_id: ItemId
    output: Text


NewItem = MessageItem | CallItem | CallOutputItem


class ReferenceItem(Model):
    """An item that the conversation already holds, named in a response's `input`."""

    type: Literal["item_reference"]
    id: ItemId


class SessionSettings(Model):
    type: Literal["realtime"] | None = None
    model: Text | None = None
    stream: StreamName | None = None
    instructions: Text | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    tools: FlatTools | None = None
    tool_choice: FlatToolChoice | None = None
    text: TextSettings | None = None
    modalities: Modalities | None = None
    """Of the dialect's beta, as is the next one."""
    max_response_output_tokens: Tokens | None = None


def _text_among(value: list[str]) -> list[str]:
    if "text" not in value:
        raise ValueError("leaves out text, which all answers are: use ['text']")
    return value


class ResponseSettings(Sampling, Thinking):
    conversation: Literal["auto", "none"] = "auto"
    input: (
        Annotated[list[Annotated[NewItem | ReferenceItem, Field(discriminator="type")]], Field(max_length=64)] | None
    ) = None
    stream: StreamName | None = None
    at: Moment | None = None
    since: Moment | None = Field(default=None, alias="from")
    until: Moment | None = Field(default=None, alias="to")
    recording: StreamName | None = None
    instructions: Text | None = None
    output_modalities: Modalities | None = None
    modalities: Annotated[list[Text], AfterValidator(_text_among)] | None = None
    """Of the dialect's beta: those that an answer may have. Its other name for the most tokens is the last of these."""
    max_output_tokens: Tokens | None = None
    max_response_output_tokens: Tokens | None = None
    metadata: Metadata | None = None
    tools: FlatTools | None = None
    tool_choice: FlatToolChoice | None = None
    text: TextSettings | None = None


class ClientEvent(Model):
    event_id: Annotated[Text, Field(max_length=512)] | None = None


class SessionUpdate(ClientEvent):
    session: SessionSettings


class ItemCreate(ClientEvent):
    item: Annotated[NewItem, Field(discriminator="type")]
    previous_item_id: ItemId | None = None


class ItemRetrieve(ClientEvent):
    item_id: ItemId


class ItemDelete(ClientEvent):
    item_id: ItemId


class ItemTruncate(ClientEvent):
    """Audio dialect; for text, `audio_end_ms` 0 empties the answer's text from the transcript."""

    item_id: ItemId
    content_index: Annotated[int, Field(ge=0, le=0)]
    audio_end_ms: Annotated[int, Field(ge=0)]


class ResponseCreate(ClientEvent):
    response: ResponseSettings | None = None


class ResponseCancel(ClientEvent):
    response_id: ItemId | None = None


class StreamList(ClientEvent):
    pass


class StreamAttach(ClientEvent):
    stream: StreamName
    source: Annotated[Text, Field(min_length=1)]
    options: dict[Text, Any] | None = None


class StreamDetach(ClientEvent):
    """Takes a stream away from everybody, and so must name it."""

    stream: StreamName


class StreamNamed(ClientEvent):
    """`stream.status` and `stream.frame`: about one stream, by default the session's own."""

    stream: StreamName | None = None


class MemoryList(StreamNamed):
    """What happened to a stream, the newest first; `search` is for words in it, `before` the id that the last list ended with."""

    since: Moment | None = Field(default=None, alias="from")
    until: Moment | None = Field(default=None, alias="to")
    search: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    kinds: Annotated[list[Annotated[Text, Field(min_length=1, max_length=64)]], Field(max_length=16)] | None = None
    limit: Annotated[int, Field(ge=1, le=1_000)] | None = None
    before: Annotated[int, Field(ge=1, lt=2**63)] | None = None


class MemorySubscribe(StreamNamed):
    """From now on the session is told what is added to a stream's timeline, and to no other's."""


class WatchSubscribe(ClientEvent):
    """From now on the session is told of every watch; first of what was told after the event whose id `after` is."""

    after: Annotated[Text, Field(max_length=64)] | None = None


class WatchList(ClientEvent):
    pass


class WatchAdd(ClientEvent):
    watch: dict[Text, Any]


class WatchNamed(ClientEvent):
    name: StreamName


class WatchUpdate(WatchNamed):
    watch: dict[Text, Any] | None = None
    paused: bool | None = None
    snooze: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(number)] | None = None


class WatchFeedback(ClientEvent):
    id: Annotated[Text, Field(min_length=1, max_length=64)]
    feedback: Literal["right", "false_alarm"] | None


class VideoAppend(ClientEvent):
    """One picture for a `push:` stream; `timestamp` in seconds on the sender's own axis."""

    video: Annotated[Picture, BeforeValidator(read_picture)]
    timestamp: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(number)] | None = None
    stream: StreamName | None = None


EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": SessionUpdate,
    "conversation.item.create": ItemCreate,
    "conversation.item.retrieve": ItemRetrieve,
    "conversation.item.delete": ItemDelete,
    "conversation.item.truncate": ItemTruncate,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "stream.list": StreamList,
    "stream.attach": StreamAttach,
    "stream.detach": StreamDetach,
    "stream.status": StreamNamed,
    "stream.frame": StreamNamed,
    "memory.list": MemoryList,
    "memory.subscribe": MemorySubscribe,
    "watch.subscribe": WatchSubscribe,
    "watch.list": WatchList,
    "watch.add": WatchAdd,
    "watch.update": WatchUpdate,
    "watch.remove": WatchNamed,
    "watch.feedback": WatchFeedback,
    "input_video_buffer.append": VideoAppend,
}


def read_event(data: dict[str, Any]) -> ClientEvent:
    """Checks one decoded message. Raises ProtocolError."""
    own_id = _own_id(data)
    kind = data.get("type")
    if not isinstance(kind, str):
        raise ProtocolError("invalid_event", "An event needs a 'type' that is a string.", "type", own_id)
    model = EVENTS.get(kind)
    if model is None:
        why = " This daemon hears no audio." if "audio" in kind else ""
        known = ", ".join(EVENTS)
        raise ProtocolError("unknown_event", f"Unknown event {kind[:80]!r}.{why} Known: {known}.", "type", own_id)
    response = data.get("response")
    _default_types(response.get("input") if isinstance(response, dict) else data.get("item"))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise refusal(error, data, own_id) from None


def read_update(data: dict[str, Any]) -> tuple[SessionUpdate, list[ProtocolError]]:
    """A `session.update` of what can be done, and why each of its other keys is refused. Raises ProtocolError."""
    session, refused = data.get("session"), []
    if isinstance(session, dict):
        try:
            SessionSettings.model_validate(session)
        except ValidationError as error:
            details = error.errors(include_url=False)
            wrong = dict.fromkeys(each["loc"][0] for each in details)
            for key in wrong:
                own = [each for each in details if each["loc"][0] == key]
                refused.append(refusal(own, session, _own_id(data), "session."))
            session = {key: value for key, value in session.items() if key not in wrong}
    event = read_event({**data, "session": session} if "session" in data else data)
    assert isinstance(event, SessionUpdate)
    return event, refused


def _own_id(data: dict[str, Any]) -> str | None:
    event_id = data.get("event_id")
    return event_id if isinstance(event_id, str) and event_id.isprintable() else None


def _default_types(part: Any) -> None:
    """Messages may leave out `type`; a union needs it to choose."""
    for item in part if isinstance(part, list) else [part]:
        if isinstance(item, dict) and "role" in item:
            item.setdefault("type", "message")
