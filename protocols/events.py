"""What a client of the realtime dialect may send, one model an event: unknown keys pass, wrong values are refused."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

PICTURE_KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}


class EventError(ValueError):
    """A message that is refused; becomes an `error` event.

    Attributes:
        code: machine-readable reason.
        param: path of the offending field, or None.
        event_id: the client's own id for the event, or None.
    """

    def __init__(self, code: str, message: str, param: str | None = None, event_id: str | None = None) -> None:
        self.code, self.message, self.param, self.event_id = code, message, param, event_id
        super().__init__(message)


def picture_bytes(text: str) -> bytes:
    """The JPEG or PNG file in a data URI or in plain base64. Raises ValueError with the mend."""
    if text.startswith("data:"):
        head, comma, body = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError("must be a base64 data URI: data:image/jpeg;base64,...")
    elif text.startswith(("http://", "https://")):
        raise ValueError("must carry the picture itself as a data URI: data:image/jpeg;base64,...")
    else:
        body = text
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not valid base64") from None
    return picture_file(data)


def picture_file(data: bytes) -> bytes:
    """`data` if it begins like a JPEG or PNG file. Raises ValueError."""
    if not data.startswith(tuple(PICTURE_KINDS)):
        raise ValueError("is neither a JPEG nor a PNG picture")
    return data


def _picture(text: str) -> str:
    picture_bytes(text)
    return text


def _read_picture(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("must be a string: a data URI or base64")
    return picture_bytes(value)


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _storable(text: str) -> str:
    """Refuses lone surrogates: JSON can spell them and UTF-8 cannot carry them back."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_storable)]
StreamName = Annotated[Text, Field(min_length=1, max_length=64)]
ItemId = Annotated[Text, Field(min_length=1, max_length=64)]
Tokens = Annotated[int, Field(ge=1, le=32_768), BeforeValidator(_whole)] | Literal["inf"]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), BeforeValidator(_whole)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_whole)]
Modalities = Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)]
Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]], Field(max_length=16)
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(_Model):
    type: Literal["input_text", "output_text"]
    text: Text


class ImagePart(_Model):
    type: Literal["input_image"]
    image_url: Annotated[Text, AfterValidator(_picture)]


class MessageItem(_Model):
    """A message that a client adds to a conversation."""

    type: Literal["message"] = "message"
    id: ItemId | None = None
    role: Literal["system", "user", "assistant"]
    content: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(min_length=1, max_length=32)
    ]


class ReferenceItem(_Model):
    """An item that the conversation already holds, named in a response's `input`."""

    type: Literal["item_reference"]
    id: ItemId


class SessionSettings(_Model):
    type: Literal["realtime"] | None = None
    model: Text | None = None
    stream: StreamName | None = None
    instructions: Text | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class ResponseSettings(_Model):
    conversation: Literal["auto", "none"] = "auto"
    input: (
        Annotated[list[Annotated[MessageItem | ReferenceItem, Field(discriminator="type")]], Field(max_length=64)]
        | None
    ) = None
    stream: StreamName | None = None
    instructions: Text | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    seed: Seed | None = None
    metadata: Metadata | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class ClientEvent(_Model):
    event_id: Annotated[Text, Field(max_length=512)] | None = None


class SessionUpdate(ClientEvent):
    session: SessionSettings


class ItemCreate(ClientEvent):
    item: MessageItem
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
    source: Annotated[Text, Field(min_length=1, max_length=2_048)]
    options: dict[Text, Any] | None = None


class StreamNamed(ClientEvent):
    """`stream.detach`, `stream.status` and `stream.frame`: about one stream, by default the session's own."""

    stream: StreamName | None = None


class VideoAppend(ClientEvent):
    """One picture for a `push:` stream; `timestamp` in seconds on the sender's own axis."""

    video: Annotated[bytes, BeforeValidator(_read_picture)]
    timestamp: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_whole)] | None = None
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
    "stream.detach": StreamNamed,
    "stream.status": StreamNamed,
    "stream.frame": StreamNamed,
    "input_video_buffer.append": VideoAppend,
}


def read_event(data: dict[str, Any]) -> ClientEvent:
    """Checks one decoded message. Raises EventError."""
    event_id = data.get("event_id")
    own_id = event_id if isinstance(event_id, str) else None
    kind = data.get("type")
    if not isinstance(kind, str):
        raise EventError("invalid_event", "An event needs a 'type' that is a string.", "type", own_id)
    model = EVENTS.get(kind)
    if model is None:
        why = " This daemon hears no audio." if "audio" in kind else ""
        known = ", ".join(EVENTS)
        raise EventError("unknown_event", f"Unknown event {kind[:80]!r}.{why} Known: {known}.", "type", own_id)
    _default_types(data.get("response"))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise EventError(_code(first), _message(first), field_path(first), own_id) from None


def _default_types(part: Any) -> None:
    """Input items of a response may leave out `type`; a union needs it to choose."""
    if isinstance(part, dict) and isinstance(part.get("input"), list):
        for item in part["input"]:
            if isinstance(item, dict) and "role" in item:
                item.setdefault("type", "message")


def field_path(error: ErrorDetails) -> str:
    """`item.content[0].text` from pydantic's location, without the names it puts in for the branches of unions."""
    path = ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and not path.endswith("]"):
            path += f".{part}" if path else part
        elif path.endswith("]") and part in ("text", "image_url", "role", "content", "id", "type"):
            path += f".{part}"
    return path


def _code(error: ErrorDetails) -> str:
    return {"missing": "missing_required_parameter", "union_tag_not_found": "missing_required_parameter"}.get(
        error["type"], "invalid_value"
    )


def _message(error: ErrorDetails) -> str:
    path = field_path(error)
    value = repr(error["input"])
    shown = value if len(value) <= 60 else f"{value[:57]}..."
    if error["type"] == "missing":
        return f"Missing required parameter: '{path}'."
    if error["type"] == "union_tag_not_found":
        return f"Missing required parameter: '{path}.type'."
    if error["type"] == "union_tag_invalid":
        return f"Invalid value for '{path}.type': {error['ctx']['tag']!r}; use {error['ctx']['expected_tags']}."
    if path.endswith("tools"):
        return f"Invalid value for '{path}': the model calls no tools; leave them out."
    if "modalities" in path:
        return f"Invalid value for '{path}': {shown}; answers are text only: use ['text']."
    if error["type"] == "value_error":
        return f"Invalid value for '{path}': it {error['ctx']['error']}."
    return f"Invalid value for '{path}': {shown}. {error['msg']}."
