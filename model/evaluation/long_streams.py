"""Streams older than the position horizon: recall by wall clock, and whether hours of watching spoil what is seen now.

A sequence's memory keeps rotated keys, so past the horizon the present stays at the horizon's position and what is in the
window is turned back by the time that goes by: the offsets are those of a slot of `model.state`, which turns the sinks forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from model.cache import SequenceCache
from model.evaluation.score import GLIMPSE, GRID, MEMORY, NOW, Exam, Paper, ask_each, cleared, compose
from model.families.infinitevl import InfiniteVL
from model.ops.rope import rotate, rotation
from model.world.generate import draw_scene
from model.world.scene import HORIZON, Profile

RATE = 12.5
"""Steps a second, at 25 frames a second."""
PART = 128
"""At most this many steps at once."""
EVIDENCE = 64
"""Steps of the scene that is asked about later."""
EMPTY = 64
"""Steps of the empty scene over a real background that then goes on in a circle."""
CLOCK = {"10 s": 10, "1 min": 60, "10 min": 600, "60 min": 3600}
"""Seconds since the scene ended."""
LONG = 10_000
"""Steps of a long stream (20,000 frames)."""
SEGMENT, CUT = 250, 25
"""A long stream's scene changes every `SEGMENT` steps; in its first and last minute questions are asked every `CUT` steps."""
MINUTE = 3 * SEGMENT


def second(step: int) -> int:
    """Whole seconds of stream time at a step's last frame."""
    return int((step + 0.5) / RATE)


def parts(first: int, count: int) -> Iterator[tuple[int, int]]:
    """`count` steps from `first` on in parts (start, stop); past the horizon none lasts beyond a second."""
    start = first
    while start < first + count:
        stop = min(start + PART, first + count)
        while second(stop - 1) > max(second(start), HORIZON):
            stop -= 1
        yield start, stop
        start = stop


@torch.no_grad()
def turn_back(network: InfiniteVL, memory: SequenceCache, seconds: int) -> None:
    """Makes all that is in the attention window `seconds` older, for good."""
    config = network.config.decoder
    back = torch.tensor([[-seconds * network.config.tokens_per_second], [0], [0]])
    for layer, (keys, values) in memory.tail.items():
        by = rotation(back.to(keys.device), config.head_dim, config.rope_theta, config.mrope_section)
        memory.tail[layer] = rotate(keys, by), values


@torch.no_grad()
def follow(network: InfiniteVL, x: Tensor, first: int, memory: SequenceCache | None) -> SequenceCache:
    """Takes steps from the `first` of a stream on, `x` [streams, steps, tokens, hidden] from the vision tower, at 25 frames a second."""
    for start, stop in parts(first, x.shape[1]):
        passed = second(start) - max(second(start - 1), int(HORIZON))
        if memory is not None and passed > 0:
            turn_back(network, memory, passed)
        seconds = torch.arange(start, stop, dtype=torch.float64, device=x.device).add(0.5).div(RATE).clamp(max=HORIZON)
        memory = network.forward(x[:, start - first : stop - first], GRID, seconds.expand(len(x), -1), memory)
    assert memory is not None
    return memory


@torch.no_grad()
def look(exam: Exam, patches: Tensor) -> Tensor:
    """The vision tower over patches [streams, steps, …] in parts: [streams, steps, tokens, hidden]."""
    flat = [exam.network.visual(part, *GRID) for part in patches.flatten(0, 1).split(exam.room)]
    tokens: Tensor = torch.cat(flat).unflatten(0, patches.shape[:2])
    return tokens


def now(exam: Exam, steps: int, streams: int) -> Tensor:
    """Time of the last of `steps` steps as `InfiniteVL.answer` takes it."""
    seconds = min((steps - 0.5) / RATE, HORIZON)
    return torch.full((streams,), seconds, dtype=torch.float64, device=exam.device)


def by_clock(exam: Exam, streams: int, questions: int, ages: dict[str, int], seed: int) -> None:
    """Asks of a scene after it has been gone for each of `ages`, with both controls beside it."""
    if exam.over:
        return
    network, gallery = exam.network, exam.painter.gallery
    chances = [np.random.default_rng((seed, 1, i)) for i in range(streams)]
    profile = Profile(things=(1, 8), gap=4)
    paper = Paper("clock", EVIDENCE, streams, questions, MEMORY, profile, gone=0)
    scenes, asked = compose(paper, chances, gallery, exam.tokenizer)
    still = replace(profile, things=(0, 0), real=True, gap=0)
    empty = look(exam, exam.patches([draw_scene(rng, EMPTY, "test", gallery, still) for rng in chances], seed))
    memory = follow(network, look(exam, exam.patches(scenes, seed)), 0, None)
    done = EVIDENCE
    for name, age in ages.items():
        until = EVIDENCE + round(age * RATE)
        while done < until:
            if exam.over:
                return
            count = min(EMPTY, until - done)
            memory = follow(network, empty[:, :count], done, memory)
            done += count
            exam.bar.update(count * streams)
        last = now(exam, done, streams)
        glimpse = network.forward(empty[:, :GLIMPSE], GRID, last[:, None].expand(-1, GLIMPSE))
        candidates = {"model": memory, "cleared": cleared(memory), "glimpse": glimpse}
        exam.mark(f"clock {name}", candidates, last, asked)


def long_streams(exam: Exam, streams: int, questions: int, seed: int) -> None:
    """Asks what there is now in the first and in the last minute of streams of 20,000 frames."""
    chances = [np.random.default_rng((seed, 2, i)) for i in range(streams)]
    paper = Paper("minute", SEGMENT, streams, questions, NOW, Profile())
    memory: SequenceCache | None = None
    for start in range(0, LONG, SEGMENT):
        if exam.over:
            return
        scenes = [draw_scene(rng, SEGMENT, "test", exam.painter.gallery, paper.profile) for rng in chances]
        x = look(exam, exam.patches(scenes, seed + start))
        minute = "first minute" if start < MINUTE else "last minute" if start >= LONG - MINUTE else None
        cut = CUT if minute else SEGMENT
        for offset in range(0, SEGMENT, cut):
            memory = follow(exam.network, x[:, offset : offset + cut], start + offset, memory)
            if minute:
                asked = ask_each(paper, chances, scenes, offset + cut - 1, exam.tokenizer)
                last = now(exam, start + offset + cut, streams)
                exam.mark(minute, {"model": memory}, last, asked)
        exam.bar.update(SEGMENT * streams)
