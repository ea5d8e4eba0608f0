"""Which watches are looked at next, and for what: on the scheduler's clock, within the time that it says is to spare.

A look is due where its stream has shown something since the last one and `every` seconds have passed. The one that has been
due for longest goes first, with all of its stream that are nearly due; so where time is short all slow down to one rate, the
fastest first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from streamer.engine.costs import Costs
from streamer.engine.decisions import Look

FLOOR = 2.0
"""Seconds between two looks of a watch that it keeps when answers want all the time there is."""
TOGETHER = 0.25
"""The share of its own `every` by which a look may come early to share a step with others of its stream."""


@dataclass
class _Watched:
    every: float
    due: float
    looked: float
    news: int = 0
    """Of its stream, when it was looked at last."""


class Looks:
    """Watches by their streams."""

    def __init__(self) -> None:
        self.costs = Costs()
        """Of a look, by how many watches it serves."""
        self._watched: dict[str, dict[str, _Watched]] = {}
        self._news: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return any(self._watched.values())

    def add(self, stream: str, watch: str, every: float, now: float) -> None:
        """A watch wants to be looked at every so many seconds."""
        self._watched.setdefault(stream, {})[watch] = _Watched(every, now, now)

    def remove(self, stream: str, watch: str) -> None:
        self._watched.get(stream, {}).pop(watch, None)

    def forget(self, stream: str) -> None:
        """The stream is gone, and what watched it."""
        self._watched.pop(stream, None)
        self._news.pop(stream, None)

    def seen(self, stream: str) -> None:
        """A frame more is in the stream's state."""
        self._news[stream] += 1

    def load(self, most: int, more: int = 0, every: float = 1.0) -> float:
        """The share of the device's time that all looks want, `most` at a time, and `more` beside them."""
        looks = [1 / each.every for watched in self._watched.values() for each in watched.values()]
        looks += [1 / every] * more
        return sum(looks) * self.costs.cheapest_each(most) if looks and most else 0.0

    def next(self, now: float, spare: float, most: int, *, owed_by: float | None = None) -> Look | None:
        """The next look, which takes no longer than `spare` seconds and `most` watches.

        With `owed_by`, of those alone whose floor promises them one until then, however long it takes.
        """
        if owed_by is None and self.costs.worst(1) >= spare:
            return None
        ready = [
            (each.due, stream)
            for stream, watched in self._watched.items()
            for each in watched.values()
            if self._ready(stream, each, now) and (owed_by is None or self._owed(each) <= owed_by)
        ]
        if not ready or most < 1:
            return None
        stream = min(ready)[1]
        found = [
            (each.due, name)
            for name, each in self._watched[stream].items()
            if self._ready(stream, each, now + TOGETHER * each.every)
        ]
        while owed_by is None and most > 1 and self.costs.worst(min(most, len(found))) >= spare:
            most -= 1
        chosen = tuple(name for _, name in sorted(found)[:most])
        for name in chosen:
            each = self._watched[stream][name]
            each.due, each.looked, each.news = max(each.due + each.every, now), now, self._news[stream]
        return Look(stream, chosen)

    def wake(self, now: float) -> float:
        """When time alone makes a look due."""
        times = (
            each.due if each.due > now else self._owed(each)
            for stream, watched in self._watched.items()
            for each in watched.values()
            if self._news[stream] > each.news
        )
        return min(times, default=float("inf"))

    def _ready(self, stream: str, each: _Watched, now: float) -> bool:
        return each.due <= now and self._news[stream] > each.news

    @staticmethod
    def _owed(each: _Watched) -> float:
        return each.looked + max(FLOOR, each.every)
