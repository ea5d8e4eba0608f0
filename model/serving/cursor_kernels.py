"""Where a call's tokens go and how they and the sinks are turned, in two launches: one reads the cursors, one moves them.

A step of text and a grid takes a third, which lays out its tokens and counts their positions.
"""

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

    `slots`, `starts`, `counts` int64 [batch]; `turn` cosines and sines float32 [batch, n, turned / 2], `sink_turn` [batch,
    sinks, turned / 2].
    """

    slots: Tensor
    starts: Tensor
    counts: Tensor
    turn: tuple[Tensor, Tensor]
    sink_turn: tuple[Tensor, Tensor]


@triton.jit
def load_shift(time, slot, next_text, moves, batch, HORIZON: tl.constexpr, COUNTER: tl.constexpr):
    """`StreamState.shift` of one slot, as it is once the call has moved `next` where positions are counted."""
    shift = tl.load(next_text + slot) + tl.load(moves + batch) if COUNTER else tl.load(time + slot)
    return shift * 0 if HORIZON is None else tl.maximum(shift - HORIZON, 0)


@triton.jit
def arriving(given, first, shift, origin, ahead, here, stride, AXIS: tl.constexpr, COUNTER: tl.constexpr):
    """Positions less `origin`, int64, of the call's tokens `ahead` where `here`: the ones `given`, or text's from `first` on."""
    if given is None:
        position = first + ahead + (shift if AXIS == 0 and not COUNTER else 0)
    else:
        position = tl.load(given + AXIS * stride + ahead, mask=here, other=0) - origin
    return position


@triton.jit
def weave_kernel(
    text, grid, table, slots, next_text, origins, rows, positions, moves, counts,
    batch_stride, word_stride, n, words, tokens, columns, side, width, BLOCK: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + batch)
    text += batch * batch_stride
    lead, count = tl.load(text), tl.load(text + word_stride)
    inside = row - lead
    pictured = (inside >= 0) & (inside < tokens)
    column = tl.arange(0, BLOCK)
    if pictured:
        meaning = tl.load(grid + (batch * tokens + inside) * width + column, mask=column < width, other=0.0)
    else:
        word = tl.where(inside < 0, row, tl.minimum(row - tokens, words - 1))
        token = tl.load(text + (2 + word) * word_stride)
        meaning = tl.load(table + token * width + column, mask=column < width, other=0.0)
    tl.store(rows + (batch * n + row) * width + column, meaning, mask=column < width)
    start = tl.load(next_text + slot)
    flat = start + row - tl.where(inside >= tokens, tokens - side, 0)
    t = tl.where(pictured, start + lead, flat)
    h = tl.where(pictured, start + lead + inside // columns, flat)
    w = tl.where(pictured, start + lead + inside % columns, flat)
    origin, stride = tl.load(origins + slot), tl.num_programs(1) * n
    to = positions + batch * n + row
    tl.store(to, t + origin)
    tl.store(to + stride, h + origin)
    tl.store(to + 2 * stride, w + origin)
    if row == 0:
        tl.store(moves + batch, count + side)
        tl.store(counts + batch, count + tokens)


@triton.jit
def span_kernel(
    slots, counts, length, next_text, time, origins, sink_positions, given, moves, axis, frequency,
    starts, cos, sin, sink_cos, sink_sin, tokens, table, rows,
    n, token_batch, token_step, width,
    SINKS: tl.constexpr, HORIZON: tl.constexpr, COUNTER: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # Nothing of the state is written here: every program reads the cursors as they were before the call.
    work, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + batch)
    start, origin = tl.load(length + slot), tl.load(origins + slot)
    first, shift = tl.load(next_text + slot), load_shift(time, slot, next_text, moves, batch, HORIZON, COUNTER)
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
        t = arriving(given, first, shift, origin, ahead, new, stride, 0, COUNTER)
        h = arriving(given, first, shift, origin, ahead, new, stride, 1, COUNTER)
        w = arriving(given, first, shift, origin, ahead, new, stride, 2, COUNTER)
        t = tl.where(old, tl.load(kept, mask=old, other=0), t) + origin + moved
        moved = moved if COUNTER else 0
        h = tl.where(old, tl.load(kept + SINKS, mask=old, other=0), h) + origin + moved
        w = tl.where(old, tl.load(kept + 2 * SINKS, mask=old, other=0), w) + origin + moved
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
    slots, counts, starts, length, next_text, time, origins, sink_positions, given, moves, n,
    SINKS: tl.constexpr, HORIZON: tl.constexpr, COUNTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    slot, start, count = tl.load(slots + batch), tl.load(starts + batch), tl.load(counts + batch)
    first, origin = tl.load(next_text + slot), tl.load(origins + slot)
    shift = load_shift(time, slot, next_text, moves, batch, HORIZON, COUNTER)
    stride = tl.num_programs(0) * n
    if given is not None:
        given += batch * n
    sink = tl.arange(0, BLOCK)
    ahead = sink - start
    new = (sink < SINKS) & (ahead >= 0) & (ahead < count)
    kept = sink_positions + slot * 3 * SINKS + sink
    tl.store(kept, arriving(given, first, shift, origin, ahead, new, stride, 0, COUNTER), mask=new)
    tl.store(kept + SINKS, arriving(given, first, shift, origin, ahead, new, stride, 1, COUNTER), mask=new)
    tl.store(kept + 2 * SINKS, arriving(given, first, shift, origin, ahead, new, stride, 2, COUNTER), mask=new)
    tl.debug_barrier()  # by now every warp has read `first`
    tl.store(length + slot, start + count)
    if moves is not None:
        tl.store(next_text + slot, first + tl.load(moves + batch))


def text_span(tokens: Tensor, table: Tensor, state: StreamState, slots: Tensor, counts: Tensor) -> tuple[Span, Tensor]:
    """Takes text `tokens` int64 [batch, n] as the next of `slots`, of which the first `counts` are real (both int64 [batch]).

    Moves the slots' cursors and keeps the positions of new sinks, as `StreamState.text_positions` and a `SlotCache` do.
    Returns the span and the tokens' rows of `table` [vocabulary, hidden], as [batch * n, hidden]. A slot may be named
    several times where its counts are 0.
    """
    rows = torch.empty(tokens.numel(), table.shape[1], device=table.device, dtype=table.dtype)
    return launch(state, slots, counts, tokens.shape[1], None, counts, (tokens, table, rows)), rows


def frame_span(positions: Tensor, state: StreamState, slots: Tensor, counts: Tensor) -> Span:
    """The same for a frame's tokens at `positions` int64 [3, batch, n]: `next` is moved by what gave them, not here."""
    return launch(state, slots, counts, positions.shape[-1], positions.contiguous(), None, None)


def step_span(
    text: Tensor, grid: Tensor, size: tuple[int, int], table: Tensor, state: StreamState, slots: Tensor
) -> tuple[Span, Tensor]:
    """The same for a step where positions are counted: `text` int64 [batch, 2 + rows] as `InfiniteVL.ingest` takes it.

    `grid` [batch, tokens, hidden], contiguous, is what stands in it, of `size` (height, width) in tokens, `table` [vocabulary,
    hidden] what words mean. Positions are those of `StreamState.step_positions`. Returns the span and its rows [batch * n, hidden].
    """
    batch, tokens, width = grid.shape
    words, device = text.shape[1] - 2, grid.device
    n = words + tokens
    rows = torch.empty(batch * n, width, device=device, dtype=grid.dtype)
    positions = torch.empty(3, batch, n, device=device, dtype=torch.int64)
    moves, counts = torch.empty_like(slots), torch.empty_like(slots)
    weave_kernel[(n, batch)](
        text, grid, table, slots, state.next, state.origin, rows, positions, moves, counts,
        *text.stride(), n, words, tokens, size[1], max(size), width, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return launch(state, slots, counts, n, positions, moves, None), rows


def launch(
    state: StreamState,
    slots: Tensor,
    counts: Tensor,
    n: int,
    given: Tensor | None,
    moves: Tensor | None,
    lookup: tuple[Tensor, Tensor, Tensor] | None,
) -> Span:
    """Both kernels; `moves` int64 [batch] is by how much `next` goes on, `lookup` is tokens, table and the rows to fill."""
    config, decoder, batch, device = state.config, state.config.decoder, len(slots), slots.device
    sinks, half = config.policy.sinks, decoder.rotary_dim // 2
    counter = config.positions == "counter"
    horizon = config.position_cap if counter else config.horizon_steps
    axis, frequency = axes(
        decoder.rotary_dim, decoder.rope_theta, decoder.mrope_section, device, decoder.mrope_interleaved
    )
    cos, sin = torch.empty(2, batch, n, half, device=device)
    sink_cos, sink_sin = torch.empty(2, batch, sinks, half, device=device)
    starts = torch.empty_like(slots)
    strides, width = (lookup[0].stride(), lookup[1].shape[1]) if lookup else ((0, 0), 1)
    works = triton.cdiv(sinks, ROWS) + triton.cdiv(n, ROWS) + (n if lookup else 0)
    sink_positions = state.sink_positions if sinks else state.origin  # of which nothing is read then
    cursors = state.length, state.next, state.time, state.origin, sink_positions, given, moves
    span_kernel[(works, batch)](
        slots, counts, *cursors, axis, frequency, starts, cos, sin, sink_cos, sink_sin,
        *(lookup or (None, None, None)), n, *strides, width, SINKS=sinks, HORIZON=horizon, COUNTER=counter,
        HALF=half, ROWS=ROWS, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    commit_kernel[(batch,)](
        slots, counts, starts, *cursors, n, SINKS=sinks, HORIZON=horizon, COUNTER=counter,
        BLOCK=triton.next_power_of_2(max(sinks, 1)), num_warps=4,
    )  # fmt: skip
    return Span(slots, starts, counts, (cos, sin), (sink_cos, sink_sin))
