"""News of streams for those who listen, bounded: a slow listener gets fewer, fuller events."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from capture import SourceStatus

log = logging.getLogger("streamer")


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


class News:
    """Tells whoever subscribed what happens to streams. `changed` and `reset` may be called from any thread."""

    def __init__(self) -> None:
        self.subscriptions: set[Subscription] = set()
        self.heard: Callable[[StreamEvent], None] | None = None
        """Is told of every event, unmerged."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told: dict[str, Counter[str]] = {}

    def begin(self) -> None:
        """From now on, what happens is told on the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Ends every subscription."""
        for subscription in list(self.subscriptions):
            subscription.close()

    def subscribe(self, stream: str | None, now: Mapping[str, SourceStatus]) -> Subscription:
        """News of one stream, or of all; first each one's status `now`."""
        subscription = Subscription(stream, self.subscriptions.discard)
        self.subscriptions.add(subscription)
        for name, status in now.items():
            subscription.put(StreamEvent("stream.status", name, _facts(status)))
        return subscription

    def changed(self, stream: str, status: SourceStatus) -> None:
        """A stream's source has come into another state."""
        state = "frozen" if status.frozen else str(status.state)
        reason = f" ({status.reason})" if status.reason else ""
        log.info("stream %s is %s%s", stream, state, reason)
        self._post(StreamEvent("stream.status", stream, _facts(status)))

    def reset(self, stream: str, reason: str) -> None:
        """A stream lost its memory."""
        self._post(StreamEvent("stream.reset", stream, {"reason": reason, "resets": 1}))

    def dropped(self, stream: str, drops: Counter[str]) -> None:
        """So many frames were dropped in all; what is new of it is told."""
        drops = Counter(drops)
        new = drops - self._told.get(stream, Counter())
        if new:
            self._told[stream] = drops
            facts = {"dropped": dict(new), "dropped_in_all": sum(drops.values())}
            self.publish(StreamEvent("stream.dropped", stream, facts))

    def forget(self, stream: str) -> None:
        """A stream is gone: one of that name begins anew."""
        self._told.pop(stream, None)

    def publish(self, event: StreamEvent) -> None:
        """Something has happened; called on the event loop."""
        if self.heard is not None:
            self.heard(event)
        for subscription in self.subscriptions:
            subscription.put(event)

    def _post(self, event: StreamEvent) -> None:
        """Publishes from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self.publish, event)


def _facts(status: SourceStatus) -> dict[str, Any]:
    return {
        "state": str(status.state),
        "reason": status.reason,
        "frozen": status.frozen,
        "reconnects": status.reconnects,
    }
