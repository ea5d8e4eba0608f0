"""Work that few may have done at once: whoever asks waits for a turn, and holds no more than a few of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streamer.server.errors import RequestError


class Turns:
    """Of one kind of work.

    Args:
        what: the work, as whoever has too much of it is told.
        at_once: how much of it is done at the same time.
        most: of one visitor that is done, or waits to be.
    """

    def __init__(self, what: str, at_once: int, most: int) -> None:
        self._what, self._most = what, most
        self._free = asyncio.Semaphore(at_once)
        self.waiting: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, visitor: str) -> AsyncIterator[None]:
        """Waits for this visitor's turn. Raises RequestError: rate_limit_exceeded."""
        if self.waiting[visitor] >= self._most:
            raise RequestError(
                "rate_limit_exceeded", f"{self._most} {self._what} of yours are on their way: wait.", 1.0
            )
        self.waiting[visitor] += 1
        try:
            async with self._free:
                yield
        finally:
            self.waiting[visitor] -= 1
            if not self.waiting[visitor]:
                del self.waiting[visitor]
