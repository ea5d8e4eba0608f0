"""Trains the nano on the world: `python -m model.training.train --out runs/nano --minutes 8 --total 16`.

One command, resumable: `--resume FOLDER` goes on from another run's folder. Lengths and learning rate follow the clock,
so a run does what its minutes allow.
Writes weights, their running mean (what is shipped), log.csv, state.json (with its recipe) and marks.json.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.config import FULL, AttentionPolicy, nano
from model.infinitevl import InfiniteVL
from model.memory import SequenceMemory
from model.ops import dispatch
from model.tokenizer import Tokenizer
from model.training.accelerate import initialise, keep_caches, limit_autotuning, trust_fla
from model.training.exam import examine, table
from model.training.lessons import SKILLS, TOKENIZER, Curriculum, Lesson, Lessons, Round
from model.training.optimizer import Optimizer
from model.training.paint import CLASSES, Assets, Painter

GRID = (16, 16)
POLICIES = {"online": nano().policy, "window": AttentionPolicy(sinks=0, window=576), "base": FULL}
WEIGHT_FILES = 2


@dataclass
class Recipe:
    """A run's configuration."""

    minutes: float
    """Wall-clock minutes of this run, warm-up and examination included."""
    total: float
    """Minutes of learning in the whole training, over all runs: what the learning rate and the lengths follow."""
    exam: float = 45.0
    """Seconds kept for the examination at the end."""
    seed: int = 0
    steps: int = 1024
    """Frame steps (of two frames) in a batch."""
    questions: int = 1024
    lr: float = 3e-3
    warmup: int = 150
    rewarm: int = 60
    """Optimizer steps of warm-up, at the start and after a resume."""
    floor: float = 0.02
    """Learning rate at the end, as a share of `lr`."""
    guide: tuple[float, float] = (0.5, 0.1)
    """Weight of the guiding loss (what each patch shows) at the start and from a quarter of the training on."""
    mean: float = 0.99
    """Decay of the running mean of the weights, taken every 5 optimizer steps."""
    policy: str = "online"
    workers: int = 14


class Learner:
    """The model with its optimizer; one lesson at a time."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(recipe.seed)
        config = nano().with_policy(POLICIES[recipe.policy])
        self.model = InfiniteVL(config)
        initialise(self.model)
        self.guide = nn.Linear(config.decoder.hidden_size, 4 * CLASSES)
        for module in (self.model, self.guide):
            module.to(device, self.dtype)
        for name, p in self.model.named_parameters():
            if name.endswith(("A_log", "dt_bias")):
                p.data = p.data.float()
        self.optimizer = Optimizer(self.model, self.guide)
        self.mean = [master.clone() for master in self.optimizer.masters]
        self.tally = torch.zeros(2, len(SKILLS), device=device)

    def upload(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def answers(self, round_: Round, seconds: Tensor, memory: SequenceMemory) -> tuple[Tensor, Tensor]:
        """Loss of one round of questions, and for each whether its whole answer is the most likely one."""
        logits = self.model.answer(self.upload(round_.tokens), seconds[:, round_.steps - 1], GRID, memory)
        chosen = logits.flatten(0, 2)[self.upload(round_.rows)]
        targets, owner = self.upload(round_.targets), self.upload(round_.owner)
        loss = F.cross_entropy(chosen, targets)
        right = torch.ones(len(round_.skill), device=self.device)
        right = right.scatter_reduce(0, owner, (chosen.argmax(-1) == targets).float(), "amin")
        return loss, right

    def forward(self, lesson: Lesson, patches: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Loss of the answers, which are right, and the vision tower's tokens."""
        seconds = self.upload(lesson.seconds)
        seen = self.model.visual(patches, *GRID)
        x = seen.unflatten(0, (len(seconds), -1))
        memory, start, losses, right = None, 0, [], []
        for round_ in lesson.rounds:
            part = slice(start, round_.steps)
            memory = self.model.follow(x[:, part], GRID, seconds[:, part], memory)
            loss, correct = self.answers(round_, seconds, memory)
            losses.append(loss)
            right.append(correct)
            start = round_.steps
        return torch.stack(losses).mean(), right, seen

    def learn(self, lesson: Lesson, patches: Tensor, labels: Tensor, lr: float, guide: float) -> Tensor:
        """One optimizer step. Returns answer loss, guiding loss and gradient norm, on the device."""
        loss, right, seen = self.forward(lesson, patches)
        half = slice(lesson.seed % 2, None, 2)
        shown = self.guide(seen[half]).view(-1, CLASSES)
        label = labels[half].flatten()
        error = F.cross_entropy(shown.float(), label, reduction="none")
        something = (label > 0).float()
        guiding = (error * something).sum() / (something.sum() + 1) + 0.3 * (error * (1 - something)).mean()
        (loss + guide * guiding).backward()
        norm = self.optimizer.step(lr)
        with torch.no_grad():
            for round_, correct in zip(lesson.rounds, right, strict=True):
                skill = self.upload(round_.skill)
                self.tally[0].scatter_add_(0, skill, correct)
                self.tally[1].scatter_add_(0, skill, torch.ones_like(correct))
        return torch.stack((loss.detach(), guiding.detach(), norm))

    def average(self) -> None:
        """Moves the running mean towards the weights."""
        torch._foreach_lerp_(self.mean, self.optimizer.masters, 1 - self.recipe.mean)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Weights and running mean as float16 in `WEIGHT_FILES` files each, and where the training stands."""
        names = self.optimizer.names
        for kind, tensors in (("weights", self.optimizer.masters), ("mean", self.mean)):
            half = sum(t.numel() for t in tensors) / WEIGHT_FILES
            ends = list(itertools.accumulate(t.numel() for t in tensors))
            for part in range(WEIGHT_FILES):
                mine = [i for i, end in enumerate(ends) if part == min(WEIGHT_FILES - 1, int((end - 1) / half))]
                content = {names[i]: tensors[i].to(torch.float16) for i in mine}
                save_file(content, str(folder / f"{kind}-{part}.safetensors"))
        (folder / "state.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> dict[str, Any]:
        """Goes on from `save`; returns where the training stood."""
        self.optimizer.load(read_weights(folder, "weights", self.device))
        mean = read_weights(folder, "mean", self.device)
        self.mean = [mean[name].float() for name in self.optimizer.names]
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        return state


def read_weights(folder: Path, kind: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A run's "weights" or "mean" by name."""
    weights: dict[str, Tensor] = {}
    for part in range(WEIGHT_FILES):
        weights |= load_file(str(folder / f"{kind}-{part}.safetensors"), device=str(device))
    return weights


def warm_up(learner: Learner, painter: Painter, lessons: Lessons) -> None:
    """Learns from every length at a rate of nothing, by plain torch and by fla, keeps the faster and puts the weights back."""
    before = {name: master.clone() for name, master in learner.optimizer.weights().items()}
    lengths = sorted({steps for _, stage in Curriculum.STAGES for steps in stage})
    recipe = learner.recipe

    def lesson(steps: int) -> tuple[Lesson, Tensor, Tensor]:
        made = lessons[10**9 + steps, steps, recipe.steps // steps]
        patches, labels = painter.patches(made.sheet, made.seed, learner.dtype)
        return made, patches, labels

    def timed(steps: int, repeats: int) -> float:
        made = lesson(steps)
        learner.learn(*made, 0.0, 0.5)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            learner.learn(*made, 0.0, 0.5)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    plain = timed(16, 8)
    print(f"plain {plain * 1e3:.1f} ms a step, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
    if trust_fla():
        fast = timed(16, 8)
        print(f"with fla's gradients {fast * 1e3:.1f} ms a step", flush=True)
        if fast > 0.97 * plain:
            dispatch.FLA_GRADIENTS = False
    for steps in lengths:
        start = time.perf_counter()
        each = timed(steps, 2)
        print(f"{steps} steps a stream: {each * 1e3:.1f} ms, warm in {time.perf_counter() - start:.1f} s", flush=True)
    start = time.perf_counter()
    lesson(16)
    torch.cuda.synchronize()
    print(f"a lesson made and painted in {(time.perf_counter() - start) * 1e3:.0f} ms; "
          f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most", flush=True)  # fmt: skip
    learner.optimizer.load(before)
    for momentum in learner.optimizer.momenta:
        momentum.zero_()
    learner.optimizer.adam.state.clear()
    learner.tally.zero_()


def keep(lesson: Lesson) -> Lesson:
    return lesson


def feed(lessons: Lessons, curriculum: Curriculum, workers: int) -> Iterator[Lesson]:
    """Lessons, made ahead of their time by `workers` processes."""
    loader: DataLoader[Lesson] = DataLoader(
        lessons, batch_size=None, sampler=curriculum, num_workers=workers, collate_fn=keep,  # type: ignore[arg-type]
        prefetch_factor=3 if workers else None, timeout=120 if workers else 0,
    )  # fmt: skip
    return iter(loader)


def train(recipe: Recipe, out: Path, resume: Path | None, caches: Path | None, device: torch.device) -> None:
    """Trains and examines within `recipe.minutes` and saves into `out`."""
    launch = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if device.type == "cuda":
        if caches is not None:
            keep_caches(caches)
        limit_autotuning()
    assets = Assets.load()
    learner = Learner(recipe, device)
    done, first, log = 0.0, 0, []
    if resume is not None:
        state = learner.load(resume)
        done, first = state["minutes"], state["step"]
        log = list(csv.reader((resume / "log.csv").open()))[1:]
    curriculum = Curriculum(recipe.seed, recipe.steps, first, done / recipe.total)
    lessons = Lessons(recipe.seed, recipe.questions, assets.gallery, learner.model.config)
    supply = feed(lessons, curriculum, recipe.workers)
    painter = Painter(assets, device)
    count = sum(p.numel() for p in learner.model.parameters())
    print(f"{count / 1e6:.2f} M parameters, {len(lessons.gallery.fonts['train'])} fonts, on {device}", flush=True)
    if device.type == "cuda":
        warm_up(learner, painter, lessons)
    header = ["step", "minutes", "lr", "length", "loss", "guiding", "norm", *SKILLS]
    begin, step, recent = time.monotonic(), first, []
    allowed = recipe.minutes - (begin - launch + recipe.exam) / 60
    passed = 0.0
    bar = tqdm(
        total=round(allowed, 2), unit="min", bar_format="{l_bar}{bar}| {n:.2f}/{total} {postfix}", mininterval=10
    )
    while True:
        passed = (time.monotonic() - begin) / 60
        if passed >= allowed:
            break
        progress = min(1.0, (done + passed) / recipe.total)
        curriculum.progress = progress
        lr = recipe.lr * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
        lr *= min(1.0, (step - first + 1) / (recipe.rewarm if resume else recipe.warmup))
        guide = recipe.guide[0] + (recipe.guide[1] - recipe.guide[0]) * min(1.0, progress / 0.25)
        lesson = next(supply)
        patches, labels = painter.patches(lesson.sheet, lesson.seed, learner.dtype)
        recent.append(learner.learn(lesson, patches, labels, lr, guide))
        step += 1
        if step % 5 == 0:
            learner.average()
        if step % 50 == 0:
            values = torch.stack(recent).mean(0).tolist()
            right, asked = learner.tally.tolist()
            scores = [f"{r / a:.3f}" if a else "" for r, a in zip(right, asked, strict=True)]
            log.append(
                [
                    str(step),
                    f"{done + passed:.3f}",
                    f"{lr:.2e}",
                    str(lesson.steps),
                    *(f"{v:.4f}" for v in values),
                    *scores,
                ]
            )
            learner.tally.zero_()
            recent.clear()
            bar.set_postfix_str(f"step {step} loss {values[0]:.3f} guide {values[1]:.3f} norm {values[2]:.2f}")
            bar.n = round(passed, 2)
            bar.refresh()
    bar.close()
    with (out / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *log])
    learner.save(out, {"minutes": done + passed, "step": step, "recipe": asdict(recipe)})
    if log:
        print(dict(zip(header, log[-1], strict=True)), flush=True)
    learner.optimizer.load(dict(zip(learner.optimizer.names, learner.mean, strict=True)))
    tokenizer = Tokenizer.load(TOKENIZER, learner.model.config)
    marks = examine(learner.model, painter, tokenizer, budget=recipe.minutes * 60 - (time.monotonic() - launch) - 5)
    (out / "marks.json").write_text(json.dumps(marks.rows()))
    print("\n".join(table(marks)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and logs")
    parser.add_argument("--resume", type=Path, help="folder of the run to go on from")
    parser.add_argument("--minutes", type=float, required=True, help="wall-clock minutes of this run")
    parser.add_argument("--total", type=float, required=True, help="minutes of learning over all runs")
    parser.add_argument("--caches", type=Path, help="folder for compiled kernels")
    parser.add_argument("--exam", type=float, default=45.0, help="seconds kept for the examination")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--policy", choices=POLICIES, default="online")
    parser.add_argument("--steps", type=int, default=1024, help="frame steps in a batch")
    parser.add_argument("--questions", type=int, default=1024, help="questions in a batch")
    parser.add_argument("--workers", type=int, default=14, help="processes that make lessons")
    given = parser.parse_args()
    recipe = Recipe(
        given.minutes,
        given.total,
        given.exam,
        steps=given.steps,
        questions=given.questions,
        policy=given.policy,
        workers=given.workers,
    )
    train(recipe, given.out, given.resume, given.caches, torch.device(given.device))


if __name__ == "__main__":
    main()
