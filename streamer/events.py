"""News of streams for those who listen, bounded: a slow listener gets fewer, fuller events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """`type` is stream.status, stream.dropped or stream.reset; `facts` are plain data whose names carry their units."""

    type: str
    stream: str
    facts: dict[str, Any] = field(default_factory=dict)


class Subscription:
    """An async iterator of events of one stream, or of all (`stream` None).

    At most one event of each type and stream waits: a newer status replaces an older one, drops add up (`dropped`, by
    reason), and resets are counted (`resets`).
    """

    def __init__(self, stream: str | None, closed: Callable[[Subscription], None]) -> None:
        self.stream = stream
        self._closed = closed
        self._open = True
        self._waiting: dict[tuple[str, str], StreamEvent] = {}
        self._news = asyncio.Event()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> StreamEvent:
        while not self._waiting:
            if not self._open:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.pop(next(iter(self._waiting)))

    def close(self) -> None:
        """Ends the iteration after what waits."""
        if self._open:
            self._open = False
            self._closed(self)
            self._news.set()

    def put(self, event: StreamEvent) -> None:
        """An event has happened; called on the event loop."""
        if self.stream in (None, event.stream):
            key = (event.type, event.stream)
            self._waiting[key] = _merged(self._waiting[key], event) if key in self._waiting else event
            self._news.set()


def _merged(old: StreamEvent, new: StreamEvent) -> StreamEvent:
    facts = dict(new.facts)
    if new.type == "stream.dropped":
        reasons = {*old.facts["dropped"], *new.facts["dropped"]}
        facts["dropped"] = {
            reason: old.facts["dropped"].get(reason, 0) + new.facts["dropped"].get(reason, 0)
            for reason in sorted(reasons)
        }
    if new.type == "stream.reset":
        facts["resets"] = old.facts["resets"] + new.facts["resets"]
    return StreamEvent(new.type, new.stream, facts)
