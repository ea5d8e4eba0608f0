"""Which snapshots are kept as they age, how many bytes each stream may take, and how often one is taken. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
AGES = ((MINUTE, 0.0), (2 * HOUR, MINUTE), (DAY, 10 * MINUTE), (float("inf"), HOUR))
"""Up to each age in seconds, one snapshot is kept in so many seconds; of the first minute, all are."""
LEAST = 2
"""Newest snapshots of a stream that stay whatever the budget: the last one, and one should it be damaged."""


class Dated(Protocol):
    """A snapshot's file: `wall` is Unix seconds, `size` bytes."""

    @property
    def wall(self) -> float: ...

    @property
    def size(self) -> int: ...


D = TypeVar("D", bound=Dated)


def too_many(kept: Sequence[D], now: float) -> list[D]:
    """Which of a stream's snapshots, in the order of their making, are more than their age needs: the first of each span stays."""
    out: list[D] = []
    seen: set[tuple[float, int]] = set()
    for each in kept[:-LEAST]:
        age = now - each.wall
        apart = next(apart for oldest, apart in AGES if age <= oldest)
        if not apart:
            continue
        span = (apart, int(each.wall // apart))
        if span in seen:
            out.append(each)
        seen.add(span)
    return out


def too_large(kept: Sequence[D], budget: int) -> list[D]:
    """Which of a stream's snapshots go for the others to fit into so many bytes: the oldest."""
    out: list[D] = []
    size = sum(each.size for each in kept)
    for each in kept[:-LEAST]:
        if size <= budget:
            break
        out.append(each)
        size -= each.size
    return out


def shares(wanted: Mapping[str, int], budget: int) -> dict[str, int]:
    """Bytes for each stream: what it wants where that fits, and otherwise as much as any other that wants more."""
    out: dict[str, int] = {}
    left = budget
    for number, (name, bytes_wanted) in enumerate(sorted(wanted.items(), key=lambda each: each[1])):
        out[name] = min(bytes_wanted, left // (len(wanted) - number))
        left -= out[name]
    return out


class Pace:
    """When each stream's next snapshot is due: every so many seconds, or as often as so many bytes a second allow.

    Times are seconds on one monotonic clock. Streams take turns, so that their writes are spread over the interval.
    """

    def __init__(self, every: float, rate: float) -> None:
        self.every, self.rate = every, rate
        self._sizes: dict[str, int] = {}
        self._last: dict[str, float] = {}
        self._again: dict[str, float] = {}
        """When one that failed is tried again."""
        self._free = float("-inf")

    def interval(self, names: Collection[str]) -> float:
        """Seconds between two snapshots of each of these streams."""
        return max(self.every, sum(self._sizes.get(name, 0) for name in names) / self.rate)

    def next(self, names: Iterable[str], now: float) -> tuple[str, float] | None:
        """The stream whose turn is next, and when; None without streams. One that is new is due an interval from now."""
        there = list(names)
        for name in there:
            self._last.setdefault(name, now)
        for gone in self._last.keys() - set(there):
            del self._last[gone]
            self._again.pop(gone, None)
        if not there:
            return None
        interval = self.interval(there)
        due = {name: self._again.get(name, self._last[name] + interval) for name in there}
        name = min(there, key=due.__getitem__)
        return name, max(due[name], self._free)

    def took(self, name: str, size: int, began: float) -> None:
        """A snapshot of so many bytes was written, or 0 where nothing was new."""
        self._last[name] = began
        self._again.pop(name, None)
        if size:
            self._sizes[name] = size
            self._free = began + size / self.rate

    def failed(self, name: str, began: float, retry: float) -> None:
        """A snapshot could not be written: it is tried again after so many seconds, or when the rate allows."""
        self._again[name] = began + retry
        self._free = began + self._sizes.get(name, 0) / self.rate
