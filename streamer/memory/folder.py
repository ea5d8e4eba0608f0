"""The folder that a daemon's memory is kept in: its places, whose it is, and that one daemon at a time has it."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from streamer.fields import NAME

SNAPSHOTS = "snapshots"
"""Where they are in the folder, by stream."""
SNAPSHOT = re.compile(r"^(\d{10})-(-?\d+)\.snapshot$")
"""What a snapshot's file is called: its number, and the newest frame's capture in milliseconds since 1970."""
PRIVATE = 0o700
DATABASE, LOCK = "streamer.sqlite", "lock"


class FolderError(Exception):
    """Why the folder can't be used, in one line with the mend."""


def default_folder() -> Path:
    """`streamer` under $XDG_STATE_HOME (XDG base directory specification), which is ~/.local/state unless set."""
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "state") / "streamer"


def folder_of(text: str) -> Path:
    """The state folder as it is configured, `~` read as somebody's home. Raises FolderError."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise FolderError(
            f"{text!r} begins with nobody's home: name another with storage.folder, or run --stateless"
        ) from None


class Folder:
    """A state folder that this process alone has, until `close`.

    Holds `streamer.sqlite`, `lock`, and a folder for each stream under `snapshots` and wherever else `place` is asked for.
    """

    def __init__(self, path: Path) -> None:
        """Makes the folder, readable by its owner alone, and locks it. Raises FolderError."""
        self.path = path
        self._lock = self._open()

    @property
    def database(self) -> Path:
        return self.path / DATABASE

    def place(self, kind: str, stream: str) -> Path:
        """Where a stream's files of a kind (`snapshots`) are, made if need be. Raises OSError, and ValueError for no name."""
        if not re.fullmatch(NAME, stream):
            raise ValueError(f"{stream!r} is no name of a stream")
        found = self.path / kind / stream
        for each in (found.parent, found):
            each.mkdir(mode=PRIVATE, exist_ok=True)
        return found

    def streams(self, kind: str) -> list[str]:
        """Names of the streams that have a place of this kind. Raises OSError."""
        parent = self.path / kind
        return sorted(each.name for each in parent.iterdir() if each.is_dir()) if parent.is_dir() else []

    @property
    def there(self) -> bool:
        """Whether the folder is still the one that was locked: it may have been removed, or its disk."""
        try:
            return os.path.samestat((self.path / LOCK).stat(), os.fstat(self._lock))
        except OSError:
            return False

    def again(self) -> None:
        """Makes and locks the folder anew after it was removed. Raises FolderError."""
        lock = self._open()
        os.close(self._lock)
        self._lock = lock

    def close(self) -> None:
        """Lets another daemon have the folder."""
        with suppress(OSError):
            os.close(self._lock)

    def _open(self) -> int:
        path = self.path
        try:
            path.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            owner = path.stat().st_uid
            if owner != os.geteuid():
                raise FolderError(
                    f"the state folder {path} belongs to user {owner}: name another with storage.folder, or run --stateless"
                )
            path.chmod(PRIVATE)
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            other = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "of another daemon"
            os.close(lock)
            raise FolderError(
                f"the state folder {path} is in use by process {other}: stop it, name another folder with storage.folder, "
                "or run --stateless"
            ) from None
        except OSError:
            pass  # no room for the pid, which only tells others whom to stop
        return lock


def check_folder(path: Path) -> None:
    """Raises FolderError where nothing can be written in a folder, or in what it would be made in; leaves all as it is."""
    try:
        there = path
        while not there.exists():
            there = there.parent
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: OSError) -> FolderError:
    return FolderError(
        f"the state folder {path} can't be used ({error.strerror}): name another with storage.folder, or run --stateless"
    )


def sync_folder(path: Path) -> None:
    """Makes a rename in a folder outlast a loss of power. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
