"""Which frames of a source are handed over: at most so many a second, and only those that show something new."""

from __future__ import annotations

import numpy as np

SAMPLE = 4
"""Of the pixels, every fourth of every fourth row is compared."""
CELL = 10
"""Samples along the side of the square parts that are compared."""
SLACK = 0.1
"""The share of a period by which a frame may come early and still be taken, as timestamps are rounded."""
ROUNDING = 1e-6
"""Seconds by which times that are the same may differ, as each is a sum of what passed before it."""


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """How far two thumbnails are apart: the mean absolute difference, 0 to 255, in the part of the picture where it is largest.

    Pictures of different shapes are 255 apart.
    """
    if one.shape != other.shape:
        return 255.0
    apart = np.abs(one - other)
    height, width = (max(side // CELL, 1) * CELL for side in apart.shape)
    if apart.shape[0] < CELL or apart.shape[1] < CELL:
        return float(apart.mean())
    cells = apart[:height, :width].reshape(height // CELL, CELL, width // CELL, CELL)
    return float(cells.mean(axis=(1, 3)).max())


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """int16 [H/4, W/4] of a picture's green, which carries most of its brightness; `pixels` is uint8 [H, W, 3]."""
    return pixels[::SAMPLE, ::SAMPLE, 1].astype(np.int16)


class Selection:
    """Counts what it leaves out: `thinned` by `fps`, `unchanged` by the change gate.

    `fps` is the most frames a second of the source's time. The gate leaves out a frame whose `difference` from the last
    one handed over is below `change`, unless that one is older than `1 / floor` seconds, or for the first time than the part of
    them that is left by `phase`, 0 to 1: sources that begin together and stand still would all show themselves at once for ever.
    """

    def __init__(
        self, fps: float | None = None, change: float | None = None, floor: float = 1.0, *, phase: float = 0.0
    ) -> None:
        self.fps, self.change, self.floor, self.phase = fps, change, floor, phase
        self.thinned = self.unchanged = 0
        self.due = float("-inf")
        self.shown: tuple[float, np.ndarray] | None = None

    def timely(self, time: float) -> bool:
        """Whether a frame of this time is wanted; to be asked once a frame, in order, before its picture is made."""
        if self.fps is None:
            return True
        if self.early(time):
            self.thinned += 1
            return False
        period = 1 / self.fps
        self.due = (self.due if time < self.due + period - ROUNDING else time) + period
        return True

    def early(self, time: float) -> bool:
        """Whether a frame of this time is left out, and would be whatever else came before it."""
        return self.fps is not None and time < self.due - SLACK / self.fps - ROUNDING

    def telling(self, time: float, seen: np.ndarray) -> bool:
        """Whether a timely frame with the thumbnail `seen` shows anything new, or the floor asks for it all the same."""
        if self.change is None:
            return True
        if self.shown is not None:
            then, shown = self.shown
            if time - then < (1 - SLACK) / self.floor and difference(shown, seen) < self.change:
                self.unchanged += 1
                return False
        earlier = self.phase / self.floor if self.shown is None else 0.0
        self.shown = (time - earlier, seen)
        return True
