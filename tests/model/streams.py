"""Streams of random frames over a model's slots, and the same streams through the float64 formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.config import InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.state import StreamState

from . import formulas
from .small import patches

Grid = tuple[int, int]


@dataclass
class Stream:
    """The frames of one stream: patches [n, grid patches, patch_dim] and the seconds at which they come."""

    config: InfiniteVLConfig
    grid: Grid
    seconds: Sequence[float]
    seed: int = 0
    frames: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.frames = patches(self.config.vision, len(self.seconds), grid=self.grid, seed=self.seed)


def index(*slots: int) -> Tensor:
    return torch.tensor(slots)


def times(*seconds: float) -> Tensor:
    return torch.tensor(seconds, dtype=torch.float64)


def watch(
    model: InfiniteVL, stream: Stream, state: StreamState, slot: int, first: int = 0, last: int | None = None
) -> None:
    """Takes frames `first` to `last` of a stream into a slot, one by one; opens the slot where it begins."""
    if first == 0:
        state.reset(slot)
        model.open(state, index(slot))
    for i in range(first, len(stream.seconds) if last is None else last):
        model.see(stream.frames[i : i + 1], stream.grid, times(stream.seconds[i]), state, index(slot))


def ask(model: InfiniteVL, state: StreamState, slot: int, tokens: Sequence[int], fork: int) -> Tensor:
    """Logits [n, vocabulary] after each of a question's tokens, read one by one into a fork of the slot."""
    state.fork(slot, fork)
    return torch.cat([model.read(torch.tensor([[token]]), state, index(fork)) for token in tokens])


def by_formula(model: InfiniteVL, stream: Stream, tokens: Sequence[int], origin: int = 0) -> Tensor:
    """The same logits, float64, from the whole sequence at once: positions, eq. 8 and the horizon written out once more."""
    config = model.config
    rows, columns = stream.grid[0] // 2, stream.grid[1] // 2
    embed = model.model.embed_tokens.weight
    x = [embed[[config.vision_start_token_id]], *model.visual(stream.frames, *stream.grid), embed[list(tokens)]]
    horizon = None if config.position_horizon is None else 2 * int(config.position_horizon)
    positions, shifts, time = [(0, 0, 0)], [0], 0
    for second in stream.seconds:
        time = 2 * int(second)
        positions += [(1 + time, 1 + row, 1 + column) for row in range(rows) for column in range(columns)]
        shifts += [0 if horizon is None else max(0, time - horizon)] * (rows * columns)
    shift = shifts[-1]
    begin = 1 + max(time - shift, rows - 1, columns - 1) + 1
    positions += [(begin + i + shift, begin + i, begin + i) for i in range(len(tokens))]
    shifts += [shift] * len(tokens)
    where = torch.tensor(positions).T + origin
    return formulas.logits(model, torch.cat(x), where, shifts)[-len(tokens) :]
