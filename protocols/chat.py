"""OpenAI's chat completions over video streams: requests read, models and errors written. Bytes in, bytes out.

The model's id chooses the stream: `nano` is whatever single stream there is, `nano/door` is the stream `door`, or else the
recording of that name, which a `video_url` may name too, as `recording:door`. A request with pictures or a video of its own is
about those instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from protocols.conversation import Item, Role, read_question
from protocols.fields import (
    Metadata,
    Model,
    Moment,
    ProtocolError,
    Text,
    number,
    only,
    picture_bytes,
    read_object,
    refusal,
    uri_bytes,
)
from protocols.json_format import ChatFormat
from protocols.question import Attachment, Question, Sampling, Thinking, ToolRound
from protocols.tools import Result, ToolChoice, Tools, chat_round, chosen

VIDEO_KINDS = ("video/", "image/", "application/octet-stream")
TS_PACKET = 188
"""Bytes of a packet of MPEG-TS (ISO 13818-1, 2.4.3), each of which begins with 0x47."""
KNOWN_BY = 2 * TS_PACKET + 1
"""Bytes by which a video file is known."""
HISTORY_CHARACTERS = 2_000
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "tool": "user",
    "assistant": "assistant",
}
"""Whose words they are in a conversation; what a tool says is told to the model as the user's."""


def _media(url: str) -> str:
    if not url[:8].lower().startswith(("data:", "https://", "http://")):
        raise ValueError("must be a data URI or an http(s) address")
    return url


RECORDING = "recording:"
"""Begins the address of a recording that the daemon keeps."""


def _video(url: str) -> str:
    return url if url.startswith(RECORDING) else _media(url)


class _Url(Model):
    url: Annotated[Text, AfterValidator(_media)]


class _VideoUrl(Model):
    url: Annotated[Text, AfterValidator(_video)]


def _bare(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class _TextPart(Model):
    type: Literal["text", "input_text", "output_text"]
    text: Text


class _RefusalPart(Model):
    """Of an assistant's message of some other daemon."""

    type: Literal["refusal"]
    refusal: Text


class _ImagePart(Model):
    type: Literal["image_url", "input_image"]
    image_url: Annotated[_Url, BeforeValidator(_bare)]


class _VideoPart(Model):
    type: Literal["video_url"]
    video_url: _VideoUrl


_Parts = Annotated[
    list[Annotated[_TextPart | _RefusalPart | _ImagePart | _VideoPart, Field(discriminator="type")]],
    Field(min_length=1, max_length=64),
]


class _Message(Model):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | _Parts | None = None
    tool_calls: Any = None
    tool_call_id: Text | None = None


class _StreamOptions(Model):
    include_usage: bool = False


def _count(value: Any) -> Any:
    """A count of tokens; -1 leaves it to the daemon, as other servers have it."""
    value = number(value)
    return None if value == -1 else value


_Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_count)]
_NoPenalty = Annotated[None, only(0, why="can't be done: answers are drawn without penalties, so leave it out")]


def _sequences(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Sequence = Annotated[str, Field(min_length=1, max_length=256)]


class _TemplateWords(Model):
    """What vLLM and SGLang pass to a chat template, of which this alone has a meaning here."""

    enable_thinking: bool | None = None


class _Body(Sampling, Thinking):
    model: Text
    messages: Annotated[list[_Message], Field(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Count = None
    max_completion_tokens: _Count = None
    metadata: Metadata | None = None
    at: Moment | None = None
    """Ours: the moment of the past that is asked about; or its span, as the next two say."""
    since: Moment | None = Field(default=None, alias="from")
    until: Moment | None = Field(default=None, alias="to")
    n: Annotated[None, only(1, why="can't be done: a question has one answer, so ask again for another")] = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    response_format: ChatFormat | None = None
    functions: Annotated[None, only([], why="can't be done: the old form of tools is not spoken here")] = None
    logprobs: Annotated[None, only(False, why="can't be done: no probabilities are told")] = None
    top_logprobs: Annotated[None, only(0, why="can't be done: no probabilities are told")] = None
    logit_bias: Annotated[None, only({}, why="can't be done: no token is favoured")] = None
    stop: Annotated[list[_Sequence], Field(max_length=4), BeforeValidator(_sequences)] | None = None
    frequency_penalty: _NoPenalty = None
    repetition_penalty: Annotated[None, only(1, why="can't be done: answers are drawn without penalties")] = None
    min_p: Annotated[None, only(0, why="can't be done: choose with temperature, top_p and top_k")] = None
    chat_template_kwargs: _TemplateWords | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A question as chat completions put it; `streaming` asks for server-sent events."""

    model: str
    question: Question
    streaming: bool
    include_usage: bool
    stop: tuple[str, ...] = ()


class StopSequences:
    """Cuts an answer before the first of `sequences`, which may be spread over several pieces of it."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self.sequences = sequences
        self.met = False
        self._kept = ""

    def feed(self, text: str) -> str:
        """What of the answer may be shown now that `text` has come; what could begin a sequence is kept back."""
        kept = self._kept + text
        found = [at for sequence in self.sequences if (at := kept.find(sequence)) >= 0]
        if found:
            self.met, self._kept = True, ""
            return kept[: min(found)]
        hold = max((_begun(kept, sequence) for sequence in self.sequences), default=0)
        self._kept = kept[len(kept) - hold :]
        return kept[: len(kept) - hold]

    def rest(self) -> str:
        """What was kept back, once the answer is complete."""
        rest, self._kept = self._kept, ""
        return rest


def _begun(text: str, sequence: str) -> int:
    """How many of the last characters of `text` could begin `sequence`."""
    most = min(len(text), len(sequence) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(sequence[:n])), 0)


def model_ids(model: str, streams: Collection[str]) -> list[str]:
    """What a client may name as its model: the model, and the model on each stream; a name that is there twice once."""
    return [model, *(f"{model}/{stream}" for stream in dict.fromkeys(streams))]


def chosen_recording(
    stream: str | None, streams: Collection[str], attachments: Sequence[Attachment]
) -> tuple[str | None, str | None, tuple[Attachment, ...]]:
    """The stream and the recording that are meant, and what else came along.

    `stream` is what the model's id named, one of `streams` or else a recording. Raises ProtocolError.
    """
    named = [each.url.removeprefix(RECORDING) for each in attachments if each.url and each.url.startswith(RECORDING)]
    if not named:
        recording = None if stream is None or stream in streams else stream
        return None if recording else stream, recording, tuple(attachments)
    if len(attachments) > 1:
        raise ProtocolError(
            "invalid_value", "A question is about one recording, and no pictures beside it.", "messages"
        )
    return None, named[0], ()


def chosen_stream(name: str, model: str, streams: Collection[str]) -> str | None:
    """The stream that a model's id names, or None for whichever there is. Raises ProtocolError: model_not_found."""
    if name == model:
        return None
    stream = name.removeprefix(f"{model}/")
    if stream != name and stream in streams:
        return stream
    known = ", ".join(model_ids(model, streams))
    raise ProtocolError("model_not_found", f"The model {name!r} does not exist; known: {known}.", "model")


def read_chat(body: bytes, model: str, streams: Collection[str], recordings: Collection[str] = ()) -> ChatRequest:
    """Reads the body of a `POST /v1/chat/completions`. Raises ProtocolError."""
    data = read_object(body)
    try:
        asked = _Body.model_validate(data)
    except ValidationError as error:
        raise refusal(error, data) from None
    named = chosen_stream(asked.model, model, [*streams, *recordings])
    tools, call = chosen(asked.tools or (), asked.tool_choice)
    messages, rounds = _rounds(asked.messages) if tools else (asked.messages, ())
    items: list[Item] = []
    attachments: list[Attachment] = []
    for index, message in enumerate(messages):
        path = f"messages[{index}].content"
        text, given = _read_content(message.content, path)
        if message.role == "assistant":
            # Pictures that an answer was already given about are not looked at again.
            attachments.clear()
        elif given and message.role != "user":
            raise ProtocolError("invalid_value", "Only a user's message may hold pictures or video.", path)
        attachments += given
        if not text and message.tool_calls:
            continue  # no answer yet: what the tools say belongs to the same question
        items.append(Item(str(index), ROLES[message.role], text))
    question = read_question(items, HISTORY_CHARACTERS)
    if not question.text.strip():
        raise ProtocolError("empty_question", "There is no question: end the messages with a user's text.", "messages")
    stream, recording, shown = chosen_recording(named, streams, attachments)
    question = replace(
        question,
        stream=stream,
        recording=recording,
        attachments=shown,
        sampling=asked.over(Sampling()),
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        thinking=_thinking(asked).tokens(),
        tools=tools,
        call=call,
        rounds=rounds,
        format=asked.response_format.form("response_format") if asked.response_format else None,
        at=asked.at,
        since=asked.since,
        until=asked.until,
    )
    return ChatRequest(
        asked.model,
        question,
        bool(asked.stream),
        bool(asked.stream_options and asked.stream_options.include_usage),
        tuple(asked.stop or ()),
    )


def _rounds(messages: Sequence[_Message]) -> tuple[Sequence[_Message], tuple[ToolRound, ...]]:
    """The messages up to the last question, and what was called since then to answer it. Raises ProtocolError."""
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=len(messages) - 1)
    rounds: list[ToolRound] = []
    at = last + 1
    while at < len(messages) and messages[at].role == "assistant" and messages[at].tool_calls:
        end = next((i for i in range(at + 1, len(messages)) if messages[i].role != "tool"), len(messages))
        said = messages[at + 1 : end]
        told = [Result(each.tool_call_id or "", _read_content(each.content, "")[0]) for each in said]
        text, _ = _read_content(messages[at].content, "")
        rounds.append(chat_round(text, messages[at].tool_calls, told, f"messages[{at}]"))
        at = end
    return (messages, ()) if at < len(messages) else (messages[: last + 1], tuple(rounds))


def _thinking(asked: _Body) -> Thinking:
    """What the body says, or else what it has a template told."""
    enabled = asked.enable_thinking
    if enabled is None and asked.chat_template_kwargs is not None:
        enabled = asked.chat_template_kwargs.enable_thinking
    return Thinking(reasoning_effort=asked.reasoning_effort, enable_thinking=enabled)


def _read_content(content: Any, path: str) -> tuple[str, list[Attachment]]:
    if content is None or isinstance(content, str):
        return content or "", []
    texts: list[str] = []
    attachments: list[Attachment] = []
    for index, part in enumerate(content):
        if isinstance(part, _TextPart | _RefusalPart):
            texts.append(part.text if isinstance(part, _TextPart) else part.refusal)
        elif isinstance(part, _ImagePart):
            attachments.append(read_attachment("image", part.image_url.url, f"{path}[{index}].image_url.url"))
        else:
            attachments.append(read_attachment("video", part.video_url.url, f"{path}[{index}].video_url.url"))
    return "\n".join(texts), attachments


def read_attachment(kind: Literal["image", "video"], url: str, param: str) -> Attachment:
    """What a data URI holds, or what is to be fetched from an address. Raises ProtocolError that names `param`."""
    if url[:5].lower() != "data:":
        return Attachment(kind, url=url)
    try:
        return Attachment(kind, picture_bytes(url) if kind == "image" else _video_bytes(url))
    except ValueError as error:
        raise ProtocolError("invalid_value", f"Invalid value for '{param}': it {error}.", param) from None


def _video_bytes(url: str) -> bytes:
    if not url[5:].lower().startswith(VIDEO_KINDS):
        raise ValueError("must be a base64 data URI: data:video/mp4;base64,...")
    return video_file(uri_bytes(url, "video/mp4"))


def video_file(data: bytes) -> bytes:
    """`data`, KNOWN_BY bytes of a file or more, if it begins like a video or an animated picture. Raises ValueError.

    Other kinds (playlists above all) may name further files, which a stranger must not have read for him.
    """
    riff = data[8:12] if data[:4] == b"RIFF" else b""
    begins = data.startswith((b"\x1a\x45\xdf\xa3", b"GIF8", b"FLV\x01", b"\x00\x00\x01\xba"))
    packets = all(data[at : at + 1] == b"G" for at in (0, TS_PACKET, 2 * TS_PACKET))
    if data[4:8] == b"ftyp" or begins or packets or riff in (b"AVI ", b"WEBP"):
        return data
    raise ValueError(
        "is no video in MP4, WebM, Matroska, AVI, MPEG-TS, MPEG-PS or FLV, nor an animated GIF, WebP or AVIF"
    )


def models_body(
    model: str, streams: Collection[str], created: int, told: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The body of `GET /v1/models`; `told` is what is to be known of the model besides."""
    ids = model_ids(model, streams)
    return {"object": "list", "data": [model_body(each, created, told) for each in ids]}


def model_body(model_id: str, created: int, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": created, "owned_by": "streamer", **(told or {})}


STATUS = {
    "model_not_found": 404,
    "not_remembered": 404,
    "unknown_stream": 404,
    "unknown_output": 404,
    "unknown_recording": 404,
    "unknown_watch": 404,
    "unknown_event": 404,
    "not_found": 404,
    "no_recording": 404,
    "method_not_allowed": 405,
    "unauthorized": 401,
    "forbidden": 403,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "unsupported_codec": 406,
    "precondition_failed": 412,
    "ice_restart": 422,
    "stream_exists": 409,
    "recording_changed": 409,
    "output_exists": 409,
    "watch_exists": 409,
    "too_many_answers": 429,
    "too_many_streams": 429,
    "too_many_watches": 429,
    "too_many_outputs": 429,
    "rate_limit_exceeded": 429,
    "no_frames": 503,
    "not_ready": 503,
    "no_storage": 503,
    "overloaded": 503,
    "too_many_connections": 429,
    "request_timeout": 408,
    "server_error": 500,
    "failed": 500,
}
"""HTTP status by error code; every other code is a 400."""
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


def error_status(code: str) -> int:
    return STATUS.get(code, 400)


def error_body(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error body."""
    kind = TYPES.get(error_status(code), "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
