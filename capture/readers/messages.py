"""What goes between this process and one that reads. `source` is always the number that a source goes by there."""

from __future__ import annotations

from typing import Literal, NamedTuple

from capture.recorder import Coded, Coding
from capture.source import SourceOptions, SourceStatus


class Open(NamedTuple):
    """Begin to read; memory for its pictures comes along. The mailbox is as the taker's."""

    source: int
    name: str
    url: str
    options: SourceOptions
    capacity: int
    policy: Literal["newest", "every"]
    most_bytes: int
    recorded: bool


class Free(NamedTuple):
    """A slot may be written again."""

    source: int
    slot: int


class Stop(NamedTuple):
    """Read no more, and say when that is done."""

    source: int
    timeout: float


class Shown(NamedTuple):
    """A frame lies in a slot; see `Frame` for what is said of it, and `Recorder.frame` for `number`."""

    source: int
    slot: int
    shape: tuple[int, ...]
    captured: float
    time: float
    sequence: int
    wall: float | None
    discontinuity: bool
    number: int | None


class Told(NamedTuple):
    """A change of state, after all frames that came before."""

    source: int
    status: SourceStatus


class Counted(NamedTuple):
    """How a source is, in between, and how many frames its mailbox there has dropped."""

    source: int
    status: SourceStatus
    dropped: int


class Packets(NamedTuple):
    """What a recorder is to have, in order: a connection's coding, or packets of it."""

    source: int
    came: list[Coding | Coded | None]


class Logged(NamedTuple):
    """A line for the log."""

    name: str
    level: int
    line: str


class Stopped(NamedTuple):
    """A source is read no more."""

    source: int
