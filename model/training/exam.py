"""The examination: fresh held-out worlds, every skill, by how long ago the evidence was, with two controls beside it.

An answer counts where greedy decoding would give exactly it; since the whole right answer is at hand, one pass tells.
Controls: `glimpse` sees the last four frames only; `cleared` keeps the attention window but its recurrent state is zeroed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.infinitevl import InfiniteVL
from model.memory import SequenceMemory
from model.tokenizer import Tokenizer
from model.training.lessons import fits, write
from model.training.paint import Painter
from model.training.questions import WEIGHTS, Examiner, Question
from model.training.world import Profile, Scene, Split, draw_scene, layout

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
GONE = 16
"""Steps (two windows) after which evidence is surely outside the attention window."""


@dataclass(frozen=True)
class Paper:
    """One part of the examination: `streams` scenes of `steps` steps drawn as `profile`, `questions` asked of each at the end."""

    name: str
    steps: int
    streams: int
    questions: int
    skills: tuple[str, ...]
    profile: Profile
    controls: bool = False


@dataclass
class Marks:
    """Right answers and questions, by paper, skill, kind and candidate ("model", "glimpse", "cleared")."""

    counts: dict[tuple[str, str, str, str], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

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


def papers(scale: float = 1.0) -> list[Paper]:
    """The examination; `scale` multiplies the number of streams."""

    def n(streams: int) -> int:
        return max(2, round(streams * scale))

    return [
        Paper("now", 16, n(384), 16, NOW, Profile()),
        Paper("empty", 8, n(128), 2, ("what",), Profile(things=(0, 0), real=True)),
        Paper("memory 128", 64, n(96), 24, MEMORY, Profile(things=(1, 8)), controls=True),
        Paper("memory 256", 128, n(64), 24, MEMORY, Profile(things=(1, 8)), controls=True),
        Paper("memory 512", 256, n(48), 24, MEMORY, Profile(things=(1, 8)), controls=True),
        Paper("crowded 512", 256, n(32), 24, MEMORY, Profile(things=(10, 40))),
        Paper("first second 256", 128, n(48), 1, ("number was",), Profile(things=(1, 1), text=1.0, gap=114)),
        Paper("first second 512", 256, n(32), 1, ("number was",), Profile(things=(1, 1), text=1.0, gap=242)),
        Paper("first second 1500", 750, n(24), 1, ("number was",), Profile(things=(1, 1), text=1.0, gap=736)),
    ]


def ask(paper: Paper, rng: np.random.Generator, scene: Scene, split: Split, tokenizer: Tokenizer) -> list[Question]:
    """The paper's questions about one scene; where memory is examined, only such whose evidence is gone."""
    examiner = Examiner(rng, scene, paper.steps - 1, split)
    found: list[Question] = []
    weights = {skill: WEIGHTS[skill] for skill in paper.skills}
    for _ in range(6):
        for question in examiner.ask(2 * paper.questions, weights):
            old = paper.skills != MEMORY or question.age >= GONE or question.kind in ("no", "never")
            if question.skill in paper.skills and old and fits(question, tokenizer) and len(found) < paper.questions:
                found.append(question)
        if len(found) == paper.questions:
            break
    return found


@torch.no_grad()
def watch(
    network: InfiniteVL, patches: Tensor, seconds: Tensor, memory: SequenceMemory | None, part: int = 128
) -> SequenceMemory:
    """`network.watch` over [streams, steps, …] in parts of `part` steps."""
    for start in range(0, seconds.shape[1], part):
        memory = network.watch(patches[:, start : start + part], GRID, seconds[:, start : start + part], memory)
    assert memory is not None
    return memory


@torch.no_grad()
def correct(
    network: InfiniteVL, memory: SequenceMemory, last: Tensor, questions: list[list[Question]], tokenizer: Tokenizer
) -> list[list[bool]]:
    """Which questions [streams][each] would be answered exactly right by greedy decoding."""
    most = max(len(asked) for asked in questions)
    padded = [asked + [Question("unknowable", "?", "?")] * (most - len(asked)) for asked in questions]
    round_ = write(padded, tokenizer, 1)
    device = last.device
    logits = network.answer(torch.from_numpy(round_.tokens).to(device), last, GRID, memory)
    best = logits.argmax(-1).flatten().cpu().numpy()
    right = np.ones(len(padded) * most, bool)
    np.logical_and.at(right, round_.owner, best[round_.rows] == round_.targets)
    return [row[: len(asked)].tolist() for row, asked in zip(right.reshape(-1, most), questions, strict=True)]


def cleared(memory: SequenceMemory) -> SequenceMemory:
    """The same memory with its recurrent state zeroed."""
    blank = memory.branch(1)
    blank.states = {layer: torch.zeros_like(state) for layer, state in blank.states.items()}
    return blank


def sit(
    network: InfiniteVL,
    painter: Painter,
    tokenizer: Tokenizer,
    paper: Paper,
    marks: Marks,
    seed: int,
    split: Split = "test",
) -> None:
    """Examines `network` on one paper."""
    weights = network.model.embed_tokens.weight
    device, dtype = weights.device, weights.dtype
    group = max(1, min(paper.streams, 1024 // paper.steps))
    for first in range(0, paper.streams, group):
        rng = np.random.default_rng((seed, paper.steps, len(paper.name), first))
        scenes = [
            draw_scene(rng, paper.steps, split, painter.gallery, paper.profile)
            for _ in range(min(group, paper.streams - first))
        ]
        questions = [ask(paper, rng, scene, split, tokenizer) for scene in scenes]
        if not any(questions):
            continue
        patches, _ = painter.patches(layout(scenes), int(rng.integers(2**31)), dtype)
        patches = patches.unflatten(0, (len(scenes), paper.steps))
        seconds = torch.from_numpy(np.stack([scene.seconds for scene in scenes])).to(device)
        memory = watch(network, patches, seconds, None)
        candidates: dict[str, Callable[[], SequenceMemory]] = {"model": lambda memory=memory: memory}  # type: ignore[misc]
        if paper.controls:
            candidates["cleared"] = lambda memory=memory: cleared(memory)  # type: ignore[misc]
            candidates["glimpse"] = lambda p=patches, s=seconds: watch(network, p[:, -2:], s[:, -2:], None)  # type: ignore[misc]
        for name, remembered in candidates.items():
            for asked, right in zip(
                questions, correct(network, remembered(), seconds[:, -1], questions, tokenizer), strict=True
            ):
                for question, good in zip(asked, right, strict=True):
                    marks.add(paper.name, question, name, good)


def examine(
    network: InfiniteVL,
    painter: Painter,
    tokenizer: Tokenizer,
    *,
    seed: int = 2026,
    scale: float = 1.0,
    budget: float | None = None,
) -> Marks:
    """All papers, in order, as far as `budget` seconds allow."""
    begin, marks = time.monotonic(), Marks()
    was_training = network.training
    network.eval()
    for paper in papers(scale):
        if budget is not None and time.monotonic() - begin > budget:
            break
        sit(network, painter, tokenizer, paper, marks, seed)
    network.train(was_training)
    return marks


def table(marks: Marks) -> Iterator[str]:
    """The marks as lines of text."""
    for paper in dict.fromkeys(key[0] for key in marks.counts):
        skills = [skill for skill in (*NOW, *MEMORY) if marks.share(paper, skill)[1]]
        parts = []
        for skill in skills:
            kinds = sorted({k for (p, s, k, _) in marks.counts if p == paper and s == skill})
            shown = (
                kinds
                if skill in ("is there", "has appeared", "what", "changed", "number", "word", "number was", "word was")
                else [None]
            )
            for kind in shown:
                share, asked = marks.share(paper, skill, kind=kind)
                parts.append(f"{skill}{' ' + kind if kind else ''} {share:.2f} ({asked})")
        yield f"{paper}: " + ", ".join(parts)
        for control in ("cleared", "glimpse"):
            values = [marks.share(paper, skill, control) for skill in skills]
            if any(asked for _, asked in values):
                yield f"  {control}: " + ", ".join(f"{s} {v:.2f}" for s, (v, _) in zip(skills, values, strict=True))
