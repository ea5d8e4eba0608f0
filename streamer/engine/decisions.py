"""What the engine does next, as the scheduler decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """A frame, of which only age and size matter here: `captured` is in seconds on the monotonic clock, `nbytes` what it takes."""

    @property
    def captured(self) -> float: ...

    @property
    def nbytes(self) -> int: ...


F = TypeVar("F", bound=Timed)


@dataclass(frozen=True, slots=True)
class FrameStep(Generic[F]):
    """One step of a batch of streams, each with 1 to `frames_per_step` frames, oldest first."""

    frames: tuple[tuple[str, tuple[F, ...]], ...]


@dataclass(frozen=True, slots=True)
class Prefill:
    """The next `tokens` tokens of an answer's question; the first of these also needs its fork."""

    answer: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Decode:
    """One more token for each of these answers."""

    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """One more step of what an answer about the past is shown before its question is read; the first also needs its slot."""

    answer: str


@dataclass(frozen=True, slots=True)
class Look:
    """Watches of one stream are asked again, of one fork each, and none is answered with more than how likely yes is."""

    stream: str
    watches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing until an event comes, or until this time."""

    until: float | None


Decision = FrameStep[F] | Prefill | Decode | Replay | Look | Idle
KINDS = {FrameStep: "frames", Prefill: "prefill", Decode: "decode", Replay: "replay", Look: "looks"}
"""What steps are called where they are counted."""
