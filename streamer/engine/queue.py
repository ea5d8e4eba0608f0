"""What waits of one stream, its rhythm, and what the stream is promised. Times are seconds on one monotonic clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic

from streamer.engine.decisions import F

RHYTHM = 5
"""Frames whose distances' median is a stream's rhythm: what is usual now, whatever pauses lie between."""
LATELY, MOST_LATELY = 2.0, 256
"""Seconds whose frames' mean distance is a stream's period, so that a burst and the pause before it count together; the most frames."""
SILENCE = 2.5
"""Periods of its rhythm without a frame after which the next is news, and seen at once."""
MOST_BYTES = 24 * 2**20
"""What the frames of one stream that wait may take in all, beyond those of one step."""
LONGEST_PERIOD = 10.0
"""Seconds that a pause between two frames counts for at most."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a stream is promised: seconds from capture to state, its weight, and whether it waits instead of dropping."""

    deadline: float = 0.2
    priority: int = 1
    every: bool = False


@dataclass
class Queue(Generic[F]):
    """Frames of one stream, oldest first. `period` is what lies between two on average: a first guess, which they correct.

    `share` is the part of its frame rate that it may use, and `due` when its next step may begin where that is below 1.
    """

    terms: Terms
    period: float
    waiting: deque[F] = field(default_factory=deque)
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=RHYTHM))
    lately: deque[float] = field(init=False)
    """Distances whose mean is `period`, the first guess among them until it is forgotten."""
    sudden: bool = False
    """Whether the newest frame came after a silence."""
    captured: float | None = None
    """Of the newest frame."""
    arrived: float = float("-inf")
    share: float = 1.0
    due: float = float("-inf")

    def __post_init__(self) -> None:
        self.lately = deque([self.period] * max(1, round(LATELY / self.period)), maxlen=MOST_LATELY)

    @property
    def rhythm(self) -> float:
        """Seconds from one frame to the next, as is usual now."""
        return sorted(self.gaps)[len(self.gaps) // 2] if self.gaps else self.period

    @property
    def late(self) -> float:
        """When the oldest frame is too old."""
        return self.waiting[0].captured + self.terms.deadline

    @property
    def nbytes(self) -> int:
        return sum(frame.nbytes for frame in self.waiting)

    def slack(self, begin: float, takes: float, beyond: float, per_step: int) -> float:
        """Seconds that may pass before one of its frames is late, if steps of `per_step` begin at `begin`, one after the other.

        Each takes `takes`, and `beyond` more until its frames are in the state.
        """
        ends = (begin + (number // per_step + 1) * takes + beyond for number in range(len(self.waiting)))
        return min(frame.captured + self.terms.deadline - end for frame, end in zip(self.waiting, ends, strict=True))

    def add(self, frame: F, now: float) -> None:
        """A frame has come."""
        if self.captured is not None and (apart := frame.captured - self.captured) > 0:
            self.sudden = apart > SILENCE * self.rhythm
            self.gaps.append(apart)
        if self.captured is not None and apart >= 0:
            self.lately.append(min(apart, LONGEST_PERIOD))
            lasted = sum(self.lately)
            while lasted - self.lately[0] >= LATELY:
                lasted -= self.lately.popleft()
            self.period = max(lasted, LATELY) / len(self.lately)
        self.captured, self.arrived = frame.captured, now
        self.waiting.append(frame)
