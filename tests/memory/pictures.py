"""Pictures of the nano's world in which one thing stands, for streams that are shown what a test knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.world.layout import extent, layout, see
from model.world.make_demo import part_of
from model.world.objects import COLOURS, Thing
from model.world.render import Assets, Painter
from model.world.scene import Look, Scene, Visit

HEIGHT, WIDTH, TOGETHER = 224, 224, 64


def painted(shown: Sequence[Thing | None], seed: int = 0, ground: int = 0) -> list[np.ndarray]:
    """A picture of each, uint8 [224, 224, 3] RGB, at a place that the seed draws; of None, of the background alone."""
    assets, chance = Assets.load(), np.random.default_rng(seed)
    frames, visits = 2 * len(shown), []
    white, black = (0.96, 0.96, 0.96), (0.04, 0.04, 0.04)
    for number, thing in enumerate(shown):
        if thing is None:
            continue
        tint = COLOURS[thing.colour] if thing.kind == "shape" else black
        size = 0.24 if thing.kind in ("number", "word") else 0.38
        look = Look(size, 1.0, 0.0, 0.0, False, tint, white, True, 0, 0.0)
        half = extent(thing, look, WIDTH / HEIGHT, assets.gallery)
        free = [max(0.95 - each, 0.0) for each in half]
        centre = np.tile(np.array([chance.uniform(-each, each) for each in free], np.float32), (2, 1))
        visits.append(Visit(thing, 0, 2 * number, 2 * number + 2, half, centre, look))
    see(visits, len(shown))
    still = np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1))
    light = np.tile(np.array([0.9, 0.9, 0.9, 0.02, 0.02, 0.02], np.float32), (frames, 1))
    behind = np.full(frames, assets.gallery.clips["train"][ground], np.int64)
    exposure, film = np.ones((frames, 3), np.float32), np.array([1.0, 0.0, 0.0, 0.0], np.float32)
    whole = still * np.array([0.92, 0.92, 1.0], np.float32)
    times = np.arange(len(shown), dtype=np.float64)
    scene = Scene(len(shown), WIDTH / HEIGHT, visits, times, still, behind, whole, light, exposure, film, False)
    sheet, painter, out = layout([scene]), Painter(assets, "cpu"), []
    for start in range(0, frames, TOGETHER):
        part = part_of(sheet, slice(start, start + TOGETHER))
        for frame in painter.paint(part, 0, HEIGHT, WIDTH, film=False):
            out += list(frame.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).numpy())
    return out[::2]
