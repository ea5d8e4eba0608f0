"""One picture and when it was taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded picture.

    `pixels` is uint8 [H, W, 3], RGB, contiguous. `captured` is in seconds of this host's `time.monotonic()`, the best
    estimate of when the picture was taken. `time` is in seconds on the source's own axis: 0 at its first frame, never
    decreasing, going on across reconnects. `sequence` counts the source's frames since it was opened. `wall` is Unix
    time where the source knows it. `discontinuity` marks the first frame after a gap, a jump of timestamps or a
    reconnect.
    """

    pixels: np.ndarray
    captured: float
    time: float
    sequence: int
    source: str
    wall: float | None = None
    discontinuity: bool = False

    @property
    def nbytes(self) -> int:
        """What its pixels take."""
        return int(self.pixels.nbytes)
