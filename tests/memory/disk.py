"""Disks as they are: slow, failing to sync, and without power while something was written. See `disk.c`."""

from __future__ import annotations

import mmap
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512


class Disk:
    """What stands before the writes of processes that are given `environment`, to the files in `folder`."""

    def __init__(self, place: Path, folder: Path, *, losing: bool = False) -> None:
        """Compiles into `place`; `losing` notes what `lose_power` needs. Raises subprocess.CalledProcessError, FileNotFoundError."""
        self.library, self.log = place / "disk.so", place / "disk.log"
        source = Path(__file__).with_name("disk.c")
        command = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(self.library), str(source), "-ldl"]
        subprocess.run([*command, "-lpthread"], check=True)
        control = place / "disk.control"
        control.write_bytes(bytes(8))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 8)
        self.environment = {
            "LD_PRELOAD": str(self.library),
            "DISK_FOLDER": f"{folder.resolve()}/",
            "DISK_CONTROL": str(control),
            **({"DISK_LOG": str(self.log)} if losing else {}),
        }

    def set(self, *, slow: float = 0.0, failing: float = 0.0) -> None:
        """From now on each write and each sync takes `slow` seconds longer, and this share of syncs fails."""
        self._control[:] = struct.pack("II", round(slow * 1e6), round(failing * 1000))

    def lose_power(self, chance: random.Random) -> int:
        """Takes back, tears or leaves each write that no sync had made last; how many those were. No process may have them open."""
        pending: dict[str, list[_Write]] = {}
        for each in _read(self.log):
            if isinstance(each, str):
                pending.pop(each, None)
            else:
                pending.setdefault(each.path, []).append(each)
        self.log.unlink(missing_ok=True)
        for path, writes in pending.items():
            if Path(path).is_file():
                self._tear(Path(path), writes, chance)
        for each in Path(self.environment["DISK_FOLDER"]).glob("*-shm"):
            each.unlink()  # it is no file but memory, which is gone as well
        return sum(map(len, pending.values()))

    @staticmethod
    def _tear(path: Path, writes: list[_Write], chance: random.Random) -> None:
        """Lost are either all from some byte on, as where a file grows, or sectors anywhere, as disks write in any order."""
        whole, in_order = chance.randrange(len(writes) + 1), chance.random() < 0.5
        with path.open("r+b") as file:
            for number, write in reversed(list(enumerate(writes))):
                kept = write.length if number < whole else 0
                if number == whole or not in_order:
                    kept = chance.choice((0, chance.randrange(write.length + 1), write.length))
                if not in_order:
                    kept = -(-kept // SECTOR) * SECTOR
                if kept >= write.length:
                    continue
                size, ends = file.seek(0, 2), write.offset + write.length
                if size <= write.offset + kept:
                    continue  # cut off since
                file.seek(write.offset + kept)
                file.write(write.old[kept:])
                begin = write.offset + max(kept, len(write.old))
                if size <= ends:
                    file.truncate(begin)
                else:  # a hole amid what was written later
                    file.write(bytes(ends - begin))


@dataclass(frozen=True)
class _Write:
    path: str
    offset: int
    length: int
    old: bytes


def _read(log: Path) -> Iterator[_Write | str]:
    """Writes, and the paths of files that were synced, in order; the last may be torn."""
    data, at = log.read_bytes() if log.exists() else b"", 0
    while at + 3 <= len(data):
        kind, name = struct.unpack_from("<BH", data, at)
        if kind == ord("S"):
            if at + 3 + name > len(data):
                return
            yield data[at + 3 : at + 3 + name].decode()
            at += 3 + name
            continue
        if at + 27 + name > len(data):
            return
        offset, length, old = struct.unpack_from("<QQQ", data, at + 3)
        path, at = data[at + 27 : at + 27 + name].decode(), at + 27 + name
        if at + old > len(data):
            return
        yield _Write(path, offset, length, data[at : at + old])
        at += old
