"""Where things are in the picture: their extent, what of them shows, and whole scenes as arrays for the painter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.world.objects import CHARACTERS, COLOURS, NAMES, SHAPES, Thing
from model.world.scene import LETTERS, SLOTS, Floats, Gallery, Integers, Look, Scene, Visit

LINE = 5.25
"""The widest number or word, in heights of a line; what is wider is narrowed."""


def text_width(thing: Thing, font: int, gallery: Gallery) -> float:
    """Width of a number or word over its height."""
    return min(LINE, float(sum(gallery.advances[font, CHARACTERS.index(c)] for c in thing.name)))


def extent(thing: Thing, how: Look, aspect: float, gallery: Gallery) -> tuple[float, float]:
    """Half width and half height in the picture."""
    wide = text_width(thing, how.font, gallery) if thing.kind in ("number", "word") else 1.0
    return how.size * (wide * how.stretch + abs(how.slant)) / aspect, how.size


def overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area that boxes [..., 4] (left, top, right, bottom) share."""
    width = np.minimum(first[..., 2], second[..., 2]) - np.maximum(first[..., 0], second[..., 0])
    height = np.minimum(first[..., 3], second[..., 3]) - np.maximum(first[..., 1], second[..., 1])
    area: NDArray[np.float64] = np.maximum(width, 0) * np.maximum(height, 0)
    return area


def boxes(visit: Visit, frames: Integers, shrink: float = 0.92) -> NDArray[np.float64]:
    """A visit's box in the picture at `frames`, [n, 4], outside the picture where it isn't there."""
    there = (frames >= visit.start) & (frames < visit.stop)
    centre = visit.centre[np.clip(frames - visit.start, 0, len(visit.centre) - 1)].astype(np.float64)
    half = np.array(visit.half) * shrink
    box = np.concatenate([centre - half, centre + half], 1)
    return np.where(there[:, None], box, 9.0)


def see(visits: list[Visit], steps: int) -> None:
    """Fills in what part of each visit shows at the end of each step, from boxes."""
    frames = 2 * np.arange(steps) + 1
    where = [boxes(visit, frames) for visit in visits]
    picture = np.array([-1.0, -1.0, 1.0, 1.0])
    for visit, box in zip(visits, where, strict=True):
        area = np.maximum((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]), 1e-9)
        shown = overlap(box, picture) / area
        for other, cover in zip(visits, where, strict=True):
            if other.slot > visit.slot and other.start < visit.stop and visit.start < other.stop:
                shown = shown - overlap(box, cover) / area
        visit.visible = np.clip(shown, 0, 1).astype(np.float32)


@dataclass
class Sheet:
    """Scenes as arrays, ready to paint: `m` visits, `n` frames.

    `kind` [m] (0 shape, 1 object, 2 text), `which` [m] (shape or object), `colour` [m] (of shapes), `letters` [m, LETTERS]
    (-1 pads), `font` [m], `tint`, `edge` [m, 3], `plate`, `soft` [m]; `shown` [n, SLOTS] is the visit in each slot or -1,
    `matrix` [n, SLOTS, 3, 3] maps the picture to it; the rest as in `Scene`, `film` per frame.
    """

    kind: Integers
    which: Integers
    colour: Integers
    letters: Integers
    font: Integers
    tint: Floats
    edge: Floats
    plate: Floats
    soft: Floats
    shown: Integers
    matrix: Floats
    ground: Integers
    ground_matrix: Floats
    light: Floats
    exposure: Floats
    film: Floats


def layout(scenes: list[Scene]) -> Sheet:
    """The scenes' frames one after another."""
    visits = [visit for scene in scenes for visit in scene.visits]
    total = sum(2 * scene.steps for scene in scenes)
    shown = np.full((total, SLOTS), -1, np.int64)
    matrix = np.tile(np.eye(3, dtype=np.float32), (total, SLOTS, 1, 1))
    letters = np.full((len(visits), LETTERS), -1, np.int64)
    kind, which, colour = (np.zeros(len(visits), np.int64) for _ in range(3))
    names, shades = {name: i for i, name in enumerate(NAMES)}, list(COLOURS)
    at, m = 0, 0
    for scene in scenes:
        back = np.linalg.inv(scene.camera.astype(np.float64))
        for visit in scene.visits:
            how, thing = visit.look, visit.thing
            if thing.kind == "shape":
                which[m], colour[m] = SHAPES.index(thing.name), shades.index(thing.colour)
            elif thing.kind == "object":
                kind[m], which[m] = 1, names[thing.name]
            else:
                kind[m] = 2
                letters[m, : len(thing.name)] = [CHARACTERS.index(c) for c in thing.name]
            # To the picture's square: stretch, slant, shrink to size, turn, squeeze by the aspect ratio, move. Inverted by hand.
            cos, sin = np.cos(how.angle), np.sin(how.angle)
            turn = np.array([[cos, sin], [-sin, cos]]) @ np.diag([scene.aspect, 1.0]) / how.size
            turn = np.diag([1 / how.stretch, 1.0]) @ np.array([[1.0, how.slant], [0.0, 1.0]]) @ turn
            turn = np.diag([-1.0 if how.flip else 1.0, 1.0]) @ turn
            inward = np.tile(np.eye(3), (visit.stop - visit.start, 1, 1))
            inward[:, :2, :2] = turn
            inward[:, :2, 2] = -visit.centre @ turn.T
            rows = slice(at + visit.start, at + visit.stop)
            shown[rows, visit.slot] = m
            matrix[rows, visit.slot] = inward @ back[visit.start : visit.stop]
            m += 1
        at += 2 * scene.steps
    looks = [visit.look for visit in visits]

    def column(name: str, *shape: int) -> Floats:
        return np.array([getattr(how, name) for how in looks], np.float32).reshape(len(looks), *shape)

    return Sheet(
        kind, which, colour, letters, column("font").astype(np.int64), column("tint", 3), column("edge", 3),
        column("plate"), column("soft"), shown, matrix, np.concatenate([scene.ground for scene in scenes]),
        np.concatenate([scene.ground_matrix for scene in scenes]), np.concatenate([scene.light for scene in scenes]),
        np.concatenate([scene.exposure for scene in scenes]),
        np.concatenate([np.tile(scene.film, (2 * scene.steps, 1)) for scene in scenes]),
    )  # fmt: skip


def part_of(sheet: Sheet, rows: slice) -> Sheet:
    """Some of a sheet's frames."""
    framed = ("shown", "matrix", "ground", "ground_matrix", "light", "exposure", "film")
    return replace(sheet, **{name: getattr(sheet, name)[rows] for name in framed})
