"""Tries every size of step before the first frame, so that none is late for it and costs are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from capture import Frame
from model import ConfigError, Runner, Sampling
from model.serving.runner import Encoded
from streamer.engine.decisions import Decision, Decode, FrameStep, Look, Prefill
from streamer.engine.scheduler import Scheduler

LOOK_TOKENS = 24
"""Of a usual question of a watch."""
Trial = tuple[Decision[Frame], Callable[[], tuple[float, float]]]
"""A step, and what runs it and tells the seconds that it costs and takes."""


def warm_up(
    runner: Runner,
    scheduler: Scheduler[Frame],
    stream_slots: int,
    answer_slots: int,
    *,
    ahead: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Runs every size of step on empty slots, twice, and tells the scheduler what the second time took.

    `ahead` says that pictures will be looked at on a thread of their own. `progress` is told the steps tried, of all; what
    it raises ends the warm-up.
    """
    for slot in range(stream_slots):
        runner.open(slot, 720, 1280)
    for slot in range(stream_slots, stream_slots + answer_slots):
        runner.fork(0, slot)
        runner.prefill(slot, [min(runner.tokenizer.stops)], Sampling())
    steps = trials(runner, stream_slots, answer_slots, ahead)
    for done, (step, run) in enumerate(steps):
        progress(done, len(steps))
        run()
        scheduler.measured(step, *run())
    progress(len(steps), len(steps))
    for slot in range(stream_slots + answer_slots):
        runner.reset(slot)


def trials(runner: Runner, stream_slots: int, answer_slots: int, ahead: bool) -> list[Trial]:
    """Steps of every size that the runner names."""
    sizes, black = runner.sizes(stream_slots, answer_slots), np.zeros((720, 1280, 3), np.uint8)
    forks, stop = range(stream_slots, stream_slots + answer_slots), min(runner.tokenizer.stops)
    steps: list[Trial] = []
    for size in sizes.frames:
        seen: FrameStep[Frame] = FrameStep((("", ()),) * size)
        shown = [[black] * runner.frames_per_step] * size
        see = partial(runner.see, range(size), shown, [0.0] * size)
        steps.append((seen, partial(cost, see, partial(runner.encode, range(size), shown) if ahead else None)))
    for tokens in sizes.question:
        prefill = partial(runner.prefill, forks[0], [stop] * tokens, Sampling())
        steps.append((Prefill("", tokens), partial(cost, prefill)))
    for size in sizes.decode:
        decode = partial(runner.decode, forks[:size], [stop] * size, [Sampling()] * size)
        steps.append((Decode(("",) * size), partial(cost, decode)))
    for size in sizes.looks:
        look = partial(look_at, runner, forks[:size], [[stop] * LOOK_TOKENS] * size)
        steps.append((Look("", ("",) * size), partial(cost, look)))
    return steps


def look_at(runner: Runner, slots: Sequence[int], questions: Sequence[Sequence[int]]) -> None:
    """Judges questions of the first stream, if the model knows of yes and no."""
    with suppress(ConfigError):
        runner.judge(0, slots, questions)


def cost(do: Callable[..., object], look: Callable[[], Encoded] | None = None) -> tuple[float, float]:
    """Seconds that a step costs and takes; one that is looked at on another thread costs what the slower of the two takes."""
    began = time.monotonic()
    looked = [] if look is None else [look()]
    between = time.monotonic()
    do(*looked)
    ended = time.monotonic()
    return max(between - began, ended - between), ended - began
