"""When things come and go, how they and the camera move, and what time it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.world.scene import HORIZON, SLOTS, Floats

CREEP = (0.011, 0.035)
"""How far slow things move in a frame."""


def timetable(rng: np.random.Generator, frames: int, count: int, early: bool) -> list[tuple[int, int, int]]:
    """At most `count` stays as (slot, start, stop), at most one a slot at a time."""
    slots = min(count, int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.2, 0.15])))
    order = rng.permutation(SLOTS)[:slots]
    shares = np.bincount(rng.integers(slots, size=count), minlength=slots)
    begin = 0 if early else 2
    room = frames - begin
    least = 4 if frames <= 24 else 8
    stays = []
    for slot, share in zip(order, shares, strict=True):
        if not share:
            continue
        typical = np.clip(0.6 * room / share, least, 50)
        lengths = np.clip(rng.lognormal(np.log(typical), 0.5, share), least, 160).astype(int)
        lengths = lengths[np.cumsum(lengths) <= room]
        if not len(lengths):
            continue
        gaps = rng.dirichlet(np.full(len(lengths) + 1, 0.7))
        if rng.random() < (0.7 if frames <= 24 else 0.5):
            gaps[-1] = 0.0
        if gaps.sum() <= 0:
            gaps[0] = 1.0
        spare = room - lengths.sum()
        gaps = np.floor(gaps / gaps.sum() * spare).astype(int)
        if gaps[-1] == 0:
            gaps[0] += spare - gaps.sum()
        start = begin
        for gap, length in zip(gaps, lengths, strict=False):
            start += int(gap)
            stays.append((int(slot), start, start + int(length)))
            start += int(length)
    return sorted(stays, key=lambda stay: stay[1])


def creep(rng: np.random.Generator, frames: int, half: tuple[float, float], home: NDArray[np.float64]) -> Floats:
    """As `path`, but slowly along an axis, at a pace that only just counts as moving or a few times that, until it is at the edge."""
    room = np.maximum(0.0, 0.97 - np.array(half))
    axis, way = int(rng.integers(2)), float(rng.choice([-1.0, 1.0]))
    far = way * float(np.exp(rng.uniform(*np.log(CREEP)))) * np.arange(frames)
    start = np.clip(home[axis], *sorted((-way * room[axis], way * (room[axis] - abs(far[-1])))))
    where = np.repeat(home[None], frames, 0)
    where[:, axis] = np.clip(start + far, -room[axis], room[axis])
    return where.astype(np.float32)


def path(rng: np.random.Generator, frames: int, half: tuple[float, float], home: NDArray[np.float64]) -> Floats:
    """Where a thing is in each frame of its stay: at rest, drifting, or entering and leaving through an edge."""
    room = np.maximum(0.0, 0.97 - np.array(half))
    times, points = [0.0, float(frames - 1)], [home, home]
    mode = rng.random()
    if mode > 0.4:
        axis = int(rng.integers(2))
        other = home.copy()
        other[axis] = rng.uniform(-room[axis], room[axis])
        other[1 - axis] += rng.normal() * 0.05 * abs(other[axis] - home[axis])
        reach = 0.05 * max(1, frames - 1)
        other = home + np.clip(other - home, -reach, reach)
        points = [home, other]
    if mode > 0.65 and frames >= 8:
        ends = rng.random(2) < 0.7
        for end in (0, 1):
            if not ends[end]:
                continue
            edge = points[-1].copy() if end else points[0].copy()
            axis = int(rng.integers(2))
            side = float(rng.choice([-1.0, 1.0]))
            edge[axis] = side * (1.05 + half[axis])
            distance = abs(edge[axis] - (points[-1] if end else points[0])[axis])
            spend = int(np.clip(distance / rng.uniform(0.03, 0.15), 2, frames // 3))
            if end:
                times, points = [*times[:-1], frames - 1.0 - spend, frames - 1.0], [*points, edge]
            else:
                times, points = [0.0, float(spend), *times[1:]], [edge, *points]
    line = np.arange(frames)
    where = np.array(points)
    return np.stack([np.interp(line, times, where[:, axis]) for axis in (0, 1)], 1).astype(np.float32)


def draw_camera(rng: np.random.Generator, frames: int) -> Floats:
    """World to picture in each frame: shake, roll, perspective, a slow zoom."""
    matrices = np.tile(np.eye(3), (frames, 1, 1))
    if rng.random() < 0.5:
        amount = rng.uniform(0.0, 0.012)
        shake = rng.normal(0, amount, (frames, 2))
        if rng.random() < 0.5:
            shake = np.stack([np.convolve(shake[:, i], np.ones(4) / 2, "same") for i in (0, 1)], 1)
        matrices[:, :2, 2] += shake
    if rng.random() < 0.3:
        angle = rng.normal(0, 0.03) + rng.normal(0, 0.004, frames)
        matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(angle), np.sin(angle)
    if rng.random() < 0.3:
        matrices[:, 2, :2] = rng.uniform(-0.05, 0.05, 2)
    if rng.random() < 0.2:
        matrices[:, :2, :2] *= np.linspace(1.0, rng.uniform(0.93, 1.05), frames)[:, None, None]
    return matrices.astype(np.float32)


def draw_seconds(rng: np.random.Generator, steps: int) -> NDArray[np.float64]:
    """Stream time of each step: mostly 25 frames a second; in many streams a gap after the first step ages the stream."""
    rate = 25.0 if rng.random() < 0.7 else rng.uniform(5.0, 30.0)
    seconds = (2 * np.arange(steps) + 1) / rate
    span = seconds[-1]
    kind = rng.random()
    if kind < 0.3:
        gap = max(0.0, HORIZON - span)
    elif kind < 0.7:
        gap = rng.uniform(0, max(0.0, HORIZON - span))
    else:
        gap = 0.0
    seconds[1:] += gap
    return np.minimum(seconds, HORIZON)
