"""What waits of one stream, its rhythm, and what the stream is promised. Times are seconds on one monotonic clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic

from streamer.engine.decisions import F

RHYTHM = 5
"""Frames whose distances' median is a stream's rhythm: what is usual now, whatever pauses lie between."""
SILENCE = 2.5
"""Periods of its rhythm without a frame after which the next is news, and seen at once."""
LONGEST_PERIOD = 10.0
"""Seconds between two frames that still count as a stream's rhythm."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a stream is promised: seconds from capture to state, its weight, and whether it waits instead of dropping."""

    deadline: float = 0.2
    priority: int = 1
    every: bool = False


@dataclass
class Queue(Generic[F]):
    """Frames of one stream, oldest first. `period` is the first guess of what lies between two; they correct it.

    `share` is the part of its frame rate that it may use, and `due` when its next step may begin where that is below 1.
    """

    terms: Terms
    period: float
    waiting: deque[F] = field(default_factory=deque)
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=RHYTHM))
    sudden: bool = False
    """Whether the newest frame came after a silence."""
    captured: float | None = None
    """Of the newest frame."""
    arrived: float = float("-inf")
    share: float = 1.0
    due: float = float("-inf")

    @property
    def rhythm(self) -> float:
        """Seconds from one frame to the next, as is usual now."""
        return sorted(self.gaps)[len(self.gaps) // 2] if self.gaps else self.period

    @property
    def late(self) -> float:
        """When the oldest frame is too old."""
        return self.waiting[0].captured + self.terms.deadline

    def add(self, frame: F, now: float) -> None:
        """A frame has come."""
        if self.captured is not None and (apart := frame.captured - self.captured) > 0:
            self.sudden = apart > SILENCE * self.rhythm
            self.gaps.append(apart)
            if apart < LONGEST_PERIOD:
                self.period += 0.1 * (apart - self.period)
        self.captured, self.arrived = frame.captured, now
        self.waiting.append(frame)
