"""Attention with sinks and a window over the rows of a pool's slots, read in place; masks come from cursors on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.config import AttentionPolicy

EVER = 1 << 30
"""A window that shows every key."""


@triton.jit
def load_turned(x, cos, sin, inside, offset, HEAD: tl.constexpr):
    """Loads [rows, HEAD] at `x` + `offset` (both [rows, 1]) and rotates it by [rows, HEAD / 2] at `cos` and `sin` ([rows, 1])."""
    d = tl.arange(0, HEAD)[None, :]
    half: tl.constexpr = HEAD // 2
    straight = tl.load(x + offset + d, mask=inside, other=0.0).to(tl.float32)
    crossed = tl.load(x + offset + (d + half) % HEAD, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + d % half, mask=inside, other=0.0)
    s = tl.load(sin + d % half, mask=inside, other=0.0)
    return straight * c + tl.where(d < half, -crossed, crossed) * s


@triton.jit
def place_kernel(
    joint, cos, sin, sink_cos, sink_sin, slots, starts, counts, keys, values, sinks,
    n, stride, ring, slot_stride,
    QUERIES: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, SINKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    block, work, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = work % HEADS
    start, count = tl.load(starts + batch), tl.load(counts + batch)
    slot = tl.load(slots + batch) * slot_stride
    d = tl.arange(0, HEAD)[None, :]
    half: tl.constexpr = HEAD // 2
    source = joint + batch * n * stride + (QUERIES + head) * HEAD
    row = block * ROWS + tl.arange(0, ROWS)
    if work < HEADS:
        index = start + row
        new = (row < count)[:, None]
        at = row[:, None].to(tl.int64) * stride
        table = (batch * n + row)[:, None] * half
        turned = load_turned(source, cos + table, sin + table, new, at, HEAD)
        raw = tl.load(source + at + d, mask=new, other=0.0)
        to = tl.where(index < SINKS, index, SINKS + index % ring)
        to = slot + (to[:, None] * HEADS + head) * HEAD + d
        kept = tl.where((index < SINKS)[:, None], raw, turned.to(keys.dtype.element_ty))
        tl.store(keys + to, kept, mask=new)
        v = tl.load(source + HEADS * HEAD + at + d, mask=new, other=0.0)
        tl.store(values + to, v, mask=new)
    else:
        # A sink that arrives in this very call is read from the call: its row may not be written yet.
        inside = (row < SINKS)[:, None]
        fresh = ((row >= start) & (row < start + count))[:, None]
        table = (batch * SINKS + row)[:, None] * half
        here = (row - start)[:, None] * stride
        there = slot + (row[:, None].to(tl.int64) * HEADS + head) * HEAD
        arrived = load_turned(source, sink_cos + table, sink_sin + table, inside & fresh, here, HEAD)
        stored = load_turned(keys, sink_cos + table, sink_sin + table, inside & (fresh == 0), there, HEAD)
        to = ((batch * SINKS + row)[:, None] * HEADS + head) * HEAD + d
        tl.store(sinks + to, (arrived + stored).to(sinks.dtype.element_ty), mask=inside)


@triton.jit
def attend_tile(q, k, v, acc, top, norm, shown, scale, PRECISION: tl.constexpr):
    """One tile of keys into the running softmax."""
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    score = tl.where(shown, score, -1e30)
    higher = tl.maximum(top, tl.max(score, 1))
    p = tl.where(shown, tl.exp2(score - higher[:, None]), 0.0)
    faded = tl.exp2(top - higher)
    norm = norm * faded + tl.sum(p, 1)
    acc = acc * faded[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    return acc, higher, norm


@triton.jit
def attend_kernel(
    joint, cos, sin, slots, starts, counts, keys, values, sinks, out, tops, norms,
    n, stride, ring, slot_stride, window, scale, tiles,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, SINKS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    block, work, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    head, split = work // SPLITS, work % SPLITS
    half: tl.constexpr = HEAD // 2
    start = tl.load(starts + batch)
    last = start + tl.load(counts + batch) - 1
    slot = tl.load(slots + batch) * slot_stride
    d = tl.arange(0, HEAD)[None, :]
    row = block * ROWS + tl.arange(0, ROWS)
    step = row // GROUP
    inside = (step < n)[:, None]
    at = step[:, None] * stride + (head * GROUP + row % GROUP)[:, None] * HEAD
    table = (batch * n + step)[:, None] * half
    q = load_turned(joint + batch * n * stride, cos + table, sin + table, inside, at, HEAD)
    q = q.to(joint.dtype.element_ty)
    acc = tl.zeros((ROWS, HEAD), tl.float32)
    top = tl.full((ROWS,), -1e30, tl.float32)
    norm = tl.zeros((ROWS,), tl.float32)
    sink_tiles: tl.constexpr = (SINKS + KEYS - 1) // KEYS
    low, high = tiles * split // SPLITS, tiles * (split + 1) // SPLITS
    column = tl.arange(0, KEYS)
    for tile in range(low, tl.minimum(high, sink_tiles)):
        j = tile * KEYS + column
        here = (j < SINKS)[:, None]
        k = tl.load(sinks + ((batch * SINKS + j)[:, None] * HEADS + head) * HEAD + d, mask=here, other=0.0)
        v = tl.load(values + slot + (j[:, None] * HEADS + head) * HEAD + d, mask=here, other=0.0)
        shown = (j < SINKS)[None, :] & (j[None, :] <= step[:, None] + start)
        acc, top, norm = attend_tile(q, k, v, acc, top, norm, shown, scale, PRECISION)
    for tile in range(tl.maximum(low, sink_tiles), high):
        r = (tile - sink_tiles) * KEYS + column
        here = (r < ring)[:, None]
        there = slot + ((SINKS + r)[:, None] * HEADS + head) * HEAD + d
        k = tl.load(keys + there, mask=here, other=0.0)
        v = tl.load(values + there, mask=here, other=0.0)
        index = last - (((last - r) % ring) + ring) % ring
        held = (r < ring) & (index >= SINKS)
        # Ages fit 32 bits where indices do not.
        ahead = tl.maximum(index - start, -(1 << 30)).to(tl.int32)
        shown = held[None, :] & (ahead[None, :] <= step[:, None]) & (step[:, None] - ahead[None, :] < window)
        acc, top, norm = attend_tile(q, k, v, acc, top, norm, shown, scale, PRECISION)
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
def join_kernel(parts, tops, norms, out, rows, HEAD: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr):
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


def shape(batch: int, n: int, heads: int, group: int, tiles: int) -> tuple[int, int]:
    """Query rows a program and ways to split the keys, so that a large card has a program for every processor."""
    rows = 16 if n * group <= 16 else 32 if n * group <= 32 else 64 if n * group * heads * batch < 8192 else 128
    programs = triton.cdiv(n * group, rows) * heads * batch
    splits = 1
    while programs * splits < 100 and splits * 2 <= tiles:
        splits *= 2
    return rows, splits


def attend(
    joint: Tensor, turn: tuple[Tensor, Tensor], sink_turn: tuple[Tensor, Tensor], slots: Tensor, starts: Tensor,
    counts: Tensor, keys: Tensor, values: Tensor, queries: int, policy: AttentionPolicy,
) -> Tensor:  # fmt: skip
    """Puts n new keys and values a stream into its rows, then attends over all that the policy shows.

    `joint` [batch, n, heads of q, k and v side by side], contiguous; `turn` cosines and sines, float32 [batch, n, head / 2],
    `sink_turn` [batch, sinks, head / 2]; `slots`, `starts` (tokens taken before), `counts` (real tokens of the n) int64
    [batch]; `keys`, `values` [slots of the pool, rows, heads, head] as `StreamState` keeps them. Returns [batch, n, queries * head].
    """
    batch, n, width = joint.shape
    _, rows, heads, head = keys.shape
    sinks, ring = policy.sinks, rows - 1 - policy.sinks
    device, group = joint.device, queries // heads
    scratch = torch.empty(batch, max(sinks, 1), heads, head, device=device, dtype=joint.dtype)
    block = 16
    works = 2 * heads if sinks else heads
    place_kernel[(triton.cdiv(max(n, sinks), block), works, batch)](
        joint, *turn, *sink_turn, slots, starts, counts, keys, values, scratch, n, width, ring, keys.stride(0),
        QUERIES=queries, HEADS=heads, HEAD=head, SINKS=sinks, ROWS=block, num_warps=4,
    )  # fmt: skip
    size = 64 if joint.dtype != torch.float32 else 32
    tiles = triton.cdiv(sinks, size) + triton.cdiv(ring, size)
    lines, splits = shape(batch, n, heads, group, tiles)
    if joint.dtype == torch.float32:
        lines = min(lines, 32)
    out = torch.empty(batch, n, queries * head, device=device, dtype=joint.dtype)
    parts = torch.empty(splits, batch, n, queries, head, device=device) if splits > 1 else out
    tops = torch.empty(splits, batch, n, queries, device=device)
    norms = torch.empty_like(tops)
    window = EVER if policy.window is None else policy.window
    attend_kernel[(triton.cdiv(n * group, lines), heads * splits, batch)](
        joint, *turn, slots, starts, counts, keys, values, scratch, parts, tops, norms,
        n, width, ring, keys.stride(0), window, head**-0.5 * 1.4426950408889634, tiles,
        HEADS=heads, GROUP=group, HEAD=head, SINKS=sinks, ROWS=lines, KEYS=size, SPLITS=splits,
        PRECISION="tf32x3" if joint.dtype == torch.float32 else "tf32", num_warps=8 if lines == 128 else 4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        total = batch * n * queries
        lines = max(1, 32 // splits)
        join_kernel[(triton.cdiv(total, lines),)](
            parts, tops, norms, out, total, HEAD=head, SPLITS=splits, ROWS=lines, num_warps=4
        )
    return out
