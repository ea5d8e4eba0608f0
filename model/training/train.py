"""Trains the nano on the world: `python -m model.training.train --out runs/nano --minutes 8 --total 16`.

One command, resumable: `--resume FOLDER` goes on from another run's folder (something is saved every minute and when the
run is told to end) or from a checkpoint that was exported of one, as model/nano. Lengths and learning rate follow the clock,
so a run does what its minutes allow.
On several GPUs: `torchrun --standalone --nproc-per-node 2 -m model.training.train …`.
Writes weights, their running mean (what is shipped), log.csv, state.json (with its recipe) and marks.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.evaluation.distributed import join, limit_autotuning
from model.evaluation.run import examine, table
from model.tokenizer import Tokenizer
from model.training.cuda import keep_caches, trust_fla
from model.training.dataset import TOKENIZER, Curriculum, Lesson, Lessons
from model.training.trainer import POLICIES, Learner, Recipe, record
from model.world.render import Assets, Painter
from model.world.tokenise import SKILLS

SAVED_EVERY = 1.0
"""Minutes after which a run that is killed would have lost something."""
CLUTTER = 40
"""Pieces of video of nothing in particular."""
AHEAD = 3
"""Optimizer steps that are handed to the device before the first of them is done."""


def warm_up(learner: Learner, painter: Painter, lessons: Lessons, lengths: list[int]) -> None:
    """Learns from each length at a rate of nothing, makes it a graph, and puts the weights back."""
    before = {name: master.clone() for name, master in learner.optimizer.weights().items()}
    share = learner.recipe.steps // learner.recipe.devices

    def lesson(steps: int) -> tuple[Lesson, Tensor, Tensor]:
        made = lessons[10**9 + steps, steps, share // steps]
        return made, *painter.patches(made.sheet, made.seed, learner.dtype)

    def timed(steps: int, repeats: int) -> float:
        made = lesson(steps)
        learner.learn(*made, 0.0, 0.5)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            learner.learn(*made, 0.0, 0.5)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats * 1e3

    from model.training.fused import patch_fused

    trust_fla()
    patch_fused(learner.model)
    for steps in lengths:
        start = time.perf_counter()
        eager = timed(steps, 2)
        if learner.optimizer.graph is None:
            learner.optimizer.capture()
        learner.capture(*lesson(steps))
        each = timed(steps, 4)
        print(f"{steps} steps a stream: {each:.1f} ms, without a graph {eager:.1f} ms, ready after "
              f"{time.perf_counter() - start:.1f} s", flush=True)  # fmt: skip
    start = time.perf_counter()
    made = lessons[10**9, 16, share // 16]
    middle = time.perf_counter()
    for _ in range(3):
        painter.patches(made.sheet, made.seed, learner.dtype)
    torch.cuda.synchronize()
    print(f"a lesson made in {(middle - start) * 1e3:.0f} ms, painted in {(time.perf_counter() - middle) / 3e-3:.0f} ms; "
          f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most", flush=True)  # fmt: skip
    learner.optimizer.load(before)
    learner.optimizer.forget()
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


class Stop:
    """Whether the program was asked to end (SIGTERM, SIGINT): it saves and ends after the step it is in."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.ask)

    def ask(self, *_: object) -> None:
        self.asked = True


def agreed(number: float, devices: int) -> float:
    """The first device's number, so that all do the same."""
    if devices == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def train(recipe: Recipe, out: Path, resume: Path | None, caches: Path | None, device: torch.device) -> None:
    """Trains and examines within `recipe.minutes` and saves into `out`."""
    launch = time.monotonic()
    rank = dist.get_rank() if recipe.devices > 1 else 0
    out.mkdir(parents=True, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if device.type == "cuda":
        if caches is not None:
            keep_caches(caches)
        limit_autotuning()
    assets = Assets.load().cluttered(CLUTTER)
    learner = Learner(recipe, device)
    done, first, log = 0.0, 0, []
    if resume is not None:
        state = learner.load(resume)
        done, first = state["minutes"], state["step"]
        log = list(csv.reader((record(resume) / "log.csv").open()))[1:]
    share = recipe.steps // recipe.devices, recipe.questions // recipe.devices
    curriculum = Curriculum(recipe.seed, share[0], first, done / recipe.total, rank, recipe.devices)
    lessons = Lessons(recipe.seed, share[1], assets.gallery, learner.model.config)
    supply = feed(lessons, curriculum, recipe.workers)
    painter = Painter(assets, device)
    count = sum(p.numel() for p in learner.model.parameters())
    print(f"{count / 1e6:.2f} M parameters, {len(lessons.gallery.fonts['train'])} fonts, on {device}", flush=True)
    if device.type == "cuda":
        warm_up(learner, painter, lessons, curriculum.lengths())
    header = ["step", "minutes", "lr", "length", "loss", "guiding", "norm", *SKILLS]
    begin, step, recent = time.monotonic(), first, []
    allowed = recipe.minutes - (begin - launch + recipe.exam) / 60
    bar = tqdm(
        total=round(allowed, 2), unit="min", bar_format="{l_bar}{bar}| {n:.2f}/{total} {postfix}", mininterval=10,
        disable=rank > 0,
    )  # fmt: skip
    queue: list[torch.cuda.Event] = []

    def keep_run() -> None:
        with (out / "log.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *log])
        learner.save(out, {"minutes": done + passed, "step": step, "recipe": asdict(recipe)})

    stopped, kept = Stop(), 0.0
    while True:
        passed = agreed((time.monotonic() - begin) / 60, recipe.devices)
        if passed >= allowed or agreed(float(stopped.asked), recipe.devices):
            break
        if rank == 0 and passed > kept + SAVED_EVERY:
            keep_run()
            kept = passed
        progress = min(1.0, (done + passed) / recipe.total)
        curriculum.progress = progress
        lr = recipe.lr * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
        lr *= min(1.0, (step - first + 1) / (recipe.rewarm if resume else recipe.warmup))
        guide = recipe.guide[0] + (recipe.guide[1] - recipe.guide[0]) * min(1.0, progress / 0.25)
        lesson = next(supply)
        patches, labels = painter.patches(lesson.sheet, lesson.seed, learner.dtype)
        recent.append(learner.learn(lesson, patches, labels, lr, guide))
        step += 1
        if device.type == "cuda":
            queue.append(torch.cuda.Event())
            queue[-1].record()
            if len(queue) > AHEAD:
                queue.pop(0).synchronize()
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
            learner.agree()
            recent.clear()
            bar.set_postfix_str(f"step {step} loss {values[0]:.3f} guide {values[1]:.3f} norm {values[2]:.2f}")
            bar.n = round(passed, 2)
            bar.refresh()
    bar.close()
    if rank > 0:
        return
    keep_run()
    if log:
        print(dict(zip(header, log[-1], strict=True)), flush=True)
    if stopped.asked:
        return
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
    parser.add_argument("--lr", type=float, default=Recipe.lr, help="highest learning rate")
    parser.add_argument("--workers", type=int, default=14, help="processes that make lessons")
    given = parser.parse_args()
    device, devices = join(torch.device(given.device))
    recipe = Recipe(
        given.minutes,
        given.total,
        given.exam,
        steps=given.steps,
        questions=given.questions,
        lr=given.lr,
        policy=given.policy,
        workers=given.workers,
        devices=devices,
    )
    train(recipe, given.out, given.resume, given.caches, device)
    if devices > 1:
        # One examines while the others are done; those that leave first have been seen to wait for ever.
        agreed(0.0, devices)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
