"""Trains a stage on the world: `python -m model.training.train teacher --out runs/teacher --minutes 9`.

The stages are the paper's: `teacher` (attention in every layer), `distil --from runs/teacher` (three of four layers become Gated
DeltaNet, first layer by layer, then by the logits), `tune --from runs/distil` (or from nothing), and
`long --from runs/base --policy online` (or offline, window, base: long streams are one frame in five).
The same command again goes on where the last was killed: something is saved every minute, and when the run is told to end.
Learning rate and lengths follow the clock, so a run does what its minutes allow; `--total` says how many the stage has in all.
On several GPUs: `torchrun --standalone --nproc-per-node 2 -m model.training.train …`.
Writes weights, their running mean (what is examined and shipped), the optimizer's moments, curve.jsonl and state.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.evaluation.distributed import join, limit_autotuning
from model.evaluation.run import examine, table
from model.layers.delta_net import GatedDeltaNet
from model.tokenizer import Tokenizer
from model.training.cuda import keep_caches, trust_fla
from model.training.dataset import TOKENIZER, Curriculum, Lesson, Lessons
from model.training.objectives import objective
from model.training.optimizer import Optimizer
from model.training.probe import Probe
from model.training.saving import CURVE, put, save
from model.training.stages import MEMBERS, SIZES, STAGES, Recipe, StageError, mixture
from model.training.start import Start, begin, part_of
from model.training.trainer import Learner
from model.world.render import Assets, Painter
from model.world.tokenise import SKILLS

CLUTTER = 40
"""Pieces of video of nothing in particular."""
AHEAD = 3
"""Optimizer steps that are handed to the device before the first of them is done."""


def warm_up(learner: Learner, painter: Painter, lessons: Lessons, lengths: list[int]) -> None:
    """Learns from each length at a rate of nothing, makes it a graph, and puts the weights back."""
    assert isinstance(learner.optimizer, Optimizer)
    before = {name: master.clone() for name, master in learner.optimizer.weights().items()}
    share = learner.recipe.steps // learner.recipe.devices

    def lesson(steps: int) -> tuple[Lesson, Tensor, Tensor]:
        made = lessons[10**9 + steps, steps, max(1, share // steps)]
        return made, *painter.patches(made.sheet, made.seed, learner.dtype)

    def timed(made: tuple[Lesson, Tensor, Tensor], repeats: int) -> float:
        learner.learn(*made, 0.0, 0.5)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            learner.learn(*made, 0.0, 0.5)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats * 1e3

    from model.training.fused import patch_fused

    networks = [learner.objective.model, *learner.objective.shown]
    if any(isinstance(module, GatedDeltaNet) for network in networks for module in network.modules()):
        trust_fla()
    for network in networks:
        patch_fused(network)
    for steps in lengths:
        start = time.perf_counter()
        painted = lesson(steps)
        eager = timed(painted, 2)
        if learner.optimizer.graph is None:
            learner.optimizer.capture()
        learner.capture(*painted)
        each = timed(painted, 4)
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
    learner.objective.tally.zero_()


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


class Curve:
    """A stage's rows, as JSON lines; sums since the last row survive a save."""

    def __init__(self, path: Path, rows: list[dict[str, Any]], since: dict[str, Any], silent: bool) -> None:
        self.path, self.silent, self.recent = path, silent, list[Tensor]()
        self.sums: list[float] = since.get("sums", [])
        self.count: int = since.get("count", 0)
        self.unused: int = since.get("unused", 0)  # updates whose gradient was not finite
        self.tally: list[list[float]] | None = since.get("tally")
        if not silent:
            written = path.with_name(path.name + ".new")
            written.write_text("".join(json.dumps(row) + "\n" for row in rows))
            written.replace(path)

    def fold(self, tally: Tensor) -> None:
        """Takes what was measured since into the sums, and clears it."""
        if self.recent:
            told = torch.stack(self.recent).double()
            finite = told[:, -1].isfinite()
            told[:, -1] = told[:, -1].where(finite, 0.0)
            sums = told.sum(0).tolist()
            self.unused += len(told) - int(finite.sum())
            self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(sums), sums, strict=True)]
            self.count += len(self.recent)
            self.recent.clear()
        before = self.tally or [[0.0] * len(SKILLS)] * 2
        self.tally = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(before, tally.tolist(), strict=True)]
        tally.zero_()

    def since(self) -> dict[str, Any]:
        """What `Standing.since` keeps."""
        return {"sums": self.sums, "count": self.count, "unused": self.unused, "tally": self.tally}

    def close(self, names: tuple[str, ...], tally: Tensor) -> dict[str, Any]:
        """Means of what was measured since the last row, by name, and each skill's share of right answers; begins anew.

        The norm is of the gradients that were finite; how many were not, and were left out, is told as `unused` where there are any.
        """
        self.fold(tally)
        assert self.tally is not None
        of = (*[self.count] * len(names), max(1, self.count - self.unused))
        means = {name: round(x / n, 6) for name, x, n in zip((*names, "norm"), self.sums, of, strict=True)}
        if self.unused:
            means["unused"] = self.unused
        right = {s: round(r / a, 4) for s, r, a in zip(SKILLS, *self.tally, strict=True) if a}
        self.sums, self.count, self.unused, self.tally = [], 0, 0, None
        return means | ({"right": right} if right else {})

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row, for whoever follows along too."""
        if not self.silent:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


class Training:
    """A stage that is being learned, and what is saved of it."""

    def __init__(
        self, recipe: Recipe, start: Start, out: Path, device: torch.device, clock: Callable[[], float]
    ) -> None:
        self.recipe, self.start, self.out, self.device, self.clock = recipe, start, out, device, clock
        self.standing = start.standing
        self.rank = dist.get_rank() if recipe.devices > 1 else 0
        assets = Assets.load().cluttered(CLUTTER)
        self.painter = Painter(assets, device)
        share = recipe.steps // recipe.devices, recipe.questions // recipe.devices
        self.curriculum = Curriculum(
            mixture(recipe), recipe.seed, share[0], self.standing.step, part=self.rank, parts=recipe.devices
        )
        vocabulary = Path(recipe.vocabulary) if recipe.vocabulary else TOKENIZER
        self.tokenizer = Tokenizer.load(vocabulary, start.network.config)
        self.lessons = Lessons(recipe.seed, share[1], assets.gallery, start.network.config, vocabulary)
        asked = self.rank == 0 and any(recipe.probes) and not recipe.sharded  # all processes would have to answer
        self.probe = Probe(recipe, self.painter, self.tokenizer) if asked else None
        self.curve = Curve(out / CURVE, start.curve, dict(self.standing.since), self.rank > 0)
        self.saved_part = ""

    def prepare(self, part: str) -> Learner:
        """What learns a part, ready to."""
        made = objective(part, self.start.network, self.start.teacher, self.recipe.frozen)
        learner = Learner(self.recipe, made, self.device)
        kinds = self.start.kinds
        if kinds and part != self.standing.part:
            kinds = {kind: x for kind, x in kinds.items() if kind != "moments"}
        if kinds:
            learner.take({kind: x for kind, x in kinds.items() if kind != "moments"})
        if self.device.type == "cuda" and not self.recipe.sharded:
            warm_up(learner, self.painter, self.lessons, self.curriculum.lengths())
        if kinds.get("moments"):
            learner.optimizer.restore({name: x.to(self.device) for name, x in kinds["moments"].items()})
        if part != self.standing.part:
            self.standing.part, self.standing.fresh = part, self.standing.step
        self.start.kinds = {}
        return learner

    def change(self, learner: Learner, part: str) -> Learner:
        """The next part, which goes on with the weights of the one that is over."""
        put(self.start.network, learner.means(), "the part before")
        return self.prepare(part)

    def save(self, learner: Learner) -> None:
        """Asks the probe, then saves; the learning goes on from what was saved, as a resumed run would."""
        if self.probe is not None and self.standing.part != "matching":
            self.curve.add(self.row() | {"probe": self.probe.ask(learner)})
        self.curve.fold(learner.objective.tally)
        kinds = learner.snapshot()
        learner.take(kinds)
        if self.rank > 0:
            return
        if self.saved_part == self.standing.part:
            del kinds["frozen"]  # is what it was
        self.standing.since, self.standing.recipe = self.curve.since(), asdict(self.recipe)
        save(self.out, kinds, self.standing)
        self.saved_part = self.standing.part

    def row(self) -> dict[str, Any]:
        """How a row begins."""
        return {"step": self.standing.step, "minutes": round(self.standing.minutes, 4), "part": self.standing.part}

    def rate(self, progress: float) -> float:
        """The learning rate at this share of the stage's minutes."""
        recipe, since = self.recipe, self.standing.step - self.standing.fresh
        lr = recipe.lr * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
        return lr * min(1.0, (since + 1) / recipe.warmup)

    def run(self, launch: float) -> Learner:
        """Learns for as long as the run and the stage have minutes."""
        recipe, standing, clock = self.recipe, self.standing, self.clock
        done, total = standing.minutes, recipe.total
        if total is not None and done >= total:
            raise StageError(f"{self.out} has had its {total:g} minutes of {recipe.stage}: give it more with --total")
        progress = done / total if total else 0.0
        self.curriculum.progress = progress
        supply = feed(self.lessons, self.curriculum, recipe.workers)
        learner = self.prepare(part_of(recipe.stage, progress))
        beginning = clock()
        allowed = recipe.minutes - (beginning - launch + recipe.exam) / 60
        if allowed <= 0:
            spent = f"{beginning - launch + recipe.exam:.0f} s"
            raise StageError(
                f"--minutes {recipe.minutes:g} are over before learning begins ({spent} go elsewhere): give it more"
            )
        recipe.total = standing.total = total = total or agreed(done + allowed, recipe.devices)
        bar = tqdm(
            total=round(allowed, 2), unit="min", bar_format="{l_bar}{bar}| {n:.2f}/{total} {postfix}", mininterval=10,
            disable=self.rank > 0,
        )  # fmt: skip
        queue: list[torch.cuda.Event] = []
        stop, kept = Stop(), 0.0
        while True:
            passed = agreed((clock() - beginning) / 60, recipe.devices)
            standing.minutes = done + passed
            progress = min(1.0, standing.minutes / total)
            if passed >= allowed or progress >= 1.0 or agreed(float(stop.asked), recipe.devices):
                break
            if passed > kept + recipe.saved:
                self.save(learner)
                kept = passed
            self.curriculum.progress = progress
            part = part_of(recipe.stage, progress)
            if part != standing.part:
                before = clock()
                learner = self.change(learner, part)
                beginning += clock() - before
            lr = self.rate(progress)
            guide = recipe.guide[0] + (recipe.guide[1] - recipe.guide[0]) * min(1.0, progress / 0.25)
            lesson = next(supply)
            patches, labels = self.painter.patches(lesson.sheet, lesson.seed, learner.dtype)
            self.curve.recent.append(learner.learn(lesson, patches, labels, lr, guide))
            standing.step += 1
            if self.device.type == "cuda":
                queue.append(torch.cuda.Event())
                queue[-1].record()
                if len(queue) > AHEAD:
                    queue.pop(0).synchronize()
            if standing.step % 5 == 0:
                learner.average()
            if standing.step % recipe.told == 0:
                row = self.row() | {"lr": float(f"{lr:.3e}"), "length": lesson.steps}
                row |= self.curve.close(learner.objective.LOSSES, learner.objective.tally)
                if "unused" in row:
                    row["lost"] = dict(list(learner.optimizer.lost().items())[-3:])  # nearest to where it began
                self.curve.add(row)
                learner.agree()
                first = learner.objective.LOSSES[0]
                bar.set_postfix_str(
                    f"step {standing.step} {standing.part} {first} {row[first]:.3f} norm {row['norm']:.2f}"
                )
                bar.n = round(passed, 2)
                bar.refresh()
        bar.close()
        self.save(learner)
        self.over = not stop.asked
        return learner


def train(
    recipe: Recipe,
    out: Path,
    origin: str | None,
    device: torch.device,
    *,
    caches: Path | None = None,
    size: str | None = None,
    tower: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Learns a stage within `recipe.minutes` and saves into `out`, from `origin` (see `begin`). Raises StageError."""
    launch = clock()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start = begin(recipe, out, origin, size, tower)
    out.mkdir(parents=True, exist_ok=True)
    if device.type == "cuda":
        if caches is not None:
            keep_caches(caches)
        limit_autotuning()
    count = sum(p.numel() for p in start.network.parameters())
    print(f"{recipe.stage}, {recipe.policy}: {count / 1e6:.2f} M parameters on {device}, from {start.standing.origin or 'nothing'}"
          f" at step {start.standing.step}", flush=True)  # fmt: skip
    training = Training(recipe, start, out, device, clock)
    learner = training.run(launch)
    if training.rank > 0 or not training.over or not recipe.exam:
        return
    put(start.network, learner.means(), "the stage")
    network = start.network.to(device, learner.dtype).eval()
    budget = recipe.minutes * 60 - (clock() - launch) - 5
    marks = examine(network, training.painter, training.tokenizer, budget=budget)
    (out / "marks.json").write_text(json.dumps(marks.rows()))
    print("\n".join(table(marks)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for weights and curve; goes on with what it holds"
    )
    parser.add_argument("--from", dest="origin", help="folder of the stage before, or of this stage to go on with")
    parser.add_argument("--minutes", type=float, required=True, help="wall-clock minutes of this run")
    parser.add_argument("--total", type=float, help="minutes of learning over all runs (default: what this run has)")
    parser.add_argument("--policy", choices=MEMBERS, help="attention policy of tune and long")
    parser.add_argument("--size", choices=SIZES, help="what is trained from nothing (default: nano)")
    parser.add_argument("--tower", type=Path, help="checkpoint whose vision tower is taken and kept")
    parser.add_argument("--longest", type=int, help="steps of the longest streams")
    parser.add_argument("--caches", type=Path, help="folder for compiled kernels")
    parser.add_argument("--exam", type=float, default=0.0, help="seconds kept for the nano's examination")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=1024, help="frame steps in a batch")
    parser.add_argument("--questions", type=int, default=1024, help="questions in a batch")
    parser.add_argument("--lr", type=float, help="highest learning rate (default: the stage's)")
    parser.add_argument(
        "--shard", action="store_true", help="share weights and optimizer between torchrun's processes (FSDP2)"
    )
    parser.add_argument("--workers", type=int, default=14, help="processes that make lessons")
    given = parser.parse_args()
    stage = STAGES[given.stage]
    chosen = given.policy or stage.policies[0]
    if chosen not in stage.policies:
        parser.error(f"{stage.name} learns with the policy {', '.join(stage.policies)} only")
    device, devices = join(torch.device(given.device))
    if given.shard and devices == 1:
        parser.error("--shard shares between processes: start them by torchrun")
    rate = stage.sharded_lr if given.shard else stage.lr
    recipe = Recipe(
        given.stage,
        given.minutes,
        given.total,
        chosen,
        given.exam,
        steps=given.steps,
        questions=given.questions,
        lr=given.lr or rate,
        longest=given.longest or stage.longest,
        workers=given.workers,
        devices=devices,
        sharded=given.shard,
        probes=Recipe.probes if device.type == "cuda" else (2, 1),
    )
    try:
        train(recipe, given.out, given.origin, device, caches=given.caches, size=given.size, tower=given.tower)
    except (StageError, FileNotFoundError) as error:
        parser.exit(1, f"{error}\n")
    if devices > 1:
        # One examines while the others are done; those that leave first have been seen to wait for ever.
        agreed(0.0, devices)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
