"""How an examination is scored: scenes are painted and watched, questions asked of them, and answers marked.

An answer counts where greedy decoding gives it but for articles, capitals and punctuation. Since the right answer is at hand
one pass tells who gives exactly it; only the others are decoded.
Controls: `glimpse` sees the last four frames only; `cleared` keeps the attention window but its recurrent state is zeroed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.cache import SequenceCache
from model.families.infinitevl import InfiniteVL
from model.tokenizer import Tokenizer
from model.world.generate import draw_scene
from model.world.layout import layout
from model.world.objects import Kind
from model.world.questions import WEIGHTS, Examiner, Question, normalise
from model.world.render import Painter
from model.world.scene import Gallery, Integers, Profile, Scene, Split
from model.world.tokenise import LENGTH, Round, fits, write

GRID = (16, 16)
NOW = (
    "what",
    "colour",
    "shape",
    "where",
    "count",
    "number",
    "word",
    "motion",
    "relation",
    "is there",
    "changed",
    "unknowable",
)
MEMORY = (
    "first",
    "last",
    "before",
    "after",
    "colour was",
    "number was",
    "word was",
    "has appeared",
    "how many",
    "where was",
)
YET = ("first", "last", "how many")
"""What is asked where nothing has come yet."""
GONE = 16
"""Steps (two windows) after which evidence is surely outside the attention window."""


HELD_OUT = ("phrasings", "fonts", "things", "grounds")
"""What the examination keeps from training: how things are asked, fonts, combinations and words, backgrounds."""
DRAWS = 50
GLIMPSE = 2
"""Steps (four frames) that the control `glimpse` sees."""


@dataclass(frozen=True)
class Paper:
    """One part of the examination: `streams` scenes of `steps` steps drawn as `profile`, `questions` asked of each at the end.

    Of `HELD_OUT` only what `held` names is kept from training, the rest is what training uses.
    """

    name: str
    steps: int
    streams: int
    questions: int
    skills: tuple[str, ...]
    profile: Profile
    controls: bool = False
    only: Kind | None = None
    """What its things must all be; other scenes are drawn again."""
    gone: int = GONE
    """Steps ago that evidence must at least lie where memory is examined."""
    held: tuple[str, ...] = HELD_OUT

    def split(self, what: str) -> Split:
        return "test" if what in self.held else "train"

    def gallery(self, whole: Gallery) -> Gallery:
        """The gallery from which this paper's scenes are drawn, whatever their split."""
        fonts, grounds = self.split("fonts"), self.split("grounds")
        both: tuple[Split, Split] = ("train", "test")
        return Gallery(
            {split: whole.fonts[fonts] for split in both},
            {split: whole.stills[grounds] for split in both},
            {split: whole.clips[grounds] for split in both},
            whole.clip,
            whole.advances,
        )


def nothing() -> list[int]:
    return [0, 0]


@dataclass
class Marks:
    """Right answers and questions, by paper, skill, kind and candidate ("model", "glimpse", "cleared")."""

    counts: dict[tuple[str, str, str, str], list[int]] = field(default_factory=lambda: defaultdict(nothing))

    @classmethod
    def of(cls, parts: Iterable[Marks]) -> Marks:
        """All parts' marks together."""
        whole = cls()
        for part in parts:
            for key, count in part.counts.items():
                whole.counts[key] = [a + b for a, b in zip(whole.counts[key], count, strict=True)]
        return whole

    def add(self, paper: str, question: Question, candidate: str, right: bool) -> None:
        count = self.counts[paper, question.skill, question.kind, candidate]
        count[0] += right
        count[1] += 1

    def rows(self) -> list[dict[str, object]]:
        """Sorted, ready for JSON."""
        return [
            {"paper": paper, "skill": skill, "kind": kind, "candidate": candidate, "right": right, "asked": asked}
            for (paper, skill, kind, candidate), (right, asked) in sorted(self.counts.items())
        ]

    def share(self, paper: str, skill: str, candidate: str = "model", kind: str | None = None) -> tuple[float, int]:
        """Share of right answers and the number asked."""
        chosen = [
            count for (p, s, k, c), count in self.counts.items()
            if p == paper and s == skill and c == candidate and (kind is None or k == kind)
        ]  # fmt: skip
        asked = sum(count[1] for count in chosen)
        return (sum(count[0] for count in chosen) / asked if asked else float("nan")), asked


@dataclass
class Exam:
    """Who is examined, with what, and until when (`time.monotonic`, None: as long as it takes); `bar` counts frame steps."""

    network: InfiniteVL
    painter: Painter
    tokenizer: Tokenizer
    marks: Marks
    bar: Any
    deadline: float | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.network.model.embed_tokens.weight.device
        return device

    @property
    def room(self) -> int:
        """Frame steps that are painted and looked at together."""
        return 1024 if self.device.type == "cuda" else 64

    @property
    def over(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def patches(self, scenes: list[Scene], seed: int) -> Tensor:
        """Equally long scenes, painted: [scenes, steps, 256, 1176]."""
        dtype = self.network.model.embed_tokens.weight.dtype
        patches, _ = self.painter.patches(layout(scenes), seed, dtype)
        return patches.view(len(scenes), -1, *patches.shape[1:])

    def mark(self, paper: str, candidates: dict[str, SequenceCache], last: Tensor, asked: list[list[Question]]) -> None:
        """Asks each candidate's memory the questions [streams][each]; `last` float64 [streams] is the last frame's time."""
        if not any(asked):
            return
        for name, remembered in candidates.items():
            for questions, right in zip(asked, self.right(remembered, last, asked), strict=True):
                for question, good in zip(questions, right, strict=True):
                    self.marks.add(paper, question, name, good)

    def right(self, remembered: SequenceCache, last: Tensor, asked: list[list[Question]]) -> list[list[bool]]:
        """Which of the questions [streams][each], one at least, a memory answers rightly; `last` as in `mark`."""
        found = correct(self.network, remembered, last, asked, self.tokenizer)
        missed = [
            [question for question, good in zip(questions, right, strict=True) if not good]
            for questions, right in zip(asked, found, strict=True)
        ]
        again = alike(self.network, remembered, last, missed, self.tokenizer)
        return [[good or next(second) for good in right] for right, second in zip(found, map(iter, again), strict=True)]


def draw(paper: Paper, rng: np.random.Generator, gallery: Gallery) -> Scene:
    """A scene of the paper; of `DRAWS` in vain the last."""
    for _ in range(DRAWS):
        scene = draw_scene(rng, paper.steps, paper.split("things"), gallery, paper.profile)
        if paper.only is None or (scene.visits and all(v.thing.kind == paper.only for v in scene.visits)):
            break
    return scene


def ask(paper: Paper, rng: np.random.Generator, scene: Scene, step: int, tokenizer: Tokenizer) -> list[Question]:
    """The paper's questions about one scene after `step`; where memory is examined, only such whose evidence is gone."""
    examiner = Examiner(rng, scene, step, paper.split("phrasings"))
    found: list[Question] = []
    weights = {skill: WEIGHTS[skill] for skill in paper.skills}
    for _ in range(6):
        for question in examiner.ask(2 * paper.questions, weights):
            old = paper.skills != MEMORY or question.age >= paper.gone or question.kind in ("no", "never")
            if question.skill in paper.skills and old and fits(question, tokenizer) and len(found) < paper.questions:
                found.append(question)
        if len(found) == paper.questions:
            break
    return found


def ask_each(
    paper: Paper, chances: list[np.random.Generator], scenes: list[Scene], step: int, tokenizer: Tokenizer
) -> list[list[Question]]:
    """The paper's questions about each scene after `step`, by that scene's own chances."""
    return [ask(paper, rng, scene, step, tokenizer) for rng, scene in zip(chances, scenes, strict=True)]


def compose(
    paper: Paper, chances: list[np.random.Generator], gallery: Gallery, tokenizer: Tokenizer
) -> tuple[list[Scene], list[list[Question]]]:
    """The paper's scenes, each drawn and asked about at its end by chances of its own."""
    own = paper.gallery(gallery)
    scenes = [draw(paper, rng, own) for rng in chances]
    return scenes, ask_each(paper, chances, scenes, paper.steps - 1, tokenizer)


@torch.no_grad()
def watch(
    network: InfiniteVL, patches: Tensor, seconds: Tensor, memory: SequenceCache | None, part: int = 128
) -> SequenceCache:
    """`network.watch` over [streams, steps, …] in parts of `part` steps."""
    for start in range(0, seconds.shape[1], part):
        memory = network.watch(patches[:, start : start + part], GRID, seconds[:, start : start + part], memory)
    assert memory is not None
    return memory


def padded(questions: list[list[Question]]) -> list[list[Question]]:
    """As many questions [streams][each] of every stream, and one at least."""
    most = max(1, *map(len, questions))
    return [asked + [Question("unknowable", "?", "?")] * (most - len(asked)) for asked in questions]


def by_stream(right: list[bool], questions: list[list[Question]]) -> list[list[bool]]:
    """What was found of each of the padded questions, for those [streams][each] that were asked."""
    most = len(right) // len(questions)
    return [right[i * most : i * most + len(asked)] for i, asked in enumerate(questions)]


@torch.no_grad()
def likeliest(
    network: InfiniteVL, memory: SequenceCache, last: Tensor, questions: list[list[Question]], tokenizer: Tokenizer
) -> tuple[Round, Integers]:
    """The padded questions with their answers, and the token that would come after each of these tokens."""
    asked = write(padded(questions), tokenizer, 1)
    logits = network.answer(torch.from_numpy(asked.tokens).to(last.device), last, GRID, memory)
    return asked, logits.argmax(-1).flatten().cpu().numpy()


def correct(
    network: InfiniteVL, memory: SequenceCache, last: Tensor, questions: list[list[Question]], tokenizer: Tokenizer
) -> list[list[bool]]:
    """Which questions [streams][each] would be answered exactly right by greedy decoding."""
    asked, best = likeliest(network, memory, last, questions, tokenizer)
    right = np.ones(len(asked.skill), bool)
    np.logical_and.at(right, asked.owner, best[asked.rows] == asked.targets)
    return by_stream(right.tolist(), questions)


def may_become(said: list[int], answer: str, tokenizer: Tokenizer) -> bool:
    """Whether these first tokens of an answer, or all of them, leave it right but for what `normalise` leaves out."""
    text, wanted = normalise(tokenizer.decode(said)), normalise(answer)
    return text == wanted if said[-1] == tokenizer.turn_end else wanted.startswith(text)


@torch.no_grad()
def alike(
    network: InfiniteVL, memory: SequenceCache, last: Tensor, questions: list[list[Question]], tokenizer: Tokenizer
) -> list[list[bool]]:
    """Which questions [streams][each], all of which fit, greedy decoding answers rightly but for what `normalise` leaves out.

    Most are told by their first token that is not the right answer's; the others are decoded for as long as they may become right.
    """
    if not any(questions):
        return [[] for _ in questions]
    asked, best = likeliest(network, memory, last, questions, tokenizer)
    tokens = torch.from_numpy(asked.tokens)
    flat, wanted = tokens.flatten(0, 1), [question.answer for each in padded(questions) for question in each]
    right, begins = [True] * len(wanted), dict[int, int]()
    said: dict[int, list[int]] = {}
    for i in np.unique(asked.owner).tolist():
        rows, targets = asked.rows[asked.owner == i], asked.targets[asked.owner == i]
        wrong = np.flatnonzero(best[rows] != targets)
        if len(wrong):
            right[i] = False
            said[i], begins[i] = (
                [*targets[: wrong[0]].tolist(), int(best[rows[wrong[0]]])],
                int(rows[0]) + 1 - i * LENGTH,
            )
    while said := {i: answer for i, answer in said.items() if may_become(answer, wanted[i], tokenizer)}:
        for i, answer in list(said.items()):
            end = begins[i] + len(answer) - 1
            if answer[-1] == tokenizer.turn_end or end == LENGTH:
                right[i] = answer[-1] == tokenizer.turn_end
                del said[i]
            else:
                flat[i, end] = answer[-1]
        if said:
            ends = torch.tensor([i * LENGTH + begins[i] + len(answer) - 1 for i, answer in said.items()])
            logits = network.answer(tokens.to(last.device), last, GRID, memory, ends.to(last.device))
            for answer, token in zip(said.values(), logits.argmax(-1).tolist(), strict=True):
                answer.append(token)
    return by_stream(right, questions)


def cleared(memory: SequenceCache) -> SequenceCache:
    """The same memory with its recurrent state zeroed."""
    blank = memory.branch(1)
    blank.parts |= {(layer, name): torch.zeros_like(x) for (layer, name), x in blank.parts.items() if name == "delta"}
    return blank


def score(exam: Exam, paper: Paper, seed: int) -> None:
    """Examines on one paper."""
    group = max(1, min(paper.streams, exam.room // paper.steps))
    network = exam.network
    for first in range(0, paper.streams, group):
        if exam.over:
            return
        chances = [
            np.random.default_rng((seed, paper.steps, len(paper.name), i))
            for i in range(first, min(first + group, paper.streams))
        ]
        scenes, questions = compose(paper, chances, exam.painter.gallery, exam.tokenizer)
        patches = exam.patches(scenes, int(chances[0].integers(2**31)))
        seconds = torch.from_numpy(np.stack([scene.seconds for scene in scenes])).to(exam.device)
        memory = watch(network, patches, seconds, None)
        candidates = {"model": memory}
        if paper.controls:
            glimpse = watch(network, patches[:, -GLIMPSE:], seconds[:, -GLIMPSE:], None)
            candidates |= {"cleared": cleared(memory), "glimpse": glimpse}
        exam.mark(paper.name, candidates, seconds[:, -1], questions)
        exam.bar.update(len(scenes) * paper.steps)
