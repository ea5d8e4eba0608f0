"""The examination: fresh held-out worlds, every skill, by how long ago the evidence was, with two controls beside it.

`python -m model.training.exam model/nano --device cuda --json marks.json` examines a checkpoint folder (the nano by default).
"""

from __future__ import annotations

import argparse
import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from model.checkpoint import CheckpointError, load_checkpoint, locate
from model.infinitevl import InfiniteVL
from model.runner import NANO
from model.tokenizer import Tokenizer
from model.training.ages import CLOCK, LONG, RATE, by_clock, long_streams
from model.training.paint import Assets, Painter
from model.training.report import facts, table
from model.training.sitting import HELD_OUT, MEMORY, NOW, Exam, Marks, Paper, sit
from model.training.world import Profile

__all__ = ["evaluate", "examine", "table"]

SEED = 2026
QUICK = 570.0
"""Seconds that a quick examination may take; the papers that are left then stay empty."""


def papers(quick: bool) -> list[Paper]:
    """The examination but for the oldest streams; a quick one asks of few streams, for two CPU cores."""

    def n(streams: int, few: int) -> int:
        return few if quick else streams

    seen, first = Profile(things=(1, 8)), (Profile(things=(1, 1), text=1.0, gap=gap) for gap in (114, 242, 736))
    return [
        Paper("now", 16, n(384, 32), 16, NOW, Profile()),
        Paper("empty", 8, n(128, 16), 2, ("what",), Profile(things=(0, 0), real=True)),
        Paper("memory 128", 64, n(96, 6), 24, MEMORY, seen, controls=True),
        Paper("memory 256", 128, n(64, 3), 24, MEMORY, seen, controls=True),
        Paper("memory 512", 256, n(48, 2), 24, MEMORY, seen, controls=True),
        Paper("crowded 512", 256, n(32, 1), 24, MEMORY, Profile(things=(10, 40)), controls=True),
        Paper("first second 256", 128, n(64, 3), 1, ("number was",), next(first), controls=True, only="number"),
        Paper("first second 512", 256, n(48, 2), 1, ("number was",), next(first), controls=True, only="number"),
        Paper("first second 1500", 750, n(32, 1), 1, ("number was",), next(first), controls=True, only="number"),
        Paper("now, taught", 16, n(128, 4), 16, NOW, Profile(), held=()),
        *(Paper(f"now, new {what}", 16, n(128, 4), 16, NOW, Profile(), held=(what,)) for what in HELD_OUT),
    ]


def examine(
    network: InfiniteVL,
    painter: Painter,
    tokenizer: Tokenizer,
    *,
    seeds: Sequence[int] = (SEED,),
    quick: bool = False,
    budget: float | None = None,
    show: bool = False,
) -> Marks:
    """All papers, in order, as far as `budget` seconds allow; with `show` a bar tells how far it is."""
    steps = sum(paper.streams * paper.steps for paper in papers(quick))
    clock, ages = (2, {"10 s": CLOCK["10 s"]}) if quick else (16, CLOCK)
    steps += round(clock * (max(ages.values()) * RATE)) + (0 if quick else 8 * LONG)
    was_training = network.training
    network.eval()
    deadline = None if budget is None else time.monotonic() + budget
    with tqdm(total=steps * len(seeds), unit="step", disable=not show) as bar:
        exam = Exam(network, painter, tokenizer, Marks(), bar, deadline)
        for seed in seeds:
            for paper in papers(quick):
                bar.set_description(paper.name)
                sit(exam, paper, seed)
            bar.set_description("by the clock")
            by_clock(exam, clock, 24, ages, seed)
            if not quick:
                bar.set_description(f"{2 * LONG} frames")
                long_streams(exam, 8, 4, seed)
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
) -> tuple[Marks, dict[str, Any]]:
    """Examines a checkpoint ("nano", a folder or "owner/name"); `fresh` seeds are drawn anew instead of the fixed one.

    What is not asked within `limit` seconds (None: as many as it takes; a quick examination's is `QUICK`) stays empty.

    Returns the marks, and `model.training.report.facts` of them.

    `dtype` is float32 on a CPU and bfloat16 on CUDA unless it is said. Raises CheckpointError, and FileNotFoundError
    where the world's pictures are missing.
    """
    assets = Assets.load()
    if device.startswith("cuda"):
        from model.training.accelerate import limit_autotuning

        limit_autotuning()
    kind = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    folder = NANO if model == "nano" else locate(model)
    network, tokenizer = load_checkpoint(folder, device=device, dtype=getattr(torch, kind))
    network.fuse()
    if network.config.square_grid is False or network.config.frames_per_step != 2:
        raise CheckpointError(f"{model} does not take pairs of square frames: the world examines the nano's sizes only")
    seeds = [secrets.randbelow(2**31) for _ in range(fresh)] or [SEED]
    begin = time.monotonic()
    painter, budget = Painter(assets, device), limit or (QUICK if quick else None)
    marks = examine(network, painter, tokenizer, seeds=seeds, quick=quick, budget=budget, show=True)
    took = round(time.monotonic() - begin, 1)
    return marks, facts(marks, model=model, device=device, dtype=kind, seeds=seeds, quick=quick, seconds=took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="nano", help="checkpoint folder (default: the nano)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="float32 or bfloat16")
    parser.add_argument("--quick", action="store_true", help="few questions, for two CPU cores")
    parser.add_argument("--fresh-seeds", type=int, default=0, metavar="N", help="draw N new seeds")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="leave out what is not asked by then")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    given = parser.parse_args()
    try:
        marks, found = evaluate(
            given.model,
            device=given.device,
            dtype=given.dtype,
            quick=given.quick,
            fresh=given.fresh_seeds,
            limit=given.limit,
        )
    except (CheckpointError, FileNotFoundError) as error:
        parser.exit(1, f"{error}\n")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    print("\n".join(table(marks)))


if __name__ == "__main__":
    main()
