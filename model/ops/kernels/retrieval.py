"""Attention that retrieves, over pages: the choice of blocks by the scores of spans, then the last tokens and the blocks chosen.

The formula is `model.ops.retrieval`'s. A tile's rows are the queries of one head of keys, so that what is loaded serves its whole
group; the blocks that a query chose serve that query alone, since its neighbours choose others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.attention import EVER, LOG2E, attend_tile
from model.ops.kernels.span_scores import Held, ended_spans, load_queries, score
from model.policy import RetrievalPolicy

SHARES = 1 << 29
"""Bytes of the scores that are kept at once: a long call is taken in pieces of queries."""
MOST = 4_096
"""Queries of such a piece."""


class Cut(NamedTuple):
    """How a kernel over keys is cut: keys a tile, warps, tiles in flight."""

    keys: int
    warps: int
    stages: int


NEAR, FAR = (Cut(64, 8, 2), Cut(32, 4, 2)), (Cut(32, 1, 3), Cut(32, 4, 2))
"""Of whole tiles of rows, and of one query as swept on an H200 at 262,144 tokens; in bfloat16 and in float32."""


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
def choose_kernel(
    shares, table, chosen, places, counts, first, n, width, window,
    SIZE: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, INIT: tl.constexpr, TOP: tl.constexpr,
    SEGMENTS: tl.constexpr, MOST: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The numbers of the blocks that a query sees beside the last tokens, in their order, where they lie, and how many they are."""
    step, group = tl.program_id(0), tl.program_id(1)
    index = first + step
    number = tl.arange(0, BLOCKS)
    eligible = (number >= INIT) & (number * SIZE <= index - window)
    ended = ended_spans(index, KERNEL, STRIDE)
    ratio: tl.constexpr = SIZE // STRIDE
    row = shares + (group * n + step).to(tl.int64) * (ratio * width)
    best = tl.full((BLOCKS,), -1.0, tl.float32)
    before: tl.constexpr = KERNEL // STRIDE - 1
    # A span's share is read, whatever it is, before it is asked whether it counts: so a thread reads several at once.
    for touching in tl.static_range(ratio + before):
        ahead = (touching - before) // ratio
        at = number + ahead
        there = at < width if ahead >= 0 else (at >= 0) & (at < width)
        share = tl.load(row + (touching - before) % ratio * width + at, mask=there, other=-1.0)
        best = tl.maximum(best, tl.where(there & (number * ratio + (touching - before) < ended), share, -1.0))
    seen = best_blocks(best, eligible, TOP, SEGMENTS, BLOCKS)
    seen = seen | ((number < INIT) & (number * SIZE <= index))
    own, count = group * n + step, tl.sum(seen.to(tl.int32), 0)
    to = own.to(tl.int64) * (INIT + TOP)
    tl.store(chosen + to + places_of(seen, INIT + TOP, BLOCKS), number, mask=seen)
    tl.store(counts + own, count)
    tl.debug_barrier()  # what other warps chose is looked up by all of them
    entry = tl.arange(0, MOST)
    picked = tl.load(chosen + to + entry, mask=entry < count, other=0)
    tl.store(places + to + entry, tl.load(table + picked, mask=entry < count, other=0), mask=entry < count)


@triton.jit
def near_kernel(
    q, keys, values, table, out, tops, norms, first, n, stride, group_stride, window, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The last `window` tokens of each query; where WHOLE that is all it sees, else what is not divided by its norm yet."""
    block, group = tl.program_id(0), tl.program_id(1)
    rows, row, step = load_queries(q, block, group, n, stride, GROUP, HEAD, ROWS)
    d = tl.arange(0, HEAD)[None, :]
    keys += group * group_stride
    values += group * group_stride
    acc = tl.zeros((ROWS, HEAD), tl.float32)
    top = tl.full((ROWS,), -1e30, tl.float32)
    norm = tl.zeros((ROWS,), tl.float32)
    index, early_step = first + step, first + block * ROWS // GROUP
    newest = first + tl.minimum((block * ROWS + ROWS - 1) // GROUP, n - 1)
    # Of the tiles those in the middle are seen whole by every query.
    low, high = tl.maximum(early_step - window + 1, 0) // KEYS, newest // KEYS + 1
    whole = tl.minimum(tl.cdiv(tl.maximum(newest - window + 1, 0), KEYS), high)
    partly = tl.minimum(tl.maximum((early_step + 1) // KEYS, whole), high)
    column = tl.arange(0, KEYS)
    for tile in range(whole, partly):
        token = tile * KEYS + column
        at = tl.load(table + token // SIZE).to(tl.int64) * SIZE + token % SIZE
        k, v = tl.load(keys + at[:, None] * HEAD + d), tl.load(values + at[:, None] * HEAD + d)
        acc, top, norm = attend_tile(rows, k, v, acc, top, norm, token, scale, False, PRECISION)
    early = whole - low
    for edge in range(0, early + high - partly):
        token = tl.where(edge < early, low + edge, partly + edge - early) * KEYS + column
        here = token <= newest
        at = tl.load(table + token // SIZE, mask=here, other=0).to(tl.int64) * SIZE + token % SIZE
        k = tl.load(keys + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        v = tl.load(values + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        age = index[:, None] - token[None, :]
        acc, top, norm = attend_tile(rows, k, v, acc, top, norm, (age >= 0) & (age < window), scale, True, PRECISION)
    total = n * GROUP
    to = step.to(tl.int64) * (tl.num_programs(1) * GROUP) + group * GROUP + row % GROUP
    real = row < total
    if WHOLE:
        acc = acc / tl.where(norm > 0, norm, 1.0)[:, None]
    else:
        tl.store(tops + to, top, mask=real)
        tl.store(norms + to, norm, mask=real)
    tl.store(out + to[:, None] * HEAD + d, acc.to(out.dtype.element_ty), mask=real[:, None])


@triton.jit
def far_kernel(
    q, keys, values, chosen, places, counts, near, tops, norms, out, first, n, stride, group_stride, window, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, SIZE: tl.constexpr, MOST: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The blocks that one query chose, after its last tokens: the whole attention."""
    step, group = tl.program_id(0), tl.program_id(1)
    index = first + step
    row = tl.arange(0, ROWS)
    real = row < GROUP
    d = tl.arange(0, HEAD)[None, :]
    head = group * GROUP + row
    rows = tl.load(q + step.to(tl.int64) * stride + head[:, None] * HEAD + d, mask=real[:, None], other=0.0)
    keys += group * group_stride
    values += group * group_stride
    to = step.to(tl.int64) * (tl.num_programs(1) * GROUP) + head
    acc = tl.load(near + to[:, None] * HEAD + d, mask=real[:, None], other=0.0)
    top = tl.load(tops + to, mask=real, other=-1e30)
    norm = tl.load(norms + to, mask=real, other=0.0)
    own = group * n + step
    count = tl.load(counts + own)
    chosen += own.to(tl.int64) * MOST
    places += own.to(tl.int64) * MOST
    column = tl.arange(0, KEYS)
    for tile in range(tl.cdiv(count * SIZE, KEYS)):
        flat = tile * KEYS + column
        entry = flat // SIZE
        here = entry < count
        at = tl.load(places + entry, mask=here, other=0).to(tl.int64) * SIZE + flat % SIZE
        k = tl.load(keys + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        v = tl.load(values + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        number = tl.load(chosen + entry, mask=here, other=0)
        shown = here & (index - (number * SIZE + flat % SIZE) >= window)
        acc, top, norm = attend_tile(rows, k, v, acc, top, norm, shown[None, :] & real[:, None], scale, True, PRECISION)
    acc = acc / tl.where(norm > 0, norm, 1.0)[:, None]
    tl.store(out + to[:, None] * HEAD + d, acc.to(out.dtype.element_ty), mask=real[:, None])


def retrieve(q: Tensor, first: int, held: Held, policy: RetrievalPolicy) -> Tensor:
    """Attention of `q` [n, heads, head], the tokens from index `first` on, over what `held` keeps with them in it.

    The last axis of `q` and all of `held` are contiguous; heads of a group are a power of two. Returns [n, heads, head], as
    `model.ops.retrieval.retrieve`.
    """
    out = torch.empty(q.shape, device=q.device, dtype=q.dtype)
    start, stop = first, first + len(q)
    most = max(16, min(MOST, SHARES // (4 * held.keys.shape[0] * max(1, held.pooled.shape[1:3].numel()))))
    while start < stop:
        end = min(start + most, stop)
        if start < policy.dense_len < end:
            end = policy.dense_len
        part = slice(start - first, end - first)
        _attend(q[part], start, held, policy, out[part])
        start = end
    return out


def _attend(q: Tensor, first: int, held: Held, policy: RetrievalPolicy, out: Tensor) -> None:
    n, heads, head = q.shape
    groups, device = held.keys.shape[0], q.device
    group, scale = heads // groups, head**-0.5 * LOG2E
    wide = q.dtype == torch.float32
    precision = "tf32x3" if wide else "tf32"
    sizes = {"GROUP": group, "HEAD": head, "PRECISION": precision}
    lines = max(16, min(32 if wide else 128, triton.next_power_of_2(n * group)))
    tiles = triton.cdiv(n * group, lines)
    dense = first < policy.dense_len
    window = EVER if dense else policy.window_size
    near = out if dense else torch.empty(n, heads, head, device=device)
    tops, norms = torch.empty(2, n, heads, device=device)
    group_stride = held.keys.stride(0)
    cut = NEAR[wide]
    near_kernel[(tiles, groups)](
        q, held.keys, held.values, held.table, near, tops, norms, first, n, q.stride(0), group_stride, window, scale,
        **sizes, SIZE=policy.block_size, ROWS=lines, KEYS=cut.keys, WHOLE=dense,
        num_warps=cut.warps if lines >= 128 else 4, num_stages=cut.stages,
    )  # fmt: skip
    if dense:
        return
    chosen, places, counts = choose(q, first, held, policy)
    cut = FAR[wide]
    far_kernel[(n, groups)](
        q, held.keys, held.values, chosen, places, counts, near, tops, norms, out, first, n, q.stride(0),
        group_stride, window, scale, **sizes, SIZE=policy.block_size, MOST=chosen.shape[-1],
        ROWS=max(16, group), KEYS=cut.keys, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


def choose(q: Tensor, first: int, held: Held, policy: RetrievalPolicy) -> tuple[Tensor, Tensor, Tensor]:
    """Which blocks each of `q` [n, heads, head] from `first` on sees beside the last tokens.

    Returns their numbers in order and their places in the pool, both int32 [groups, n, init_blocks + topk], and how many of
    these are meant, int32 [groups, n].
    """
    n, groups, device = len(q), held.keys.shape[0], q.device
    chosen, places = torch.empty(2, groups, n, policy.init_blocks + policy.topk, device=device, dtype=torch.int32)
    counts = torch.empty(groups, n, device=device, dtype=torch.int32)
    shares = score(q, first, held, policy)
    segments = triton.next_power_of_2(policy.topk)
    blocks = max(64, segments, triton.next_power_of_2((first + n - 1) // policy.block_size + 1))
    warps = max(4, min(16, blocks // 1024))  # as swept on an H200: two programs a processor
    choose_kernel[(n, groups)](
        shares, held.table, chosen, places, counts, first, n, shares.shape[-1], policy.window_size,
        SIZE=policy.block_size, KERNEL=policy.kernel_size, STRIDE=policy.kernel_stride, INIT=policy.init_blocks,
        TOP=policy.topk, SEGMENTS=segments, MOST=triton.next_power_of_2(chosen.shape[-1]), BLOCKS=blocks,
        num_warps=warps, maxnreg=min(168, 1024 // warps),
    )  # fmt: skip
    return chosen, places, counts
