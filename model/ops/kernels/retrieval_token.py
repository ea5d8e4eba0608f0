"""Attention that retrieves, of one token, over pages: all lengths are read from the device, so that a graph of it can be replayed.

The formula is `model.ops.retrieval`'s. Grids are cut for as much history as a graph serves; programs beyond what there is end at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.attention import LOG2E, attend_tile, join_kernel
from model.ops.kernels.dependence import dependent
from model.ops.kernels.paging import locate
from model.ops.kernels.span_scores import ended_spans
from model.policy import RetrievalPolicy

SPLITS = 32
"""Programs of each head of keys that share what a token sees."""


class Past(NamedTuple):
    """What one sequence keeps in one layer, as its last token finds it there.

    `keys` and `values` [groups, blocks of the pool, block, head], `pooled` float32 [groups, strides of all pages, head]; its
    `frames` int32 [pages], where in the pool its pages lie, and `pages` int32 [pages], where among all; `starts` int64 [1], the tokens
    before; of `blocks` blocks at most; a page has `page` tokens.
    """

    keys: Tensor
    values: Tensor
    pooled: Tensor
    frames: Tensor
    pages: Tensor
    starts: Tensor
    blocks: int
    page: int


@triton.jit
def logit_kernel(
    q, pooled, pages, starts, logits, tops, norms, width, group_stride, dense, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, STRIDES: tl.constexpr,
    ROWS: tl.constexpr, SPANS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of spans by each head, their largest and the sum of their exponentials."""
    tile, group = tl.program_id(0), tl.program_id(1)
    index = tl.load(starts).to(tl.int32)
    ended = tl.where(index < dense, 0, ended_spans(index, KERNEL, STRIDE))
    if tile * SPANS < ended:
        row, column, d = tl.arange(0, ROWS), tl.arange(0, SPANS), tl.arange(0, HEAD)
        real = row < GROUP
        rows = tl.load(q + (group * GROUP + row)[:, None] * HEAD + d[None, :], mask=real[:, None], other=0.0)
        span = tile * SPANS + column
        here = span < ended
        last = span + (KERNEL // STRIDE - 1)
        at = tl.load(pages + last // STRIDES, mask=here, other=0).to(tl.int64) * STRIDES + last % STRIDES
        k = tl.load(pooled + group * group_stride + at[:, None] * HEAD + d[None, :], mask=here[:, None], other=0.0)
        score = tl.dot(rows, tl.trans(k.to(rows.dtype)), input_precision=PRECISION) * scale
        head = group * GROUP + row
        tl.store(logits + head[:, None] * width + span[None, :], score, mask=real[:, None] & here[None, :])
        score = tl.where(here[None, :], score, -1e30)
        top = tl.max(score, 1)
        norm = tl.sum(tl.where(here[None, :], tl.exp2(score - top[:, None]), 0.0), 1)
        to = head * tl.num_programs(0) + tile
        tl.store(tops + to, top, mask=real)
        tl.store(norms + to, norm, mask=real)


@triton.jit
def block_kernel(
    logits, tops, norms, starts, best, width, blocks, tiles, dense,
    GROUP: tl.constexpr, SIZE: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, SPANS: tl.constexpr,
    TILES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of blocks: of each the largest share that a span which touches it has, below 0 where there is none."""
    tile, group = tl.program_id(0), tl.program_id(1)
    index = tl.load(starts).to(tl.int32)
    ended = ended_spans(index, KERNEL, STRIDE)
    if (index >= dense) & (tile * BLOCKS * SIZE <= index):
        head, part = group * GROUP + tl.arange(0, GROUP), tl.arange(0, TILES)
        at = head[:, None] * tiles + part[None, :]
        there = (part < tl.cdiv(ended, SPANS))[None, :]
        some = tl.load(tops + at, mask=there, other=-1e30)
        top = tl.max(some, 1)
        norm = tl.sum(tl.load(norms + at, mask=there, other=0.0) * tl.exp2(some - top[:, None]), 1)
        top += tl.log2(tl.where(norm > 0, norm, 1.0))
        number = tile * BLOCKS + tl.arange(0, BLOCKS)
        high = tl.full((BLOCKS,), -1.0, tl.float32)
        ratio: tl.constexpr = SIZE // STRIDE
        before: tl.constexpr = KERNEL // STRIDE - 1
        for touching in tl.static_range(ratio + before):
            span = number * ratio + (touching - before)
            here = (span >= 0) & (span < ended)
            score = tl.load(logits + head[:, None] * width + span[None, :], mask=here[None, :], other=-1e30)
            share = tl.sum(tl.exp2(score - top[:, None]), 0)
            high = tl.maximum(high, tl.where(here, share, -1.0))
        tl.store(best + group * blocks + number, high, mask=number < blocks)


@triton.jit
def best_blocks(best, eligible, TOP: tl.constexpr, SEGMENTS: tl.constexpr, BLOCKS: tl.constexpr):
    """Which of the `eligible` have the TOP best scores, of equal ones the earlier; scores below 0 are all the same.

    Bits of floats that are not negative stand in the order of their values, so that the least key among the best is found by
    halving, without sorting. Each of SEGMENTS (TOP or more, all of one size) has a best: all of these are at least the worst of them.
    """
    key = tl.where(best >= 0, best.to(tl.int32, bitcast=True) + 1, 0)
    key = tl.where(eligible, key, -1)
    crests = tl.max(tl.reshape(key, (BLOCKS // SEGMENTS, SEGMENTS)), 0)
    low, high = tl.maximum(tl.min(crests, 0), 0), tl.maximum(tl.max(crests, 0), 0) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        found = tl.sum((key >= middle).to(tl.int32), 0)
        low = tl.where(found >= TOP, middle, low)
        high = tl.where(found == TOP, middle + 1, tl.where(found > TOP, high, middle))
    seen, equal = key >= low, key == low
    spare = tl.sum(seen.to(tl.int32), 0) - TOP
    if spare > 0:
        room = tl.sum(equal.to(tl.int32), 0) - spare
        seen = (key > low) | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))
    return eligible & seen


@triton.jit
def places_of(seen, MOST: tl.constexpr, BLOCKS: tl.constexpr):
    """Of each that is `seen`, at most MOST, how many are before it; where a byte holds that, counted in four quarters at once."""
    if MOST <= 255:
        quarter = tl.arange(0, 4)[:, None]
        packed = tl.sum(tl.reshape(seen.to(tl.int32), (4, BLOCKS // 4)) << (8 * quarter), 0)
        total = tl.sum(packed, 0)
        before = tl.where(quarter > 0, total & 255, 0)
        before += tl.where(quarter > 1, (total >> 8) & 255, 0) + tl.where(quarter > 2, (total >> 16) & 255, 0)
        inside = (tl.cumsum(packed, 0)[None, :] >> (8 * quarter)) & 255
        place = tl.reshape(before + inside - 1, (BLOCKS,))
    else:
        place = tl.cumsum(seen.to(tl.int32), 0) - 1
    return place


@triton.jit
def pick_kernel(
    best, starts, chosen, counts, blocks, window, dense,
    SIZE: tl.constexpr, INIT: tl.constexpr, TOP: tl.constexpr, SEGMENTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """As `choose_kernel`, of one token."""
    group = tl.program_id(0)
    index = tl.load(starts).to(tl.int32)
    if index < dense:
        tl.store(counts + group, 0)
    else:
        number = tl.arange(0, BLOCKS)
        eligible = (number >= INIT) & (number * SIZE <= index - window)
        high = tl.load(best + group * blocks + number, mask=eligible, other=-1.0)
        seen = best_blocks(high, eligible, TOP, SEGMENTS, BLOCKS) | ((number < INIT) & (number * SIZE <= index))
        place = places_of(seen, INIT + TOP, BLOCKS)
        tl.store(chosen + group * (INIT + TOP) + place, number, mask=seen)
        tl.store(counts + group, tl.sum(seen.to(tl.int32), 0))


@triton.jit
def seen_tiles(index, counts, window, dense, SIZE: tl.constexpr, KEYS: tl.constexpr):
    """Of a token at `index`: its window, how many blocks it chose, the tiles of those, and the first and number of the window's."""
    count = tl.where(index < dense, 0, tl.load(counts))
    window = tl.where(index < dense, index + 1, window)
    oldest = tl.maximum(index - window + 1, 0) // KEYS
    return window, count, tl.cdiv(count * SIZE, KEYS), oldest, index // KEYS - oldest + 1


@triton.jit
def seen_tokens(tile, index, chosen, window, count, far, oldest, SIZE: tl.constexpr, KEYS: tl.constexpr):
    """The tokens of a tile of what a token at `index` sees, and which of them are meant: first the blocks chosen, then the window."""
    at = tile * KEYS + tl.arange(0, KEYS)
    picked = (at // SIZE < count) & (tile < far)
    number = tl.load(chosen + at // SIZE, mask=picked, other=0)
    token = tl.where(tile < far, number * SIZE + at % SIZE, (oldest - far) * KEYS + at)
    age = index - token
    return token, (age >= 0) & tl.where(tile < far, picked & (age >= window), age < window)


@triton.jit
def look_kernel(
    q, keys, values, frames, starts, chosen, counts, parts, tops, norms, group_stride, window, dense, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, SIZE: tl.constexpr, MOST: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A part of what a token sees, for `join_kernel`."""
    split, group = tl.program_id(0), tl.program_id(1)
    index = tl.load(starts).to(tl.int32)
    chosen += group * MOST
    window, count, far, oldest, near = seen_tiles(index, counts + group, window, dense, SIZE, KEYS)
    total = far + near
    row, d = tl.arange(0, ROWS), tl.arange(0, HEAD)[None, :]
    real = (row < GROUP)[:, None]
    head = (group * GROUP + row)[:, None]
    rows = tl.load(q + head * HEAD + d, mask=real, other=0.0)
    acc = tl.zeros((ROWS, HEAD), tl.float32)
    top = tl.full((ROWS,), -1e30, tl.float32)
    norm = tl.zeros((ROWS,), tl.float32)
    for tile in range(total * split // tl.num_programs(0), total * (split + 1) // tl.num_programs(0)):
        token, shown = seen_tokens(tile, index, chosen, window, count, far, oldest, SIZE, KEYS)
        at = group * group_stride + locate(frames, token, shown, PAGE)[:, None] * HEAD + d
        k = tl.load(keys + at, mask=shown[:, None], other=0.0)
        v = tl.load(values + at, mask=shown[:, None], other=0.0)
        acc, top, norm = attend_tile(rows, k, v, acc, top, norm, shown[None, :] & real, scale, True, PRECISION)
    to = split * (tl.num_programs(1) * GROUP) + head
    tl.store(parts + to * HEAD + d, acc, mask=real)
    tl.store(tops + to, top[:, None], mask=real)
    tl.store(norms + to, norm[:, None], mask=real)


@triton.jit
def note_kernel(
    q, keys, frames, starts, chosen, counts, tops, norms, slots, real_tokens, notes, notes_stride, group_stride, window, dense, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, SIZE: tl.constexpr, MOST: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds each block's share of what a token sees, summed over the heads, to `notes`."""
    split, group = tl.program_id(0), tl.program_id(1)
    index = tl.load(starts).to(tl.int32)
    chosen += group * MOST
    window, count, far, oldest, near = seen_tiles(index, counts + group, window, dense, SIZE, KEYS)
    total = tl.where(tl.load(real_tokens) > 0, far + near, 0)
    notes += tl.load(slots) * notes_stride
    row, d = tl.arange(0, ROWS), tl.arange(0, HEAD)[None, :]
    real = row < GROUP
    head = group * GROUP + row
    rows = tl.load(q + head[:, None] * HEAD + d, mask=real[:, None], other=0.0)
    part = tl.arange(0, SPLITS)[None, :] * (tl.num_programs(1) * GROUP) + head[:, None]
    some = tl.load(tops + part, mask=real[:, None], other=-1e30)
    top = tl.max(some, 1)
    norm = tl.sum(tl.load(norms + part, mask=real[:, None], other=0.0) * tl.exp2(some - top[:, None]), 1)
    top += tl.log2(tl.where(norm > 0, norm, 1.0))
    for tile in range(total * split // tl.num_programs(0), total * (split + 1) // tl.num_programs(0)):
        token, shown = seen_tokens(tile, index, chosen, window, count, far, oldest, SIZE, KEYS)
        at = group * group_stride + locate(frames, token, shown, PAGE)[:, None] * HEAD + d
        k = tl.load(keys + at, mask=shown[:, None], other=0.0)
        score = tl.dot(rows, tl.trans(k), input_precision=PRECISION) * scale
        share = tl.where(shown[None, :] & real[:, None], tl.exp2(score - top[:, None]), 0.0)
        tl.atomic_add(notes + token // SIZE, tl.sum(share, 0), mask=shown)


def retrieve_token(q: Tensor, past: Past, policy: RetrievalPolicy, noted: tuple[Tensor, ...] | None = None) -> Tensor:
    """Attention of the last token's `q` [1, heads, head], contiguous, over all before it and itself. Returns the same shape.

    Where there is `noted`, float32 [slots, blocks], a slot int64 [1] and whether the token is real, int64 [1], each block's share is
    added there. Heads of a group are a power of two.
    """
    groups, _, size, head = past.keys.shape
    heads, device, wide = q.shape[1], q.device, q.dtype == torch.float32
    group, dense, window, most = heads // groups, policy.dense_len, policy.window_size, policy.init_blocks + policy.topk
    rows, keys, scale = max(16, group), max(32 if wide else 64, size), head**-0.5 * LOG2E
    precision = "tf32x3" if wide else "tf32"
    chosen = torch.empty(groups, most, device=device, dtype=torch.int32)
    counts = torch.empty(groups, device=device, dtype=torch.int32)
    _pick(q, past, policy, chosen, counts)
    parts = torch.empty(SPLITS, heads, head, device=device)
    tops, norms = torch.empty(2, SPLITS, heads, device=device)
    same = {"GROUP": group, "HEAD": head, "SIZE": size, "MOST": most, "PAGE": past.page, "ROWS": rows, "KEYS": keys}
    numbers = past.keys.stride(0), window, dense, scale
    look_kernel[(SPLITS, groups)](
        q, past.keys, past.values, past.frames, past.starts, chosen, counts, parts, tops, norms, *numbers,
        **same, PRECISION=precision, num_warps=4, num_stages=2,
    )  # fmt: skip
    if noted is not None:
        notes, *of = noted
        note_kernel[(SPLITS, groups)](
            q, past.keys, past.frames, past.starts, chosen, counts, tops, norms, *of, notes, notes.stride(0), *numbers,
            **same, SPLITS=SPLITS, PRECISION=precision, num_warps=4, num_stages=2,
        )  # fmt: skip
    out = torch.empty_like(q)
    join_kernel[(heads,)](
        parts, tops, norms, out, heads, HEAD=head, SPLITS=SPLITS, ROWS=1, num_warps=4, **dependent(q, 1)
    )
    return out


def _pick(q: Tensor, past: Past, policy: RetrievalPolicy, chosen: Tensor, counts: Tensor) -> None:
    """Fills in which blocks the token sees beside its window, and how many these are; none where it sees everything."""
    groups, heads, head = len(past.keys), *q.shape[1:]
    device, wide, group = q.device, q.dtype == torch.float32, heads // groups
    kernel, stride, size = policy.kernel_size, policy.kernel_stride, policy.block_size
    spans, few = 64, 64
    width, dense = past.blocks * policy.ratio, policy.dense_len
    tiles = triton.cdiv(width, spans)
    logits = torch.empty(heads, width, device=device)
    tops, norms = torch.empty(2, heads, tiles, device=device)
    best = torch.empty(groups, past.blocks, device=device)
    logit_kernel[(tiles, groups)](
        q, past.pooled, past.pages, past.starts, logits, tops, norms, width, past.pooled.stride(0), dense, head**-0.5 * LOG2E,
        GROUP=group, HEAD=head, KERNEL=kernel, STRIDE=stride, STRIDES=past.page // stride,
        ROWS=max(16, group), SPANS=spans, PRECISION="tf32x3" if wide else "tf32", num_warps=4,
    )  # fmt: skip
    block_kernel[(triton.cdiv(past.blocks, few), groups)](
        logits, tops, norms, past.starts, best, width, past.blocks, tiles, dense,
        GROUP=group, SIZE=size, KERNEL=kernel, STRIDE=stride, SPANS=spans, TILES=triton.next_power_of_2(tiles), BLOCKS=few,
        num_warps=4,
    )  # fmt: skip
    segments = triton.next_power_of_2(policy.topk)
    blocks = max(64, segments, triton.next_power_of_2(past.blocks))
    pick_kernel[(groups,)](
        best, past.starts, chosen, counts, past.blocks, policy.window_size, dense, SIZE=size,
        INIT=policy.init_blocks, TOP=policy.topk, SEGMENTS=segments, BLOCKS=blocks, num_warps=max(4, min(32, blocks // 512)),
    )  # fmt: skip
