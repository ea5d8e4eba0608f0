"""Configuration, checked at the door: one pydantic model, read from YAML; nothing after it checks again.

Every refusal is one line a value: the path to it, the value, and the mend.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from streamer.fields import NAME, Name, Number, PerSecond, Seconds, Section, Whole
from streamer.output_config import OutputsConfig
from streamer.problems import problems, short
from streamer.storage_config import NotesConfig, StorageConfig
from streamer.watch_config import WatchConfig, check_names

USUAL_RATE = 25.0
"""Frames a second that are expected of a stream before it has shown its own rate."""


class ConfigError(ValueError):
    """A configuration that is refused; `problems` holds one line for each value, naming path, value and mend."""

    def __init__(self, problems: Iterable[str], origin: str = "configuration") -> None:
        self.problems = list(problems)
        self.origin = origin
        super().__init__("\n".join(f"{origin}: {problem}" for problem in self.problems))


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice: the later one would silently replace the earlier one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {short(key.value)!r} stands there a second time: keep one",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        raise ValueError(f"{value!r} is no address or network: write 10.0.0.2 or 10.0.0.0/24") from None
    return value


def _public_url(value: str) -> str:
    if not re.fullmatch(r"https?://[^/?#@\s]+(/[A-Za-z0-9._~-]+)*/?", value):
        raise ValueError(
            f"{value!r} is no address of this daemon: write https://home.example or https://home.example/cam"
        )
    return value.rstrip("/")


class TokenConfig(Section):
    """A bearer token, kept by its SHA-256; `streamer token` makes one."""

    name: Name
    scopes: Annotated[tuple[Literal["view", "ask", "publish", "admin"], ...], Field(min_length=1)]
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class JwtConfig(Section):
    """Tokens that somebody else signs (JSON Web Tokens), accepted beside the daemon's own while they last."""

    key_file: Annotated[str, Field(min_length=1)]
    """The signer's public key as PEM, or the shared secret of HS256."""
    algorithm: Literal["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA", "HS256"] = "RS256"
    audience: Annotated[str, Field(min_length=1)]
    """What a token's `aud` must name."""
    issuer: Annotated[str, Field(min_length=1)] | None = None
    """What its `iss` must be; unset takes any."""
    scope_claim: Annotated[str, Field(min_length=1)] = "scope"
    """Where it names view, ask, publish or admin: words with spaces between, or a list."""


class ServerConfig(Section):
    """Where the one port is, and who may use it."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[Whole, Field(ge=0, le=65_535)] = 8765
    """0 takes any free port."""
    tokens: tuple[TokenConfig, ...] = ()
    """Bearer tokens; with none here, in `token_file` and in $STREAMER_TOKENS, whoever reaches the port may do everything."""
    token_file: Annotated[str, Field(min_length=1)] | None = None
    """One token a line: NAME SCOPES TOKEN, where TOKEN may be sha256:HEX."""
    jwt: JwtConfig | None = None
    certificate: Annotated[str, Field(min_length=1)] | None = None
    """TLS: a PEM file with the certificate and its chain."""
    key: Annotated[str, Field(min_length=1)] | None = None
    """TLS: a PEM file with the certificate's key."""
    origins: tuple[Annotated[str, Field(pattern=r"^https?://[^/]+$")], ...] = ()
    """Pages of other origins that may speak to the daemon, such as https://cam.example."""
    proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed; of others they are not."""
    root_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    """The prefix below which a reverse proxy shows the daemon, such as /cam, whether or not it takes that off."""
    public_url: Annotated[str, AfterValidator(_public_url)] | None = None
    """Where others reach the daemon, such as https://home.example/cam, which links in events begin with. Unset is the address that it
    listens at; where that is all of this machine's, or a proxy is in front, links are paths."""
    media_domains: tuple[Name, ...] = ()
    """Hosts that pictures and videos named in a request may be fetched from."""
    private_sources: bool = False
    """Clients on other machines may attach this machine's files and devices and cameras at private addresses."""
    insecure: Annotated[Whole, Field(ge=0, le=2)] = 0
    """2 allows an address that others reach without tokens or without TLS."""
    max_message_bytes: Annotated[Whole, Field(ge=1_024, le=64 * 2**20)] = 16 * 2**20
    """Of one message of a websocket: a JPEG of 12 megapixels, in base64, fits."""

    @model_validator(mode="after")
    def _reachable(self) -> ServerConfig:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: name both files or neither")
        if self.public_url and not self.public_url.endswith(self.root_path):
            raise ValueError(
                f"public_url {self.public_url} does not end with root_path {self.root_path}: write {self.public_url}{self.root_path}"
            )
        return self


class IceServerConfig(Section):
    """A STUN or TURN server."""

    urls: Annotated[tuple[Annotated[str, Field(pattern=r"^(stun|turn)s?:.+$")], ...], Field(min_length=1)]
    """Such as stun:host:3478 or turn:host:3478?transport=udp."""
    username: str | None = None
    credential: str | None = Field(default=None, repr=False)


class WebRtcConfig(Section):
    """How publishers over WebRTC are reached."""

    ice_servers: tuple[IceServerConfig, ...] = ()


class AttentionConfig(Section):
    """Another attention than the model's own: key j is seen by query i if j < sinks or i - j < window."""

    sinks: Annotated[Whole, Field(ge=0)]
    window: Annotated[Whole, Field(ge=1)] | None
    """null is full attention, to the last `context` tokens."""
    context: Annotated[Whole, Field(ge=1_024, le=262_144)] = 32_768


class ModelConfig(Section):
    """Which model, where it runs, and how far back its positions may show."""

    name: Annotated[str, Field(min_length=1)] = "nano"
    """A preset (`nano`, `4b`), a Hugging Face folder or a repository's name."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "fp8", "int8"] = "float32"
    """`fp8` (on cuda) keeps bfloat16 and takes the big products in fp8; `int8` (on cpu) keeps float32 and takes the products in
    int8 that this machine is faster at so."""
    random_weights: bool = False
    """For measurements: a preset with seeded random weights, whose answers mean nothing."""
    frames_per_step: Literal[1, 2] | None = None
    """2 pairs frames as video does, for half the tokens a second; unset keeps the model's own."""
    picture_tokens: Annotated[Whole, Field(ge=4, le=768)] | None = None
    """Tokens of a picture at most, which its size follows; unset keeps the model's own, or what a CPU has time for."""
    attention: AttentionConfig | None = None
    position_horizon: Annotated[Number, Field(gt=0)] | None = None
    """Seconds of age that a stream shows on the rotary axes; unset keeps the model's own."""
    threads: Annotated[Whole, Field(ge=1, le=256)] | None = None
    """CPU threads of the model; unset chooses half the machine's processors, every core for one of a step a second (Qwen3.5), and 1
    beside a GPU. Where they leave a processor, its vision tower has as many more."""

    @model_validator(mode="after")
    def _reachable(self) -> ModelConfig:
        if self.dtype == "fp8" and self.device != "cuda":
            raise ValueError(f"dtype fp8 needs device cuda, not {self.device}: choose float32, bfloat16 or int8")
        if self.dtype == "int8" and self.device != "cpu":
            raise ValueError(f"dtype int8 needs device cpu, not {self.device}: choose bfloat16 or fp8")
        return self


class StreamConfig(Section):
    """One camera: where its frames come from and what is expected of them."""

    name: Name
    source: Annotated[str, Field(min_length=1)]
    fps: Annotated[PerSecond, Field(le=240)] | None = None
    """At most this many frames a second are seen; unset is all of them, and of a still's URL one a second."""
    policy: Literal["newest", "every"] = "newest"
    """`newest` drops what the device has no time for; `every` makes the source wait (recordings)."""
    loop: bool = False
    realtime: bool = True
    """Play a file at its own pace; false, as fast as the device takes it (with policy `every`)."""
    start: Annotated[Number, Field(ge=0)] = 0.0
    """Seconds into a file."""
    change: Annotated[Number, Field(gt=0, le=255)] | None = None
    """Frames that differ from the last seen one by less than this (levels of 255 in the most changed part) are left out."""
    change_floor: PerSecond = 1.0
    """So many frames a second are seen even where nothing changes."""
    transport: Literal["tcp", "udp"] = "tcp"
    hwaccel: Literal["auto", "cuda", "none"] = "none"
    """Hardware that decodes; where it can't, the CPU does."""
    public_only: bool = False
    """Reach public addresses alone, whatever redirects and playlists name; what clients on other machines attach always does."""
    camera_size: tuple[Annotated[Whole, Field(ge=16)], Annotated[Whole, Field(ge=16)]] | None = None
    """Width and height asked of a local camera."""
    camera_rate: PerSecond | None = None
    pixel_format: Annotated[str, Field(min_length=1)] | None = None
    """Asked of a local camera: FFmpeg's name (`mjpeg`) for v4l2://, a FourCC (`MJPG`) for camera://."""
    open_timeout: Seconds = 10.0
    stall_after: Seconds = 5.0
    """Seconds without a frame before the stream counts as stalled."""
    deadline: Annotated[Seconds, Field(ge=0.02, le=10)] = 0.2
    """A frame is fresh if it is in the state this many seconds after its capture."""
    priority: Annotated[Whole, Field(ge=1, le=100)] = 1
    """When the device is short, a stream of priority 2 keeps twice the frame rate of one of 1."""
    keep: Literal["everything", "nothing"] = "everything"
    """`nothing` leaves no trace of the stream in storage."""
    memory_of: Name | None = None
    """The stream, by the name that it had, whose memory this one goes on with though its name or source is another now."""
    record: bool = False
    """Keep what the camera sends, within storage.recordings and storage.recording_hours."""
    audio: bool = False
    """Keep its sound with what is recorded, where it comes in a form that MP4 holds (AAC, MP3, Opus); of WebRTC none is."""
    keep_questions: bool = False
    """Keep what is asked about the stream, and what is answered, in its timeline."""
    notes: NotesConfig | None = None
    """Have the model note what happens; `{}` takes all as it stands here."""

    @model_validator(mode="after")
    def _reachable(self) -> StreamConfig:
        if not self.realtime and self.policy == "newest":
            raise ValueError("realtime false with policy newest would drop most of a file: set policy to every")
        kept = [key for key in ("record", "keep_questions", "notes") if getattr(self, key)]
        if kept and self.keep == "nothing":
            raise ValueError(f"{kept[0]} with keep nothing would leave a trace of it: leave out one of them")
        if self.audio and not self.record:
            raise ValueError("audio true without record true keeps nothing: set record to true, too")
        return self


class AnswersConfig(Section):
    """How answers are spoken unless a question says otherwise, and how fast."""

    max_tokens: Annotated[Whole, Field(ge=1, le=32_768)] = 256
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    """0 always takes the likeliest token; unset, as the three below, is as the model's card recommends (the nano: 0)."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    floor_tokens_per_second: PerSecond = 4.0
    """An open answer keeps at least this speed when frames want the whole device."""
    ceiling_tokens_per_second: PerSecond = 30.0
    """No answer is spoken faster: what is saved stays idle, or goes to frames."""

    @model_validator(mode="after")
    def _reachable(self) -> AnswersConfig:
        if self.floor_tokens_per_second > self.ceiling_tokens_per_second:
            raise ValueError(
                f"floor_tokens_per_second {self.floor_tokens_per_second:g} is above ceiling_tokens_per_second "
                f"{self.ceiling_tokens_per_second:g}: lower the one or raise the other"
            )
        return self


class LimitsConfig(Section):
    """How much the daemon takes on; what does not fit is refused by name."""

    admission: Literal["slots", "measured"] = "slots"
    """`slots` takes every stream that finds a slot and lowers frame rates where the device is short; `measured` refuses a
    stream whose frames the device, by its measured step costs, has no time for."""
    streams: Annotated[Whole, Field(ge=1, le=1_024)] = 8
    answers: Annotated[Whole, Field(ge=1, le=1_024)] = 8
    """Answers that are spoken at once; each takes a slot of the model's memory."""
    readers: Annotated[Whole, Field(ge=0, le=256)] | None = None
    """Processes beside the daemon that read and decode sources; 0 is none, unset as many as streams and cores make worth it."""
    waiting_questions: Annotated[Whole, Field(ge=0, le=10_000)] = 32
    visitor_connections: Annotated[Whole, Field(ge=1, le=100_000)] = 64
    """Websockets of one token, or of one address where there are no tokens; so are the next two."""
    visitor_answers: Annotated[Whole, Field(ge=1, le=1_024)] = 8
    visitor_questions_per_minute: Annotated[Whole, Field(ge=1, le=1_000_000)] = 600
    question_tokens: Annotated[Whole, Field(ge=16, le=32_768)] = 1_024
    answer_tokens: Annotated[Whole, Field(ge=1, le=32_768)] = 1_024
    thinking_tokens: Annotated[Whole, Field(ge=0, le=32_768)] = 4_096
    """Tokens that a model may think before an answer, at most."""


class Config(Section):
    """The whole daemon."""

    server: ServerConfig = ServerConfig()
    model: ModelConfig = ModelConfig()
    streams: tuple[StreamConfig, ...] = ()
    answers: AnswersConfig = AnswersConfig()
    limits: LimitsConfig = LimitsConfig()
    webrtc: WebRtcConfig = WebRtcConfig()
    storage: StorageConfig = StorageConfig()
    outputs: OutputsConfig = OutputsConfig()
    watches: tuple[WatchConfig, ...] = ()

    @model_validator(mode="after")
    def _watched(self) -> Config:
        streams, outputs = ([each.name for each in some] for some in (self.streams, self.outputs.all))
        check_names(self.watches, streams, outputs)
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Config:
        names = [stream.name for stream in self.streams]
        if twice := _named_twice(names):
            raise ValueError(twice)
        if len(names) > self.limits.streams:
            raise ValueError(
                f"streams has {len(names)} entries, limits.streams allows {self.limits.streams}: raise it "
                "or remove some"
            )
        if self.answers.max_tokens > self.limits.answer_tokens:
            raise ValueError(
                f"answers.max_tokens {self.answers.max_tokens} is above limits.answer_tokens "
                f"{self.limits.answer_tokens}: lower the one or raise the other"
            )
        return self


def parse_config(data: Mapping[str, Any], origin: str = "configuration") -> Config:
    """A checked configuration from plain data. Raises ConfigError."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        told = problems(error, Config)
        twice = _named_twice(_names(data))  # which pydantic looks at only where each stream is right by itself
        raise ConfigError([*told, twice] if twice and twice not in told else told, origin) from None


def _names(data: object) -> list[str]:
    """How streams are named in what may be wrong otherwise."""
    streams = data.get("streams") if isinstance(data, Mapping) else None
    names = [each.get("name") for each in streams if isinstance(each, Mapping)] if isinstance(streams, list) else []
    return [name for name in names if isinstance(name, str) and re.fullmatch(NAME, name)]


def _named_twice(names: Sequence[str]) -> str:
    """What is wrong with these names of streams together; "" where nothing is."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    return f"streams has {', '.join(twice)} more than once: give every stream a name of its own" if twice else ""


def load_config(path: str | Path) -> Config:
    """Reads and checks a YAML file. Raises ConfigError, for a file that cannot be read too."""
    return parse_config(read_config(path), str(path))


def read_config(path: str | Path) -> dict[str, Any]:
    """A YAML file's keys and values, unchecked. Raises ConfigError for what has none."""
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError([f"cannot be read ({error.strerror}): name an existing YAML file"], str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError(["is not text: name a YAML file in UTF-8"], str(path)) from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError([f"{line}is not YAML ({problem})"], str(path)) from None
    except RecursionError:
        raise ConfigError(["is nested too deeply: start with 'streams:'"], str(path)) from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError([f"holds a {type(data).__name__}, not keys and values: start with 'streams:'"], str(path))
    return data
