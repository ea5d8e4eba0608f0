"""What a fleet's head must not forget: engines, streams with their owners and epochs, and watches; in a file of SQLite's."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

SCHEMA = """
CREATE TABLE IF NOT EXISTS engines (name TEXT PRIMARY KEY, facts TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS streams (
    name TEXT PRIMARY KEY, config TEXT NOT NULL, engine TEXT, epoch INTEGER NOT NULL, added INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS listed (name TEXT PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS watches (name TEXT PRIMARY KEY, config TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS known (stream TEXT PRIMARY KEY, states TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS highest (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO highest VALUES (1, 0);
"""


Owner = tuple[str, str, int]
"""A stream, the engine that has it, and its epoch."""


class TableError(Exception):
    """Why the table can't be read or written now, in one line."""


class Table(Protocol):
    """The rows. One head at a time has them; any thread may call. Methods raise TableError."""

    def close(self) -> None:
        """Lets it go for another head."""
        ...

    def holds(self) -> bool:
        """Whether it is certain that no other head has it now."""
        ...

    @property
    def taken(self) -> str:
        """Who else has it by now, so that this head must stop; nothing where nobody has."""
        ...

    def engines(self) -> dict[str, dict[str, Any]]:
        """By name, what was kept with `keep_engine`."""
        ...

    def streams(self) -> list[tuple[dict[str, Any], str | None, int]]:
        """Of each stream its configuration, its engine and its epoch, in the order of their coming."""
        ...

    def listed(self) -> set[str]:
        """Streams that the fleet's file named, in contrast to those that somebody attached."""
        ...

    def watches(self) -> dict[str, dict[str, Any]]:
        """By name, their configurations."""
        ...

    def known(self) -> dict[str, dict[str, Any]]:
        """By stream, what watches knew of it last."""
        ...

    @property
    def epoch(self) -> int:
        """The highest that was ever given."""
        ...

    def keep_engine(self, name: str, facts: Mapping[str, Any] | None) -> None:
        """An engine is there, or no more."""
        ...

    def keep_stream(self, config: Mapping[str, Any], listed: bool = False) -> None:
        """A stream is to be watched, `listed` where the fleet's file names it; its owner stays who it is."""
        ...

    def drop_stream(self, name: str) -> None:
        """A stream is not to be watched any more."""
        ...

    def own(self, owners: Iterable[Owner]) -> None:
        """Streams have other owners now, before these are told so: kept for sure when it returns."""
        ...

    def keep_watch(self, name: str, config: Mapping[str, Any] | None) -> None:
        """A watch is there, or no more."""
        ...

    def know(self, states: Mapping[str, Any]) -> None:
        """What watches know of streams."""
        ...


class FileTable:
    """In a file of this machine's. Each method is one transaction, on the disk when it returns."""

    def __init__(self, path: Path) -> None:
        """Makes the file if there is none; one process at a time has it. Raises TableError, also where another has it."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(path, timeout=0.2, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(SCHEMA)
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise TableError(
                f"{path} can't be used ({error}): another head may run; stop it, or name another file"
            ) from None

    def close(self) -> None:
        self._database.close()

    def holds(self) -> bool:
        return True

    @property
    def taken(self) -> str:
        return ""

    def engines(self) -> dict[str, dict[str, Any]]:
        return {name: json.loads(facts) for name, facts in self._all("SELECT name, facts FROM engines")}

    def streams(self) -> list[tuple[dict[str, Any], str | None, int]]:
        rows = self._all("SELECT config, engine, epoch FROM streams ORDER BY added, name")
        return [(json.loads(config), engine, epoch) for config, engine, epoch in rows]

    def listed(self) -> set[str]:
        return {name for (name,) in self._all("SELECT name FROM listed")}

    def watches(self) -> dict[str, dict[str, Any]]:
        return {name: json.loads(config) for name, config in self._all("SELECT name, config FROM watches")}

    def known(self) -> dict[str, dict[str, Any]]:
        return {stream: json.loads(states) for stream, states in self._all("SELECT stream, states FROM known")}

    @property
    def epoch(self) -> int:
        return int(self._all("SELECT epoch FROM highest")[0][0])

    def keep_engine(self, name: str, facts: Mapping[str, Any] | None) -> None:
        if facts is None:
            self._do([("DELETE FROM engines WHERE name = ?", (name,))])
        else:
            self._do([("INSERT OR REPLACE INTO engines VALUES (?, ?)", (name, json.dumps(facts)))])

    def keep_stream(self, config: Mapping[str, Any], listed: bool = False) -> None:
        name = config["name"]
        new = "(?, ?, NULL, 0, (SELECT count(*) FROM streams))"
        sql = f"INSERT INTO streams VALUES {new} ON CONFLICT DO UPDATE SET config = excluded.config"
        mark = "INSERT OR IGNORE INTO listed VALUES (?)" if listed else "DELETE FROM listed WHERE name = ?"
        self._do([(sql, (name, json.dumps(config))), (mark, (name,))])

    def drop_stream(self, name: str) -> None:
        tables = {"streams": "name", "listed": "name", "known": "stream"}
        self._do([(f"DELETE FROM {table} WHERE {key} = ?", (name,)) for table, key in tables.items()])

    def own(self, owners: Iterable[Owner]) -> None:
        rows = list(owners)
        work: list[tuple[str, tuple[Any, ...]]] = [
            ("UPDATE streams SET engine = ?, epoch = ? WHERE name = ?", (engine, epoch, stream))
            for stream, engine, epoch in rows
        ]
        highest = max((epoch for *_, epoch in rows), default=0)
        self._do([*work, ("UPDATE highest SET epoch = max(epoch, ?)", (highest,))])

    def keep_watch(self, name: str, config: Mapping[str, Any] | None) -> None:
        if config is None:
            self._do([("DELETE FROM watches WHERE name = ?", (name,))])
        else:
            self._do([("INSERT OR REPLACE INTO watches VALUES (?, ?)", (name, json.dumps(config)))])

    def know(self, states: Mapping[str, Any]) -> None:
        self._do(
            [
                ("INSERT OR REPLACE INTO known VALUES (?, ?)", (stream, json.dumps(each)))
                for stream, each in states.items()
            ]
        )

    def _all(self, sql: str) -> list[Any]:
        try:
            with self._lock, closing(self._database.execute(sql)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            raise TableError(str(error)) from None

    def _do(self, work: list[tuple[str, tuple[Any, ...]]]) -> None:
        """One transaction; the lock, as the head's loop and threads beside it share the connection."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    for sql, values in work:
                        self._database.execute(sql, values)
                    self._database.execute("COMMIT")
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise TableError(str(error)) from None
