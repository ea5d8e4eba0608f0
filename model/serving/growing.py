"""A backend for histories that grow on a GPU, a slot at a time: fused kernels launched one after another, a token alone as a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor

from model.config import InfiniteVLConfig
from model.families.family import Framing
from model.pages import Extension, OneToken
from model.policy import RetrievalPolicy
from model.preprocess import arrange, fit_all
from model.serving.backends import Eager, Encoding, Finite, Grid, Pictures
from model.serving.cuda_graphs import Step, to_be_told
from model.serving.fused import FastInfiniteVL
from model.state import StreamState

TOGETHER = 8_192
"""Tokens of one slot's steps that are taken at once: for the host to begin them takes less than for a card to end them."""
FEWEST_BLOCKS = 512
"""That a graph of one token serves; the next serves four times as many."""


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
        self.most_steps = max(1, TOGETHER // model.config.tokens_per_frame)
        assert state.pages is not None
        self.pages = state.pages
        self.graphed = state.length.is_cuda
        """Whether a token alone is a graph; the kernels are the same without."""
        self.graphs: dict[tuple[int, bool], Step] = {}
        """One token's, by how many blocks they serve and whether they note what is attended to."""
        self.generation = -1
        """The pool's, whose tensors the graphs know."""
        most = -(-self.pages.policy.context // self.pages.size)
        self.tables = torch.zeros(2, most + 1, dtype=torch.int32, device=state.length.device)
        """Numbers and frames of the pages of the slot that a token was added to last."""
        self.shown = (-1, -1)
        """That slot, and the pages' version then."""
        self.memory = torch.cuda.graph_pool_handle() if self.graphed else None

    def index(self, slots: Sequence[float], dtype: torch.dtype = torch.int64) -> Tensor:
        """`slots`, or other numbers, on the device, without waiting for it."""
        told, device = torch.tensor(slots, dtype=dtype), self.state.length.device
        return told.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else told

    def encode(self, pictures: Pictures, grid: Grid) -> Tensor:
        """See `Backend.encode`: pictures are fitted on the card."""
        frames, device = self.config.frames_per_step, self.state.length.device
        every = [some[min(i, len(some) - 1)] for some in pictures for i in range(frames)]
        pixels = fit_all(self.config, every, grid, device).unflatten(0, (-1, frames))
        return self.steps.encode(arrange(self.config, pixels, self.state.dtype), grid)

    @contextmanager
    def extending(self, slot: int, tokens: int) -> Iterator[Tensor]:
        """The slot, as a tensor, to which what is done meanwhile adds `tokens`. Raises FullError."""
        pages = self.pages
        pages.busy.clear()
        pages.call = call = Extension(pages, slot, tokens)
        try:
            yield self.index([slot])
            call.end()
        finally:
            pages.call = None

    def ingest(self, slots: Sequence[int], encoding: Encoding, seconds: Sequence[float], grid: Grid) -> Finite:
        """See `Backend.ingest`."""
        assert isinstance(encoding, Tensor)
        for slot, same in groupby(range(len(slots)), lambda row: slots[row]):
            rows = list(same)
            x = encoding[rows[0] : rows[-1] + 1]
            times = self.index([seconds[row] for row in rows], torch.float64)
            with self.extending(slot, x.shape[:2].numel()) as index:
                self.steps.ingest_steps(x, grid, times, self.state, index)
        return to_be_told(self.state.finite(self.index(slots)))

    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """See `Backend.read`."""
        rows = []
        for slot, part in zip(slots, tokens, strict=True):
            logits = self.token(slot, part[0]) if len(part) == 1 else None
            if logits is None:
                with self.extending(slot, len(part)) as index:
                    logits = self.steps.read(self.index(part)[None], self.state, index, self.index([len(part)]))
            rows.append(logits)
        every = torch.cat(rows)
        return every.argmax(-1), every

    def token(self, slot: int, token: int) -> Tensor | None:
        """Reads one token into a slot. Returns logits float32 [1, vocabulary], or None where some of its pages are not on the device.

        Raises FullError.
        """
        pages = self.pages
        self.reserve([(slot, 1)])
        if self.shown != (slot, pages.version):
            if pages.away(slot):
                return None
            table = pages.table(slot)
            self.tables[:, : table.shape[1]] = table
            self.shown = slot, pages.version
        if self.generation != pages.generation:
            self.graphs.clear()
            self.generation = pages.generation
        needed, noted = pages.lengths[slot] // pages.policy.block_size + 1, slot in pages.attention
        blocks = FEWEST_BLOCKS
        while blocks < needed:
            blocks *= 4
        words = self.index([slot, 1, token])
        if self.graphed:
            step = self.graph(blocks, noted, slot)
            step.words.copy_(words)
            step.graph.replay()
            logits = step.outputs[0].clone()
        else:
            logits = self.call(words, blocks, noted)[0]
        pages.advance(slot, 1)
        if noted:
            pages.attention[slot] = needed
        return logits

    def graph(self, blocks: int, noted: bool, slot: int) -> Step:
        """The graph of one token; words are a slot, how many tokens are real (one, or none) and the token."""
        key = blocks, noted
        if key not in self.graphs:
            words = torch.tensor([slot, 0, 0])  # none, so that it changes nothing while it is captured
            self.graphs[key] = Step(lambda told: self.call(told, blocks, noted), words, self.memory)
        return self.graphs[key]

    def call(self, words: Tensor, blocks: int, noted: bool) -> tuple[Tensor, ...]:
        """What a graph is of: `words` on the device to the logits."""
        pages = self.pages
        pages.call = OneToken(pages, self.tables[0], self.tables[1], blocks, noted)
        try:
            return (self.steps.read(words[2:].view(1, 1), self.state, words[:1], words[1:2]),)
        finally:
            pages.call = None
