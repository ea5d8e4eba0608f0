"""What an answer or a look is about, where that is not its stream: steps of the past, one part of what is shown now, or a recording."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Protocol

import numpy as np

from model import Runner

Part = tuple[float, float, float, float]
"""Left, top, right and bottom of a rectangle, in shares of the picture."""


class ShownStep(Protocol):
    """Frames that the model sees together: uint8 [H, W, 3] RGB pictures, and their seconds of stream time."""

    @property
    def pixels(self) -> tuple[np.ndarray, ...]: ...

    @property
    def times(self) -> tuple[float, ...]: ...


class Shown(Protocol):
    """Steps for the model to see."""

    count: int

    def take(self) -> ShownStep | None:
        """The next step; None where it is not ready yet. Raises EOFError where there are no more."""

    def close(self) -> None:
        """No more are wanted."""


class Recorded(Protocol):
    """A recording that an answer is about, in a runner of its own."""

    @property
    def runner(self) -> Runner: ...

    def fork(self, number: int) -> int:
        """The slot of `runner` that the answer with the engine's `number`th slot for answers is given in: a fork of what was recorded."""

    def over(self, slot: int) -> None:
        """The answer in this slot is complete, and its listener is about to be told."""


@dataclass(slots=True)
class Picture:
    """One picture, uint8 [H, W, 3] RGB, as all that the model sees."""

    picture: np.ndarray
    count: int = 1
    times: tuple[float, ...] = (0.0,)

    @property
    def pixels(self) -> tuple[np.ndarray, ...]:
        return (self.picture,)

    def take(self) -> ShownStep:
        """See `Shown`."""
        return self

    def close(self) -> None:
        """See `Shown`."""


def part(pixels: np.ndarray, only: Part | None) -> np.ndarray:
    """What of a picture, uint8 [H, W, 3], is in a rectangle, a pixel at least; all of it where there is none."""
    if only is None:
        return pixels
    height, width = pixels.shape[:2]
    left, top, right, bottom = only
    columns = slice(int(left * width), max(ceil(right * width), int(left * width) + 1))
    rows = slice(int(top * height), max(ceil(bottom * height), int(top * height) + 1))
    return np.ascontiguousarray(pixels[rows, columns])
