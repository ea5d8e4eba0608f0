"""A backend for histories that grow on a GPU: fused kernels, launched one after another, a slot at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from model.config import InfiniteVLConfig
from model.families.family import Framing
from model.pages import Extension
from model.policy import RetrievalPolicy
from model.serving.backends import Eager, Encoding, Finite, Grid
from model.serving.fused import FastInfiniteVL
from model.state import StreamState


def suits(config: InfiniteVLConfig) -> bool:
    """Whether the kernels know such attention: no gate, no norms of heads, no words around grids, heads in powers of two."""
    decoder, policy = config.decoder, config.policy
    assert isinstance(policy, RetrievalPolicy)
    group = decoder.num_attention_heads // decoder.num_key_value_heads
    powers = all(size & (size - 1) == 0 for size in (group, decoder.head_dim, policy.block_size))
    whole = decoder.rotary_dim == decoder.head_dim
    return powers and whole and not (decoder.attention_gate or decoder.head_norms or config.step_text)


class Growing(Eager):
    """`Eager`, through `FastInfiniteVL` where attention retrieves."""

    def __init__(self, model: FastInfiniteVL, prompt: Framing, state: StreamState) -> None:
        super().__init__(model.model, prompt, state)
        self.steps: FastInfiniteVL = model  # type: ignore[assignment]

    @contextmanager
    def extending(self, slot: int, tokens: int) -> Iterator[Tensor]:
        """The slot, as a tensor, to which what is done meanwhile adds `tokens`. Raises FullError."""
        pages = self.state.pages
        assert pages is not None
        pages.busy.clear()
        pages.call = Extension(pages, slot, tokens)
        try:
            yield self.index([slot])
            pages.call.end()
        finally:
            pages.call = None

    def ingest(self, slots: Sequence[int], encoding: Encoding, seconds: Sequence[float], grid: Grid) -> Finite:
        """See `Backend.ingest`."""
        assert isinstance(encoding, Tensor)
        for row, (slot, moment) in enumerate(zip(slots, seconds, strict=True)):
            x, times = encoding[row : row + 1], torch.tensor([moment], dtype=torch.float64, device=encoding.device)
            with self.extending(slot, x.shape[1]) as index:
                self.steps.ingest(x, grid, times, self.state, index)
        finite: list[bool] = self.state.finite(self.index(slots)).tolist()
        return lambda: finite

    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """See `Backend.read`."""
        rows = []
        for slot, part in zip(slots, tokens, strict=True):
            with self.extending(slot, len(part)) as index:
                rows.append(self.steps.read(self.index(part)[None], self.state, index, self.index([len(part)])))
        every = torch.cat(rows)
        return every.argmax(-1), every
