"""Qwen3.5-0.8B's speed on a CPU in int8, beside what its products alone take: `python -m tests.model.qwen_cpu`.

Random weights, steps of two frames, the window of 8,192 keys wrapped, and as many threads as the daemon gives the model. Run as
root it goes before everybody else on the machine, for a few seconds at a time.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model.config import PRESETS
from model.ops.linear import JointLinear, laid_out
from model.serving import int8
from model.serving.int8 import Int8Linear, product
from model.serving.runner import Runner, load_runner
from streamer.loading import threads

NAME = "qwen3.5-0.8b"
SIDES = (224, 160)
SEEN = 20_000
"""Tokens that the stream has taken."""
QUESTION = 20
STREAM, ANSWER = 0, 1
TIMES = 5
MUST = {"224² step": 1400.0, "224² first token": 2000.0, "224² token": 120.0, "160² step": 1000.0}
"""Milliseconds on two cores with AVX2."""
PRODUCTS = (Int8Linear, nn.Linear, JointLinear)


@contextmanager
def ahead() -> Iterator[None]:
    """Before everybody else's work, where that is allowed: what is measured is the machine, not its other users."""
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    before = {task: (os.sched_getscheduler(task), os.sched_getparam(task)) for task in tasks}
    with suppress(PermissionError):
        for task in tasks:
            os.sched_setscheduler(task, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        for task, was in before.items():
            with suppress(ProcessLookupError, PermissionError):
                os.sched_setscheduler(task, *was)


def milliseconds(do: Callable[[], object]) -> float:
    """The median of a few, behind one that warms up."""
    took = []
    with ahead():
        for _ in range(1 + TIMES):
            began = time.perf_counter()
            do()
            took.append(1e3 * (time.perf_counter() - began))
    return statistics.median(took[1:])


def aim(runner: Runner, side: int) -> None:
    """Gives the stream pictures of so many pixels a side, and a past that is longer than its window."""
    runner.open(STREAM, side, side)
    runner.grids[STREAM] = side // 16, side // 16
    runner.state.keys.normal_()
    runner.state.values.normal_()
    runner.state.length[STREAM] = runner.state.next[STREAM] = SEEN


def steps(runner: Runner, side: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    chance = np.random.default_rng(0)
    frames = [[chance.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(2)]]
    question = chance.integers(7, 2000, QUESTION).tolist()
    encoded = runner.encode([STREAM], frames)

    def ask() -> None:
        runner.fork(STREAM, ANSWER)
        runner.prefill(ANSWER, question)

    return {
        "encode": partial(runner.encode, [STREAM], frames),
        "ingest": partial(runner.see, [STREAM], frames, [1.0], encoded),
        "first token": ask,
        "token": partial(runner.read, [ANSWER], [[7]]),
    }


def products(runner: Runner, side: int) -> dict[str, Callable[[], None]]:
    """The products of each of `steps`, one after another with the weights that the model has, in the numbers that it has them in."""
    tokens = (side // 32) ** 2
    calls: dict[str, list[Callable[[], object]]] = {name: [] for name in ("encode", "ingest", "first token", "token")}
    maps = [(name, each) for name, each in runner.model.named_modules() if isinstance(each, PRODUCTS)]
    joined = {id(part) for _, each in maps if isinstance(each, JointLinear) for part in each.parts}
    for name, each in maps:
        rows = {"ingest": tokens + runner.config.step_text, "first token": 32, "token": 1}
        if name.startswith("visual"):
            rows = {"encode": tokens * (1 if ".merger" in name else 4)}
        elif each is runner.model.output:
            rows = {"first token": 1, "token": 1}
        if id(each) not in joined:
            for step, count in rows.items():
                calls[step].append(partial(each, torch.randn(1, count, width(each))))

    def run(parts: list[Callable[[], object]]) -> None:
        for part in parts:
            part()

    return {step: partial(run, parts) for step, parts in calls.items()}


def width(each: nn.Module) -> int:
    """Of a product's input."""
    weight = each.packed.unpack()[0] if isinstance(each, Int8Linear) else each.weight
    return int(weight.shape[1])


def report(runner: Runner, side: int) -> None:
    """A line a measure."""
    aim(runner, side)
    floors = {name: milliseconds(do) for name, do in products(runner, side).items()}
    found = {name: milliseconds(do) for name, do in steps(runner, side).items()}
    for each in (floors, found):
        each["step"] = each["encode"] + each["ingest"]
    for name, ms in found.items():
        must = MUST.get(f"{side}² {name}")
        verdict = "" if must is None else f"  must {must:.0f} {'met' if ms <= must else 'MISSED'}"
        print(f"{side}² {name:12s} {ms:7.1f} ms, its products {floors[name]:6.1f}{verdict}", flush=True)


def speeds() -> None:
    """Multiplications a second of the decoder's largest product alone, at one row and at a step's."""
    weight = torch.randn(7168, 1024)
    packed, laid = int8.pack(weight), laid_out(weight)
    for rows in (1, 61):
        x = torch.randn(rows, 1024)
        whole, small = (
            rows * weight.numel() / milliseconds(do) / 1e6
            for do in (partial(F.linear, x, laid), partial(product, x, packed, None))
        )
        print(f"{rows} rows by 7168×1024: float32 {whole:.1f}, int8 {small:.1f} billion multiplications a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a checkpoint folder of that size (default: random weights)")
    parser.add_argument("--dtype", default="int8", help="int8 or float32")
    parser.add_argument(
        "--threads", type=int, default=threads("cpu", PRESETS[NAME]), help="of the model (default: as the daemon)"
    )
    parser.add_argument("--profile", action="store_true", help="where a step and a token go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} threads, {options.dtype}"
    )
    with torch.inference_mode():
        speeds()
        most = (max(SIDES) // 32) ** 2
        name, made = options.model or NAME, options.model is None
        runner = load_runner(name, dtype=options.dtype, slots=2, random_weights=made, picture_tokens=most)
        for side in SIDES:
            report(runner, side)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        most_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"resident {pages * 4096 / 1e9:.1f} GB with 2 slots, at most {most_kb / 1e6:.1f} GB while loading")
        aim(runner, SIDES[0])
        for name in ("ingest", "token") if options.profile else ():
            do = steps(runner, SIDES[0])[name]
            with ahead(), torch.profiler.profile() as profile:
                do()
            table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=40)
            print(name, table, sep="\n")


if __name__ == "__main__":
    main()
