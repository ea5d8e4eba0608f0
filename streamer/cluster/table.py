"""What a fleet's head must not forget: engines, streams with their owners and epochs, and watches. SQLite, in one file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS engines (name TEXT PRIMARY KEY, facts TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS streams (
    name TEXT PRIMARY KEY, config TEXT NOT NULL, engine TEXT, epoch INTEGER NOT NULL, added INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS watches (name TEXT PRIMARY KEY, config TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS known (stream TEXT PRIMARY KEY, states TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS highest (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO highest VALUES (1, 0);
"""


class Table:
    """The rows. Each method is one transaction, on the disk when it returns. Raises sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        """Makes the file if there is none; one process at a time has it. Raises sqlite3.OperationalError, also where another has it."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._database = sqlite3.connect(path, timeout=0.2, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(SCHEMA)
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("COMMIT")

    def close(self) -> None:
        self._database.close()

    def engines(self) -> dict[str, dict[str, Any]]:
        """By name, what was kept with `engine`."""
        return {name: json.loads(facts) for name, facts in self._all("SELECT name, facts FROM engines")}

    def streams(self) -> list[tuple[dict[str, Any], str | None, int]]:
        """Of each stream its configuration, its engine and its epoch, in the order of their coming."""
        rows = self._all("SELECT config, engine, epoch FROM streams ORDER BY added, name")
        return [(json.loads(config), engine, epoch) for config, engine, epoch in rows]

    def watches(self) -> dict[str, dict[str, Any]]:
        return {name: json.loads(config) for name, config in self._all("SELECT name, config FROM watches")}

    def known(self) -> dict[str, dict[str, Any]]:
        """By stream, what watches knew of it last."""
        return {stream: json.loads(states) for stream, states in self._all("SELECT stream, states FROM known")}

    @property
    def epoch(self) -> int:
        """The highest that was ever given."""
        return int(self._all("SELECT epoch FROM highest")[0][0])

    def keep_engine(self, name: str, facts: Mapping[str, Any] | None) -> None:
        """An engine is there, or no more."""
        if facts is None:
            self._do([("DELETE FROM engines WHERE name = ?", (name,))])
        else:
            self._do([("INSERT OR REPLACE INTO engines VALUES (?, ?)", (name, json.dumps(facts)))])

    def keep_stream(self, config: Mapping[str, Any]) -> None:
        """A stream is to be watched; its owner stays who it is."""
        new = "(?, ?, NULL, 0, (SELECT count(*) FROM streams))"
        sql = f"INSERT INTO streams VALUES {new} ON CONFLICT DO UPDATE SET config = excluded.config"
        self._do([(sql, (config["name"], json.dumps(config)))])

    def drop_stream(self, name: str) -> None:
        self._do([("DELETE FROM streams WHERE name = ?", (name,)), ("DELETE FROM known WHERE stream = ?", (name,))])

    def own(self, owners: Iterable[tuple[str, str, int]]) -> None:
        """Streams have other owners now (stream, engine, epoch), before these are told so."""
        rows = list(owners)
        work: list[tuple[str, tuple[Any, ...]]] = [
            ("UPDATE streams SET engine = ?, epoch = ? WHERE name = ?", (engine, epoch, stream))
            for stream, engine, epoch in rows
        ]
        highest = max((epoch for *_, epoch in rows), default=0)
        self._do([*work, ("UPDATE highest SET epoch = max(epoch, ?)", (highest,))])

    def keep_watch(self, name: str, config: Mapping[str, Any] | None) -> None:
        """A watch is there, or no more."""
        if config is None:
            self._do([("DELETE FROM watches WHERE name = ?", (name,))])
        else:
            self._do([("INSERT OR REPLACE INTO watches VALUES (?, ?)", (name, json.dumps(config)))])

    def know(self, states: Mapping[str, Any]) -> None:
        """What watches know of streams."""
        self._do(
            [
                ("INSERT OR REPLACE INTO known VALUES (?, ?)", (stream, json.dumps(each)))
                for stream, each in states.items()
            ]
        )

    def _all(self, sql: str) -> list[Any]:
        with closing(self._database.execute(sql)) as cursor:
            return cursor.fetchall()

    def _do(self, work: list[tuple[str, tuple[Any, ...]]]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in work:
                self._database.execute(sql, values)
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
