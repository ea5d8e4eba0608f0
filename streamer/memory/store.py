"""Writes what is to outlast the process: one thread, a bounded queue, and faults that are told once and mend by themselves."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from streamer.memory.database import connect, reader, writer
from streamer.memory.folder import Folder, FolderError

log = logging.getLogger("streamer")
T = TypeVar("T")
RETRY_SECONDS = 0.5
"""Seconds after a fault before writing is tried again."""
MOST_ROWS = 4_096
"""Rows that may wait for a disk that is slow or full; of more, the oldest are given up and counted."""
MOST_JOBS = 64
"""Writes of files that may wait likewise; more are refused."""
BATCH_SECONDS = 0.5
"""Seconds that rows wait for others, to share one commit with them, unless somebody waits for them."""
ENOUGH_ROWS = 256
"""Rows that wait for no others."""
UNFIT = (sqlite3.IntegrityError, sqlite3.DataError, UnicodeError, OverflowError)
"""What is wrong with a row itself, which no other attempt and no other row need wait for."""
CHECKPOINT_SECONDS = 5.0
"""Seconds between two looks at whether rows are to be moved from the log into the database."""


class StoreError(Exception):
    """What could not be kept, and why, in one line."""


@dataclass
class _Row:
    sql: str
    values: Sequence[Any]
    done: Future[int] = field(default_factory=Future)


@dataclass
class _Job:
    do: Callable[[], Any]
    done: Future[Any] = field(default_factory=Future)


class Store:
    """The state folder and its writer thread. Any thread may call; only what says so waits for the disk.

    `faults` counts how often writing began to fail, `rows_lost` the rows that were given up for it. `renewed` is told, from
    the writer's thread, that the folder had been removed and is begun anew.
    """

    def __init__(self, path: Path, renewed: Callable[[], None] = lambda: None) -> None:
        """Locks the folder and opens its database; waits for the disk. Raises FolderError."""
        self.folder = Folder(path)
        try:
            self._database = connect(self.folder.database)
        except FolderError:
            self.folder.close()
            raise
        except (sqlite3.Error, OSError) as error:
            self.folder.close()
            raise FolderError(f"the state folder {path} can't be used: {error}; has its disk room?") from None
        self.faults = self.rows_lost = 0
        self._renewed = renewed
        self._troubles: dict[str, str] = {}
        self._waiting: deque[_Row | _Job] = deque()
        self._rows = self._jobs = self._commits = 0
        self._change = threading.Condition()
        self._hurry = self._stopping = False
        self._lost = False
        """Whether the database in use is one of a folder that is gone."""
        self._reading = threading.local()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()
        self._mover = threading.Thread(target=self._move, name="memory log", daemon=True)
        self._mover.start()

    @property
    def fault(self) -> str | None:
        """Why nothing, or not all, can be kept now, in one line."""
        return next(iter(self._troubles.values()), None)

    def write(self, sql: str, values: Sequence[Any] = (), *, now: bool = False) -> Future[int]:
        """Carries out one statement, in order, committed with others; the future is the row's id, of a DELETE or an UPDATE how many rows.

        `now` says that somebody waits for it. While the disk is at fault rows wait; those that are given up fail with StoreError.
        """
        row = _Row(sql, values)
        with self._change:
            if self._rows >= MOST_ROWS:
                oldest = next(each for each in self._waiting if isinstance(each, _Row))
                self._waiting.remove(oldest)
                self._rows -= 1
                self.rows_lost += 1
                oldest.done.set_exception(StoreError(self.fault or "the disk is too slow"))
            self._rows += 1
            self._hurry |= now
            self._put(row)
        return row.done

    def do(self, job: Callable[[], T]) -> Future[T]:
        """Runs `job`, which writes files, on the writer's thread, after all that was asked before.

        What it raises is the future's exception, an OSError a fault of the disk. With MOST_JOBS waiting it fails with StoreError.
        """
        made = _Job(job)
        with self._change:
            if self._jobs >= MOST_JOBS:
                made.done.set_exception(StoreError(self.fault or "the disk is too slow"))
            else:
                self._jobs += 1
                self._put(made)
        return made.done

    def tidy(self, pages: int) -> Future[None]:
        """Gives so many freed pages of the database back to the disk. Like `do`, of which it is one."""

        def carry_out() -> None:
            self._database.executescript(f"PRAGMA incremental_vacuum({pages:d})")  # `execute` would free one page alone

        return self.do(carry_out)

    def merge(self, pages: int, *, first: bool) -> Future[bool]:
        """Rewrites so many pages of the index of words, without what was deleted; whether there are more. Like `do`.

        All of the index, from the `first` call to the one that returns False, is an "optimize" that others need not wait for.
        """

        def carry_out() -> bool:
            before = self._database.total_changes
            self._database.execute("INSERT INTO words (words, rank) VALUES ('merge', ?)", (-pages if first else pages,))
            return self._database.total_changes - before >= 2  # https://sqlite.org/fts5.html#the_merge_command

        return self.do(carry_out)

    def checkpoint(self) -> Future[None]:
        """Leaves nothing of what was deleted in the log, most of which is moved before the writer's turn; waits. Else like `do`."""
        self._moved()

        def carry_out() -> None:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

        return self.do(carry_out)

    def read(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """The rows of a query; waits for the disk. Raises sqlite3.Error."""
        kept: tuple[sqlite3.Connection, sqlite3.Connection] | None = getattr(self._reading, "kept", None)
        if kept is None or kept[0] is not self._database:
            if kept is not None:
                kept[1].close()
            kept = self._reading.kept = (self._database, reader(self.folder.database))
        return kept[1].execute(sql, values).fetchall()

    def close(self, timeout: float = 2.0) -> None:
        """Writes what waits, for so many seconds at most, and lets the folder go."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self._mover.join(timeout)

    def _put(self, each: _Row | _Job) -> None:
        if self._stopping:
            each.done.set_exception(StoreError("the daemon is ending"))
            return
        self._waiting.append(each)
        self._change.notify()

    # On a thread of its own, so that no commit waits for it

    def _move(self) -> None:
        moved = -1
        while not self._ended.wait(CHECKPOINT_SECONDS):
            if (written := self._commits) != moved:
                self._moved()
                moved = written

    def _moved(self) -> None:
        """Moves what is in the log into the database, as far as nobody reads it there; the writer goes on meanwhile."""
        with suppress(sqlite3.Error), closing(writer(self.folder.database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    # On the writer's thread

    def _run(self) -> None:
        while self._due():
            if not self._ready() or not self._pass():
                self._pause()
            if self._stopping and self._troubles:
                break
        self._ended.set()
        for each in self._waiting:
            with suppress(Exception):
                each.done.set_exception(StoreError(self.fault or "the daemon is ending"))
        with suppress(sqlite3.Error):
            self._database.close()
        self.folder.close()

    def _due(self) -> bool:
        """Waits until something is to be written; False when no more comes."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._stopping)
            if not self._jobs:
                self._change.wait_for(
                    lambda: self._jobs or self._hurry or self._stopping or self._rows >= ENOUGH_ROWS, BATCH_SECONDS
                )
            self._hurry = False
            return bool(self._waiting)

    def _pause(self) -> None:
        with self._change:
            self._change.wait_for(lambda: self._stopping, RETRY_SECONDS)

    def _ready(self) -> bool:
        """Whether the folder is there; one that was removed is begun anew, the next time."""
        if self._lost or not self.folder.there:
            gone = f"the state folder {self.folder.path} was removed while it was in use"
            if "folder" not in self._troubles:
                return self._fails("folder", gone)
            try:
                if not self.folder.there:
                    self.folder.again()
                self._lost = True
                self._database.close()
                self._database = connect(self.folder.database)
                self._renewed()
                self._lost = False
            except (FolderError, OSError, sqlite3.Error) as error:
                return self._fails("folder", f"{gone}: {error}")
        self._mended("folder")
        return True

    def _pass(self) -> bool:
        """Does what waits now, in order; False where the disk is at fault."""
        while True:
            with self._change:
                batch: list[_Row] = []
                for each in self._waiting:
                    if not isinstance(each, _Row) or len(batch) == ENOUGH_ROWS:
                        break
                    batch.append(each)
                job = None
                if not batch and self._waiting:
                    job = self._waiting.popleft()
                    self._jobs -= 1
            if batch:
                if not self._commit(batch):
                    return False
            elif isinstance(job, _Job):
                if not self._carry_out(job):
                    return False
            else:
                return True

    def _commit(self, batch: list[_Row]) -> bool:
        """One transaction; on a fault of the disk the rows stay where they are."""
        ids: list[int | Exception] = []
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for row in batch:
                try:
                    done = self._database.execute(row.sql, row.values)
                    ids.append(done.rowcount if row.sql.startswith(("DELETE", "UPDATE")) else done.lastrowid or 0)
                except UNFIT as error:
                    ids.append(error)
            self._database.execute("COMMIT")
            self._commits += 1
        except (sqlite3.Error, OSError) as error:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            return self._fails("rows", f"{self.folder.database}: {error}")
        with self._change:
            for row in batch:
                with suppress(ValueError):  # given up meanwhile, though written
                    self._waiting.remove(row)
                    self._rows -= 1
        for row, written in zip(batch, ids, strict=True):
            if row.done.done():
                continue
            if isinstance(written, Exception):
                row.done.set_exception(written)
            else:
                row.done.set_result(written)
        self._mended("rows")
        return True

    def _carry_out(self, job: _Job) -> bool:
        if not job.done.set_running_or_notify_cancel():
            return True
        try:
            result = job.do()
        except OSError as error:
            self._fails("files", f"{error.filename or self.folder.path}: {error.strerror or error}")
            job.done.set_exception(error)
            return False
        except Exception as error:
            job.done.set_exception(error)
        else:
            job.done.set_result(result)
            self._mended("files")
        return True

    def _fails(self, kind: str, trouble: str) -> bool:
        """Tells once that the disk is at fault."""
        if not self._troubles:
            self.faults += 1
            log.error("nothing can be kept now, watching and answering go on: %s", trouble)
        self._troubles[kind] = trouble
        return False

    def _mended(self, kind: str) -> None:
        if list(self._troubles) == [kind]:
            log.warning("what is seen is kept again in %s", self.folder.path)
        self._troubles.pop(kind, None)
