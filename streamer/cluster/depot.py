"""Where a fleet's engines leave snapshots for one another: a folder that all machines have, or one that fsspec reaches, such as S3."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from streamer.cluster.alike import PROBE
from streamer.memory.folder import PRIVATE, SNAPSHOT, SNAPSHOTS, default_folder

if TYPE_CHECKING:
    from streamer.memory.snapshots import Kept, Snapshots

KEPT = 2
"""Snapshots of a stream that are left elsewhere: the newest, and one in case it is damaged."""


class Depot(Protocol):
    """The shared place. Methods raise OSError, and may be called on any thread."""

    def shown(self) -> str:
        """Its name."""
        ...

    def begin(self, probe: str) -> None:
        """Makes it, and leaves a text there by which engines show that they have the same one."""
        ...

    def probe(self) -> str:
        """What was left there; nothing where there is nothing."""
        ...

    def folder(self, engine: str) -> Path:
        """An engine's state folder on its own disk."""
        ...

    def attend(self, snapshots: Snapshots, engine: str) -> None:
        """Has an engine's snapshots there for others from now on."""
        ...

    def adopt(self, snapshots: Snapshots, stream: str, before: str) -> Kept | None:
        """Takes the newest snapshot that the engine `before` left of a stream along; None where it left none."""
        ...


def depot(folder: str) -> Depot:
    """That of a configuration's `folder`."""
    return Elsewhere(folder) if "://" in folder else Mounted(Path(folder).expanduser().resolve())


def state_folder(place: str, engine: str) -> Path:
    """An engine's own, on its machine's disk; of each shared place another. Raises OSError."""
    local = default_folder() / f"fleet-{hashlib.sha256(place.encode()).hexdigest()[:8]}" / engine
    local.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    return local


class Mounted:
    """A folder that every machine has mounted: engines write their snapshots into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def shown(self) -> str:
        return str(self.path)

    def begin(self, probe: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
        (self.path / PROBE).write_text(probe)

    def probe(self) -> str:
        file = self.path / PROBE
        return file.read_text() if file.is_file() else ""

    def folder(self, engine: str) -> Path:
        local, snapshots = state_folder(str(self.path), engine), self.path / engine / SNAPSHOTS
        snapshots.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        if not (local / SNAPSHOTS).is_symlink():
            (local / SNAPSHOTS).symlink_to(snapshots)
        return local

    def attend(self, snapshots: Snapshots, engine: str) -> None:
        return

    def adopt(self, snapshots: Snapshots, stream: str, before: str) -> Kept | None:
        return snapshots.adopt(stream, self.path / before / SNAPSHOTS / stream)


class Elsewhere:
    """What fsspec reaches: engines keep snapshots on their own disks, and the newest are copied there as they are written."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._system: Any = None

    def shown(self) -> str:
        return self.url

    def begin(self, probe: str) -> None:
        with self._reached() as system:
            with suppress(FileExistsError):
                system.makedirs(self._at(), exist_ok=True)
            system.pipe_file(self._at(PROBE), probe.encode())

    def probe(self) -> str:
        with self._reached() as system:
            system.invalidate_cache()
            return str(system.cat_file(self._at(PROBE)).decode()) if system.exists(self._at(PROBE)) else ""

    def folder(self, engine: str) -> Path:
        return state_folder(self.url, engine)

    def attend(self, snapshots: Snapshots, engine: str) -> None:
        snapshots.written_also = lambda stream, kept: self._put(engine, stream, kept)
        snapshots.forgotten_also = lambda stream: self._forget(engine, stream)

    def adopt(self, snapshots: Snapshots, stream: str, before: str) -> Kept | None:
        with self._reached() as system, tempfile.TemporaryDirectory() as folder:
            newest = max(self._names(system, before, stream), default=None)
            if newest is None:
                return None
            system.get_file(self._at(before, SNAPSHOTS, stream, newest), str(Path(folder) / newest))
            return snapshots.adopt(stream, Path(folder))

    def _put(self, engine: str, stream: str, kept: Kept) -> None:
        """On the writer's thread: a snapshot is kept once it is there."""
        with self._reached() as system:
            place = self._at(engine, SNAPSHOTS, stream)
            with suppress(FileExistsError):
                system.makedirs(place, exist_ok=True)
            system.put_file(str(kept.path), f"{place}/{kept.path.name}")
            for name in sorted(self._names(system, engine, stream))[:-KEPT]:
                system.rm_file(f"{place}/{name}")

    def _forget(self, engine: str, stream: str) -> None:
        with self._reached() as system, suppress(FileNotFoundError):
            for name in self._names(system, engine, stream):
                system.rm_file(self._at(engine, SNAPSHOTS, stream, name))

    def _names(self, system: Any, engine: str, stream: str) -> list[str]:
        place = self._at(engine, SNAPSHOTS, stream)
        try:
            found = system.ls(place, detail=False, refresh=True)
        except TypeError:  # a system that keeps no listings
            found = system.ls(place, detail=False)
        except FileNotFoundError:
            return []
        return [name for each in found if SNAPSHOT.match(name := str(each).rpartition("/")[2])]

    def _at(self, *parts: str) -> str:
        return "/".join([self.url, *parts])

    @contextmanager
    def _reached(self) -> Iterator[Any]:
        """Raises OSError for whatever goes wrong."""
        try:
            if self._system is None:
                self._system, _ = import_module("fsspec").core.url_to_fs(self.url)
            yield self._system
        except OSError:
            raise
        except ImportError as error:
            raise OSError(None, f"{error}: pip install 'streamer[s3]'") from None
        except Exception as error:  # each system has errors of its own
            why = str(error).strip().splitlines()
            raise OSError(None, f"{type(error).__name__}: {why[0] if why else 'no reason is given'}") from None
