"""A fleet's configuration: its head's doors, its engines, and the streams and watches that they share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from streamer.cluster.placement import LEASE
from streamer.cluster.room import Labels, Wish
from streamer.config import (
    USUAL_RATE,
    AnswersConfig,
    Config,
    ConfigError,
    LimitsConfig,
    ModelConfig,
    ServerConfig,
    StreamConfig,
    WebRtcConfig,
    read_config,
)
from streamer.fields import Name, Number, Section, Whole
from streamer.output_config import OutputsConfig
from streamer.problems import problems
from streamer.watch_config import WatchConfig, check_names

SHORTEST_SECRET = 32
REDIS = ("redis://", "rediss://")
Label = Annotated[str, Field(min_length=1, max_length=64)]


class EnginesConfig(Section):
    """Engines of one kind: NAME-0, NAME-1 and so on, each an assistant of its own."""

    name: Name
    count: Annotated[Whole, Field(ge=1, le=10_000)] = 1
    gpus: Annotated[Number, Field(ge=0, le=64)] = 0.0
    """GPUs that Ray keeps for each; a half lets two share one."""
    cpus: Annotated[Number, Field(ge=0, le=256)] = 1.0
    labels: dict[Label, Label] = Field(default_factory=dict)
    """Such as {site: north}; Ray places them on nodes that have a custom resource KEY:VALUE for each."""
    model: ModelConfig | None = None
    """Another than `engine.model`, with the same weights: another device or dtype."""


class RayConfig(Section):
    """The Ray cluster that engines are actors of."""

    address: Annotated[str, Field(min_length=1)] = "auto"
    """`auto` is the one that `ray start` began here; `local` begins one for as long as the head runs."""


class EngineConfig(Section):
    """What every engine is like: sections of a daemon's configuration."""

    model: ModelConfig = ModelConfig()
    answers: AnswersConfig = AnswersConfig()
    limits: LimitsConfig = LimitsConfig()
    webrtc: WebRtcConfig = WebRtcConfig()
    outputs: OutputsConfig = OutputsConfig()
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address that engines listen at, as the head reaches them; `node` is that by which Ray knows their machine."""


class RuleConfig(Section):
    """Where some streams are to be watched."""

    streams: Annotated[tuple[Name, ...], Field(min_length=1)]
    engine: Name | None = None
    labels: dict[Label, Label] = Field(default_factory=dict)


class FleetConfig(Section):
    """The whole fleet."""

    server: ServerConfig = ServerConfig()
    secret_file: Annotated[str, Field(min_length=1)]
    """A file with at least 32 characters that nobody else knows, the same on every machine: `openssl rand -hex 32`."""
    folder: Annotated[str, Field(min_length=1)]
    """Shared by all machines: engines leave snapshots there for one another. A path, or what fsspec reaches, as s3://bucket/streamer."""
    table: Annotated[str, Field(min_length=1)] | None = None
    """The head's own file, or redis://…; unset is `fleet.sqlite` in `folder`."""
    ray: RayConfig | None = None
    """Unset, engines are processes of this machine."""
    lease: Annotated[Number, Field(ge=1, le=60)] = LEASE
    """Seconds that an engine may go on without being heard of."""
    engines: Annotated[tuple[EnginesConfig, ...], Field(min_length=1)]
    engine: EngineConfig = EngineConfig()
    streams: tuple[StreamConfig, ...] = ()
    watches: tuple[WatchConfig, ...] = ()
    rules: tuple[RuleConfig, ...] = ()

    @model_validator(mode="after")
    def _reachable(self) -> FleetConfig:
        for what, names in (
            ("streams", [each.name for each in self.streams]),
            ("engines", [each.name for each in self.engines]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} has {', '.join(twice)} more than once: give each a name of its own")
        check_names(self.watches, [each.name for each in self.streams], [each.name for each in self.engine.outputs.all])
        if "://" in self.folder and self.table is None:
            raise ValueError(f"table: name a file of the head's or redis://…, as none can lie in {self.folder}")
        for rule in self.rules:
            if rule.engine is not None and rule.engine not in self.names:
                raise ValueError(f"rules: there is no engine {rule.engine!r}; there are: {', '.join(self.names)}")
            for key, value in rule.labels.items():
                if not any(each.labels.get(key) == value for each in self.engines):
                    raise ValueError(f"rules: no engine has the label {key}: {value}; give it to one of engines")
        return self

    @property
    def names(self) -> dict[str, EnginesConfig]:
        """Every engine's name, with what it is like."""
        return {f"{each.name}-{number}": each for each in self.engines for number in range(each.count)}

    def secret(self) -> bytes:
        """Raises ConfigError."""
        try:
            found = Path(self.secret_file).expanduser().read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                [
                    f"secret_file: {self.secret_file} can't be read ({error.strerror}): openssl rand -hex 32 > {self.secret_file}"
                ]
            ) from None
        if len(found) < SHORTEST_SECRET:
            raise ConfigError(
                [f"secret_file: {self.secret_file} has {len(found)} characters, {SHORTEST_SECRET} are needed"]
            )
        return found

    def wish(self, stream: StreamConfig, watches: Iterable[WatchConfig]) -> Wish:
        """What a stream asks of whichever engine has it; answers are counted in as half of one at its slowest."""
        looks = sum(1 / watch.every for watch in watches if stream.name in watch.streams)
        engine: str | None = None
        labels: Labels = frozenset()
        for rule in self.rules:
            if stream.name in rule.streams:
                engine, labels = rule.engine or engine, labels | frozenset(rule.labels.items())
        fps = min(USUAL_RATE, stream.fps or USUAL_RATE)
        return Wish(
            stream.name, fps, looks, self.engine.answers.floor_tokens_per_second / 2, stream.priority, engine, labels
        )

    def daemon(self, name: str, audience: str, folder: Path) -> Config:
        """The configuration of one engine's daemon."""
        kind = self.names[name]
        some = self.engine.model_dump(mode="json", exclude_unset=True, exclude={"host"})
        if kind.model is not None:
            some["model"] = kind.model.model_dump(mode="json", exclude_unset=True)
        jwt = {"key_file": self.secret_file, "algorithm": "HS256", "audience": audience}
        server = {"host": self.engine.host, "port": 0, "jwt": jwt, "insecure": 2, "private_sources": True}
        server |= {"root_path": self.server.root_path, "public_url": self.server.public_url}
        storage = {"folder": str(folder)}
        return Config.model_validate({**some, "server": server, "storage": storage})


def parse_fleet(data: dict[str, Any], origin: str) -> FleetConfig:
    """A checked configuration from plain data. Raises ConfigError."""
    try:
        return FleetConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(problems(error, FleetConfig), origin) from None


def load_fleet(path: str | Path) -> FleetConfig:
    """Reads and checks a YAML file. Raises ConfigError."""
    return parse_fleet(read_config(path), str(path))
