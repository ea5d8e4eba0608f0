"""Indexes of recordings: what a model kept of each, in a folder of its own, written as it is read and put back to be asked."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from model import Snapshot
from streamer.fields import NAME
from streamer.memory.folder import PRIVATE

KIND, FACTS, TOKENS, LOCK = "indexes", "index.json", "tokens.bin", "lock"
PORTION = 2_048
"""Tokens that are read at once."""


class RecordingError(Exception):
    """What can't be indexed or asked, in one line with the mend."""


@dataclass(slots=True)
class Facts:
    """What is known of an index. Times are seconds of the recording; `begins` is Unix seconds where it is a stream's.

    `steps` has the first token and the time of each step that the model took. `note` says, in one line, why it ends early.
    """

    name: str
    source: str
    size: int
    modified: float
    model: str
    fingerprint: str
    fps: float
    begins: float | None = None
    grid: tuple[int, int] = (0, 0)
    tokens: int = 0
    frames: int = 0
    seconds: float = 0.0
    steps: list[tuple[int, float]] = field(default_factory=list)
    complete: bool = False
    note: str = ""


class Index:
    """One index, which one process at a time may write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def facts(self) -> Facts | None:
        """What is known of it; None where nothing whole was written. Raises OSError."""
        try:
            found = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            return Facts(
                **{**found, "steps": [(int(a), float(b)) for a, b in found["steps"]], "grid": tuple(found["grid"])}
            )
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    @property
    def bytes(self) -> int:
        """Bytes on the disk; none of what is gone meanwhile."""
        try:
            return sum(each.stat().st_size for each in self.folder.iterdir() if each.is_file())
        except FileNotFoundError:
            return 0

    @property
    def busy(self) -> bool:
        """Whether a process writes it now. Raises OSError."""
        try:
            lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(lock)

    def open(self) -> None:
        """Makes the folder and keeps other writers away. Raises OSError, RecordingError."""
        for each in (self.folder.parent.parent, self.folder.parent, self.folder):
            try:
                each.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            except FileExistsError:  # as a file
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(each)) from None
        self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise RecordingError(f"{self.folder.name} is being indexed by another process: wait for it") from None

    def close(self) -> None:
        """Lets others write it."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def write(self, facts: Facts, parts: Snapshot, rows: torch.Tensor) -> None:
        """Keeps `rows` (the tokens since the last time) and all else as it is now. Raises OSError.

        A crash leaves what was there before, and so does a fault, which takes back what it has begun.
        """
        data, before = rows.contiguous().view(torch.uint8).numpy(), None
        state = self.folder / f"state.{facts.tokens}.safetensors"
        partial, begun = self.folder / f"{FACTS}.part", self.folder / f"{state.name}.part"
        try:
            with (self.folder / TOKENS).open("ab") as file:
                before = (facts.tokens - len(rows)) * data[0].nbytes if len(rows) else file.tell()
                file.truncate(before)
                file.write(memoryview(cast(Any, data.reshape(-1))))
                file.flush()
                os.fsync(file.fileno())
            with begun.open("wb") as file:  # by `save_file` a full disk would be no OSError
                file.write(save({name: part.contiguous() for name, part in parts.items()}))
                file.flush()
                os.fsync(file.fileno())
            begun.replace(state)
            with partial.open("w", encoding="utf-8") as text:
                json.dump(asdict(facts), text)
                text.flush()
                os.fsync(text.fileno())
            partial.replace(self.folder / FACTS)
        except OSError:
            with suppress(OSError):
                begun.unlink(missing_ok=True)
                partial.unlink(missing_ok=True)
                if before is not None:
                    os.truncate(self.folder / TOKENS, before)
            raise
        for each in self.folder.glob("state.*.safetensors"):
            if each != state:
                each.unlink()

    def parts(self, facts: Facts) -> Snapshot:
        """The state as it was kept, the tokens left out. Raises OSError, RecordingError where it is damaged."""
        try:
            return load_file(self.folder / f"state.{facts.tokens}.safetensors")
        except (SafetensorError, FileNotFoundError):
            raise _damaged(facts) from None

    def rows(self, facts: Facts, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The tokens [portion, *shape], in portions. Raises OSError, RecordingError where some are missing."""
        each, path = int(np.prod(shape)) * dtype.itemsize, self.folder / TOKENS
        if not path.exists():
            raise _damaged(facts)
        with path.open("rb") as file:
            for start in range(0, facts.tokens, PORTION):
                count = min(PORTION, facts.tokens - start)
                data = np.fromfile(file, np.uint8, count * each)
                if len(data) < count * each:
                    raise _damaged(facts)
                yield torch.from_numpy(data).view(dtype).view(count, *shape)

    def whole(self, facts: Facts, token_bytes: int) -> bool:
        """Whether all that the facts tell of is there: the state, and tokens of so many bytes each. Raises OSError."""
        try:
            self.parts(facts)
            return (self.folder / TOKENS).stat().st_size >= facts.tokens * token_bytes
        except (RecordingError, FileNotFoundError):
            return False

    def clear(self) -> None:
        """Removes what was left of it without facts that tell of it; a file that came to be read stays. Raises OSError."""
        for each in (self.folder / TOKENS, self.folder / f"{FACTS}.part", *self.folder.glob("state.*")):
            each.unlink(missing_ok=True)
        if [each.name for each in self.folder.iterdir()] == [LOCK]:
            self.remove()

    def remove(self) -> None:
        """Removes all of it. Raises OSError."""
        shutil.rmtree(self.folder)


def _damaged(facts: Facts) -> RecordingError:
    return RecordingError(f"the index {facts.name} is damaged: index it again")


class Writing:
    """Writes an index beside whoever reads its recording: one write after the other, of which one may be under way."""

    def __init__(self, index: Index) -> None:
        self._index, self._writer = index, ThreadPoolExecutor(1, "index")
        self._last: Future[None] | None = None

    def write(self, facts: Facts, parts: Snapshot, rows: torch.Tensor) -> None:
        """As `Index.write`, of the facts as they are now, once the write before is done. Raises its OSError."""
        self._wait()
        self._last = self._writer.submit(self._index.write, replace(facts, steps=list(facts.steps)), parts, rows)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """All is written, or its OSError is raised where nothing else is."""
        self._writer.shutdown()
        if kind is None:
            self._wait()


def changed(facts: Facts) -> bool:
    """Whether the file that an index is of is another now; not where it can't be looked at, or was a stream's span."""
    try:
        stat = Path(facts.source).stat() if facts.source.startswith("/") else None
    except OSError:
        return False
    return stat is not None and (stat.st_size, stat.st_mtime) != (facts.size, facts.modified)


def every(folder: Path) -> list[Index]:
    """What lies among the indexes of a state folder, by name, whether facts tell of it or not. Raises OSError."""
    place = folder / KIND
    return [Index(each) for each in sorted(place.iterdir()) if each.is_dir()] if place.is_dir() else []


def listed(folder: Path) -> list[tuple[Index, Facts]]:
    """The indexes in a state folder, by name. Raises OSError."""
    return [(index, facts) for index in every(folder) if (facts := index.facts()) is not None]


def used_bytes(folder: Path, name: str = "") -> int:
    """What all indexes but this one take, in bytes, with the files that were brought to be read. Raises OSError."""
    return sum(index.bytes for index in every(folder) if index.folder.name != name)


def forget(folder: Path, stream: str, since: float, until: float) -> int:
    """Removes the indexes of what was recorded of a stream that hold anything of a span (Unix seconds); how many. Raises OSError."""
    gone = 0
    for index, facts in listed(folder):
        begins = facts.begins
        if (
            begins is not None
            and facts.source.split()[0] == stream
            and begins <= until
            and begins + facts.seconds >= since
        ):
            index.remove()
            gone += 1
    return gone


def named(folder: Path, name: str) -> tuple[Index, Facts] | None:
    """An index by its name, or by its recording's path. Raises OSError."""
    path = str(Path(name).expanduser().resolve())
    return next((each for each in listed(folder) if each[1].name == name or each[1].source == path), None)


def free_name(folder: Path, base: str, source: str) -> str:
    """A name for the index of a source, made of `base`: the one that it has, or one that nobody has. Raises OSError."""
    taken = {facts.name: facts.source for _, facts in listed(folder)}
    if (own := next((known for known, other in taken.items() if other == source), None)) is not None:
        return own
    base = re.sub(r"[^A-Za-z0-9_.-]+", "-", base).strip("._-")[:48] or "recording"
    name = numbered(base, taken.__contains__)
    assert re.fullmatch(NAME, name)
    return name


def numbered(base: str, taken: Callable[[str], bool]) -> str:
    """The first of `base`, `base`-2, `base`-3 … that is not taken."""
    return next(name for name in chain([base], (f"{base}-{number}" for number in count(2))) if not taken(name))
