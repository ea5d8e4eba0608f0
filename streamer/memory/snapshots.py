"""The snapshots' files: written whole or not at all, found by stream and moment, thinned as they age."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model.state import Snapshot
from streamer.memory.folder import SNAPSHOT, SNAPSHOTS, Folder, sync_folder
from streamer.memory.retention import shares, too_large, too_many
from streamer.memory.snapshot import DamagedError, Taken, chunks, load

log = logging.getLogger("streamer")
PARTIAL = ".partial"
FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot's file. `number` counts the stream's snapshots; `wall` is the newest frame's capture in Unix seconds."""

    number: int
    wall: float
    size: int
    path: Path


class Snapshots:
    """Reads and writes a folder's snapshots. `write` and `forget` belong to the writer's thread, the rest to any."""

    def __init__(self, folder: Folder, budget: int) -> None:
        """Looks through the folder; what was being written when a process died is removed. Raises OSError."""
        self.folder, self.budget = folder, budget
        self.written = self.bytes_written = self.damaged = 0
        self.written_also: Callable[[str, Kept], None] = lambda stream, kept: None
        """Is told of each that is written, and may raise OSError: then it is not kept."""
        self.forgotten_also: Callable[[str], None] = lambda stream: None
        """Is told of a stream of which nothing is to be kept."""
        self._lock = threading.Lock()
        self._kept = self._all()

    def of(self, stream: str) -> list[Kept]:
        """A stream's snapshots in the order of their making."""
        with self._lock:
            return list(self._kept.get(stream, ()))

    @property
    def streams(self) -> list[str]:
        """Of which there are snapshots."""
        with self._lock:
            return [stream for stream, kept in self._kept.items() if kept]

    @property
    def size(self) -> int:
        """Bytes of all snapshots."""
        with self._lock:
            return sum(each.size for kept in self._kept.values() for each in kept)

    def write(self, taken: Taken, state: Snapshot, now: float) -> Kept:
        """Writes a snapshot so that it is there whole or not at all, whatever happens; then thins. Raises OSError."""
        place = self.folder.place(SNAPSHOTS, taken.stream)
        number = max((each.number for each in self.of(taken.stream)), default=0) + 1
        path = place / f"{number:010d}-{round(taken.wall * 1000)}.snapshot"
        partial, size = path.with_suffix(PARTIAL), 0
        try:
            with os.fdopen(os.open(partial, FLAGS, 0o600), "wb") as file:
                for chunk in chunks(taken, state):
                    size += file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
            sync_folder(place)
            self.written_also(taken.stream, kept := Kept(number, round(taken.wall * 1000) / 1000, size, path))
        except OSError:
            for each in (partial, path):
                with suppress(OSError):
                    each.unlink(missing_ok=True)
            raise
        with self._lock:
            self._kept.setdefault(taken.stream, []).append(kept)
        self.written += 1
        self.bytes_written += size
        self.thin(now)
        return kept

    def adopt(self, stream: str, place: Path) -> Kept | None:
        """Takes another folder's newest snapshot of a stream along, in `place`, as the newest here; None where it has none.

        Raises OSError.
        """
        newest = max(_whole(place), key=lambda each: each.number, default=None) if place.is_dir() else None
        if newest is None:
            return None
        own = self.folder.place(SNAPSHOTS, stream)
        number = max((each.number for each in self.of(stream)), default=0) + 1
        path = own / f"{number:010d}-{round(newest.wall * 1000)}.snapshot"
        try:
            os.link(newest.path, path)
        except OSError:  # another file system, or one without links
            shutil.copyfile(newest.path, path.with_suffix(PARTIAL))
            path.with_suffix(PARTIAL).rename(path)
        sync_folder(own)
        kept = Kept(number, newest.wall, newest.size, path)
        with self._lock:
            self._kept.setdefault(stream, []).append(kept)
        return kept

    def load(self, kept: Kept) -> tuple[Taken, Snapshot] | None:
        """Reads a snapshot; one that can't be read is told and counted, and None. One that is damaged or gone is forgotten."""
        try:
            return load(kept.path)
        except (OSError, DamagedError) as error:
            log.error("a snapshot can't be read, the one before it is tried: %s", error)
            self.damaged += 1
            if isinstance(error, (DamagedError, FileNotFoundError)):  # else it may be whole: another time will tell
                self._drop(kept.path.parent.name, [kept])
            return None

    def thin(self, now: float) -> None:
        """Removes what is more than age and budget allow; `now` is Unix seconds."""
        with self._lock:
            all_kept = {stream: list(kept) for stream, kept in self._kept.items()}
        for stream, kept in all_kept.items():
            self._drop(stream, too_many(kept, now))
        with self._lock:
            all_kept = {stream: list(kept) for stream, kept in self._kept.items()}
        wanted = {stream: sum(each.size for each in kept) for stream, kept in all_kept.items()}
        for stream, share in shares(wanted, self.budget).items():
            self._drop(stream, too_large(all_kept[stream], share))

    def forget(self, stream: str, since: float = float("-inf")) -> int:
        """Removes a stream's snapshots from a moment (Unix seconds) on; returns how many."""
        gone = [each for each in self.of(stream) if each.wall >= since]
        self._drop(stream, gone)
        if gone:
            self.forgotten_also(stream)
        return len(gone)

    def forget_some(self, stream: str, gone: Iterable[Kept]) -> None:
        """Removes some of a stream's snapshots."""
        self._drop(stream, gone)

    def begin_anew(self) -> None:
        """The folder was removed, or is another: its disk is back, with what was there before. Raises OSError."""
        found = self._all()
        with self._lock:
            self._kept = found

    def _all(self) -> dict[str, list[Kept]]:
        places = {stream: self.folder.place(SNAPSHOTS, stream) for stream in self.folder.streams(SNAPSHOTS)}
        return {stream: sorted(_found(place), key=lambda each: each.number) for stream, place in places.items()}

    def _drop(self, stream: str, gone: Iterable[Kept]) -> None:
        for each in gone:
            with suppress(OSError):
                each.path.unlink(missing_ok=True)
            with self._lock, suppress(ValueError):
                self._kept.get(stream, []).remove(each)


def _found(place: Path) -> Iterable[Kept]:
    for path in place.glob(f"*{PARTIAL}"):
        path.unlink()
    return _whole(place)


def _whole(place: Path) -> Iterable[Kept]:
    for path in place.iterdir():
        if name := SNAPSHOT.match(path.name):
            yield Kept(int(name[1]), int(name[2]) / 1000, path.stat().st_size, path)
