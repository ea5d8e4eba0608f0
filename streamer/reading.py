"""A recording's pictures into a slot, and what the model keeps of them into an index."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from capture.sources.spans import Picture
from model import Runner
from model.serving.backends import Finite
from model.state import Snapshot
from streamer.memory.indexes import PORTION, Facts, RecordingError, Writing

T = TypeVar("T")
KEEP_SECONDS, KEEP_TOKENS = 30.0, 32_768
"""How often an index that is being made is kept, so that it can be gone on with."""


class Runs(Protocol):
    """Runs what is to be done on the device, a little at a time, and waits for it."""

    def __call__(self, do: Callable[[], T], /) -> T: ...


def at_once(do: Callable[[], T]) -> T:
    """Where nobody else wants the device."""
    return do()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a recording is read into: a slot of a runner whose attention retrieves, and who runs what is done there."""

    runner: Runner
    slot: int = 0
    run: Runs = at_once
    alone: bool = False
    """Whether nobody else waits for the device: then as many steps are read at once as it takes, and the next are begun
    before these have ended."""


@dataclass(frozen=True, slots=True)
class Begun:
    """Steps under way: the first token of each and when its last picture was shown, and what there is with them."""

    ended: Finite
    steps: Sequence[tuple[int, float]]
    tokens: int
    frames: int
    copied: Callable[[], tuple[Snapshot, Tensor]] | None = None
    """Waits for a copy of what there is with them, where it is to be kept: the state, and the tokens since the last time."""


class Reading:
    """Reads a recording's pictures, a step's worth and more at a time, and tells `facts` of those that are in the slot."""

    def __init__(self, place: Place, writing: Writing, facts: Facts, told: Callable[[Facts], None]) -> None:
        """`told` hears of every change of `facts`."""
        runner = place.runner
        assert runner.state.pages is not None
        self.place, self.writing, self.facts, self.told = place, writing, facts, told
        self.runner, self.slot, self.pages = runner, place.slot, runner.state.pages
        self.most = runner.frames_per_step * (runner.backend.most_steps if place.alone else 1)
        """Pictures that are read at once."""
        self.waiting: list[Picture] = []
        self.under_way: Begun | None = None
        self.kept, self.at = facts.tokens, time.monotonic()

    @property
    def tokens(self) -> int:
        """What has been read, with the steps under way."""
        return self.facts.tokens if self.under_way is None else self.under_way.tokens

    def take(self, picture: Picture) -> None:
        """One more picture, in order. Raises RecordingError where the state is no longer finite, FullError, OSError."""
        self.waiting.append(picture)
        if len(self.waiting) == self.most:
            self.see()

    def see(self) -> None:
        """Reads the pictures that wait, if any do. Raises as `take` does."""
        if not self.waiting:
            return
        begun = self.begin() if self.place.alone else self.place.run(self.done)
        if time.monotonic() - self.at > KEEP_SECONDS or begun.tokens - self.kept > KEEP_TOKENS:
            begun = replace(begun, copied=self.copy(begun.tokens))
        # A device has these to go on with while those before are waited for.
        before, self.under_way = self.under_way, begun
        self.end(before)
        if not self.place.alone:
            self.settle()

    def begin(self) -> Begun:
        """Begins the steps of the pictures that wait."""
        runner, slot, lengths, waiting = self.runner, self.slot, self.pages.lengths, self.waiting
        frames = runner.frames_per_step
        steps = [waiting[i : i + frames] for i in range(0, len(waiting), frames)]
        if not self.facts.steps and self.under_way is None:
            runner.open(slot, *waiting[0][1].shape[:2])
            self.facts.grid = runner.grids[slot]
        first = lengths[slot]
        times = [[time for time, _ in step] for step in steps]
        shown = [[pixels for _, pixels in step] for step in steps]
        ended = runner.launch([slot] * len(steps), shown, [runner.moment(each) for each in times])
        each = (lengths[slot] - first) // len(steps)
        begun = Begun(
            ended, [(first + i * each, step[-1]) for i, step in enumerate(times)], lengths[slot], len(waiting)
        )
        waiting.clear()
        return begun

    def done(self) -> Begun:
        """The steps of the pictures that wait, from begin to end."""
        begun = self.begin()
        fine = begun.ended()
        return replace(begun, ended=lambda: fine)

    def end(self, begun: Begun | None) -> None:
        """Waits for steps, counts them, and has them kept where they are to be. Raises RecordingError, OSError."""
        if begun is None:
            return
        facts, last = self.facts, begun.steps[-1][1]
        if not all(begun.ended()):
            raise RecordingError(f"the model's state is no longer finite at {last:.1f} s: choose dtype float32")
        facts.steps += begun.steps
        facts.tokens, facts.frames, facts.seconds = begun.tokens, facts.frames + begun.frames, last
        if begun.copied is not None:
            self.writing.write(facts, *begun.copied())
        self.told(facts)  # who may raise, when all is in order

    def settle(self) -> None:
        """Waits for the steps under way. Raises RecordingError, OSError."""
        begun, self.under_way = self.under_way, None
        self.end(begun)

    def keep(self) -> None:
        """Has all that was read written to the index. Raises RecordingError, OSError."""
        self.settle()
        self.writing.write(self.facts, *self.copy(self.facts.tokens)())

    def copy(self, tokens: int) -> Callable[[], tuple[Snapshot, Tensor]]:
        """Begins a copy of the state as it is after `tokens`, and of those that are not kept yet; waits for it when called."""
        run, state, pages, slot, kept = self.place.run, self.runner.state, self.pages, self.slot, self.kept
        parts: Snapshot = {}
        rows = outside((tokens - kept, len(pages.layers), 2, pages.groups, pages.head), next(iter(pages.keys.values())))

        def copy_state() -> None:
            for name, part in state.kept(slot).items():
                parts[name] = outside(part.shape, part).copy_(part, non_blocking=True)

        def copy_rows(start: int) -> None:
            stop = min(start + PORTION, tokens)
            rows[start - kept : stop - kept].copy_(pages.rows(slot, start, stop), non_blocking=True)

        run(copy_state)
        for start in range(kept, tokens, PORTION):
            run(partial(copy_rows, start))
        ended = run(lambda: torch.cuda.current_stream().record_event()) if self.runner.device.type == "cuda" else None
        self.kept, self.at = tokens, time.monotonic()

        def wait() -> tuple[Snapshot, Tensor]:
            if ended is not None:
                ended.synchronize()
            return parts, rows

        return wait


def outside(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory of the host for what is on a device, of the kind into which nobody waits for a copy."""
    return torch.empty(shape, dtype=like.dtype, pin_memory=like.is_cuda)
