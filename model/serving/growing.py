"""A backend for histories that grow on a GPU: fused kernels, launched one after another, a slot at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

    def extend(self, slot: int, tokens: int, do: Callable[[Tensor], Tensor | None]) -> Tensor | None:
        """What `do`, given the slot, makes of it, which adds `tokens` to it. Raises FullError."""
        pages = self.state.pages
        assert pages is not None
        pages.call = Extension(pages, slot, tokens)
        try:
            made = do(self.index([slot]))
            pages.call.end()
        finally:
            pages.call = None
        return made

    def ingest(self, slots: Sequence[int], encoding: Encoding, seconds: Sequence[float], grid: Grid) -> Finite:
        """See `Backend.ingest`."""
        assert isinstance(encoding, Tensor)
        for row, (slot, moment) in enumerate(zip(slots, seconds, strict=True)):
            x, times = encoding[row : row + 1], torch.tensor([moment], dtype=torch.float64, device=encoding.device)

            def take(index: Tensor, x: Tensor = x, times: Tensor = times) -> None:
                self.steps.ingest(x, grid, times, self.state, index)

            self.extend(slot, x.shape[1], take)
        finite: list[bool] = self.state.finite(self.index(slots)).tolist()
        return lambda: finite

    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """See `Backend.read`."""
        rows = []
        for slot, part in zip(slots, tokens, strict=True):
            words, count = self.index(part)[None], self.index([len(part)])

            def take(index: Tensor, words: Tensor = words, count: Tensor = count) -> Tensor:
                return self.steps.read(words, self.state, index, count)

            logits = self.extend(slot, len(part), take)
            assert logits is not None
            rows.append(logits)
        every = torch.cat(rows)
        return every.argmax(-1), every
