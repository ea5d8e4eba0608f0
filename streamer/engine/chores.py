"""Pieces of work that no frame and no answer waits for, done in time that nothing else needs, or after a while all the same. Pure.

Times are seconds on one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress

FIRST_GUESS = 0.03
"""Seconds that a piece takes, before one has been done."""
REMEMBERED = 4
"""Pieces of which the longest says how long one may take."""


class Chores:
    """Those that wait, in order of coming. Any thread may add; one does the rest."""

    def __init__(self) -> None:
        self._seconds = deque([FIRST_GUESS], REMEMBERED)
        self._coming: deque[tuple[float, Callable[[], None]]] = deque()
        self._waiting: list[tuple[float, Callable[[], None]]] = []

    def add(self, due: float, do: Callable[[], None]) -> None:
        """A piece is to be done, at `due` whatever else there is to do."""
        self._coming.append((due, do))

    @property
    def due(self) -> float:
        """When one is done whatever else there is to do; inf never."""
        return min((due for due, _ in self._all()), default=float("inf"))

    def next(self, now: float, spare: float) -> Callable[[], None] | None:
        """What is to be done now, where the device has `spare` seconds that nothing else needs."""
        for place, (due, do) in enumerate(self._all()):
            if due <= now or max(self._seconds) <= spare:
                del self._waiting[place]
                return do
        return None

    def took(self, seconds: float) -> None:
        """So long one took."""
        self._seconds.append(seconds)

    def rest(self) -> list[Callable[[], None]]:
        """All that wait; they wait no more."""
        waiting, self._waiting = self._all(), []
        return [do for _, do in waiting]

    def _all(self) -> list[tuple[float, Callable[[], None]]]:
        with suppress(IndexError):
            while True:
                self._waiting.append(self._coming.popleft())
        return self._waiting
