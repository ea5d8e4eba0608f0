"""Where a call's tokens go and how they and the sinks are turned, in two launches: one reads the cursors, one moves them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.rope import axes
from model.state import StreamState

ROWS = 4
"""Tokens or sinks that a program turns."""


@dataclass
class Span:
    """The n tokens that one call adds to each of some slots: where they go, and how they and the sinks are turned.

    `slots`, `starts`, `counts` int64 [batch]; `turn` cosines and sines float32 [batch, n, head / 2], `sink_turn` [batch, sinks, head / 2].
    """

    slots: Tensor
    starts: Tensor
    counts: Tensor
    turn: tuple[Tensor, Tensor]
    sink_turn: tuple[Tensor, Tensor]


@triton.jit
def load_shift(time, slot, HORIZON: tl.constexpr):
    """`StreamState.shift` of one slot."""
    shift = tl.load(time + slot)
    return shift * 0 if HORIZON is None else tl.maximum(shift - HORIZON, 0)


@triton.jit
def arriving(given, first, shift, origin, ahead, here, stride, AXIS: tl.constexpr):
    """Positions less `origin`, int64, of the call's tokens `ahead` where `here`: the ones `given`, or text's from `first` on."""
    if given is None:
        position = first + ahead + (shift if AXIS == 0 else 0)
    else:
        position = tl.load(given + AXIS * stride + ahead, mask=here, other=0) - origin
    return position


@triton.jit
def span_kernel(
    slots, counts, length, next_text, time, origins, sink_positions, given, axis, frequency,
    starts, cos, sin, sink_cos, sink_sin, tokens, table, rows,
    n, token_batch, token_step, width,
    SINKS: tl.constexpr, HORIZON: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Nothing of the state is written here: every program reads the cursors as they were before the call.
    work, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + batch)
    start, origin = tl.load(length + slot), tl.load(origins + slot)
    first, shift = tl.load(next_text + slot), load_shift(time, slot, HORIZON)
    stride = tl.num_programs(1) * n
    if given is not None:
        given += batch * n
    sinks: tl.constexpr = (SINKS + ROWS - 1) // ROWS
    turns = sinks + tl.cdiv(n, ROWS)
    if work == 0:
        tl.store(starts + batch, start)
    if work < turns:
        row = work * ROWS + tl.arange(0, ROWS)
        ahead, here = row - start, row < SINKS
        new = here & (ahead >= 0) & (ahead < tl.load(counts + batch))
        old = here & (new == 0)
        moved = shift
        if work >= sinks:
            row -= sinks * ROWS
            ahead, here = row.to(tl.int64), row < n
            new, old = here, row < 0
            moved = shift * 0
        kept = sink_positions + slot * 3 * SINKS + row
        t = arriving(given, first, shift, origin, ahead, new, stride, 0)
        h = arriving(given, first, shift, origin, ahead, new, stride, 1)
        w = arriving(given, first, shift, origin, ahead, new, stride, 2)
        t = tl.where(old, tl.load(kept, mask=old, other=0), t) + origin + moved
        h = tl.where(old, tl.load(kept + SINKS, mask=old, other=0), h) + origin
        w = tl.where(old, tl.load(kept + 2 * SINKS, mask=old, other=0), w) + origin
        pair = tl.arange(0, HALF)
        owner = tl.load(axis + pair)[None, :]
        position = tl.where(owner == 0, t[:, None], tl.where(owner == 1, h[:, None], w[:, None]))
        angle = position.to(tl.float64) * tl.load(frequency + pair)[None, :]
        c, s = tl.cos(angle).to(tl.float32), tl.sin(angle).to(tl.float32)
        at = row[:, None] * HALF + pair[None, :]
        if work < sinks:
            tl.store(sink_cos + batch * SINKS * HALF + at, c, mask=here[:, None])
            tl.store(sink_sin + batch * SINKS * HALF + at, s, mask=here[:, None])
        else:
            tl.store(cos + batch * n * HALF + at, c, mask=here[:, None])
            tl.store(sin + batch * n * HALF + at, s, mask=here[:, None])
    elif tokens is not None:
        step, column = work - turns, tl.arange(0, BLOCK)
        token = tl.load(tokens + batch * token_batch + step * token_step)
        meaning = tl.load(table + token * width + column, mask=column < width, other=0.0)
        tl.store(rows + (batch * n + step) * width + column, meaning, mask=column < width)


@triton.jit
def commit_kernel(
    slots, counts, starts, length, next_text, time, origins, sink_positions, given, n,
    SINKS: tl.constexpr, HORIZON: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    slot, start, count = tl.load(slots + batch), tl.load(starts + batch), tl.load(counts + batch)
    first, shift, origin = tl.load(next_text + slot), load_shift(time, slot, HORIZON), tl.load(origins + slot)
    stride = tl.num_programs(0) * n
    if given is not None:
        given += batch * n
    sink = tl.arange(0, BLOCK)
    ahead = sink - start
    new = (sink < SINKS) & (ahead >= 0) & (ahead < count)
    kept = sink_positions + slot * 3 * SINKS + sink
    tl.store(kept, arriving(given, first, shift, origin, ahead, new, stride, 0), mask=new)
    tl.store(kept + SINKS, arriving(given, first, shift, origin, ahead, new, stride, 1), mask=new)
    tl.store(kept + 2 * SINKS, arriving(given, first, shift, origin, ahead, new, stride, 2), mask=new)
    tl.debug_barrier()  # by now every warp has read `first`
    tl.store(length + slot, start + count)
    if given is None:
        tl.store(next_text + slot, first + count)


def text_span(tokens: Tensor, table: Tensor, state: StreamState, slots: Tensor, counts: Tensor) -> tuple[Span, Tensor]:
    """Takes text `tokens` int64 [batch, n] as the next of `slots`, of which the first `counts` are real (both int64 [batch]).

    Moves the slots' cursors and keeps the positions of new sinks, as `StreamState.text_positions` and a `SlotCache` do.
    Returns the span and the tokens' rows of `table` [vocabulary, hidden], as [batch * n, hidden]. A slot may be named
    several times where its counts are 0.
    """
    rows = torch.empty(tokens.numel(), table.shape[1], device=table.device, dtype=table.dtype)
    return launch(state, slots, counts, tokens.shape[1], None, (tokens, table, rows)), rows


def frame_span(positions: Tensor, state: StreamState, slots: Tensor, counts: Tensor) -> Span:
    """The same for a frame's tokens at `positions` int64 [3, batch, n]: `next` is moved by what gave them, not here."""
    return launch(state, slots, counts, positions.shape[-1], positions.contiguous(), None)


def launch(
    state: StreamState,
    slots: Tensor,
    counts: Tensor,
    n: int,
    given: Tensor | None,
    lookup: tuple[Tensor, Tensor, Tensor] | None,
) -> Span:
    """Both kernels; `lookup` is tokens, table and the rows to fill."""
    config, decoder, batch, device = state.config, state.config.decoder, len(slots), slots.device
    sinks, half = config.policy.sinks, decoder.head_dim // 2
    axis, frequency = axes(decoder.head_dim, decoder.rope_theta, decoder.mrope_section, device)
    cos, sin = torch.empty(2, batch, n, half, device=device)
    sink_cos, sink_sin = torch.empty(2, batch, sinks, half, device=device)
    starts = torch.empty_like(slots)
    strides, width = (lookup[0].stride(), lookup[1].shape[1]) if lookup else ((0, 0), 1)
    works = triton.cdiv(sinks, ROWS) + triton.cdiv(n, ROWS) + (n if lookup else 0)
    cursors = state.length, state.next, state.time, state.origin, state.sink_positions, given
    span_kernel[(works, batch)](
        slots, counts, *cursors, axis, frequency, starts, cos, sin, sink_cos, sink_sin,
        *(lookup or (None, None, None)), n, *strides, width, SINKS=sinks, HORIZON=config.horizon_steps,
        HALF=half, ROWS=ROWS, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    commit_kernel[(batch,)](
        slots, counts, starts, *cursors, n, SINKS=sinks, HORIZON=config.horizon_steps,
        BLOCK=triton.next_power_of_2(max(sinks, 1)), num_warps=4,
    )  # fmt: skip
    return Span(slots, starts, counts, (cos, sin), (sink_cos, sink_sin))
