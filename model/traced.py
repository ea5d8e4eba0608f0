"""InfiniteVL as a CPU serves it: small steps traced, one trace a shape, and run without Python between their operations.

Where steps are small Python takes a third of their time, and threads that need its lock between two operations hold each
other up. `model.infinitevl` is the reference, and serves what is larger than a trace is kept for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from model.infinitevl import InfiniteVL
from model.state import StreamState

TRACEABLE = sys.version_info < (3, 14)
"""PyTorch traces up to Python 3.13."""
QUESTION_LENGTHS = (16, 32, 64)
"""Tokens to which a stream's text is padded, so that few traces serve."""
DECODE_BATCH = 4
"""Answers in one step at most for which a trace is kept."""

Call = Callable[..., Tensor]


class TracedInfiniteVL:
    """Frames of one stream, text of one, a token each of a few, through traces; made when a shape first comes, in a fifth of a second.

    A trace holds the model's weights, which may not learn any more, not their copies; the state is its input.
    """

    def __init__(self, model: InfiniteVL) -> None:
        self.model, self.config = model, model.config
        model.requires_grad_(False)
        self.traces: dict[tuple[object, ...], Call] = {}

    def look(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """As `InfiniteVL.look`."""
        if len(patches) > 1:
            return self.model.look(patches, grid)
        return self.run(("look", *grid), lambda patches: self.model.look(patches, grid), patches)

    def take(self, x: Tensor, grid: tuple[int, int], seconds: Tensor, state: StreamState, slots: Tensor) -> None:
        """As `InfiniteVL.take`."""
        if len(slots) > 1:
            return self.model.take(x, grid, seconds, state, slots)

        def take(x: Tensor, seconds: Tensor, slots: Tensor, *kept: Tensor) -> Tensor:
            self.model.take(x, grid, seconds, StreamState(self.config, *kept), slots)
            return slots

        self.run(("take", *grid), take, x, seconds, slots, *kept(state))
        return None

    def read(self, tokens: Tensor, state: StreamState, slots: Tensor) -> Tensor:
        """As `InfiniteVL.read`."""
        batch, n = tokens.shape
        if n == 1 and batch <= DECODE_BATCH:

            def decode(tokens: Tensor, slots: Tensor, *kept: Tensor) -> Tensor:
                return self.model.read(tokens, StreamState(self.config, *kept), slots)

            return self.run(("decode",), decode, tokens, slots, *kept(state))
        if batch > 1:
            return self.model.read(tokens, state, slots)

        def read(tokens: Tensor, slots: Tensor, counts: Tensor, *kept: Tensor) -> Tensor:
            return self.model.read(tokens, StreamState(self.config, *kept), slots, counts)

        lengths = [length for length in QUESTION_LENGTHS if length < self.config.step_tokens]
        most = min(max(QUESTION_LENGTHS), self.config.step_tokens)
        for part in tokens.split(most, 1):
            count = part.shape[1]
            padded = tokens.new_zeros(1, next((length for length in lengths if length >= count), most))
            padded[:, :count] = part
            logits = self.run(("read",), read, padded, slots, torch.tensor([count]), *kept(state))
        return logits

    def run(self, name: tuple[object, ...], call: Call, *inputs: Tensor) -> Tensor:
        """Calls `call` through its trace for these shapes."""
        key = (*name, *(x.shape for x in inputs))
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # it takes its time and finds nothing here
            if key not in self.traces:
                self.traces[key] = trace(call, *inputs)
            return self.traces[key](*inputs)


def kept(state: StreamState) -> list[Tensor]:
    """The state's tensors in the order of its fields."""
    return [tensor for _, tensor, _ in state.tensors()]


def trace(call: Call, *inputs: Tensor) -> Call:
    """A trace of `call`, which is run on copies of its inputs: it may write to them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shapes are held fast is meant; that tracing is deprecated is known
        traced: Call = torch.jit.trace(call, tuple(x.clone() for x in inputs), check_trace=False)
    return traced
