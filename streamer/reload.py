"""What a changed configuration asks of a daemon that runs. Pure: the assistant carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from streamer.config import Config, StreamConfig

FIXED = ("model", "storage")
"""Sections that need a start of the daemon."""
TERMS = {"priority", "deadline"}
"""Keys of a stream that can change while it keeps its memory."""


SERVER_FIXED = ("host", "port", "certificate", "key", "proxies", "root_path", "insecure", "max_message_bytes")
"""Keys of the server that are read once, at its start."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of one stream: `terms` keeps its memory, `restart` begins it again."""

    kind: Literal["remove", "add", "terms", "restart"]
    stream: StreamConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """`config` holds from now on, where what can't change live is as it was; `lines` say what was noticed, one each."""

    config: Config
    lines: list[str]
    changes: list[Change]


def plan(old: Config, new: Config, running: Mapping[str, StreamConfig]) -> Plan:
    """How to come from `old` to `new`, with the streams that run now.

    Streams that were attached by others than the configuration stay.
    """
    lines = [
        f"{section} changed: start the daemon again for it"
        for section in FIXED
        if getattr(new, section) != getattr(old, section)
    ]
    lines += [
        f"server.{name} changed: start the daemon again for it"
        for name in SERVER_FIXED
        if getattr(new.server, name) != getattr(old.server, name)
    ]
    server = new.server.model_copy(update={name: getattr(old.server, name) for name in SERVER_FIXED})
    fixed = {name: getattr(old.limits, name) for name in ("streams", "answers")}
    for name, value in fixed.items():
        if getattr(new.limits, name) != value:
            lines.append(f"limits.{name} changed: start the daemon again for it")
    config = new.model_copy(
        update={
            **{section: getattr(old, section) for section in FIXED},
            "server": server,
            "limits": new.limits.model_copy(update=fixed),
        }
    )
    if config.answers != old.answers or config.limits != old.limits:
        lines.append("answers and limits of questions are as configured now")
    wanted = {stream.name for stream in new.streams}
    gone = [stream for stream in old.streams if stream.name not in wanted and stream.name in running]
    changes = [Change("remove", stream) for stream in gone]
    for stream in new.streams:
        now = running.get(stream.name)
        if now is None:
            changes.append(Change("add", stream))
        elif now.model_dump(exclude=TERMS) != stream.model_dump(exclude=TERMS):
            changes.append(Change("restart", stream))
        elif now != stream:
            changes.append(Change("terms", stream))
    return Plan(config, lines, changes)
