"""What a configuration says of outputs: where events go, how they are proven, and what is kept of those that can't go yet."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from streamer.fields import Name, Number, Seconds, Section, Whole

LONGEST_ADDRESS = 2_048
"""Characters of a webhook's address."""
Secret = Annotated[str, Field(min_length=8)]
Text = Annotated[str, Field(min_length=1)]


def _web_address(value: str) -> str:
    import httpx  # here, as few have a webhook, and it takes long to import

    if len(value) > LONGEST_ADDRESS:
        raise ValueError(f"has {len(value)} characters: {LONGEST_ADDRESS} are the most")
    try:
        httpx.URL(value)  # which is stricter of names, and must take it later
        parts = urlsplit(value)
        whole = parts.scheme in ("http", "https") and parts.hostname and not parts.fragment and (parts.port or 1)
    except (ValueError, httpx.InvalidURL):
        whole = False
    if not whole or not value.isprintable() or " " in value:
        raise ValueError("is no address of a web server: write https://host/path")
    return value


def _topic(value: str) -> str:
    if value.startswith("/") or value.endswith("/") or not value.isprintable() or set(value) & set("+#$ "):
        raise ValueError("is no beginning of topics: write words with / between them, without +, # and $")
    return value


class OutputConfig(Section):
    """What all outputs have in common."""

    name: Name
    keep_events: Annotated[Whole, Field(ge=1, le=100_000)] = 10_000
    """Events that wait at most while they can't be delivered; of more, the oldest are thrown away, and counted."""
    keep_hours: Annotated[Number, Field(gt=0, le=8_760)] = 168.0
    """Hours after which one that could not be delivered is thrown away."""


class WebhookConfig(OutputConfig):
    """Events as JSON by HTTP POST; an answer of 2xx is a delivery, whatever else is tried again."""

    url: Annotated[str, AfterValidator(_web_address)]
    secret: Secret | None = Field(default=None, repr=False)
    """Signs each delivery: X-Streamer-Signature is sha256= and the HMAC of X-Streamer-Timestamp, a full stop and the body."""
    timeout: Annotated[Seconds, Field(le=300)] = 10.0
    """Seconds within which it must have answered."""
    public_only: bool = False
    """Reach public addresses alone; what clients on other machines add always does."""


class MqttConfig(OutputConfig):
    """A broker, of version 3.1.1 or 5."""

    host: Text
    port: Annotated[Whole, Field(ge=1, le=65_535)] | None = None
    """Unset is 1883, and 8883 with TLS."""
    version: Literal["3.1.1", "5"] = "3.1.1"
    """Of 5 a broker says why it takes something not; of 3.1.1 it may confirm what its rules have it throw away."""
    tls: bool = False
    ca_file: Text | None = None
    """The broker's authority as PEM; unset trusts those that this machine does."""
    username: Text | None = None
    password: str | None = Field(default=None, repr=False)
    topic: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_topic)] = "streamer"
    """What every topic begins with; daemons that share a broker need one each."""
    discovery: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_topic)] | None = None
    """Home Assistant's prefix, which is `homeassistant` unless it was told otherwise; unset announces nothing to it."""
    stills: bool = False
    """Publish the picture that decided an event, for as long as the broker retains it."""
    commands: bool = False
    """Let whoever may publish at the broker snooze a watch."""

    @model_validator(mode="after")
    def _reachable(self) -> MqttConfig:
        if self.password is not None and self.username is None:
            raise ValueError("password without username: a broker asks for both")
        if self.ca_file is not None and not self.tls:
            raise ValueError("ca_file without tls: set tls to true")
        return self


class CommandConfig(OutputConfig):
    """A program that is run for each event, which it is given as JSON on its standard input; it must end with 0."""

    command: Annotated[tuple[Text, ...], Field(min_length=1)]
    """The program and its arguments, as a list: no shell reads them."""
    timeout: Annotated[Seconds, Field(le=300)] = 10.0
    """Seconds after which it is killed, and tried again."""


class OutputsConfig(Section):
    """Where events go, beside those who listen on the wire."""

    webhooks: tuple[WebhookConfig, ...] = ()
    mqtt: tuple[MqttConfig, ...] = ()
    commands: tuple[CommandConfig, ...] = ()

    @property
    def all(self) -> tuple[OutputConfig, ...]:
        """Every output."""
        return (*self.webhooks, *self.mqtt, *self.commands)

    @model_validator(mode="after")
    def _reachable(self) -> OutputsConfig:
        names = [output.name for output in self.all]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is there more than once: give every output a name of its own")
        topics = [(each.host, each.port, each.topic) for each in self.mqtt]
        if len(set(topics)) < len(topics):
            raise ValueError("two of mqtt have the same broker and topic: give each a topic of its own")
        return self
