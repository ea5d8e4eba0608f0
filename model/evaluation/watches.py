"""Streams in which things that watches look for come and go, with what is right at every step, for hours of stream time.

Ten kinds of event: an object comes, or leaves; a shape comes, of any colour or of one; something has come by at least once;
a number or a word comes; the colour of a shape, a number, or a word is another. Others that nobody looks for come and go
beside them, near misses among them. A quiet stream shows video in which nothing of the world comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch

from model.evaluation.score import DRAWS
from model.serving.runner import Runner
from model.serving.sampling import Sampling
from model.world.generate import draw_film, draw_ground, draw_thing, look
from model.world.layout import Sheet, extent, layout, part_of, see
from model.world.motion import draw_camera, path
from model.world.objects import COLOURS, HELD_OUT_SHAPES, NAMES, SHAPES, Thing
from model.world.phrasings import ABSENT, HELD_OUT, PHRASES
from model.world.render import Painter
from model.world.scene import ABSENT as HARDLY
from model.world.scene import CLEAR, SLOTS, Gallery, Profile, Scene, Split, Visit

RATE = 5.0
"""Frames a second that the model is shown: a step, and a look, every .4 seconds."""
QUIET_EVERY = 2.0
"""Seconds from step to step, and from look to look, where nothing happens."""
STAYS = (20, 40)
"""Frames that a thing stays, the least and the most."""
GAPS = (3, 12)
"""Frames from one thing's leaving to the next one's coming, where they don't overlap."""
OVERLAP = 0.35
"""Share of things that come while another is there."""
REST = 15
"""Frames at least from one thing that a watch looks for to the next."""
SHOT = 300
"""Frames of one background."""
TIMES = 5
"""Events of each kind in a stream; writing, which is of one kind in each, comes twice as often."""
SIDE = 224
"""Pixels of a picture, which is squeezed into a square as the nano sees it."""
TOGETHER = 32
"""Steps painted at once."""
WORDS = 12
"""Tokens after which an answer in words is cut."""
KINDS = (
    "object comes", "object leaves", "shape comes", "shape of a color comes", "has appeared", "number comes",
    "word comes", "color changes", "number changes", "word changes",
)  # fmt: skip
When = Literal["becomes_true", "becomes_false", "changes"]
Truth = bool | str | None
"""What is right to believe at a step; None where it is a matter of taste."""


@dataclass(frozen=True)
class Sought:
    """What one watch looks for: a `question` about things that `meant` picks out; of `changes`, `value` is the right answer."""

    kind: str
    question: str
    when: When
    meant: Callable[[Thing], bool]
    value: Callable[[Thing], str] = str
    ever: bool = False
    """Whether it is about all that has been, not only about what is."""


@dataclass(frozen=True)
class Programme:
    """A stream: its scene, what is looked for in it, and by watch and step what is right. `every` is seconds from step to step."""

    scene: Scene
    sought: tuple[Sought, ...]
    truths: tuple[tuple[Truth, ...], ...]
    every: float


def truth(scene: Scene, sought: Sought) -> tuple[Truth, ...]:
    """What is right at each step."""
    meant = [visit for visit in scene.visits if sought.meant(visit.thing)]
    out: list[Truth] = []
    been = False
    for step in range(scene.steps):
        partly = [visit for visit in meant if visit.visible[step] > HARDLY]
        clear = [visit for visit in partly if visit.visible[step] >= CLEAR]
        been |= bool(clear)
        if sought.ever:
            out.append(True if been else None if partly else False)
        elif len(partly) > len(clear):
            out.append(None)
        elif sought.when == "changes":
            out.append(sought.value(clear[0].thing) if clear else ABSENT)
        else:
            out.append(bool(clear))
    return tuple(out)


def article(label: str) -> str:
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


class Author:
    """Writes one stream's programme from chances of its own."""

    def __init__(
        self, rng: np.random.Generator, split: Split, gallery: Gallery, writing: Literal["number", "word"]
    ) -> None:
        self.rng, self.split, self.gallery, self.writing = rng, split, gallery, writing
        self.aspect = float(rng.choice([16 / 9, 4 / 3]))
        self.sought: list[Sought] = []
        self.things: list[Thing] = []

    def say(self, skill: str, **names: str) -> str:
        """One of a skill's phrasings; in "test", one that training never used."""
        options = PHRASES[skill][-HELD_OUT:] if self.split == "test" else PHRASES[skill][:-HELD_OUT]
        return options[int(self.rng.integers(len(options)))].format(**names)

    def text(self) -> Thing:
        """A number or a word that is no thing's name."""
        profile = Profile(text=1.0, words=float(self.writing == "word"))
        while True:
            thing = draw_thing(self.rng, self.split, profile)
            if thing not in self.things and thing.name.lower() not in NAMES:
                return thing

    def cast(self) -> None:
        """Who is looked for, who else comes by, and how often."""
        names = [Thing("object", str(name)) for name in self.rng.permutation(NAMES)]
        comes, leaves, *others = names
        plain, coloured = (str(shape) for shape in self.rng.permutation(SHAPES)[:2])
        hues = [str(hue) for hue in self.rng.permutation(list(COLOURS))]
        hues = [h for h in hues if self.split == "test" or not {(plain, h), (coloured, h)} & set(HELD_OUT_SHAPES)]
        red = Thing("shape", coloured, hues[0])
        near = [Thing("shape", coloured, hue) for hue in hues[1:3]]
        near += [Thing("shape", str(s), hues[0]) for s in SHAPES if s not in (plain, coloured)][:2]
        written = self.text()
        self.things += [comes, leaves, red] * TIMES + [written] * 2 * TIMES
        self.things += [Thing("shape", plain, hue) for hue in hues[:TIMES]]
        self.things += others[:TIMES] + near + others[TIMES : 2 * TIMES]
        self.things += [self.text() for _ in range(4)]

        def ask(thing: Thing) -> str:
            return self.say("is there", a_x=f"the {thing.label}" if thing == written else article(thing.label))

        def seek(kind: str, question: str, when: When, meant: Callable[[Thing], bool], **more: object) -> None:
            self.sought.append(Sought(kind, question, when, meant, **more))  # type: ignore[arg-type]

        seek("object comes", ask(comes), "becomes_true", comes.__eq__)
        seek("object leaves", ask(leaves), "becomes_false", leaves.__eq__)
        any_of = self.say("is there", a_x=article(plain))
        seek("shape comes", any_of, "becomes_true", lambda thing: thing.name == plain)
        seek("shape of a color comes", ask(red), "becomes_true", red.__eq__)
        for thing in others[:TIMES]:
            question = self.say("has appeared", a_x=article(thing.label))
            seek("has appeared", question, "becomes_true", thing.__eq__, ever=True)
        seek(f"{self.writing} comes", ask(written), "becomes_true", written.__eq__)
        seek(
            "color changes", self.say("colour", shape=plain), "changes", lambda thing: thing.name == plain,
            value=lambda thing: thing.colour,
        )  # fmt: skip
        seek(
            f"{self.writing} changes", self.say(self.writing), "changes", lambda thing: thing.kind == self.writing,
            value=lambda thing: thing.name,
        )  # fmt: skip

    def plan(self) -> list[tuple[int, int, int, Thing]]:
        """Stays as (slot, start, stop, thing): of those that one watch looks for, one at a time."""
        left = [self.things[i] for i in self.rng.permutation(len(self.things))]
        stays: list[tuple[int, int, int, Thing]] = []
        now = 2 * GAPS[1]

        def alike(a: Thing, b: Thing) -> bool:
            return a == b or any(sought.meant(a) and sought.meant(b) for sought in self.sought)

        while left:
            length = int(self.rng.integers(*STAYS))
            if stays and self.rng.random() < OVERLAP:
                start = max(now, (stays[-1][1] + stays[-1][2]) // 2)
            else:
                start = max([now, *(stop for _, _, stop, _ in stays)]) + int(self.rng.integers(*GAPS))
            lately = [stay for stay in stays if stay[2] + REST > start]
            fitting = [i for i, thing in enumerate(left) if not any(alike(thing, stay[3]) for stay in lately)]
            taken = {slot for slot, _, stop, _ in stays if stop > start}
            if not fitting or len(taken) > 1:
                now = max(now, start) + GAPS[0]
                continue
            slot = int(self.rng.choice([slot for slot in range(SLOTS) if slot not in taken]))
            stays.append((slot, start, start + length, left.pop(fitting[0])))
            now = start
        return stays

    def visit(self, stay: tuple[int, int, int, Thing], others: Sequence[Visit]) -> Visit:
        """A stay as the world has it, apart from those that are there."""
        slot, start, stop, thing = stay
        present = [other for other in others if other.stop > start]
        how = look(self.rng, thing, self.split, self.gallery, self.aspect, len(present), Profile())
        half = extent(thing, how, self.aspect, self.gallery)
        room = np.maximum(0.0, 0.95 - np.array(half))
        homes, clash = self.rng.uniform(-room, room, (DRAWS, 2)), np.zeros(DRAWS)
        for other in present:
            middle = other.centre[len(other.centre) // 2]
            clash += np.prod(np.maximum(0, np.array(other.half) + np.array(half) - np.abs(homes - middle)), 1)
        return Visit(
            thing, slot, start, stop, half, path(self.rng, stop - start, half, homes[int(np.argmin(clash))]), how
        )

    def programme(self) -> Programme:
        """The whole stream."""
        self.cast()
        visits: list[Visit] = []
        for stay in self.plan():
            visits.append(self.visit(stay, visits))
        frames = -(-(max(visit.stop for visit in visits) + 2 * GAPS[1]) // 2) * 2
        see(visits, frames // 2)
        return programme(self.rng, self.split, self.gallery, self.aspect, visits, frames, self.sought, 2 / RATE)


def programme(
    rng: np.random.Generator, split: Split, gallery: Gallery, aspect: float, visits: list[Visit], frames: int,
    sought: Sequence[Sought], every: float, *, moving: bool = False,
) -> Programme:  # fmt: skip
    """A stream of these visits over photographs and video, or video alone where it is `moving`."""
    camera = draw_camera(rng, frames)
    shots: list[tuple[np.ndarray, ...]] = []
    for start in range(0, frames, SHOT):
        part = camera[start : start + SHOT]
        shot = draw_ground(rng, len(part), split, gallery, part, real=True)
        while moving and shot[0].min() == shot[0].max():
            shot = draw_ground(rng, len(part), split, gallery, part, real=True)
        shots.append(shot)
    ground, matrix, light = (np.concatenate([shot[i] for shot in shots]) for i in range(3))
    exposure, film = draw_film(rng, frames)
    if moving:  # a day's light comes and goes
        day = 0.75 + 0.25 * np.cos(np.linspace(0, 2 * np.pi, frames))
        exposure = (exposure * day[:, None]).astype(np.float32)
    steps = frames // 2
    seconds = every * np.arange(1, steps + 1, dtype=np.float64)
    scene = Scene(steps, aspect, visits, seconds, camera, ground, matrix, light, exposure, film, early=False)
    return Programme(scene, tuple(sought), tuple(truth(scene, each) for each in sought), every)


def programmes(seed: int, split: Split, gallery: Gallery, count: int) -> list[Programme]:
    """`count` streams of about five minutes in which things come and go, numbers in every other one and words in the rest."""
    kinds: tuple[Literal["number", "word"], ...] = ("number", "word")
    return [Author(np.random.default_rng((seed, i)), split, gallery, kinds[i % 2]).programme() for i in range(count)]


def quiet(seed: int, split: Split, gallery: Gallery, like: Sequence[Programme], hours: float) -> list[Programme]:
    """For each of some streams, as long a quiet one that makes `hours` together, with the same watches."""
    frames = 2 * round(hours * 3600 / QUIET_EVERY / len(like))
    rng = np.random.default_rng((seed, 10**6))
    return [
        programme(rng, split, gallery, each.scene.aspect, [], frames, each.sought, QUIET_EVERY, moving=True)
        for each in like
    ]


@torch.no_grad()
def shown(
    runner: Runner, painter: Painter, streams: Sequence[Programme], seed: int
) -> Iterator[list[list[float | str]]]:
    """Shows streams to a model, side by side; after each step, what a look of each watch of each stream finds.

    That is the probability of yes, or the answer's words. A stream that is over is left out from there on.
    """
    sheets = [layout([stream.scene]) for stream in streams]
    prompts = [[runner.tokenizer.encode_question(each.question) for each in stream.sought] for stream in streams]
    for slot in range(len(streams)):
        runner.open(slot, SIDE, SIDE)
    for start in range(0, max(stream.scene.steps for stream in streams), TOGETHER):
        parts = [part_of(sheet, slice(2 * start, 2 * (start + TOGETHER))) for sheet in sheets]
        films = [painted(painter, part, seed + start) for part in parts]
        for i in range(0, 2 * TOGETHER, 2):
            slots = [slot for slot, film in enumerate(films) if len(film) > i]
            if not slots:
                return
            times = [float(streams[slot].scene.seconds[start + i // 2]) for slot in slots]
            runner.see(slots, [list(films[slot][i : i + 2]) for slot in slots], times)
            yield [
                glance(runner, slot, len(streams), prompts[slot], streams[slot].sought) if slot in slots else []
                for slot in range(len(streams))
            ]


def painted(painter: Painter, sheet: Sheet, seed: int) -> np.ndarray:
    """A sheet's frames, uint8 [frames, SIDE, SIDE, 3]."""
    pictures = [picture.permute(0, 2, 3, 1) for picture in painter.paint(sheet, seed, SIDE, SIDE)]
    return np.concatenate(
        [np.zeros((0, SIDE, SIDE, 3), np.uint8), *(p.mul(255).round().byte().cpu().numpy() for p in pictures)]
    )


def glance(
    runner: Runner, slot: int, free: int, prompts: Sequence[list[int]], sought: Sequence[Sought]
) -> list[float | str]:
    """What each watch's look finds in a stream; slots from `free` on are taken for it."""
    asked = [i for i, each in enumerate(sought) if each.when != "changes"]
    found: dict[int, float | str] = {}
    judged = runner.judge(slot, range(free, free + len(asked)), [prompts[i] for i in asked])
    found |= {i: answer.probability for i, answer in zip(asked, judged, strict=True)}
    spoken: dict[int, list[int]] = {}
    open_questions = [i for i in range(len(sought)) if i not in found]
    for i in open_questions:
        runner.fork(slot, free + i)
        spoken[i] = [runner.prefill(free + i, prompts[i], Sampling(temperature=0))]
    stops = runner.tokenizer.stops
    while going := [i for i in open_questions if spoken[i][-1] not in stops and len(spoken[i]) < WORDS]:
        tokens = runner.decode(
            [free + i for i in going], [spoken[i][-1] for i in going], [Sampling(temperature=0)] * len(going)
        )
        for i, token in zip(going, tokens, strict=True):
            spoken[i].append(token)
    found |= {i: runner.tokenizer.decode([token for token in said if token not in stops]) for i, said in spoken.items()}
    return [found[i] for i in range(len(sought))]


@dataclass(frozen=True)
class Span:
    """Steps `begin` to `end` (not included) in which an event may rightly be told, `after` which is so."""

    begin: int
    end: int
    after: Truth


def spans(truths: Sequence[Truth], when: When) -> list[Span]:
    """What a watch should tell, each once: from when the first of it shows until the last of it does."""
    runs: list[tuple[Truth, int, int]] = []
    at = 0
    for value, group in groupby(truths):
        length = len(list(group))
        if value is not None:
            if runs and runs[-1][0] == value:  # half hidden for a while
                runs[-1] = (value, runs[-1][1], at + length)
            else:
                runs.append((value, at, at + length))
        at += length
    found = []
    for i, (value, _, end) in enumerate(runs):
        told = {"becomes_true": value is True, "becomes_false": value is False, "changes": True}[when]
        if told and i:
            follows = runs[i + 1][1] if i + 1 < len(runs) else len(truths)
            found.append(Span(runs[i - 1][2], max(end, follows), value))
    return found
