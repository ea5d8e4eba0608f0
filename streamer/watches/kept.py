"""What outlasts the process of watches: those made while it ran, what each believes and has told, events and their pictures."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter, OrderedDict
from concurrent.futures import Future
from typing import Any, Literal

from streamer.memory.store import Store, StoreError
from streamer.watches.event import WatchEvent
from streamer.watches.tuning import Judged

log = logging.getLogger("streamer")
PATIENCE = 0.5
"""Seconds that an event waits for the disk before it is told all the same."""
MOST_EVENTS, MOST_STILLS = 10_000, 2_000
"""Events that are kept, and those of them with their picture; the oldest go first."""
LONGEST = 720 * 3_600.0
"""Seconds for which events are kept where no configuration says otherwise: as a timeline's entries are."""
REMEMBERED = 256
"""Events that are kept where nothing outlasts the process."""
Feedback = Literal["right", "false_alarm"]


class Kept:
    """Rows in the state folder, or with no `store`, a few in memory. On the event loop, except `load`."""

    def __init__(self, store: Store | None, seconds: float = LONGEST) -> None:
        """Events are kept for so many seconds at most."""
        self.store, self._seconds = store, seconds
        self._events: OrderedDict[str, tuple[WatchEvent, bytes | None, Feedback | None]] = OrderedDict()
        self._told = 0
        self._written = 0
        """How often the disk has taken something, after which what was counted may be otherwise."""
        self._counted: tuple[int, dict[str, Counter[str]]] = -1, {}

    def load(self) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str], dict[str, Any]], str | None]:
        """Watches made while it ran; by watch and stream what is known; and the newest event's id. Waits for the disk."""
        if self.store is None:
            return {}, {}, None
        made = {
            name: json.loads(config)
            for name, config in self.store.read("SELECT name, config FROM watches ORDER BY added")
        }
        rows = self.store.read("SELECT watch, stream, state FROM watch_states")
        states = {(watch, stream): json.loads(state) for watch, stream, state in rows}
        newest = self.store.read("SELECT max(id) FROM watch_events")[0][0]
        # An event and what was known with it are one row, which may be newer than the other.
        told = self.store.read("SELECT watch, stream, max(id), state FROM watch_events GROUP BY watch, stream")
        for watch, stream, _, text in told:
            state = json.loads(text)
            before = states.get((watch, stream))
            if before is None or (before["seen_at"] or 0.0) < (state["seen_at"] or 0.0):
                states[watch, stream] = state
        return made, states, newest

    def make(self, name: str, config: dict[str, Any], now: float) -> Future[int] | None:
        """Keeps a watch made while running."""
        return self._write("INSERT OR REPLACE INTO watches VALUES (?, ?, ?)", name, json.dumps(config), now, hurry=True)

    def drop(self, name: str) -> Future[int] | None:
        """A watch is gone, with what it knew; its events stay."""
        self._write("DELETE FROM watch_states WHERE watch = ?", name)
        return self._write("DELETE FROM watches WHERE name = ?", name, hurry=True)

    def know(self, watch: str, stream: str, state: dict[str, Any]) -> None:
        """What a watch knows of a stream."""
        self._write("INSERT OR REPLACE INTO watch_states VALUES (?, ?, ?)", watch, stream, json.dumps(state))

    async def tell(self, event: WatchEvent, state: dict[str, Any], still: bytes | None) -> None:
        """Keeps an event, with what its watch knows then: once this returns it is never told again, unless the disk is at fault."""
        if self.store is None:
            self._events[event.id] = (event, still, None)
            if len(self._events) > REMEMBERED:
                self._events.popitem(last=False)
            return
        row = (
            event.id,
            event.watch,
            event.stream,
            event.captured_at,
            json.dumps(event.facts()),
            json.dumps(state),
            None,
            still,
        )
        written = self._write("INSERT INTO watch_events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *row, hurry=True)
        assert written is not None
        self.know(event.watch, event.stream, state)  # which outlasts the event
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(written)), PATIENCE)
        except (StoreError, OSError, TimeoutError) as error:
            log.warning(
                "event %s of watch %s is told but not kept yet: %s", event.id, event.watch, error or "the disk is slow"
            )
        self._told += 1
        if self._told % 64 == 0:
            self.trim(time.time())

    def trim(self, now: float) -> None:
        """Lets go of events and pictures that are too old, or too many; `now` in Unix seconds."""
        since = now - self._seconds
        if self.store is None:
            for id in [event.id for event, _, _ in self._events.values() if event.captured_at < since]:
                del self._events[id]
            return
        oldest = "(SELECT id FROM watch_events ORDER BY id DESC LIMIT 1 OFFSET ?)"
        self._write("DELETE FROM watch_events WHERE captured_at < ?", since)
        self._write(f"DELETE FROM watch_events WHERE id <= {oldest}", MOST_EVENTS)
        self._write(f"UPDATE watch_events SET still = NULL WHERE still IS NOT NULL AND id <= {oldest}", MOST_STILLS)

    async def after(self, id: str, limit: int = 256, *, newest: bool = False) -> list[dict[str, Any]]:
        """Events told after the one of this id ("" for all), oldest first, `limit` at most, each with its feedback.

        `newest` leaves out the oldest of them where there are more.
        """
        if self.store is None:
            found = [{**e.facts(), "feedback": said} for e, _, said in self._events.values() if e.id > id]
            return found[-limit:] if newest else found[:limit]
        order = "DESC" if newest else "ASC"
        sql = f"SELECT facts, feedback FROM watch_events WHERE id > ? ORDER BY id {order} LIMIT ?"
        rows = await asyncio.to_thread(self.store.read, sql, (id, limit))
        listed = [{**json.loads(facts), "feedback": said} for facts, said in rows]
        return listed[::-1] if newest else listed

    async def still(self, id: str) -> bytes | None:
        """The picture that decided an event, as JPEG; None where none is kept."""
        if self.store is None:
            return self._events[id][1] if id in self._events else None
        rows = await asyncio.to_thread(self.store.read, "SELECT still FROM watch_events WHERE id = ?", (id,))
        return rows[0][0] if rows else None

    async def find(self, id: str) -> WatchEvent | None:
        """The event of an id, if it is kept."""
        if self.store is None:
            return self._events[id][0] if id in self._events else None
        rows = await asyncio.to_thread(self.store.read, "SELECT facts FROM watch_events WHERE id = ?", (id,))
        return WatchEvent.of(json.loads(rows[0][0])) if rows else None

    async def judge(self, id: str, feedback: Feedback | None) -> WatchEvent | None:
        """Keeps what somebody says of an event; None where there is no such event."""
        if self.store is None:
            if id not in self._events:
                return None
            event, still, _ = self._events[id]
            self._events[id] = (event, still, feedback)
            return event
        found = await self.find(id)
        if found is None:
            return None
        written = self._write("UPDATE watch_events SET feedback = ? WHERE id = ?", feedback, id, hurry=True)
        assert written is not None
        await asyncio.wait([asyncio.wrap_future(written)], timeout=PATIENCE)
        return found

    async def judged(self, watch: str, kind: str) -> list[Judged]:
        """What people said of a watch's events of one kind ("watch.started" …) that have a probability."""
        if self.store is None:
            told = [(event, said) for event, _, said in self._events.values() if event.watch == watch and said]
            return [
                Judged(e.probability, s == "right") for e, s in told if e.type == kind and e.probability is not None
            ]
        sql = (
            "SELECT facts ->> 'probability', feedback FROM watch_events WHERE watch = ? AND facts ->> 'type' = ? "
            "AND feedback IS NOT NULL AND facts ->> 'probability' IS NOT NULL"
        )
        rows = await asyncio.to_thread(self.store.read, sql, (watch, kind))
        return [Judged(probability, said == "right") for probability, said in rows]

    async def counts(self) -> dict[str, Counter[str]]:
        """By watch, how many of its events are told, and how many of them somebody called right or a false alarm."""
        counts: dict[str, Counter[str]] = {}
        written = self._written
        if self.store is not None and self._counted[0] == written:
            return self._counted[1]  # whoever looks on asks every second
        if self.store is None:
            rows = [(event.watch, said, 1) for event, _, said in self._events.values() if event.about is None]
        else:
            sql = "SELECT watch, feedback, count(*) FROM watch_events WHERE facts ->> 'about' IS NULL GROUP BY watch, feedback"
            rows = await asyncio.to_thread(self.store.read, sql)
        for watch, said, count in rows:
            counts.setdefault(watch, Counter())["events"] += count
            if said is not None:
                counts[watch][said] += count
        self._counted = written, counts
        return counts

    async def forget(self, stream: str, since: float, until: float) -> None:
        """Removes a stream's events of a span, with their pictures. Raises StoreError."""
        if self.store is None:
            gone = [e.id for e, _, _ in self._events.values() if e.stream == stream and since <= e.captured_at <= until]
            for id in gone:
                del self._events[id]
            return
        sql = "DELETE FROM watch_events WHERE stream = ? AND captured_at BETWEEN ? AND ?"
        removed = self._write(sql, stream, max(since, 0.0), min(until, 1e18), hurry=True)
        assert removed is not None
        await asyncio.wrap_future(removed)

    def _write(self, sql: str, *values: Any, hurry: bool = False) -> Future[int] | None:
        if self.store is None:
            return None
        written = self.store.write(sql, values, now=hurry)
        written.add_done_callback(self._wrote)
        return written

    def _wrote(self, written: Future[int]) -> None:
        self._written += 1
