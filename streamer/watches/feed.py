"""Who hears of events: each listener in order, with a bounded queue that says what it had no room for. On the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from streamer.watches.event import WatchEvent

log = logging.getLogger("streamer")
WAITING = 256
"""Events that may wait for one listener; of more, the oldest go, and are counted."""


class Listener:
    """An async iterator of events. `missed` are those that went unheard since it was last set to 0: ask for them by their ids."""

    def __init__(self, closed: Callable[[Listener], None]) -> None:
        self.missed = 0
        self._closed, self._open = closed, True
        self._waiting: deque[WatchEvent] = deque()
        self._news = asyncio.Event()

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> WatchEvent:
        while not self._waiting:
            if not self._open:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    def put(self, event: WatchEvent) -> None:
        """An event was told."""
        if len(self._waiting) >= WAITING:
            self._waiting.popleft()
            self.missed += 1
        self._waiting.append(event)
        self._news.set()

    def close(self) -> None:
        """Ends the iteration after what waits."""
        if self._open:
            self._open = False
            self._closed(self)
            self._news.set()


class Feed:
    """Tells every event once to whoever listens."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self.callbacks: list[Callable[[WatchEvent], object]] = []
        """Called on the event loop with each event, in order; they must not block, and what they raise is logged."""

    def listen(self) -> Listener:
        """Hears what is told from now on. Close it after use."""
        listener = Listener(self._listeners.discard)
        self._listeners.add(listener)
        return listener

    def publish(self, event: WatchEvent) -> None:
        """Something is to be told."""
        for listener in self._listeners:
            listener.put(event)
        for callback in tuple(self.callbacks):
            try:
                callback(event)
            except Exception:
                log.exception("a callback failed on %s of %s", event.type, event.watch)

    def close(self) -> None:
        """Ends every listener."""
        for listener in tuple(self._listeners):
            listener.close()
