"""What a realtime session decides, for its shell to carry out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from protocols.question import Question
from protocols.realtime.server_events import ServerEvent


@dataclass(frozen=True, slots=True)
class Send:
    """Send this event to the client."""

    told: ServerEvent

    @property
    def event(self) -> dict[str, Any]:
        """The event as the wire has it."""
        return self.told.wire()


@dataclass(frozen=True, slots=True)
class Ask:
    """Start an answer; tell `accepted`, then `delta`… and `finished`, or `refused`."""

    response: str
    question: Question


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this answer; `finished` with "cancelled" is still to be told."""

    response: str


@dataclass(frozen=True, slots=True)
class Listen:
    """From now on tell `news` of this stream (None: of none)."""

    stream: str | None


@dataclass(frozen=True, slots=True)
class Command:
    """A `stream.*` or `memory.*` request; tell `performed` or `failed`."""

    verb: Literal["list", "attach", "detach", "status", "frame", "memory", "memory_subscribe"]
    event_id: str | None = None
    stream: str | None = None
    source: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WatchCommand:
    """A `watch.*` request; tell `watched` or `failed`. `name` is a watch's or, for feedback, an event's id."""

    verb: Literal["subscribe", "list", "add", "update", "remove", "feedback"]
    event_id: str | None = None
    name: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Push:
    """A picture's file for a stream whose source is `push:`; tell `failed` where it can't be taken."""

    stream: str | None
    picture: bytes
    timestamp: float | None = None
    event_id: str | None = None


Decision = Send | Ask | Cancel | Listen | Command | WatchCommand | Push
