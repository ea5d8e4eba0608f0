"""Loads with recorded costs on the virtual clock: `python -m tests.streamer.loads [SECONDS]` prints what each misses, and first tokens.

Costs are those of the 4B on an H100 (benchmarks.md) and of the nano on two CPU cores. Cameras come at 25 frames a second, all at
once, spread over a period, or anyhow; some answers are always open, and one client asks about twice a second.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from statistics import median

from streamer.engine.costs import Costs
from streamer.engine.decisions import Decode, FrameStep, Prefill
from streamer.engine.pace import Pace

from .world import World

RATE = 25


@dataclass(frozen=True)
class Device:
    """Milliseconds of its steps by their size, what the host adds to each step and to each stream of one, and the deadline of frames."""

    frames: dict[int, float]
    tokens: dict[int, float]
    question: float
    host: float = 1.0
    upload: float = 0.0
    frames_per_step: int = 1
    deadline: float = 0.08


BF16 = Device({1: 9.64, 4: 25.5, 5: 33.0, 8: 53.1}, {1: 3.94, 4: 4.25, 8: 4.5}, 4.6)
FP8 = Device({1: 8.4, 4: 18.8, 8: 36.8}, {1: 2.85, 4: 3.0, 8: 3.25}, 3.5)
LAPTOP = Device({1: 45.0, 2: 90.0}, {1: 10.0, 8: 24.0}, 20.0, frames_per_step=2, deadline=0.2)
PHASES = ("equal", "spread", "random")


@dataclass(frozen=True)
class Figures:
    """What became of a load: shares, seconds, tokens a second of the slowest answer that is kept open."""

    missed: float
    late: float
    first: float
    first_worst: float
    asked: int
    slowest: float

    def __str__(self) -> str:
        return (
            f"misses {self.missed:7.2%} (late {self.late:7.2%})  first token {1e3 * self.first:5.0f} / {1e3 * self.first_worst:5.0f} ms "
            f"of {self.asked}  slowest open answer {self.slowest:4.1f} tokens/s"
        )


def curve(milliseconds: dict[int, float], host: float, each: float = 0.0) -> Callable[[int], float]:
    """Seconds by size, interpolated between what was measured."""
    costs = Costs()
    for size, value in milliseconds.items():
        costs.learn(size, value / 1000)
    return lambda n: costs.estimate(n) + (host + each * n) / 1000


def load(
    device: Device,
    cameras: int,
    kept_open: int,
    phases: str = "equal",
    seconds: float = 60.0,
    seed: int = 0,
    every: float = 0.5,
    pace: Pace | None = None,
    jitter: float = 0.0,
) -> Figures:
    """`seconds` of a load after two of settling; `jitter` is the greatest delay of a frame on its way, and the relative one of a step."""
    world, chance = begin(device, pace, seed, jitter), random.Random(seed)
    end = 2 + seconds
    for i in range(cameras):
        start = {"equal": 0.0, "spread": i / RATE / cameras, "random": chance.random() / RATE}[phases]
        world.camera(f"cam{i}", RATE, end, start=start, deadline=device.deadline, jitter=jitter and 0.005)
    for i in range(kept_open):
        world.asker(f"open{i}", end, question=20, length=1_000)
    ask_now_and_then(world, end, every, chance)
    world.run(end)
    world.check_accounts()
    lags = [lag for i in range(cameras) for lag in world.lags(f"cam{i}")]
    late, dropped = sum(lag > device.deadline for lag in lags), sum(world.drops.values())
    offered = max(1, sum(world.offered.values()))
    asked = [name for name in world.asked if name.startswith("asker") and 2 <= world.asked[name] < end - 1]
    firsts = sorted(world.first_token(name) if world.tokens[name] else end - world.asked[name] for name in asked)
    spoken = [sum(len(t) for n, t in world.tokens.items() if n.startswith(f"open{i}-")) / end for i in range(kept_open)]
    return Figures(
        missed=(late + dropped) / offered,
        late=late / offered,
        first=median(firsts),
        first_worst=firsts[int(0.99 * len(firsts))],
        asked=len(firsts),
        slowest=min(spoken, default=float("nan")),
    )


def begin(device: Device, pace: Pace | None, seed: int, jitter: float) -> World:
    """A world of this device, whose costs were tried out as at an engine's start."""
    chance = random.Random(f"steps {seed}")

    def shaken(cost: Callable[[int], float]) -> Callable[[int], float]:
        return lambda n: cost(n) * (1 + jitter * chance.random())

    def question(n: int) -> float:
        return (device.question * -(-n // 32) + device.host) / 1000

    frames, tokens = curve(device.frames, device.host, device.upload), curve(device.tokens, device.host)
    world = World(
        frames=shaken(frames),
        decode=shaken(tokens),
        prefill=shaken(question),
        frames_per_step=device.frames_per_step,
        answer_slots=9,
        pace=pace,
    )
    for n in range(1, 9):
        world.scheduler.measured(FrameStep((("", ()),) * n), frames(n))
    for n in (1, 2, 4, 8):
        world.scheduler.measured(Decode(("",) * n), tokens(n))
    for n in (16, 32, 64):
        world.scheduler.measured(Prefill("", n), question(n))
    return world


def ask_now_and_then(world: World, end: float, every: float, chance: random.Random) -> None:
    """A client that asks about `every` seconds, whatever became of its last question."""
    when, number = 2.0, count()
    while when < end:
        name = f"asker-{next(number)}"
        world.at(when, lambda name=name: world.ask(name, question=20, length=10))  # type: ignore[misc]
        when += every * (0.5 + chance.random())


SLOW_HOST = {"host": 2.0, "upload": 0.8}
LOADS: dict[str, tuple[Device, int, int]] = {
    "bf16, 4 cameras, 4 open": (BF16, 4, 4),
    "bf16, 5 cameras, 4 open": (BF16, 5, 4),
    "fp8, 6 cameras, 4 open": (FP8, 6, 4),
    "fp8, 8 cameras, 3 open": (FP8, 8, 3),
    "fp8, 10 cameras, 3 open (overload)": (FP8, 10, 3),
    "bf16, 4 cameras, 4 open, slow host": (replace(BF16, **SLOW_HOST), 4, 4),
    "fp8, 6 cameras, 4 open, slow host": (replace(FP8, **SLOW_HOST), 6, 4),
    "fp8, 8 cameras, 3 open, slow host": (replace(FP8, **SLOW_HOST), 8, 3),
    "bf16, 1 camera, 8 open": (BF16, 1, 8),
    "laptop, 1 camera, 3 open": (LAPTOP, 1, 3),
    "laptop, 2 cameras, 3 open (overload)": (LAPTOP, 2, 3),
}


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    for name, (device, cameras, kept_open) in LOADS.items():
        for phases in PHASES:
            for jitter in (0.0, 0.1):
                figures = load(device, cameras, kept_open, phases, seconds, jitter=jitter)
                print(f"{name:36} {phases:6} {'shaken' if jitter else '':6}  {figures}", flush=True)


if __name__ == "__main__":
    main()
