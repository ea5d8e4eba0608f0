"""Tries sizes of step before the first frame, so that none is late for it and costs are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np

from capture import Frame
from model import ConfigError, Runner, Sampling
from model.serving.runner import Encoded
from streamer.engine.decisions import Decision, Decode, FrameStep, Look, Prefill
from streamer.engine.scheduler import Scheduler

LOOK_TOKENS = 24
"""Of a usual question of a watch."""
LONGEST = 2.0
"""Seconds on a CPU that a step may take to be tried, in proportion to the one before it: that is what larger ones cost there."""
SHORT = 0.25
"""Seconds on a CPU up to which a first try tells little, whatever it finds ready."""
DRAWN = Sampling(temperature=1.0, top_p=0.9, seed=0, top_k=20, presence_penalty=1.0)
"""Tokens drawn by all that there is."""
Told = Callable[[Decision[Frame], float, float], None]
"""Takes a step, and the seconds that it costs and takes."""


class Trial(NamedTuple):
    """A step of a size, and what runs it and tells the seconds that it costs and takes."""

    step: Decision[Frame]
    size: int
    run: Callable[[], tuple[float, float]]


def warm_up(
    runner: Runner,
    scheduler: Scheduler[Frame],
    stream_slots: int,
    answer_slots: int,
    *,
    ahead: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Runs sizes of step on empty slots, and tells the scheduler what they took.

    `ahead` says that pictures will be looked at on a thread of their own. `progress` is told the steps tried, of all; what
    it raises ends the warm-up.
    """
    stop = min(runner.tokenizer.stops)
    for slot in range(stream_slots):
        runner.open(slot, 720, 1280)
    for slot in range(stream_slots, stream_slots + answer_slots):
        runner.fork(0, slot)
        if slot == stream_slots:
            # What draws tokens is loaded onto a GPU when it is first used, which an answer would wait for.
            runner.prefill(slot, [stop], DRAWN)
            runner.decode([slot], [stop], [DRAWN])
        runner.prefill(slot, [stop], Sampling())
    kinds = trials(runner, stream_slots, answer_slots, ahead)
    done, whole, told = 0, sum(map(len, kinds)), scheduler.measured
    for kind in kinds:
        progress(done, whole)
        in_proportion = runner.device.type == "cpu" and not isinstance(kind[0].step, Decode)
        tries = shortly(kind, told, lambda: runner.backend.made) if in_proportion else twice(kind, told)
        for tried, _ in enumerate(tries, done + 1):
            progress(tried, whole)
        done += len(kind)
    progress(whole, whole)
    for slot in range(stream_slots + answer_slots):
        runner.reset(slot)


def twice(kind: Sequence[Trial], told: Told) -> Iterator[None]:
    """Tries every size, the largest first: once for what is made then (graphs, traces, memory), once for the time. Yields after each."""
    for trial in kind:
        trial.run()
        told(trial.step, *trial.run())
        yield


def shortly(kind: Sequence[Trial], told: Told, made: Callable[[], int]) -> Iterator[None]:
    """The same for steps that take so long as they are large, from the smallest on: no more of them and no more often than tells something.

    Those of more than `LONGEST` are left out, as their cost is known in proportion. Behind the first, one that is not `SHORT`
    is tried a second time only if something was made in its first, which `made` counts.
    """
    each = 0.0
    for trial in reversed(kind):
        if each * trial.size > LONGEST:
            return
        before = made()
        seconds, took = trial.run()
        if not each or took <= SHORT or made() != before:
            seconds, took = trial.run()
        told(trial.step, seconds, took)
        each = took / trial.size
        yield


def trials(runner: Runner, stream_slots: int, answer_slots: int, ahead: bool) -> list[list[Trial]]:
    """Steps of every size that the runner names, by kind, the largest first."""
    sizes, black = runner.sizes(stream_slots, answer_slots), np.zeros((720, 1280, 3), np.uint8)
    forks, stop = range(stream_slots, stream_slots + answer_slots), min(runner.tokenizer.stops)
    kinds: list[list[Trial]] = [[], [], [], []]
    frames, questions, decodes, looks = kinds
    for size in sizes.frames:
        seen: FrameStep[Frame] = FrameStep((("", ()),) * size)
        shown = [[black] * runner.frames_per_step] * size
        see = partial(runner.see, range(size), shown, [0.0] * size)
        encode = partial(runner.encode, range(size), shown) if ahead else None
        frames.append(Trial(seen, size, partial(cost, see, encode)))
    for tokens in sizes.question:
        prefill = partial(runner.prefill, forks[0], [stop] * tokens, Sampling())
        questions.append(Trial(Prefill("", tokens), tokens, partial(cost, prefill)))
    for size in sizes.decode:
        decode = partial(runner.decode, forks[:size], [stop] * size, [Sampling()] * size)
        decodes.append(Trial(Decode(("",) * size), size, partial(cost, decode)))
    for size in sizes.looks:
        look = partial(look_at, runner, forks[:size], [[stop] * LOOK_TOKENS] * size)
        looks.append(Trial(Look("", ("",) * size), size, partial(cost, look)))
    return kinds


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
