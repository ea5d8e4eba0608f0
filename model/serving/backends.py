"""What takes a runner's steps, behind one protocol: the model itself, its traces, or (`cuda_graphs`) a graph a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.config import InfiniteVLConfig
from model.families.family import Framing
from model.families.infinitevl import InfiniteVL
from model.preprocess import patchify
from model.serving.traced import TracedInfiniteVL
from model.state import StreamState

Grid = tuple[int, int]
"""Height and width in patches."""
Pictures = Sequence[Sequence[np.ndarray]]
"""By stream, the pictures of one step: 1 to `frames_per_step`, uint8 [height, width, 3]."""
Encoding = Any
"""Pictures of one grid as a backend's `encode` leaves them to its `ingest`."""
Finite = Callable[[], list[bool]]
"""Waits for a step's end; then of each of its slots whether its state is finite."""
TOGETHER = 512
"""Tokens of one slot's steps that are taken at once on a CPU."""
POWERS = (1, 2, 4, 8, 16, 32, 64, 128)


class Backend(Protocol):
    """The steps of one model over one pool of slots. `slots` are distinct, of the pool, and opened before.

    `frame_sizes` are the numbers of streams whose step has a cost of its own, the sizes between are as those beside them.
    """

    frame_sizes: Sequence[int]
    most_steps: int
    """Steps of one slot that `ingest` takes at once, where that is named so often in a row; elsewhere 1."""
    deferred: bool
    """Whether steps of streams, and what is asked of them, are begun behind the step that runs."""

    @property
    def made(self) -> int:
        """Steps that something has been made for, a trace or a graph, in the first of its shape: that one takes longer than the rest."""
        ...

    def open(self, slot: int) -> None:
        """Begins a stream in an empty slot."""
        ...

    def encode(self, pictures: Pictures, grid: Grid) -> Encoding:
        """What needs no state of a step of streams of one grid; any thread may call it."""
        ...

    def ingest(self, slots: Sequence[int], encoding: Encoding, seconds: Sequence[float], grid: Grid) -> Finite:
        """Takes encoded pictures into `slots` at `seconds` of stream time.

        What is returned waits for the end of the step and tells of each slot whether its state is finite. It must be called
        before anything else is asked of the backend but to encode, and to take one more step, which waits for this one on the device.
        """
        ...

    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Reads each slot's tokens into it.

        Returns the likeliest next tokens int64 [batch] and the logits float32 [batch, vocabulary]; the next call may
        overwrite both.
        """
        ...


def step_text(framing: Framing, config: InfiniteVLConfig, seconds: Sequence[float]) -> Tensor | None:
    """The words around grids at `seconds`, as `InfiniteVL.ingest` takes them, on the CPU; None where there are none."""
    if not config.step_text:
        return None
    text = torch.zeros(len(seconds), 2 + config.step_text, dtype=torch.int64)
    for row, moment in zip(text, seconds, strict=True):
        before, after = framing.before(moment), framing.after
        row[0], row[1] = len(before), len(before) + len(after)
        row[2 : 2 + int(row[1])] = torch.tensor([*before, *after])
    return text


class Eager:
    """The model, operation by operation."""

    frame_sizes: Sequence[int] = POWERS
    most_steps = 1
    deferred = False

    def __init__(self, model: InfiniteVL, prompt: Framing, state: StreamState) -> None:
        self.model, self.prompt, self.state, self.config = model, prompt, state, model.config
        self.steps: InfiniteVL | TracedInfiniteVL = model

    @property
    def made(self) -> int:
        """See `Backend.made`."""
        return 0

    def index(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(slots, device=self.state.length.device)

    def reserve(self, added: Sequence[tuple[int, int]]) -> None:
        """Makes room for slots' tokens, where attention retrieves, before anything is changed. Raises FullError."""
        if (pages := self.state.pages) is not None:
            pages.busy.clear()
            for slot, tokens in added:
                pages.reserve(slot, tokens)

    def open(self, slot: int) -> None:
        """See `Backend.open`."""
        self.model.open(self.state, self.index([slot]), self.prompt.opening)

    def encode(self, pictures: Pictures, grid: Grid) -> Tensor:
        """See `Backend.encode`: through the vision tower, to [streams, tokens, hidden]."""
        patches = torch.stack([patchify(self.config, each, grid) for each in pictures])
        return self.steps.encode(patches.to(self.state.length.device, self.state.dtype), grid)

    def ingest(self, slots: Sequence[int], encoding: Encoding, seconds: Sequence[float], grid: Grid) -> Finite:
        """See `Backend.ingest`."""
        assert isinstance(encoding, Tensor)
        index = self.index(slots)
        times = torch.tensor(seconds, dtype=torch.float64, device=index.device)
        text = step_text(self.prompt, self.config, seconds)
        words = [0] * len(slots) if text is None else text[:, 1].tolist()
        self.reserve([(slot, encoding.shape[1] + more) for slot, more in zip(slots, words, strict=True)])
        self.steps.ingest(encoding, grid, times, self.state, index, text if text is None else text.to(index.device))
        finite: list[bool] = self.state.finite(index).tolist()
        return lambda: finite

    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """See `Backend.read`."""
        index = self.index(slots)
        counts = [len(each) for each in tokens]
        padded = torch.tensor([[*each, *[0] * (max(counts) - len(each))] for each in tokens], device=index.device)
        ragged = torch.tensor(counts, device=index.device) if len({*counts}) > 1 else None
        logits = self.steps.read(padded, self.state, index, ragged)
        return logits.argmax(-1), logits


class Together(Eager):
    """The model where attention retrieves, on a CPU: several steps of one slot, where they are named in a row, are one."""

    def __init__(self, model: InfiniteVL, prompt: Framing, state: StreamState) -> None:
        super().__init__(model, prompt, state)
        if not self.config.step_text:
            self.most_steps = max(1, TOGETHER // self.config.tokens_per_frame)

    def ingest(self, slots: Sequence[int], encoding: Encoding, seconds: Sequence[float], grid: Grid) -> Finite:
        """See `Backend.ingest`."""
        assert isinstance(encoding, Tensor)
        if len({*slots}) == len(slots):
            return super().ingest(slots, encoding, seconds, grid)
        for slot, same in groupby(range(len(slots)), lambda row: slots[row]):
            rows = list(same)
            times = torch.tensor([seconds[row] for row in rows], dtype=torch.float64)
            self.reserve([(slot, len(rows) * encoding.shape[1])])
            self.model.ingest_steps(encoding[rows[0] : rows[-1] + 1], grid, times, self.state, self.index([slot]))
        finite: list[bool] = self.state.finite(self.index(slots)).tolist()
        return lambda: finite


class Traced(Eager):
    """The model through traces: see `model.serving.traced`."""

    def __init__(self, model: InfiniteVL, prompt: Framing, state: StreamState) -> None:
        super().__init__(model, prompt, state)
        self.steps: TracedInfiniteVL = TracedInfiniteVL(model)

    @property
    def made(self) -> int:
        """See `Backend.made`."""
        return len(self.steps.own)
