"""Batches to learn from: scenes, when the questions are asked, and their tokens. Made on the CPU, many at a time."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from model.config import InfiniteVLConfig
from model.tokenizer import Tokenizer
from model.world.generate import draw_scene
from model.world.layout import Sheet, layout
from model.world.questions import WEIGHTS, Examiner, Question
from model.world.scene import Floats, Gallery, Profile, Scene, Split
from model.world.tokenise import Round, fits, write

TOKENIZER = Path(__file__).parent.parent / "nano" / "tokenizer.json"

EMPHASIS = WEIGHTS | {
    "relation": 9.0, "motion": 10.0, "before": 3.0, "after": 2.8, "how many": 2.2, "where was": 1.6, "last": 0.8,
    "word": 6.0, "number": 4.0, "colour": 0.8, "shape": 1.0, "has appeared": 1.0, "unknowable": 0.5, "first": 6.4,
    "word was": 6.0, "what": 2.6, "is there": 0.8, "changed": 1.6,
}  # fmt: skip
"""How often training asks each skill: most of what is learned last. Fewer scenes allow some than others."""

CUT = 0.3
"""Share of streams in which what is behind becomes something else at once, where it may."""

WRITTEN = Profile(text=0.6, lengths=(0.25, 0.4, 0.35), words=0.7, known=0.3, sizes=(0.09, 0.17), cut=CUT)
"""Scenes full of text, more of it words, these longer, fewer of them from the list and all of it smaller than elsewhere: that is
misread most often."""

PROFILES = (
    (0.11, Profile(cut=CUT)),
    (0.09, Profile(things=(6, 40), cut=CUT)),
    (0.06, WRITTEN),
    (0.03, Profile(things=(0, 1), real=True, cut=CUT)),
    (0.03, Profile(things=(0, 0), real=True, cut=CUT)),
    (0.08, Profile(things=(1, 8), again=0.35, cut=CUT)),
    (0.12, replace(WRITTEN, things=(1, 4))),
    (0.08, replace(WRITTEN, things=(1, 8))),
    (0.06, Profile(things=(1, 4), slow=0.8)),
    (0.12, Profile(things=(1, 8), late=1.0, cut=CUT)),
    (0.10, Profile(things=(1, 8), late=1.0, real=True, cut=CUT)),
    (0.12, replace(WRITTEN, things=(1, 8), late=1.0)),
)
"""What scenes training draws, with their shares: besides the usual ones some crowded, some full of text (what the one word
was can be asked where there are few), some empty or nearly so, some whose things come at most eight in a stream however
long, with returns or with text, some whose things creep, and some in which long nothing comes; in many the camera turns to
another background."""

ATTEMPTS = 5
"""Times a lesson is tried, each with other scenes."""


@dataclass
class Lesson:
    """A batch: `sheet` of its scenes, `seconds` float64 [streams, steps], rounds of questions, and a seed for the painter."""

    steps: int
    sheet: Sheet
    seconds: Floats
    rounds: list[Round]
    seed: int


def interrogate(
    rng: np.random.Generator,
    scene: Scene,
    step: int,
    count: int,
    split: Split,
    tokenizer: Tokenizer,
    weights: dict[str, float],
) -> list[Question]:
    """`count` questions that fit."""
    examiner = Examiner(rng, scene, step, split)
    asked = [question for question in examiner.ask(count, weights) if fits(question, tokenizer)]
    while len(asked) < count:
        asked += [
            question
            for question in examiner.ask(count - len(asked), {"has appeared": 1.0})
            if fits(question, tokenizer)
        ]
    return asked


def prepare(
    seed: tuple[int, ...], steps: int, streams: int, questions: int, gallery: Gallery, tokenizer: Tokenizer,
    split: Split = "train",
) -> Lesson:  # fmt: skip
    """A lesson of `streams` streams of `steps` steps and `questions` questions in all; long streams are asked at several times."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(PROFILES), streams, p=[share for share, _ in PROFILES])
    scenes = [draw_scene(rng, steps, split, gallery, PROFILES[i][1]) for i in drawn]
    cuts = (
        [steps]
        if steps < 16
        else [steps // 2, steps]
        if steps < 128
        else [steps // 4, steps // 2, 3 * steps // 4, steps]
    )
    each = questions // (streams * len(cuts))
    rounds = [
        write([interrogate(rng, scene, cut - 1, each, split, tokenizer, EMPHASIS) for scene in scenes], tokenizer, cut)
        for cut in cuts
    ]
    return Lesson(
        steps, layout(scenes), np.stack([scene.seconds for scene in scenes]), rounds, int(rng.integers(2**31))
    )


class Lessons(Dataset[Lesson]):
    """Lesson `(index, steps, streams)` of a run, the same for the same seed; for a DataLoader's workers."""

    def __init__(
        self, seed: int, questions: int, gallery: Gallery, config: InfiniteVLConfig, vocabulary: Path = TOKENIZER
    ) -> None:
        self.seed, self.questions, self.gallery, self.config, self.vocabulary = (
            seed,
            questions,
            gallery,
            config,
            vocabulary,
        )
        self.tokenizer: Tokenizer | None = None

    def __getitem__(self, key: tuple[int, int, int]) -> Lesson:
        if self.tokenizer is None:
            self.tokenizer = Tokenizer.load(self.vocabulary, self.config)
        index, steps, streams = key
        for attempt in range(ATTEMPTS):
            try:
                return prepare(
                    (self.seed, index, attempt), steps, streams, self.questions, self.gallery, self.tokenizer
                )
            except Exception:  # told and passed over: one impossible scene must not cost an hour's training
                traceback.print_exc()
        raise RuntimeError(f"no lesson {index} of {steps} steps in {ATTEMPTS} attempts")


@dataclass
class Curriculum:
    """Chooses each lesson's length from how far the training is; iterated by the DataLoader ahead of the training.

    `stages`: up to which progress, and each length's share, as `model.training.stages.mixture` has them. What it chooses for a
    lesson depends on the lesson's index alone, so that a resumed run has the lessons of the one it resumes.
    """

    stages: tuple[tuple[float, dict[int, float]], ...]
    seed: int
    steps: int
    """Frame steps in a lesson, whatever the streams' length."""
    first: int
    """The first lesson's index."""
    progress: float = 0.0
    part: int = 0
    """Which of `parts` that take lessons of the same lengths side by side, each lessons of its own."""
    parts: int = 1

    def lengths(self) -> list[int]:
        """Those of lessons that are still to come."""
        return sorted({steps for until, stage in self.stages if until > self.progress for steps in stage})

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        index = self.first
        while True:
            rng = np.random.default_rng((self.seed, index))
            lengths = next(stage for until, stage in self.stages if self.progress < until)
            steps = int(rng.choice(list(lengths), p=list(lengths.values())))
            steps = min(steps, self.steps)
            yield index * self.parts + self.part, steps, max(1, self.steps // steps)
            index += 1
