"""The SQLite database of a state folder, and the numbered migrations that bring it up to date."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

from streamer.memory.folder import FolderError

log = logging.getLogger("streamer")
MIGRATIONS: tuple[str, ...] = (
    # 1: streams that were added while running
    "CREATE TABLE streams (name TEXT PRIMARY KEY, config TEXT NOT NULL, added REAL NOT NULL) STRICT;",
    # 2: events that wait to be delivered, and outputs that were added while running
    "CREATE TABLE outbox (output TEXT NOT NULL, number INTEGER NOT NULL, id TEXT NOT NULL, at REAL NOT NULL, event BLOB NOT NULL, "
    "PRIMARY KEY (output, number)) STRICT, WITHOUT ROWID; "
    "CREATE TABLE outputs (name TEXT PRIMARY KEY, config TEXT NOT NULL, added REAL NOT NULL) STRICT;",
    # 3: the timeline. Ids are in the order of what happened; `at` is the wall clock too, but never goes back.
    """
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, wall REAL NOT NULL, time REAL, stream TEXT NOT NULL, kind TEXT NOT NULL,
        visitor TEXT, text TEXT NOT NULL, data TEXT NOT NULL, still BLOB, size INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX entries_by_stream ON entries (stream, id, kind, wall);
    CREATE INDEX entries_by_time ON entries (at, size);
    CREATE INDEX entries_put_back ON entries (wall) WHERE at > wall;
    CREATE VIRTUAL TABLE words USING fts5 (
        text, stream, content = entries, content_rowid = id, tokenize = 'unicode61 remove_diacritics 2'
    );
    CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
        INSERT INTO words (rowid, text, stream) VALUES (new.id, new.text, new.stream);
    END;
    CREATE TRIGGER entry_gone AFTER DELETE ON entries BEGIN
        INSERT INTO words (words, rowid, text, stream) VALUES ('delete', old.id, old.text, old.stream);
    END;
    """,
    # 4: watches that were made while running, what each watch knows of each stream, and what was told
    """
    CREATE TABLE watches (name TEXT PRIMARY KEY, config TEXT NOT NULL, added REAL NOT NULL) STRICT;
    CREATE TABLE watch_states (watch TEXT, stream TEXT, state TEXT NOT NULL, PRIMARY KEY (watch, stream)) STRICT;
    CREATE TABLE watch_events (
        id TEXT PRIMARY KEY, watch TEXT NOT NULL, stream TEXT NOT NULL, captured_at REAL NOT NULL, facts TEXT NOT NULL,
        state TEXT NOT NULL, feedback TEXT, still BLOB
    ) STRICT;
    CREATE INDEX watch_events_by_watch ON watch_events (watch, stream, id);
    CREATE INDEX watch_events_by_stream ON watch_events (stream, captured_at);
    """,
    # 5: entries of a stream that has another name now
    """
    CREATE TRIGGER entry_moved AFTER UPDATE OF stream ON entries BEGIN
        INSERT INTO words (words, rowid, text, stream) VALUES ('delete', old.id, old.text, old.stream);
        INSERT INTO words (rowid, text, stream) VALUES (new.id, new.text, new.stream);
    END;
    """,
    # 6: how many entries of each kind there are in a span
    "CREATE INDEX entries_by_kind ON entries (stream, kind, wall, visitor);",
)
"""Each brings a database from its place in this row to the next; none is ever changed once released."""


def connect(path: Path) -> sqlite3.Connection:
    """Opens the database for the thread that writes, migrated. Raises FolderError for a newer one, sqlite3.Error.

    A file that is no database any more is put aside, and begun anew: snapshots and recordings speak for themselves.
    """
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        aside = path.with_suffix(".damaged")
        log.error("the database %s can't be read (%s): it is kept as %s and begun anew", path, error, aside)
        path.replace(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _connect(path)


def writer(path: Path) -> sqlite3.Connection:
    """A connection for what needs no migrated database, and makes none. Raises sqlite3.Error."""
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=5)


def reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads, for one thread at a time. Raises sqlite3.Error."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=5, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        connection.execute("PRAGMA wal_autocheckpoint = 8000")  # pages; `Store` moves them before, beside the writer
        connection.execute("PRAGMA secure_delete = ON")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise FolderError(
                f"the state folder {path.parent} was written by a newer streamer (its version is {version}, known here is "
                f"{len(MIGRATIONS)}): run that one, or name another folder with storage.folder"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection
