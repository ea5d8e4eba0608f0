"""The world: what is where in every frame of a stream, drawn from a seed. No pixels here; `render` paints scenes.

Coordinates: a picture is the square [-1, 1]² (x right, y down) whatever the camera's aspect ratio, as the model sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.world.objects import CHARACTERS, COLOURS, HELD_OUT_SHAPES, NAMES, SHAPES, WORDS, Thing

Split = Literal["train", "test"]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

SLOTS = 4
"""At most this many things are in a frame at once; a higher slot hides a lower one."""
LETTERS = 6
"""The longest number or word."""
LINE = 5.25
"""The widest number or word, in heights of a line; what is wider is narrowed."""
PROCEDURAL = 256
"""Painted backgrounds, of which the last `HELD_OUT_PROCEDURAL` are kept for the evaluation."""
HELD_OUT_PROCEDURAL = 32
CLEAR, ABSENT = 0.6, 0.05
"""A thing is clearly seen where this part of it shows, and not seen where less than `ABSENT` does."""
CREEP = (0.011, 0.035)
"""How far slow things move in a frame."""
LEAD = 0.6
"""The longest part of a stream before its first thing, where that is late."""
HORIZON = 60.0
"""Seconds at which a stream's shown age saturates (the nano's `position_horizon`)."""


@dataclass(frozen=True)
class Gallery:
    """Which fonts, stills and video clips (of `clip` frames) of each split the assets hold.

    `advances` float32 [fonts, CHARACTERS] is how wide a character is, in heights of a line.
    """

    fonts: dict[Split, range]
    stills: dict[Split, range]
    clips: dict[Split, range]
    clip: int
    advances: Floats


@dataclass
class Visit:
    """One thing's stay in a slot, frames `start` to `stop` (not included).

    `visible` [steps] is the part that shows in each step's last frame, `centre` [frames of the stay, 2] where it is.
    """

    thing: Thing
    slot: int
    start: int
    stop: int
    half: tuple[float, float]
    centre: Floats
    look: Look
    visible: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def first(self) -> int:
        """The first step in which it is clearly seen."""
        return int(np.argmax(self.visible >= CLEAR))

    @property
    def last(self) -> int:
        """The last such step."""
        return len(self.visible) - 1 - int(np.argmax(self.visible[::-1] >= CLEAR))


@dataclass(frozen=True)
class Look:
    """How a visit is painted: `size` is half its height, `tint` and `edge` are colours, `plate` puts text on a board.

    Its width is `stretch` times what is usual, and its top is `slant` half heights right of its middle.
    """

    size: float
    stretch: float
    slant: float
    angle: float
    flip: bool
    tint: tuple[float, ...]
    edge: tuple[float, ...]
    plate: bool
    font: int
    soft: float


@dataclass
class Scene:
    """A stream of `steps` steps of two frames.

    `seconds` float64 [steps] is the stream time of each step's last frame; `camera` [frames, 3, 3] maps the world to the
    picture; `ground` [frames] indexes the background and `ground_matrix` [frames, 3, 3] maps the picture to it;
    `light` [frames, 6] is each channel's gain and offset of the background, `exposure` [frames, 3] the picture's gain, and
    `film` [4] its gamma, noise, softness and compression.
    """

    steps: int
    aspect: float
    visits: list[Visit]
    seconds: NDArray[np.float64]
    camera: Floats
    ground: Integers
    ground_matrix: Floats
    light: Floats
    exposure: Floats
    film: Floats
    early: bool


LENGTHS = (0.6, 0.25, 0.15)
"""Shares of four, five and six letters among the words that are no words."""
WORDY = 0.4
"""Share of words among numbers and words."""
KNOWN = 0.5
"""Share of the list's words among words; the others are any letters."""
SIZES = (0.10, 0.24)
"""Half the height of numbers and words in the picture, the least and the most."""
STRETCH = (0.78, 1.28)
"""How many times as wide as usual things are in training, the least and the most."""
CONDENSED = 0.64
"""The least for numbers and words, so that the narrowest fonts' letters are no news."""


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


def text_width(thing: Thing, font: int, gallery: Gallery) -> float:
    """Width of a number or word over its height."""
    return min(LINE, float(sum(gallery.advances[font, CHARACTERS.index(c)] for c in thing.name)))


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


def extent(thing: Thing, how: Look, aspect: float, gallery: Gallery) -> tuple[float, float]:
    """Half width and half height in the picture."""
    wide = text_width(thing, how.font, gallery) if thing.kind in ("number", "word") else 1.0
    return how.size * (wide * how.stretch + abs(how.slant)) / aspect, how.size


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


@dataclass(frozen=True)
class Profile:
    """What scenes are drawn: `things` at most (None: as the length allows), `text` the share of numbers and words.

    `early` is the share of streams whose first step is not empty, `real` whether backgrounds are photographs and video,
    `gap` leaves the last so many steps empty. `slow` is the share of things that creep, `again` that of visits by something
    that was there before, `late` that of streams in which nothing comes for up to `LEAD` of their length, `cut` that of streams
    whose background becomes another at once; `lengths`, `words`, `known` and `sizes` are as `LENGTHS`, `WORDY`, `KNOWN` and
    `SIZES` are where nothing is said.
    """

    things: tuple[int, int] | None = None
    text: float = 0.3
    early: float = 0.15
    real: bool = False
    gap: int = 0
    slow: float = 0.0
    again: float = 0.1
    late: float = 0.0
    cut: float = 0.0
    lengths: tuple[float, float, float] = LENGTHS
    words: float = WORDY
    known: float = KNOWN
    sizes: tuple[float, float] = SIZES


def draw_scene(
    rng: np.random.Generator, steps: int, split: Split, gallery: Gallery, profile: Profile = Profile()
) -> Scene:
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
    return Scene(
        steps, aspect, sorted(visits, key=lambda v: (v.first, v.start)), draw_seconds(rng, steps), camera, ground,
        ground_matrix, light, exposure.astype(np.float32), np.array(film, np.float32), early,
    )  # fmt: skip


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
