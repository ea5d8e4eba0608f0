"""Draws scenes from a seed."""

from __future__ import annotations

import numpy as np

from model.world.layout import extent, see, text_width
from model.world.motion import creep, draw_camera, draw_seconds, path, timetable
from model.world.objects import CHARACTERS, COLOURS, HELD_OUT_SHAPES, NAMES, SHAPES, WORDS, Thing
from model.world.scene import (
    CLEAR,
    HELD_OUT_PROCEDURAL,
    PROCEDURAL,
    SIZES,
    Floats,
    Gallery,
    Integers,
    Look,
    Profile,
    Scene,
    Split,
    Visit,
)

LEAD = 0.6
"""The longest part of a stream before its first thing, where that is late."""
STRETCH = (0.78, 1.28)
"""How many times as wide as usual things are in training, the least and the most."""
CONDENSED = 0.64
"""The least for numbers and words, so that the narrowest fonts' letters are no news."""
USUAL = Profile()


def draw_thing(rng: np.random.Generator, split: Split, profile: Profile) -> Thing:
    """A random thing. Held-out combinations and words appear in "test" alone."""
    kind = rng.random()
    if kind < profile.text * (1 - profile.words):
        digits = int(rng.choice([2, 3, 4, 5, 6], p=[0.3, 0.3, 0.3, 0.05, 0.05]))
        return Thing("number", "".join(rng.choice(list(CHARACTERS[:10]), digits)))
    if kind < profile.text:
        if rng.random() < profile.known:
            held = split == "test"
            return Thing("word", str(rng.choice([w for i, w in enumerate(WORDS) if (i % 10 == 9) == held])))
        length = int(rng.choice([4, 5, 6], p=profile.lengths))
        return Thing("word", "".join(rng.choice(list(CHARACTERS[10:]), length)))
    if rng.random() < 0.45:
        for _ in range(20):
            shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
            if split == "test" or (shape, colour) not in HELD_OUT_SHAPES:
                break
        else:
            shape, colour = "circle", "red"
        return Thing("shape", shape, colour)
    return Thing("object", str(rng.choice(NAMES)))


def look(
    rng: np.random.Generator, thing: Thing, split: Split, gallery: Gallery, aspect: float, crowd: int, profile: Profile
) -> Look:
    """A random appearance of a thing that shares the picture with `crowd` others; stretched and slanted in training alone."""
    dark = bool(rng.random() < 0.5)
    plain = rng.uniform(0.0, 0.2, 3) if dark else rng.uniform(0.8, 1.0, 3)
    contrast = rng.uniform(0.75, 1.0, 3) if dark else rng.uniform(0.0, 0.25, 3)
    font = int(rng.choice(gallery.fonts[split]))
    written = thing.kind in ("number", "word")
    bounds = np.log((CONDENSED if written else STRETCH[0], STRETCH[1]))
    stretch, slant = float(np.exp(rng.uniform(*bounds))), float(rng.normal(0, 0.08))
    if split == "test" or rng.random() < 0.3:
        stretch, slant = 1.0, 0.0
    if written:
        wide = text_width(thing, font, gallery)
        stretch = min(stretch, 0.9 * aspect / (SIZES[0] * wide))
        size = min(rng.uniform(*profile.sizes), 0.9 * aspect / (wide * stretch))
        angle = rng.uniform(-0.08, 0.08)
        tint, edge = plain, contrast
        if rng.random() < 0.3:
            tint = np.array(COLOURS[str(rng.choice(["red", "blue", "green", "purple"]))])
            edge = rng.uniform(0.85, 1.0, 3)
    else:
        size = rng.uniform(0.15, 0.42 if crowd < 2 else 0.3)
        angle = rng.uniform(-0.25, 0.25)
        tint = np.array(COLOURS[thing.colour]) if thing.kind == "shape" else np.ones(3)
        edge = plain
        if thing.kind == "shape":
            tint = np.clip(tint + rng.normal(0, 0.02, 3), 0, 1)
            if thing.colour in ("white", "black"):
                edge = np.full(3, 0.1 if thing.colour == "white" else 0.9)
    return Look(
        float(size), stretch, slant, float(angle), bool(rng.random() < 0.5) and thing.kind == "object",
        tuple(map(float, tint)), tuple(map(float, edge)), bool(rng.random() < 0.5), font, float(rng.random()),
    )  # fmt: skip


def draw_ground(
    rng: np.random.Generator, frames: int, split: Split, gallery: Gallery, camera: Floats, real: bool
) -> tuple[Integers, Floats, Floats]:
    """Background index and picture-to-background matrix of each frame, and its light."""
    kind = rng.random() if not real else rng.uniform(0.5, 1.0)
    gain, offset = np.ones(3), np.zeros(3)
    if kind < 0.5:
        low = PROCEDURAL - HELD_OUT_PROCEDURAL
        index = int(rng.integers(low) if split == "train" else rng.integers(low, PROCEDURAL))
        indices = np.full(frames, index)
        ends = rng.uniform(0, 1, (2, 3)) if rng.random() < 0.7 else np.repeat(rng.uniform(0, 1, (2, 1)), 3, 1)
        gain, offset = ends[1] - ends[0], ends[0]
    elif kind < 0.7:
        indices = np.full(frames, int(rng.choice(gallery.stills[split])))
    else:
        starts = gallery.clips[split]
        start = int(rng.choice(starts))
        swing = np.arange(frames) + rng.integers(30)
        swing = swing % (2 * gallery.clip - 2)
        indices = start + np.minimum(swing, 2 * gallery.clip - 2 - swing)
    if kind >= 0.5:
        gain = np.full(3, rng.uniform(0.6, 1.15)) * rng.uniform(0.9, 1.1, 3)
        offset = np.full(3, rng.uniform(-0.05, 0.1))
        if rng.random() < 0.15:
            gain = gain * 0.4
    turn, upright = 0.0, 1.0
    if split == "train":
        turn = rng.uniform(-np.pi, np.pi) if rng.random() < 0.25 else 0.0
        upright = -1.0 if rng.random() < 0.15 else 1.0
        if kind >= 0.5 and rng.random() < 0.1:
            gain, offset = -gain, 1.0 - offset
        elif kind >= 0.5 and rng.random() < 0.2:
            gain = gain * rng.uniform(0.6, 1.3, 3)
    cos, sin = np.cos(turn), np.sin(turn)
    zoom = rng.uniform(0.5, 0.92) / (abs(cos) + abs(sin))
    free = 0.95 - zoom * (abs(cos) + abs(sin))
    flip = np.diag([rng.choice([-1.0, 1.0]), upright, 1.0])
    turned = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]) @ flip
    matrix = np.tile(np.diag([zoom, zoom, 1.0]) @ turned, (frames, 1, 1))
    place = rng.uniform(-free, free, (2, 2))
    if rng.random() < 0.85:
        place[1] = place[0]
    matrix[:, :2, 2] = np.linspace(place[0], place[1], frames)
    matrix = matrix @ np.linalg.inv(camera.astype(np.float64))
    light = np.concatenate([gain, offset])
    return indices.astype(np.int64), matrix.astype(np.float32), np.tile(light, (frames, 1)).astype(np.float32)


def draw_film(rng: np.random.Generator, frames: int) -> tuple[Floats, Floats]:
    """The picture's gain in each frame, and gamma, noise, softness and compression of all."""
    exposure = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.05, 3) + rng.normal(0, 0.01, (frames, 1)))
    if rng.random() < 0.15:
        exposure = exposure * np.linspace(1.0, rng.uniform(0.75, 1.25), frames)[:, None]
    noise = rng.choice([0.0, rng.uniform(0, 0.02), rng.uniform(0.02, 0.05)], p=[0.4, 0.4, 0.2])
    film = [
        rng.uniform(0.85, 1.2),
        noise,
        rng.choice([0.0, rng.random()]),
        rng.choice([0.0, rng.uniform(0.02, 0.12)], p=[0.6, 0.4]),
    ]
    return exposure.astype(np.float32), np.array(film, np.float32)


def draw_scene(rng: np.random.Generator, steps: int, split: Split, gallery: Gallery, profile: Profile = USUAL) -> Scene:
    """A random scene."""
    frames = 2 * steps
    aspect = float(rng.choice([16 / 9, 4 / 3, 1.0, 9 / 16], p=[0.5, 0.25, 0.15, 0.1]))
    if profile.things is not None:
        count = int(rng.integers(profile.things[0], profile.things[1] + 1))
    elif rng.random() < 0.05:
        count = 0
    else:
        most = float(np.clip(frames / 7, 2, 40))
        count = round(float(np.exp(rng.uniform(0, np.log(most)))))
        if frames <= 24:
            count = int(rng.integers(1, 5))
    early = bool(rng.random() < profile.early)
    camera = draw_camera(rng, frames)
    # No chance is spent where none is late, creeps or cuts: the other worlds stay what they were.
    lead = int(rng.uniform(0.0, LEAD) * frames) if profile.late and rng.random() < profile.late else 0
    stays = timetable(rng, frames - 2 * profile.gap - lead, count, early) if count else []
    visits: list[Visit] = []
    for slot, start, stop in [(slot, start + lead, stop + lead) for slot, start, stop in stays]:
        present = [v for v in visits if v.stop > start]
        thing = draw_thing(rng, split, profile)
        if visits and rng.random() < profile.again:
            thing = visits[int(rng.integers(len(visits)))].thing
        for _ in range(20):
            if all(v.thing != thing for v in present):
                break
            thing = draw_thing(rng, split, profile)
        else:
            continue
        how = look(rng, thing, split, gallery, aspect, len(present), profile)
        half = extent(thing, how, aspect, gallery)
        room = np.maximum(0.0, 0.95 - np.array(half))
        homes = rng.uniform(-room, room, (8, 2))
        clash = np.zeros(8)
        for v in present:
            middle = v.centre[len(v.centre) // 2]
            reach = np.array(v.half) + np.array(half)
            clash += np.prod(np.maximum(0, reach - np.abs(homes - middle)), 1)
        home = homes[int(np.argmin(clash))] if rng.random() < 0.9 else homes[0]
        way = creep if profile.slow and rng.random() < profile.slow else path
        centre = way(rng, stop - start, half, home)
        visits.append(Visit(thing, slot, start, stop, half, centre, how))
    for _ in range(4):
        see(visits, steps)
        clear = [v for v in visits if len(v.visible) and v.visible.max() >= CLEAR]
        if len(clear) == len(visits):
            break
        visits = clear
    visits = [v for v in visits if v.visible.max() >= CLEAR]
    ground, ground_matrix, light = draw_ground(rng, frames, split, gallery, camera, profile.real)
    if profile.cut and rng.random() < profile.cut:
        at = int(rng.uniform(0.1, 0.9) * frames)
        other, other_matrix, other_light = draw_ground(rng, frames, split, gallery, camera, profile.real)
        ground = np.concatenate((ground[:at], other[at:]))
        ground_matrix = np.concatenate((ground_matrix[:at], other_matrix[at:]))
        light = np.concatenate((light[:at], other_light[at:]))
    exposure, film = draw_film(rng, frames)
    return Scene(
        steps, aspect, sorted(visits, key=lambda v: (v.first, v.start)), draw_seconds(rng, steps), camera, ground,
        ground_matrix, light, exposure, film, early,
    )  # fmt: skip
