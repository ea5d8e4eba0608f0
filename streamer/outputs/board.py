"""What is to stand at a broker: availability, states and stills by topic, and what tells Home Assistant of them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from streamer.output_config import MqttConfig

ONLINE, OFFLINE = b"online", b"offline"
SNOOZE_SECONDS = 600
"""What Home Assistant's button asks for."""
STATE_CHARACTERS = 255
"""Of a state at most, as Home Assistant takes no more."""
Value = bool | str | float | Mapping[str, Any] | None


class Board:
    """The retained messages that there are to be, and which of them the broker has not been told yet."""

    def __init__(self, config: MqttConfig) -> None:
        self._config = config
        self.node = _identifier(config.topic)
        self.status = f"{config.topic}/status"
        self.known = False
        """Whether the watches are known: before, nothing is said of them, and nothing taken back."""
        self._wanted: dict[str, bytes] = {}
        self._untold: dict[str, None] = {}
        self._stills: frozenset[str] = frozenset()

    # Topics

    def event(self, watch: str, stream: str) -> str:
        """Where a watch's events are told."""
        return f"{self._config.topic}/watch/{watch}/{stream}/event"

    def state(self, watch: str, stream: str) -> str:
        """Where a watch's state stands."""
        return f"{self._config.topic}/watch/{watch}/{stream}/state"

    def still(self, stream: str) -> str:
        """Where the picture stands that decided a stream's last event."""
        return f"{self._config.topic}/stream/{stream}/still"

    def snooze(self, watch: str) -> str:
        """Where a watch is told to be silent for so many seconds."""
        return f"{self._config.topic}/watch/{watch}/snooze"

    @property
    def retained(self) -> list[str]:
        """Filters of all topics under which this daemon may have left something."""
        own = [self.state("+", "+"), self.still("+")]
        discovery = self._config.discovery
        return own if discovery is None else [*own, f"{discovery}/+/{self.node}/+/config"]

    def snoozed(self, topic: str) -> str | None:
        """The watch that a command's topic names."""
        begin, end = self.snooze("\n").split("\n")
        return topic.removeprefix(begin).removesuffix(end) if topic.startswith(begin) and topic.endswith(end) else None

    # What is to stand there

    def watches(self, watches: Iterable[Mapping[str, Any]]) -> None:
        """All watches that there are; what was of others is taken back."""
        wanted: dict[str, bytes] = {}
        streams: dict[str, None] = {}
        for watch in watches:
            name = watch["name"]
            for stream in watch["streams"]:
                streams[stream] = None
                topic, value = self.state(name, stream), watch.get("states", {}).get(stream)
                if value is not None:
                    wanted[topic] = _payload(value)
                elif topic in self._wanted:
                    wanted[topic] = self._wanted[topic]
            wanted |= self._discovery(watch)
        for stream in streams:
            wanted |= self._camera(stream)
            if self.still(stream) in self._wanted:
                wanted[self.still(stream)] = self._wanted[self.still(stream)]
        stills = frozenset(map(self.still, streams)) if self._config.stills else frozenset()
        for topic in (self._wanted.keys() | self._stills - stills) - wanted.keys():
            self.put(topic, b"")
        self._stills = stills
        for topic, payload in wanted.items():
            self.put(topic, payload)
        self.known = True

    def happened(self, event: Mapping[str, Any]) -> None:
        """An event tells a state."""
        if event.get("about") is None:
            self.put(self.state(event["watch"], event["stream"]), _payload(event["after"]))

    def put(self, topic: str, payload: bytes) -> None:
        """This is to stand at a topic, or with an empty payload nothing."""
        if payload and self._wanted.get(topic) == payload:
            return
        if payload:
            self._wanted[topic] = payload
        else:
            self._wanted.pop(topic, None)
        self._untold[topic] = None

    # What the broker is told

    def forget_told(self) -> None:
        """The broker may know nothing any more: all of it is to be told."""
        self._untold = dict.fromkeys(self._wanted) | self._untold

    def found(self, topic: str) -> None:
        """Something stands at a topic from before; it is taken back unless something is to stand there.

        The last picture of a stream that is watched stays, though it was told before the process began.
        """
        if self.known and topic not in self._wanted and topic not in self._stills:
            self._untold[topic] = None

    def next(self) -> tuple[str, bytes] | None:
        """A topic, and what is to stand there, that the broker has not been told; then `told`."""
        topic = next(iter(self._untold), None)
        return None if topic is None else (topic, self._wanted.get(topic, b""))

    def shows(self, topic: str) -> bool:
        """Whether a picture stands at a topic."""
        return topic in self._stills

    def told(self, topic: str, payload: bytes) -> None:
        """The broker has it, unless it is another meanwhile."""
        if self._wanted.get(topic, b"") == payload:
            self._untold.pop(topic, None)

    # Home Assistant's discovery: one topic a component (its documentation, "MQTT discovery")

    def _discovery(self, watch: Mapping[str, Any]) -> dict[str, bytes]:
        out: dict[str, bytes] = {}
        name, words = watch["name"], watch["when"] == "changes"
        for stream in watch["streams"]:
            facts: dict[str, Any] = {
                "name": name if len(watch["streams"]) == 1 else f"{name} {stream}",
                "state_topic": self.state(name, stream),
                "json_attributes_topic": self.event(name, stream),
            }
            if not words:
                facts |= {"payload_on": "ON", "payload_off": "OFF"}
            elif (watch.get("format") or {}).get("type") in ("number", "integer"):
                facts |= {"state_class": "measurement"}
            out |= self._component("sensor" if words else "binary_sensor", f"{name} {stream}", facts)
        if self._config.commands:
            press = {"name": f"Snooze {name}", "command_topic": self.snooze(name), "payload_press": str(SNOOZE_SECONDS)}
            out |= self._component("button", f"{name} snooze", press)
        return out

    def _camera(self, stream: str) -> dict[str, bytes]:
        if not self._config.stills:
            return {}
        return self._component("camera", stream, {"name": stream, "topic": self.still(stream)})

    def _component(self, kind: str, what: str, facts: Mapping[str, Any]) -> dict[str, bytes]:
        if self._config.discovery is None:
            return {}
        id = _identifier(what)
        whole = {
            **facts,
            "unique_id": f"{self.node}_{kind}_{id}",
            "availability_topic": self.status,
            "device": {"identifiers": [self.node], "name": self._config.topic, "manufacturer": "streamer"},
            "origin": {"name": "streamer"},
        }
        return {f"{self._config.discovery}/{kind}/{self.node}/{id}/config": json.dumps(whole).encode()}


def _identifier(text: str) -> str:
    """Of letters, digits, _ and -, as Home Assistant takes them; another for every text."""
    return re.sub(r"[^A-Za-z0-9-]", lambda match: "_" if match[0] == " " else f"_{ord(match[0]):02x}_", text)


def _payload(value: Value) -> bytes:
    if isinstance(value, bool):
        return b"ON" if value else b"OFF"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:STATE_CHARACTERS].encode() or b" "
