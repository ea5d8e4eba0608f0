"""A snapshot as a file: a line that names the format, a line of facts, the tensors' bytes, and a checksum of all of it.

Uncompressed: zstd takes 7 % off a nano's state (16 % with its bytes sorted by significance) and as much time as writing does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from model.state import Snapshot

MAGIC = b"streamer snapshot 1\n"
CHECKSUM = hashlib.sha256().digest_size


class DamagedError(ValueError):
    """A file that is no whole snapshot."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What is known of a stream's state when it was taken.

    `wall` is the newest frame's capture in Unix seconds, `time` its seconds of stream time, which the model has seen, and
    `position` its seconds on the source's own axis; `source` is its URL without credentials. `model` and `fingerprint` say
    which weights and policy can go on with it, `version` which streamer wrote it.
    """

    stream: str
    source: str
    wall: float
    time: float
    position: float
    sequence: int
    generation: int
    resumes: int
    model: str
    fingerprint: str
    version: str


def chunks(taken: Taken, state: Snapshot) -> Iterator[bytes | memoryview]:
    """The file's bytes; the tensors' own memory is not copied, and hashing and writing it leave other threads alone."""
    tensors = {name: part.contiguous() for name, part in state.items()}
    index = [[name, str(part.dtype).removeprefix("torch."), list(part.shape)] for name, part in tensors.items()]
    digest = hashlib.sha256()
    head = MAGIC + json.dumps({"taken": asdict(taken), "tensors": index}).encode() + b"\n"
    bodies = (memoryview(cast(Any, part.reshape(-1).view(torch.uint8).numpy())) for part in tensors.values())
    pieces: tuple[bytes | memoryview, ...] = (head, *bodies)
    for chunk in pieces:
        digest.update(chunk)
        yield chunk
    yield digest.digest()


def load(path: Path) -> tuple[Taken, Snapshot]:
    """Reads a file whole and checks it. Raises OSError and DamagedError."""
    data = bytearray(path.read_bytes())
    body = memoryview(data)[:-CHECKSUM]
    if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != data[-CHECKSUM:]:
        raise DamagedError(f"{path} is damaged: its checksum is wrong")
    start = data.index(b"\n", len(MAGIC)) + 1
    head: dict[str, Any] = json.loads(data[len(MAGIC) : start])
    state: Snapshot = {}
    for name, kind, shape in head["tensors"]:
        dtype: torch.dtype = getattr(torch, kind)
        count = torch.Size(shape).numel()
        state[name] = torch.frombuffer(body, dtype=torch.uint8, count=count * dtype.itemsize, offset=start)
        state[name] = state[name].clone().view(dtype).reshape(shape)  # aligned, whatever lies before it
        start += count * dtype.itemsize
    return Taken(**head["taken"]), state
