"""Attention with sinks and a window over the rows of a pool's slots, read in place; masks come from cursors on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.config import AttentionPolicy
from model.ops.kernels.activation import PROCESSORS
from model.ops.kernels.dependence import dependent, follow

EVER = 1 << 30
"""A window that shows every key."""
LOG2E = 1.4426950408889634


@triton.jit
def load_normed(x, weight, inside, offset, eps, HEAD: tl.constexpr):
    """Loads [rows, HEAD] at `x` + `offset` ([rows, 1]) in float32, RMS normed where there is a `weight` [HEAD]; and each row's factor."""
    d = tl.arange(0, HEAD)[None, :]
    y = tl.load(x + offset + d, mask=inside, other=0.0).to(tl.float32)
    scale = tl.full((y.shape[0], 1), 1.0, tl.float32)
    if weight is not None:
        scale = tl.rsqrt(tl.sum(y * y, 1) / HEAD + eps)[:, None]
        y = y * scale * tl.load(weight + d).to(tl.float32)
    return y, scale


@triton.jit
def load_turned(x, cos, sin, weight, inside, offset, eps, HEAD: tl.constexpr, HALF: tl.constexpr):
    """`load_normed`, the first 2 * HALF of each row rotated by [rows, HALF] at `cos` and `sin` (both [rows, 1])."""
    d = tl.arange(0, HEAD)[None, :]
    moving = d < 2 * HALF
    other = tl.where(moving, (d + HALF) % (2 * HALF), d)
    straight, scale = load_normed(x, weight, inside, offset, eps, HEAD)
    crossed = tl.load(x + offset + other, mask=inside & moving, other=0.0).to(tl.float32)
    if weight is not None:
        crossed = crossed * scale * tl.load(weight + other).to(tl.float32)
    c = tl.load(cos + d % HALF, mask=inside & moving, other=0.0)
    s = tl.load(sin + d % HALF, mask=inside & moving, other=0.0)
    turned = straight * c + tl.where(d < HALF, -crossed, crossed) * s
    return turned if HEAD == 2 * HALF else tl.where(moving, turned, straight)


@triton.jit
def place_kernel(
    joint, cos, sin, sink_cos, sink_sin, slots, starts, counts, keys, values, sinks, weight,
    n, stride, ring, slot_stride, eps,
    QUERIES: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, SINKS: tl.constexpr,
    ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    block, work, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = work % HEADS
    start, count = tl.load(starts + batch), tl.load(counts + batch)
    slot = tl.load(slots + batch) * slot_stride
    d = tl.arange(0, HEAD)[None, :]
    source = joint + batch * n * stride + (QUERIES + head) * HEAD
    row = block * ROWS + tl.arange(0, ROWS)
    if work < HEADS:
        index = start + row
        new = (row < count)[:, None]
        at = row[:, None].to(tl.int64) * stride
        table = (batch * n + row)[:, None] * HALF
        turned = load_turned(source, cos + table, sin + table, weight, new, at, eps, HEAD, HALF)
        raw, _ = load_normed(source, weight, new, at, eps, HEAD)
        to = tl.where(index < SINKS, index, SINKS + index % ring)
        to = slot + (to[:, None] * HEADS + head) * HEAD + d
        kept = tl.where((index < SINKS)[:, None], raw, turned).to(keys.dtype.element_ty)
        tl.store(keys + to, kept, mask=new)
        v = tl.load(source + HEADS * HEAD + at + d, mask=new, other=0.0)
        tl.store(values + to, v, mask=new)
    else:
        # A sink that arrives in this very call is read from the call: its row may not be written yet.
        inside = (row < SINKS)[:, None]
        fresh = ((row >= start) & (row < start + count))[:, None]
        table = (batch * SINKS + row)[:, None] * HALF
        here = (row - start)[:, None] * stride
        there = slot + (row[:, None].to(tl.int64) * HEADS + head) * HEAD
        turn_c, turn_s = sink_cos + table, sink_sin + table
        arrived = load_turned(source, turn_c, turn_s, weight, inside & fresh, here, eps, HEAD, HALF)
        stored = load_turned(keys, turn_c, turn_s, None, inside & (fresh == 0), there, eps, HEAD, HALF)
        to = ((batch * SINKS + row)[:, None] * HEADS + head) * HEAD + d
        tl.store(sinks + to, (arrived + stored).to(sinks.dtype.element_ty), mask=inside)


@triton.jit
def attend_tile(q, k, v, acc, top, norm, shown, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One tile of keys into the running softmax; where MASKED, only what is `shown` counts."""
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        score = tl.where(shown, score, -1e30)
    higher = tl.maximum(top, tl.max(score, 1) * scale)
    p = tl.exp2(score * scale - higher[:, None])
    if MASKED:
        p = tl.where(shown, p, 0.0)
    faded = tl.exp2(top - higher)
    norm = norm * faded + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * faded[:, None], input_precision=PRECISION)
    return acc, higher, norm


@triton.jit
def load_ring(keys, values, ahead, newest, origin, ring, offset, HEADS: tl.constexpr, HEAD: tl.constexpr):
    """Keys and values of the tokens `ahead` [rows] of the call's first, which has row `origin` of the ring; 0 beyond `newest`."""
    row = origin + ahead
    row = tl.where(row < 0, row + ring, tl.where(row >= ring, row - ring, row))
    at = offset + row[:, None] * (HEADS * HEAD) + tl.arange(0, HEAD)[None, :]
    here = (ahead <= newest)[:, None]
    return tl.load(keys + at, mask=here, other=0.0), tl.load(values + at, mask=here, other=0.0)


@triton.jit
def attend_kernel(
    joint, cos, sin, slots, starts, counts, keys, values, sinks, weight, out, tops, norms,
    n, stride, ring, slot_stride, window, scale, eps,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, SINKS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    # Rows are the queries of one key head, so that a tile of keys serves the whole group.
    block, work, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    head, split = work // SPLITS, work % SPLITS
    start, count = tl.load(starts + batch), tl.load(counts + batch).to(tl.int32)
    slot = tl.load(slots + batch) * slot_stride
    keys, values = keys + slot, values + slot
    d = tl.arange(0, HEAD)[None, :]
    row = block * ROWS + tl.arange(0, ROWS)
    step = row // GROUP
    inside = (step < n)[:, None]
    at = step[:, None] * stride + (head * GROUP + row % GROUP)[:, None] * HEAD
    table = (batch * n + step)[:, None] * HALF
    q = load_turned(joint + batch * n * stride, cos + table, sin + table, weight, inside, at, eps, HEAD, HALF)
    q = q.to(joint.dtype.element_ty)
    acc = tl.zeros((ROWS, HEAD), tl.float32)
    top = tl.full((ROWS,), -1e30, tl.float32)
    norm = tl.zeros((ROWS,), tl.float32)
    # Tokens count from the call's first: those that the block sees are the interval from `oldest` to `newest`. Of its tiles
    # the ones in the middle are seen whole by every query. Such distances fit 32 bits where indices do not.
    first, final = block * ROWS // GROUP, (block * ROWS + ROWS - 1) // GROUP
    oldest = tl.maximum(first - window + 1, count - ring)
    oldest = tl.maximum(oldest, tl.maximum(SINKS - start, -(1 << 30)).to(tl.int32))
    newest = tl.minimum(final, count - 1)
    tiles = tl.cdiv(tl.maximum(newest - oldest + 1, 0), KEYS)
    sink_tiles: tl.constexpr = (SINKS + KEYS - 1) // KEYS
    total = sink_tiles + tiles
    low, high = total * split // SPLITS, total * (split + 1) // SPLITS
    column = tl.arange(0, KEYS)
    for tile in range(low, tl.minimum(high, sink_tiles)):
        j = tile * KEYS + column
        here = (j < SINKS)[:, None]
        k = tl.load(sinks + ((batch * SINKS + j)[:, None] * HEADS + head) * HEAD + d, mask=here, other=0.0)
        v = tl.load(values + (j[:, None] * HEADS + head) * HEAD + d, mask=here, other=0.0)
        shown = (j < SINKS)[None, :] & (j[None, :] <= step[:, None] + start)
        acc, top, norm = attend_tile(q, k, v, acc, top, norm, shown, scale, True, PRECISION)
    low, high = tl.maximum(low - sink_tiles, 0), tl.maximum(high - sink_tiles, 0)
    whole = tl.cdiv(tl.maximum(final - window + 1 - oldest, 0), KEYS)
    whole = tl.minimum(tl.maximum(whole, low), high)
    partly = tl.maximum(tl.minimum(first, newest) - oldest + 1, 0) // KEYS
    partly = tl.minimum(tl.maximum(partly, whole), high)
    origin = (start % ring).to(tl.int32)
    offset = (SINKS * HEADS + head) * HEAD
    for tile in range(whole, partly):
        ahead = oldest + tile * KEYS + column
        k, v = load_ring(keys, values, ahead, newest, origin, ring, offset, HEADS, HEAD)
        acc, top, norm = attend_tile(q, k, v, acc, top, norm, ahead, scale, False, PRECISION)
    early = whole - low
    for edge in range(0, early + high - partly):
        tile = tl.where(edge < early, low + edge, partly + edge - early)
        ahead = oldest + tile * KEYS + column
        k, v = load_ring(keys, values, ahead, newest, origin, ring, offset, HEADS, HEAD)
        shown = (ahead[None, :] <= tl.minimum(step, newest)[:, None]) & (step[:, None] - ahead[None, :] < window)
        acc, top, norm = attend_tile(q, k, v, acc, top, norm, shown, scale, True, PRECISION)
    to = (batch * n + step)[:, None] * (HEADS * GROUP) + (head * GROUP + row % GROUP)[:, None]
    if SPLITS == 1:
        acc = acc / tl.where(norm > 0, norm, 1.0)[:, None]
        tl.store(out + to * HEAD + d, acc.to(out.dtype.element_ty), mask=inside)
    else:
        share = split * tl.num_programs(2) * n * HEADS * GROUP
        tl.store(out + (share + to) * HEAD + d, acc, mask=inside)
        tl.store(tops + share + to, top[:, None], mask=inside)
        tl.store(norms + share + to, norm[:, None], mask=inside)


@triton.jit
def join_kernel(
    parts, tops, norms, out, rows, HEAD: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr
):
    follow(EARLY)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    d = tl.arange(0, HEAD)
    at = tl.arange(0, SPLITS)[None, :].to(tl.int64) * rows + row[:, None]
    top = tl.load(tops + at, mask=inside[:, None], other=-1e30)
    share = tl.exp2(top - tl.max(top, 1)[:, None])
    norm = tl.sum(tl.load(norms + at, mask=inside[:, None], other=0.0) * share, 1)
    share = share / tl.where(norm > 0, norm, 1.0)[:, None]
    part = tl.load(parts + at[:, :, None] * HEAD + d[None, None, :], mask=inside[:, None, None], other=0.0)
    y = tl.sum(part * share[:, :, None], 1)
    tl.store(out + row[:, None].to(tl.int64) * HEAD + d[None, :], y.to(out.dtype.element_ty), mask=inside[:, None])


class Tiling(NamedTuple):
    """How `attend_kernel` is cut: query rows and keys a tile, programs that share a row's keys, warps, tiles in flight."""

    rows: int
    keys: int
    splits: int
    warps: int
    stages: int


def tiling(rows: int, heads: int, keys: int, dtype: torch.dtype, head: int = 128) -> Tiling:
    """For `rows` queries of each of `heads` (over the batch) that see `keys` keys: a program for every processor of a large card."""
    if dtype == torch.float32:
        lines, size, warps, stages = 16 if rows <= 16 else 32, 32, 4, 2
    elif rows <= 64:
        lines, size, warps, stages = max(16, triton.next_power_of_2(rows)), 64, 4, 3
        if head > 128:
            size = 32
    elif head > 128:
        # As swept on an H200: two tiles of rows share what they load, unless that leaves too few programs for a card.
        lines, size, warps, stages = 128, 32, 8, 3
        if triton.cdiv(rows, 64) * heads * 4 <= PROCESSORS:
            lines, warps = 64, 4
    else:
        lines, size, warps, stages = 128, 128, 8, 2
    programs, tiles, splits = triton.cdiv(rows, lines) * heads, triton.cdiv(keys, size), 1
    while programs * splits * 2 <= PROCESSORS and splits * 2 <= tiles:
        splits *= 2
    return Tiling(lines, size, splits, warps, stages)


class HeadNorms(NamedTuple):
    """RMS norms of each head of queries and of keys: weights [head], and what is added to the mean square."""

    queries: Tensor
    keys: Tensor
    eps: float


def place(
    joint: Tensor, turn: tuple[Tensor, Tensor], sink_turn: tuple[Tensor, Tensor], slots: Tensor, starts: Tensor,
    counts: Tensor, keys: Tensor, values: Tensor, queries: int, policy: AttentionPolicy, norms: HeadNorms | None = None,
) -> Tensor:  # fmt: skip
    """Puts n new keys and values a stream into its rows, as `attend` does. Returns the sinks' keys, turned, [batch, sinks, heads, head]."""
    assert joint.is_contiguous(), "rows that a product padded would be read askew"
    batch, n, width = joint.shape
    _, rows, heads, head = keys.shape
    scratch = torch.empty(batch, max(policy.sinks, 1), heads, head, device=joint.device, dtype=joint.dtype)
    block = 16
    works = 2 * heads if policy.sinks else heads
    place_kernel[(triton.cdiv(max(n, policy.sinks), block), works, batch)](
        joint, *turn, *sink_turn, slots, starts, counts, keys, values, scratch, norms and norms.keys,
        n, width, rows - 1 - policy.sinks, keys.stride(0), norms.eps if norms else 0.0,
        QUERIES=queries, HEADS=heads, HEAD=head, HALF=turn[0].shape[-1], SINKS=policy.sinks, ROWS=block,
        num_warps=8 if head > 128 else 4, **dependent(joint, batch * n),
    )  # fmt: skip
    return scratch


def attend(
    joint: Tensor, turn: tuple[Tensor, Tensor], sink_turn: tuple[Tensor, Tensor], slots: Tensor, starts: Tensor,
    counts: Tensor, keys: Tensor, values: Tensor, queries: int, policy: AttentionPolicy,
    cut: Tiling | None = None, norms: HeadNorms | None = None,
) -> Tensor:  # fmt: skip
    """Puts n new keys and values a stream into its rows, then attends over all that the policy shows.

    `joint` [batch, n, heads of q, k and v side by side, and whatever else], contiguous; `turn` cosines and sines, float32
    [batch, n, turned / 2], `sink_turn` [batch, sinks, turned / 2], where the first `turned` of a head's values are turned; `slots`,
    `starts` (tokens taken before), `counts` (real tokens of the n) int64 [batch]; `keys`, `values` [slots of the pool, rows,
    heads, head] as `StreamState` keeps them. Heads are normed before they are turned where there are `norms`. `cut` overrides
    the tiling chosen by size. Returns [batch, n, queries * head].
    """
    scratch = place(joint, turn, sink_turn, slots, starts, counts, keys, values, queries, policy, norms)
    batch, n, width = joint.shape
    _, rows, heads, head = keys.shape
    sinks, ring = policy.sinks, rows - 1 - policy.sinks
    device, group = joint.device, queries // heads
    window = EVER if policy.window is None else policy.window
    cut = cut or tiling(n * group, heads * batch, sinks + min(ring, window + n), joint.dtype, head)
    splits = cut.splits
    out = torch.empty(batch, n, queries * head, device=device, dtype=joint.dtype)
    parts = torch.empty(splits, batch, n, queries, head, device=device) if splits > 1 else out
    tops = torch.empty(splits, batch, n, queries, device=device)
    sums = torch.empty_like(tops)
    attend_kernel[(triton.cdiv(n * group, cut.rows), heads * splits, batch)](
        joint, *turn, slots, starts, counts, keys, values, scratch, norms and norms.queries, parts, tops, sums,
        n, width, ring, keys.stride(0), window, head**-0.5 * LOG2E, norms.eps if norms else 0.0,
        HEADS=heads, GROUP=group, HEAD=head, HALF=turn[0].shape[-1], SINKS=sinks, ROWS=cut.rows, KEYS=cut.keys,
        SPLITS=splits, PRECISION="tf32x3" if joint.dtype == torch.float32 else "tf32",
        num_warps=cut.warps, num_stages=cut.stages, **dependent(joint, batch * n),
    )  # fmt: skip
    if splits > 1:
        total = batch * n * queries
        lines = max(1, 32 // splits)
        join_kernel[(triton.cdiv(total, lines),)](
            parts, tops, sums, out, total, HEAD=head, SPLITS=splits, ROWS=lines, num_warps=4,
            **dependent(joint, batch * n),
        )  # fmt: skip
    return out
