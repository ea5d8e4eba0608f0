"""The newest events, for whoever reads along: a row of bounded length, in which each reader has a place of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

KEPT = 1_000
"""Events that are kept for those who come back."""
AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """An event as it is told: its id, type, watch and stream, and its JSON."""

    id: str
    type: str
    watch: str
    stream: str
    body: bytes


class Feed:
    """Events of every watch, the newest KEPT. Lives on one event loop."""

    def __init__(self) -> None:
        self.kept: deque[FeedEvent] = deque()
        self.put_in_all = 0
        self.gone: str | None = None
        """Id of the newest event that is kept no more; None where it is not known, as the process began meanwhile."""
        self._news = asyncio.Event()

    def begin(self, told: Sequence[FeedEvent]) -> None:
        """The newest KEPT events that were told before the process began, or all of them where they were fewer."""
        self.kept.extend(told)
        self.put_in_all += len(told)
        self.gone = told[0].id if len(told) >= KEPT else ""

    def put(self, event: FeedEvent) -> None:
        """An event has happened."""
        self.kept.append(event)
        self.put_in_all += 1
        if len(self.kept) > KEPT:
            self.gone = self.kept.popleft().id
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def wait(self, seconds: float) -> None:
        """Returns at the next event, or after so many seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)


class Reader:
    """One reader's place in the feed: nothing waits for it, and where it is too slow `missed` is True."""

    def __init__(self, feed: Feed, last: str | None = None) -> None:
        """Reads what comes from now on, or what came after the event `last`: ids sort as events were told."""
        self._feed = feed
        self._place = feed.put_in_all
        self.missed = False
        if last is not None:
            self._place -= sum(event.id > last for event in feed.kept)
            known = any(event.id == last for event in feed.kept)
            self.missed = not known and (feed.gone is None or last < feed.gone)

    def read(self) -> list[FeedEvent]:
        """The next events, in order, a few at a time; none where none waits."""
        feed = self._feed
        first = feed.put_in_all - len(feed.kept)
        if self._place < first:
            self.missed, self._place = True, first
        found = list(islice(feed.kept, self._place - first, self._place - first + AT_ONCE))
        self._place += len(found)
        return found
