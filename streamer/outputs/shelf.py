"""Outboxes in the state folder: what waits there after a restart, written in order and in the background."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from streamer.memory.store import Store, StoreError
from streamer.outputs.outbox import Entry

BATCH = 256
"""Rows that are handed to the store at once, so that a burst of events leaves room for the rows of others."""
ADD = "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?)"
REMOVE = "DELETE FROM outbox WHERE output = ? AND number <= ?"
FORGET = "DELETE FROM outbox WHERE output = ?"


class Shelf:
    """Keeps entries until they are delivered. Lives on one event loop, but for `load`; what it holds is what the outboxes hold."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._todo: deque[tuple[str, Entry | None]] = deque()
        self._removed: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._news = asyncio.Event()

    def load(self) -> dict[str, list[Entry]]:
        """By output, what waits, in order; waits for the disk. Raises sqlite3.Error."""
        out: dict[str, list[Entry]] = {}
        rows = self._store.read("SELECT output, number, id, at, event FROM outbox ORDER BY output, number")
        for output, *values in rows:
            out.setdefault(output, []).append(Entry(*values))
        return out

    def add(self, output: str, entry: Entry) -> None:
        """An entry waits."""
        self._todo.append((output, entry))
        self._news.set()

    def remove(self, output: str, number: int) -> None:
        """Of an output's entries, those up to `number` wait no more."""
        self._removed[output] = self._gone[output] = number
        self._news.set()

    def forget(self, output: str) -> None:
        """An output is gone, and all that waits for it; numbers of another one of that name begin anew."""
        self._removed.pop(output, None)
        self._gone.pop(output, None)
        self._todo = deque(each for each in self._todo if each[0] != output)
        self._todo.append((output, None))
        self._news.set()

    async def run(self) -> None:
        """Writes what is to be written, until cancelled."""
        while True:
            await self._news.wait()
            await self.flush()

    async def flush(self) -> None:
        """Writes all that is to be written; returns when it is on the disk, or the disk has given it up."""
        self._news.clear()
        while self._todo or self._removed:
            written = [self._store.write(sql, values, now=True) for sql, values in self._rows()]
            for row in written:
                with suppress(StoreError):
                    await asyncio.wrap_future(row)

    def _rows(self) -> Iterator[tuple[str, tuple[object, ...]]]:
        """The next rows: what was delivered before it could be written needs none."""
        removed, self._removed = self._removed, {}
        for _ in range(min(BATCH, len(self._todo))):
            output, entry = self._todo.popleft()
            if entry is None:
                yield FORGET, (output,)
            elif entry.number > self._gone.get(output, 0):
                yield ADD, (output, entry.number, entry.id, entry.at, entry.body)
        for output, number in removed.items():
            yield REMOVE, (output, number)
