"""What happened to streams, with times: kept as rows, found by span and by words, forgotten and bounded."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from streamer.memory.moments import written
from streamer.memory.store import Store

KINDS = (
    "state", "gap", "drops", "jump", "reset", "resumed", "question", "note",
    "watch.started", "watch.ended", "watch.changed", "watch.described",
)  # fmt: skip
"""What entries are of."""
LONGEST_TEXT = 8_192
"""Characters of an entry's text; of a longer one the rest is left out, which its last sign says."""
LONGEST_SEARCH = 256
"""Characters of what is searched for."""
ROW_BYTES = 400
"""Of an entry in the database and its indexes, beside its text and its still."""
TEXT_BYTES = 3
"""Of a character in the row and in the index of words, on average at most."""
AT_ONCE = 200
"""Rows that one statement removes, so that none of the writer's takes long."""
PAGES = 64
"""Freed pages of 4 KiB that are given back to the disk at once."""
MERGED = 32
"""Pages of the index of words that are rewritten at once."""
FIELDS = "id, wall, time, stream, kind, visitor, text, data, still IS NOT NULL"


def kinds_lack(kinds: Collection[str]) -> str | None:
    """Why there is nothing of one of these kinds in any timeline; None where there may be."""
    for kind in kinds:
        if kind not in KINDS:
            return f"There is no kind {kind[:40]!r} in a timeline: give some of {', '.join(KINDS)}."
    return None


class SearchError(ValueError):
    """What is searched for is no query, in one line."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something belongs: `id` is the order of all that happens, whatever clocks do; `wall` is Unix seconds.

    `at` is the latest that `wall` has been until then.
    """

    id: int
    at: float
    wall: float


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened at `wall`, Unix seconds, when the stream's own time was `time` seconds (None before its first frame).

    `visitor` is whose it is (a question's), `data` are plain facts of its kind, and `still` says whether there is a picture.
    """

    id: int
    wall: float
    time: float | None
    stream: str
    kind: str
    visitor: str | None
    text: str
    data: dict[str, Any]
    still: bool

    def view(self) -> dict[str, Any]:
        """As an answer about the past cites it."""
        return {"id": self.id, "at": written(self.wall), "kind": self.kind, "text": self.text}


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A stream's entries of a span, Unix seconds, are gone."""

    stream: str
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries are meant: of a stream, of a span (Unix seconds, both ends in it), of these kinds (empty: all), with these words.

    `search` is in the language of FTS5. With a `visitor` those that are another's are left out, and those of the kind `without`.
    """

    stream: str
    since: float = float("-inf")
    until: float = float("inf")
    kinds: Collection[str] = ()
    search: str | None = None
    visitor: str | None = None
    without: str | None = None


class Timeline:
    """The entries of a state folder, `budget` bytes and `hours` at most. What is said to read waits for the disk, on any thread.

    All else is called on one event loop, and never waits. Of a stream that was not `open`ed nothing is kept.
    """

    def __init__(self, store: Store, budget: int, hours: float) -> None:
        """Reads. Raises sqlite3.Error."""
        self._store, self._budget, self._hours = store, budget, hours
        self._last, self._at = (store.read("SELECT id, at FROM entries ORDER BY id DESC LIMIT 1") or [(0, 0.0)])[0]
        self._bytes: int = store.read("SELECT coalesce(sum(size), 0) FROM entries")[0][0]
        self._open: set[str] = set()
        self._fresh: dict[int, tuple[str, bytes]] = {}
        """By id, the pictures of entries that were told and wait to be written, and whose they are."""
        self.ears: set[Callable[[Entry | Forgotten], None]] = set()
        """Who hears of what is added and forgotten, as it happens."""

    def open(self, stream: str) -> None:
        """From now on entries of this stream are kept."""
        self._open.add(stream)

    def shut(self, stream: str) -> None:
        """From now on none are."""
        self._open.discard(stream)

    def place(self, wall: float | None = None) -> Place:
        """The place of what happens now, or was noticed now and happened at `wall`; for an `add` that comes later."""
        wall = time.time() if wall is None else wall
        self._last += 1
        self._at = max(self._at, wall)
        return Place(self._last, self._at, wall)

    def add(
        self,
        kind: str,
        stream: str,
        text: str,
        data: Mapping[str, Any] | None = None,
        *,
        place: Place | None = None,
        time: float | None = None,
        visitor: str | None = None,
        still: bytes | None = None,
    ) -> int | None:
        """Keeps an entry and returns its id, or None of a stream of which nothing is kept. `still` is a JPEG.

        While the disk is at fault it waits with all other rows, and is given up where those are.
        """
        if stream not in self._open:
            return None
        place = place or self.place()
        if len(text) > LONGEST_TEXT:
            text = text[: LONGEST_TEXT - 1] + "…"
        text, facts = _whole(text), _whole(json.dumps(data or {}, ensure_ascii=False, separators=(",", ":")))
        size = ROW_BYTES + TEXT_BYTES * (len(text) + len(facts)) + len(still or b"")
        self._bytes += size
        row = (place.id, place.at, place.wall, time, stream, kind, visitor, text, facts, still, size)
        kept = self._store.write("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        if still is not None:
            self._fresh[place.id] = (stream, still)
            kept.add_done_callback(lambda _: self._fresh.pop(place.id, None))
        entry = Entry(place.id, place.wall, time, stream, kind, visitor, text, dict(data or {}), still is not None)
        for hear in tuple(self.ears):
            hear(entry)
        return place.id

    async def written(self) -> None:
        """Waits until all that was added before can be read. Raises StoreError, OSError."""
        await asyncio.wrap_future(self._store.do(lambda: None))

    async def rename(self, old: str, new: str) -> None:
        """What happened to a stream is another's from now on. Raises StoreError, OSError."""
        sql = f"UPDATE entries SET stream = ? WHERE id IN (SELECT id FROM entries WHERE stream = ? ORDER BY id LIMIT {AT_ONCE})"
        while await asyncio.wrap_future(self._store.write(sql, (new, old), now=True)):
            pass

    # Reading

    def entries(self, wanted: Wanted, limit: int, before: int | None = None) -> list[Entry]:
        """The newest of those that are wanted, the newest first; `before` an id, for those that follow. Reads.

        Raises SearchError, sqlite3.Error.
        """
        condition, values = self._condition(wanted, before)
        # Their order is that of this index; by another one all would be found first, and sorted.
        table = "entries INDEXED BY entries_by_stream"
        if wanted.search is not None:
            table = "words CROSS JOIN entries ON id = words.rowid"
        key = "id" if wanted.search is None else "words.rowid"
        fields = FIELDS.replace("stream", "entries.stream").replace("text", "entries.text")
        sql = f"SELECT {fields} FROM {table} WHERE {condition} ORDER BY {key} DESC LIMIT ?"
        rows = self._store.read(sql, (*values, limit))
        return [_entry(*row) for row in rows]

    def density(self, wanted: Wanted, buckets: int) -> dict[str, list[int]]:
        """How many there are in each of so many equal parts of the span, by kind. Reads. Raises as `entries`."""
        width = (wanted.until - wanted.since) / buckets
        out: dict[str, list[int]] = {}
        found = self._counted(wanted, width, buckets) if wanted.search is None else self._found(wanted, width)
        for kind, bucket, count in found:
            out.setdefault(kind, [0] * buckets)[min(bucket, buckets - 1)] += count
        return out

    def _found(self, wanted: Wanted, width: float) -> list[tuple[str, int, int]]:
        """Kinds, parts of the span, and how many of its entries with the words that are searched for there are in each."""
        condition, values = self._condition(wanted, None)
        sql = f"""
            SELECT kind, CAST((wall - ?) / ? AS INTEGER), count(*) FROM words CROSS JOIN entries ON id = words.rowid
            WHERE {condition} GROUP BY 1, 2
        """
        return self._store.read(sql, (wanted.since, width, *values))

    def _counted(self, wanted: Wanted, width: float, buckets: int) -> list[tuple[str, int, int]]:
        """The same of all entries, each part counted in the index alone: to sort a million takes longer."""
        mine = "" if wanted.visitor is None else "AND (visitor IS NULL OR visitor = :visitor)"
        sql = f"""
            WITH RECURSIVE
            kinds (kind) AS (
                SELECT min(kind) FROM entries WHERE stream = :stream
                UNION ALL SELECT (SELECT min(kind) FROM entries WHERE stream = :stream AND kind > kinds.kind)
                FROM kinds WHERE kind IS NOT NULL
            ),
            parts (part) AS (SELECT 0 UNION ALL SELECT part + 1 FROM parts WHERE part + 1 < :buckets)
            SELECT kind, part, (
                SELECT count(*) FROM entries INDEXED BY entries_by_kind
                WHERE stream = :stream AND entries.kind = kinds.kind AND wall >= :since + part * :width
                AND wall < iif(part + 1 = :buckets, :beyond, :since + (part + 1) * :width) {mine}
            ) AS count FROM kinds, parts WHERE kind IS NOT NULL AND count > 0
        """
        values = {"stream": wanted.stream, "since": wanted.since, "width": width, "buckets": buckets}
        beyond = math.nextafter(wanted.until, math.inf)  # both ends are in the span
        rows = self._store.read(sql, {**values, "beyond": beyond, "visitor": wanted.visitor})
        return [row for row in rows if (not wanted.kinds or row[0] in wanted.kinds) and row[0] != wanted.without]

    def still(self, stream: str, id: int) -> bytes | None:
        """An entry's picture, a JPEG. Reads. Raises sqlite3.Error."""
        if (fresh := self._fresh.get(id)) is not None:
            return fresh[1] if fresh[0] == stream else None
        found = self._store.read("SELECT still FROM entries WHERE stream = ? AND id = ?", (stream, id))
        return found[0][0] if found else None

    def known(self, stream: str) -> bool:
        """Whether there is any entry of a stream. Reads. Raises sqlite3.Error."""
        return bool(self._store.read("SELECT 1 FROM entries WHERE stream = ? LIMIT 1", (stream,)))

    def counts(self) -> dict[str, int]:
        """How many entries there are of each stream. Reads. Raises sqlite3.Error."""
        return dict(self._store.read("SELECT stream, count(*) FROM entries GROUP BY stream"))

    def _condition(self, wanted: Wanted, before: int | None) -> tuple[str, list[Any]]:
        """SQL and its values; the span is narrowed to ids first, as rows are found by those."""
        first, last = self._ids(wanted.since, wanted.until)
        last = last if before is None else min(last, before - 1)
        parts, values = ["entries.stream = ?", "wall BETWEEN ? AND ?"], [wanted.stream, wanted.since, wanted.until]
        key = "id"
        if wanted.search is not None:
            key = "words.rowid"
            parts.append("words MATCH ?")
            values.append(_match(wanted.search, wanted.stream))
        parts.append(f"{key} BETWEEN ? AND ?")
        values += [first, last]
        if wanted.kinds:
            parts.append(f"kind IN ({', '.join('?' * len(wanted.kinds))})")
            values += wanted.kinds
        if wanted.without is not None:
            parts.append("kind <> ?")
            values.append(wanted.without)
        if wanted.visitor is not None:
            parts.append("(visitor IS NULL OR visitor = ?)")
            values.append(wanted.visitor)
        return " AND ".join(parts), values

    def _ids(self, since: float, until: float) -> tuple[int, int]:
        """The first and the last id that can be of a span: `at` rises with them, and those put back are few."""
        sql = """
            SELECT (SELECT id FROM entries WHERE at >= ?1 ORDER BY at, id LIMIT 1),
                   (SELECT id FROM entries WHERE at <= ?2 ORDER BY at DESC, id DESC LIMIT 1),
                   (SELECT max(id) FROM entries WHERE at > wall AND wall BETWEEN ?1 AND ?2)
        """
        first, last, back = self._store.read(sql, (since, until))[0]
        return (1, 0) if first is None else (first, max(last or 0, back or 0))

    # Forgetting

    async def forget(self, stream: str, since: float, until: float) -> int:
        """Removes a stream's entries of a span, so that no file holds them any more; how many.

        Raises StoreError, OSError, sqlite3.Error.
        """
        first, _ = await asyncio.to_thread(self._ids, since, until)  # those that wait to be written have higher ones
        condition = "stream = ? AND id >= ? AND wall BETWEEN ? AND ?"
        gone = await self._remove(condition, (stream, first, since, until))
        for hear in tuple(self.ears):
            hear(Forgotten(stream, since, until))
        if gone:
            more = await asyncio.wrap_future(self._store.merge(MERGED, first=True))
            while more:
                more = await asyncio.wrap_future(self._store.merge(MERGED, first=False))
            await self._vacuum()
            await asyncio.wrap_future(await asyncio.to_thread(self._store.checkpoint))
        return gone

    async def trim(self, now: float) -> int:
        """Removes what is too old, and the oldest of what is too much; how many. Raises StoreError, OSError, sqlite3.Error."""
        gone, since = 0, now - self._hours * 3_600
        sql = "SELECT id FROM entries WHERE at < ? ORDER BY at DESC, id DESC LIMIT 1"
        if old := await asyncio.to_thread(self._store.read, sql, (since,)):
            gone = await self._remove("id <= ?", old[0])
        await self._weigh()
        while self._bytes > self._budget:
            sql = f"SELECT id, size FROM entries ORDER BY id LIMIT {AT_ONCE}"
            oldest = await asyncio.to_thread(self._store.read, sql)
            if not oldest:
                break
            for last, size in oldest:  # noqa: B007 - the last one that goes
                self._bytes -= size
                if self._bytes <= self._budget:
                    break
            gone += await self._remove("id <= ?", (last,))
        if gone:
            await self._vacuum()
        return gone

    async def _vacuum(self) -> None:
        while (await asyncio.to_thread(self._store.read, "PRAGMA freelist_count"))[0][0] > PAGES:
            await asyncio.wrap_future(self._store.tidy(PAGES))

    async def _remove(self, condition: str, values: tuple[Any, ...]) -> int:
        """Removes those that meet a condition, a few at a time."""
        sql = f"DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE {condition} ORDER BY id LIMIT {AT_ONCE})"
        gone = 0
        while went := await asyncio.wrap_future(self._store.write(sql, values, now=True)):
            gone += went
        return gone

    async def _weigh(self) -> None:
        """Counts the bytes again: what waits to be written is missed, until the next time."""
        self._bytes = (await asyncio.to_thread(self._store.read, "SELECT coalesce(sum(size), 0) FROM entries"))[0][0]


def _entry(
    id: int,
    wall: float,
    time: float | None,
    stream: str,
    kind: str,
    visitor: str | None,
    text: str,
    data: str,
    still: int,
) -> Entry:
    return Entry(id, wall, time, stream, kind, visitor, text, json.loads(data), bool(still))


def _whole(text: str) -> str:
    """Without halves of characters, which JSON and names of files may bring and the database doesn't hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _match(search: str, stream: str) -> str:
    """A query that is looked for in texts alone, of one stream's. Raises SearchError."""
    if len(search) > LONGEST_SEARCH:
        raise SearchError(f"the search has {len(search)} characters: {LONGEST_SEARCH} are the most")
    if not search.strip():
        raise SearchError("the search has no words: write one, or leave it out")
    search = "".join(sign if sign.isprintable() else " " for sign in search)
    with closing(sqlite3.connect(":memory:")) as trial:
        trial.execute("CREATE VIRTUAL TABLE words USING fts5 (text, stream)")
        try:
            trial.execute("SELECT 1 FROM words WHERE words MATCH ?", (search,)).fetchall()
        except sqlite3.Error as error:
            why = str(error).removeprefix("fts5: ")
            raise SearchError(
                f'the search {search[:60]!r} is not understood ({why}): write words, put what has signs in it in "double '
                'quotes", and join with AND, OR, NOT'
            ) from None
    name = stream.replace('"', '""')
    return f'{{text}} : ({search}) AND {{stream}} : "{name}"'
