"""The examination: fresh held-out worlds, every skill, by how long ago the evidence was, with two controls beside it.

`python -m model.evaluation.run model/nano --device cuda --json marks.json` examines a checkpoint folder (the nano by default).
On several GPUs: `torchrun --standalone --nproc-per-node 4 -m model.evaluation.run …`.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from model.checkpoint import CheckpointError, load_checkpoint, locate
from model.evaluation.distributed import join, limit_autotuning
from model.families.infinitevl import InfiniteVL
from model.serving.int8 import to_int8
from model.serving.runner import NANO
from model.tokenizer import Tokenizer

try:
    from model.evaluation.long_streams import CLOCK, LONG, RATE, by_clock, long_streams
    from model.evaluation.report import facts, table
    from model.evaluation.score import HELD_OUT, MEMORY, NOW, YET, Exam, Marks, Paper, score
    from model.world.render import Assets, Painter
    from model.world.scene import Profile
except ModuleNotFoundError as error:
    if error.name != "model.world":
        raise
    message = "the made world is in the repository, not in the wheel; run the examination from a checkout"
    if __name__ == "__main__":
        sys.exit(message)
    raise ModuleNotFoundError(message, name=error.name) from None

__all__ = ["evaluate", "examine", "table"]

SEED = 2026
QUICK = 570.0
"""Seconds that a quick examination may take; the papers that are left then stay empty."""


def papers(quick: bool) -> list[Paper]:
    """The examination but for the oldest streams; a quick one asks of few streams, for two CPU cores.

    Many scenes with few questions each: a hard scene's answers are wrong together.
    """

    def n(streams: int, few: int) -> int:
        return few if quick else streams

    seen, first = Profile(things=(1, 8)), (Profile(things=(1, 1), text=1.0, gap=gap) for gap in (114, 242, 736))
    return [
        Paper("now", 16, n(1536, 32), n(4, 16), NOW, Profile()),
        Paper("empty", 8, n(512, 16), n(1, 2), ("what",), Profile(things=(0, 0), real=True)),
        Paper("nothing yet", 32, n(256, 6), n(2, 6), YET, Profile(things=(0, 0), real=True)),
        Paper("memory 128", 64, n(1152, 6), n(6, 24), MEMORY, seen, controls=True),
        Paper("memory 256", 128, n(768, 3), n(6, 24), MEMORY, seen, controls=True),
        Paper("memory 512", 256, n(576, 2), n(6, 24), MEMORY, seen, controls=True),
        Paper("crowded 512", 256, n(96, 1), n(8, 24), MEMORY, Profile(things=(10, 40)), controls=True),
        Paper("first second 256", 128, n(128, 3), 1, ("number was",), next(first), controls=True, only="number"),
        Paper("first second 512", 256, n(96, 2), 1, ("number was",), next(first), controls=True, only="number"),
        Paper("first second 1500", 750, n(48, 1), 1, ("number was",), next(first), controls=True, only="number"),
        Paper("now, taught", 16, n(512, 4), n(4, 16), NOW, Profile(), held=()),
        *(Paper(f"now, new {what}", 16, n(512, 4), n(4, 16), NOW, Profile(), held=(what,)) for what in HELD_OUT),
    ]


@dataclass(frozen=True)
class Task:
    """A part of an examination: how many frame steps it has, and how it is scored."""

    name: str
    steps: int
    score: Callable[[Exam], None]


def tasks(seed: int, quick: bool) -> list[Task]:
    """All that is examined of one seed, in order."""
    clock, ages = (2, {"10 s": CLOCK["10 s"]}) if quick else (32, CLOCK)
    found = [
        Task(paper.name, paper.streams * paper.steps, partial(score, paper=paper, seed=seed)) for paper in papers(quick)
    ]
    scored = partial(by_clock, streams=clock, questions=24 if quick else 12, ages=ages, seed=seed)
    found.append(Task("by the clock", round(clock * max(ages.values()) * RATE), scored))
    if not quick:
        scored = partial(long_streams, streams=8, questions=4, seed=seed)
        found.append(Task(f"{2 * LONG} frames", 8 * LONG, scored))
    return found


def share(whole: Sequence[Task], device: int, devices: int) -> list[Task]:
    """What one of several devices takes, in order: the largest task first, each goes to the device with the fewest steps."""
    loads = [0] * devices
    mine = set()
    for task in sorted(whole, key=lambda task: -task.steps):
        least = loads.index(min(loads))
        loads[least] += task.steps
        if least == device:
            mine.add(id(task))
    return [task for task in whole if id(task) in mine]


def examine(
    network: InfiniteVL,
    painter: Painter,
    tokenizer: Tokenizer,
    *,
    seeds: Sequence[int] = (SEED,),
    quick: bool = False,
    budget: float | None = None,
    show: bool = False,
    device: int = 0,
    devices: int = 1,
) -> Marks:
    """All papers, in order, as far as `budget` seconds allow, or this device's share; with `show` a bar tells how far it is."""
    mine = share([task for seed in seeds for task in tasks(seed, quick)], device, devices)
    was_training = network.training
    network.eval()
    deadline = None if budget is None else time.monotonic() + budget
    with tqdm(total=sum(task.steps for task in mine), unit="step", disable=not show) as bar:
        exam = Exam(network, painter, tokenizer, Marks(), bar, deadline)
        for task in mine:
            bar.set_description(task.name)
            task.score(exam)
    network.train(was_training)
    return exam.marks


def evaluate(
    model: str,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    quick: bool = False,
    fresh: int = 0,
    limit: float | None = None,
    devices: int = 1,
) -> tuple[Marks, dict[str, Any]]:
    """Examines a checkpoint ("nano", a folder or "owner/name"); `fresh` seeds are drawn anew instead of the fixed one.

    `devices` processes of one group (`torch.distributed`) share the tasks; each returns the marks of all.

    What is not asked within `limit` seconds (None: as many as it takes; a quick examination's is `QUICK`) stays empty.

    Returns the marks, and `model.evaluation.report.facts` of them.

    `dtype` is float32 on a CPU and bfloat16 on CUDA unless it is said; int8 (on a CPU) is as `load_runner` means it. Raises
    CheckpointError, and FileNotFoundError where the world's pictures are missing.
    """
    assets = Assets.load()
    if device.startswith("cuda"):
        limit_autotuning()
    kind = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    folder = NANO if model == "nano" else locate(model)
    network, tokenizer = load_checkpoint(
        folder, device=device, dtype=getattr(torch, "float32" if kind == "int8" else kind)
    )
    network.fuse()
    if kind == "int8":
        to_int8(network)
    if network.config.square_grid is False or network.config.frames_per_step != 2:
        raise CheckpointError(f"{model} does not take pairs of square frames: the world examines the nano's sizes only")
    seeds = [secrets.randbelow(2**31) for _ in range(fresh)] or [SEED]
    number = 0
    if devices > 1:
        number = dist.get_rank()
        dist.broadcast_object_list(seeds)
    begin = time.monotonic()
    painter, budget = Painter(assets, device), limit or (QUICK if quick else None)
    marks = examine(
        network,
        painter,
        tokenizer,
        seeds=seeds,
        quick=quick,
        budget=budget,
        show=number == 0,
        device=number,
        devices=devices,
    )
    if devices > 1:
        parts: list[Marks] = [marks] * devices
        dist.all_gather_object(parts, marks)
        marks = Marks.of(parts)
    took = round(time.monotonic() - begin, 1)
    return marks, facts(marks, model=model, device=device, dtype=kind, seeds=seeds, quick=quick, seconds=took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="nano", help="checkpoint folder (default: the nano)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), help="what it computes in")
    parser.add_argument("--quick", action="store_true", help="few questions, for two CPU cores")
    parser.add_argument("--fresh-seeds", type=int, default=0, metavar="N", help="draw N new seeds")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="leave out what is not asked by then")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    given = parser.parse_args()
    device, devices = join(torch.device(given.device))
    try:
        marks, found = evaluate(
            given.model,
            device=str(device),
            dtype=given.dtype,
            quick=given.quick,
            fresh=given.fresh_seeds,
            limit=given.limit,
            devices=devices,
        )
    except (CheckpointError, FileNotFoundError) as error:
        parser.exit(1, f"{error}\n")
    if devices > 1 and dist.get_rank() > 0:
        return
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    print("\n".join(table(marks)))


if __name__ == "__main__":
    main()
