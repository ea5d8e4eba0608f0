"""Memory of two processes in which pictures are handed over."""

from __future__ import annotations

import mmap
import os
from math import prod

import numpy as np

COUNT = 3
"""Pictures of one source that may be on their way."""


def new_memory(largest_side: int) -> int:
    """A file descriptor of memory for COUNT pictures whose longer side has `largest_side` pixels; only what is used takes room.

    It has no name anywhere, so it is gone when nobody has it open any more, however that came.
    """
    file = os.memfd_create("streamer-frames")
    os.ftruncate(file, COUNT * (3 * largest_side**2 // mmap.PAGESIZE + 1) * mmap.PAGESIZE)
    return file


class Slots:
    """Memory from `new_memory`, whose descriptor it does not need afterwards.

    Whoever owns a slot writes or reads it; nothing here looks after that.
    """

    def __init__(self, file: int) -> None:
        self.map = mmap.mmap(file, 0)
        self.size = len(self.map) // COUNT

    def write(self, slot: int, pixels: np.ndarray) -> None:
        """Puts a picture, uint8 [H, W, 3], into a slot. Raises ValueError where it is larger than that."""
        if pixels.nbytes > self.size:
            raise ValueError(f"a picture of {pixels.nbytes:,} bytes is larger than its place of {self.size:,}")
        self.within(slot, pixels.shape)[...] = pixels

    def read(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        """A copy of the picture, uint8 of `shape`, in a slot."""
        return self.within(slot, shape).copy()

    def within(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self.map, np.uint8, prod(shape), slot * self.size).reshape(shape)
