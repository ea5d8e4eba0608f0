"""InfiniteVL as a CPU serves it: small steps traced, one trace a shape, and run without Python between their operations.

Where steps are small Python takes a third of their time, and threads that need its lock between two operations hold each
other up. `model.infinitevl` is the reference, and serves what is larger than a trace is kept for.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from model.families.infinitevl import InfiniteVL
from model.serving.int8 import Int8Linear, pack
from model.state import StreamState

TRACEABLE = sys.version_info < (3, 14) and os.environ.get("PYTORCH_JIT") != "0"
"""PyTorch traces up to Python 3.13, and where nobody forbade it."""
QUESTION_LENGTHS = (16, 32, 64)
"""Tokens to which a stream's text is padded, so that few traces serve."""
DECODE_BATCH = 4
"""Answers in one step at most for which a trace is kept."""
MOST_TRACES = 24
"""Traces of one make of model: each takes about 7 MB, and every grid of pictures wants two."""

Call = Callable[..., Tensor]
TRACES: dict[tuple[object, ...], dict[tuple[object, ...], torch.jit.ScriptModule]] = {}
"""By make of model, then by step and shapes. They hold no weights, and serve every model of a make."""
TRACING = threading.Lock()


class TracedInfiniteVL:
    """Frames of one stream, text of one, a token each of a few, through traces; made when a shape first comes, in a fifth of a second.

    A model whose steps take a second has none of frames: each grid of pictures would hold all streams up for four seconds, once,
    and its steps be a tenth shorter. The model's weights may not learn any more.
    """

    def __init__(self, model: InfiniteVL) -> None:
        self.model, self.config = model, model.config
        self.frames = self.config.frames_per_second is None
        model.requires_grad_(False)
        self.weights = dict((*model.named_parameters(), *model.named_buffers()))
        int8 = [module for module in model.modules() if isinstance(module, Int8Linear)]
        self.packed = [module.packed for module in int8]
        weights = ((name, x.dtype) for name, x in self.weights.items())
        make = self.config, *weights, *(module.choice for module in int8)
        self.traces = TRACES.setdefault(make, {})
        self.own: dict[tuple[object, ...], torch.jit.ScriptModule] = {}

    def encode(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """As `InfiniteVL.encode`."""
        if len(patches) > 1 or not self.frames:
            return self.model.encode(patches, grid)

        def encode(patches: Tensor) -> Tensor:
            return self.model.encode(patches, grid)

        return self.run(encode, grid, (patches,))

    def ingest(
        self,
        x: Tensor,
        grid: tuple[int, int],
        seconds: Tensor,
        state: StreamState,
        slots: Tensor,
        text: Tensor | None = None,
    ) -> None:
        """As `InfiniteVL.ingest`."""
        if len(slots) > 1 or not self.frames:
            self.model.ingest(x, grid, seconds, state, slots, text)
            return
        words = () if text is None else (text,)

        def ingest(x: Tensor, seconds: Tensor, *rest: Tensor) -> Tensor:
            *words, slots = rest[: len(given) - 2]
            self.model.ingest(x, grid, seconds, StreamState(self.config, rest[len(given) - 2 :]), slots, *words)
            return slots

        given = (x, seconds, *words, slots)
        self.run(ingest, grid, given, state)

    def read(self, tokens: Tensor, state: StreamState, slots: Tensor, counts: Tensor | None = None) -> Tensor:
        """As `InfiniteVL.read`."""
        batch, n = tokens.shape
        if n == 1 and batch <= DECODE_BATCH:

            def decode(tokens: Tensor, slots: Tensor, *kept: Tensor) -> Tensor:
                return self.model.read(tokens, StreamState(self.config, kept), slots)

            return self.run(decode, None, (tokens, slots), state)
        if batch > 1:
            return self.model.read(tokens, state, slots, counts)

        def read(tokens: Tensor, counts: Tensor, slots: Tensor, *kept: Tensor) -> Tensor:
            return self.model.read(tokens, StreamState(self.config, kept), slots, counts)

        most = min(max(QUESTION_LENGTHS), self.config.step_tokens)
        for part in tokens.split(most, 1):
            count = part.shape[1]
            padded = tokens.new_zeros(1, min(most, next(length for length in QUESTION_LENGTHS if length >= count)))
            padded[:, :count] = part
            logits = self.run(read, None, (padded, torch.tensor([count]), slots), state)
        return logits

    def run(
        self, call: Call, grid: tuple[int, int] | None, given: tuple[Tensor, ...], state: StreamState | None = None
    ) -> Tensor:
        """`call` of what is given, the slots last, and the state's tensors, through the trace for the shapes of what is given."""
        kept = tensors(state)
        key = call.__name__, grid, *(x.shape for x in given)
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # it takes its time and finds nothing here
            if key not in self.own:
                if key not in self.traces:
                    if len(self.traces) >= MOST_TRACES:
                        return call(*given, *kept)
                    self.trace(key, call, given, state)
                self.own[key] = twin(self.traces[key], self.packed)
            result: Tensor = self.own[key](*given, *kept, *self.weights.values())
            return result

    def trace(self, key: tuple[object, ...], call: Call, given: tuple[Tensor, ...], state: StreamState | None) -> None:
        """Traces `call`, which may write to the state: it runs on a pool of its own, which is as good, whatever its size.

        The weights become inputs by being named as such, packed ones attributes: what a trace meets that is neither it keeps
        as a constant.
        """
        if state is not None:
            *others, slots = given
            state = StreamState.allocate(self.config, len(slots), dtype=state.dtype)
            given = *others, torch.arange(len(slots)), *tensors(state)
        whole = Whole(call, len(given), self.packed)
        with TRACING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that shapes are held fast is meant; that tracing is deprecated is known
            if key not in self.traces:  # another thread may have been first
                traced = torch.jit.trace(whole, (*given, *self.weights.values()), check_trace=False)
                self.traces[key] = compact(twin(traced, [nothing() for _ in self.packed]))
        whole.call.clear()  # the trace keeps the function


class Whole(nn.Module):
    """A call as a module: packed weights are no tensors, and only attributes can be traced as what they are."""

    def __init__(self, call: Call, given: int, packed: list[Any]) -> None:
        super().__init__()
        self.call, self.given = [call], given
        for i, weights in enumerate(packed):
            setattr(self, f"packed_{i}", weights)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call[0](*inputs[: self.given])


@cache
def nothing() -> Any:
    """Packed weights that hold the place of a model's."""
    return pack(torch.ones(1, 1))


def twin(traced: torch.jit.ScriptModule, packed: list[Any]) -> torch.jit.ScriptModule:
    """The same trace with these packed weights."""
    copied: torch.jit.ScriptModule = traced.__copy__()
    for i, weights in enumerate(packed):
        copied._c.setattr(f"packed_{i}", weights)
    return copied


def compact(traced: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The same trace in a third of the memory: a fresh one keeps, for each operation, a text of all Python that was on the stack.

    So it is written and read again, which shares texts. PyTorch keeps what was traced for ever; that is emptied.
    """
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    graph = traced.graph
    for _ in list(graph.outputs()):
        graph.eraseOutput(0)
    for node in reversed(list(graph.nodes())):
        node.destroy()
    buffer.seek(0)
    again: torch.jit.ScriptModule = torch.jit.load(buffer)
    return again


def tensors(state: StreamState | None) -> tuple[Tensor, ...]:
    """A state's tensors in the order of its layout; none where there is no state."""
    return () if state is None else tuple(tensor for _, tensor, _ in state.tensors())
