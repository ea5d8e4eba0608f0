"""Video of nothing in particular: pieces of photographs that lie or move over other photographs, so that what is not of the
world is not taken for something that is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]

PIECES = (1, 6)
SIZES = (0.06, 0.5)
"""Side of a piece, as a share of the picture's."""
REST = 0.3
"""Share of pieces that lie still."""
PACE = 0.02
"""How far others move in a frame, as a share of the picture's side."""
LOBES = range(2, 6)
"""Harmonics of the pieces' outlines, so that none looks like a shape that has a name."""
TEXTURE = 18.0
"""Least deviation of a piece's brightness: what is of one colour would look like a shape."""


def outline(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """How much of a piece shows, [1, height, width]: a blob with an edge of a pixel or a few."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle, reach = np.arctan2(y, x), np.full(x.shape, 0.8)
    for k in LOBES:
        reach += rng.uniform(0.3, 0.7) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    edge = rng.uniform(1.0, 4.0) * 2 / min(height, width)
    shows: NDArray[np.float32] = np.clip((reach - np.hypot(x, y)) / edge, 0, 1)[None].astype(np.float32)
    return shows


def film(rng: np.random.Generator, stills: Pictures, frames: int) -> Pictures:
    """One piece of video, [frames, 3, side, side]."""
    side = stills.shape[-1]
    result = np.repeat(stills[rng.integers(len(stills))][None], frames, 0)
    for _ in range(int(rng.integers(PIECES[0], PIECES[1] + 1))):
        height, width = (np.exp(rng.uniform(np.log(SIZES[0]), np.log(SIZES[1]), 2)) * side).astype(int)
        top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
        part = stills[rng.integers(len(stills)), :, top : top + height, left : left + width]
        if part.mean(0).std() < TEXTURE:
            continue
        piece = part.astype(np.float32) * rng.uniform(0.6, 1.4, (3, 1, 1)).astype(np.float32)
        shows = outline(rng, height, width)
        place = rng.uniform(-0.3, 1.1, 2) * side
        pace = np.zeros(2) if rng.random() < REST else rng.normal(0, PACE * side, 2)
        for i in range(frames):
            y, x = np.round(place + pace * i).astype(int)
            rows, columns = slice(max(0, y), min(side, y + height)), slice(max(0, x), min(side, x + width))
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            down, across = slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x)
            under = result[i, :, rows, columns]
            mixed = under + shows[:, down, across] * (piece[:, down, across] - under)
            result[i, :, rows, columns] = np.clip(mixed, 0, 255).round().astype(np.uint8)
    return result


def films(stills: Pictures, frames: int, count: int, seed: int = 0) -> Pictures:
    """`count` pieces of `frames` each from uint8 RGB `stills` [n, 3, side, side], one after another; the same for the same seed."""
    rng = np.random.default_rng(seed)
    return np.concatenate([film(rng, stills, frames) for _ in range(count)])
