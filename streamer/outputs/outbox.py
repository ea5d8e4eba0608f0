"""What waits for one output, in order: when it is tried, how long it is kept, and what is thrown away. Pure."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

FIRST_SECONDS, MOST_SECONDS = 1.0, 60.0
"""Between the first two tries, and at most between any two."""
SLOW_SECONDS, SLOWEST_SECONDS = 30.0, 900.0
"""The same where trying soon again can't help: a password that is refused."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An event that waits: its place in the row, its id, when it was told (Unix seconds), and its JSON."""

    number: int
    id: str
    at: float
    body: bytes


class Outbox:
    """Events on their way to one output, the oldest first. At least once: one that may have arrived is sent again.

    Times named `wall` are Unix seconds, those named `now` seconds of a clock that does not jump.

    Args:
        count: entries that may wait; of more, the oldest are thrown away.
        seconds: age at which an entry is thrown away.
        entries: what waited when the process ended, in order.
        chance: draws from [0, 1), for the jitter.
    """

    def __init__(
        self,
        count: int,
        seconds: float,
        entries: Iterable[Entry] = (),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._count, self._seconds, self._chance = count, seconds, chance
        self._waiting: OrderedDict[str, Entry] = OrderedDict((entry.id, entry) for entry in entries)
        self._last = max((entry.number for entry in self._waiting.values()), default=0)
        self._failures = 0
        self.retry_at = float("-inf")
        """When the next try is due."""
        self.trouble: str | None = None
        """Why the last try failed, in one line; None where it did not."""
        self.delivered = self.failed_tries = 0
        self.discarded: Counter[str] = Counter()
        """Entries that were thrown away, by reason: `count` or `age`."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest(self) -> float | None:
        """Since when the first one waits, Unix seconds."""
        return next((entry.at for entry in self._waiting.values()), None)

    def put(self, id: str, body: bytes, wall: float) -> Entry | None:
        """An event is to be delivered; None where it waits already."""
        if id in self._waiting:
            return None
        self._last += 1
        entry = self._waiting[id] = Entry(self._last, id, wall, body)
        return entry

    def bound(self, count: int, seconds: float) -> None:
        """Other bounds hold from now on, of an output that is another and so is tried at once."""
        self._count, self._seconds, self.retry_at = count, seconds, float("-inf")

    def trim(self, wall: float) -> int:
        """Throws away what is too old or too many; returns the number up to which nothing waits any more, 0 where all does."""
        last = 0
        while self._waiting:
            first = next(iter(self._waiting.values()))
            reason = "count" if len(self._waiting) > self._count else "age"
            if reason == "age" and wall - first.at < self._seconds:
                break
            self._waiting.popitem(last=False)
            self.discarded[reason] += 1
            last = first.number
        return last

    def due(self, now: float, most: int) -> list[Entry]:
        """The next entries to deliver, in order; none while it rests after a failure."""
        return [] if now < self.retry_at else list(islice(self._waiting.values(), most))

    def deliver(self, entry: Entry) -> None:
        """An entry, and all before it, has arrived."""
        self._recover()
        self.delivered += 1
        while self._waiting and next(iter(self._waiting.values())).number <= entry.number:
            self._waiting.popitem(last=False)

    def connect(self) -> None:
        """The output can be reached, though nothing has been delivered yet."""
        self._recover()

    def fail(self, trouble: str, now: float, *, slow: bool = False) -> bool:
        """A try failed: the next is after a while that doubles each time, up to a bound; True where this is news.

        `slow` says that trying soon again can't help. Half of the while is by chance, so that many don't come at once.
        """
        first, most = (SLOW_SECONDS, SLOWEST_SECONDS) if slow else (FIRST_SECONDS, MOST_SECONDS)
        rest = min(first * 2.0 ** min(self._failures, 32), most)
        self.retry_at = now + rest * (0.5 + 0.5 * self._chance())
        self._failures += 1
        self.failed_tries += 1
        news = self.trouble != trouble
        self.trouble = trouble
        return news

    def _recover(self) -> None:
        self._failures, self.retry_at, self.trouble = 0, float("-inf"), None
