"""Attention that retrieves, over pages: scores of spans, the choice of blocks, then the last tokens and the blocks chosen.

The formula is `model.ops.retrieval`'s. A tile's rows are the queries of one head of keys, so that what is loaded serves its whole
group; the blocks that a query chose serve that query alone, since its neighbours choose others.
"""

from __future__ import annotations

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.attention import EVER, LOG2E, PROCESSORS, attend_tile
from model.policy import RetrievalPolicy

SHARES = 1 << 28
"""Bytes of the scores that are kept at once: a long call is taken in pieces of queries."""
MOST = 4_096
"""Queries of such a piece."""


class Held(Protocol):
    """What one sequence keeps in one layer."""

    @property
    def keys(self) -> Tensor:
        """[groups, blocks of the pool, block, head]."""
        ...

    @property
    def values(self) -> Tensor:
        """As `keys`."""
        ...

    @property
    def table(self) -> Tensor:
        """Where its blocks lie in the pool, int32 [blocks]."""
        ...

    @property
    def pooled(self) -> Tensor:
        """Its pooled keys [groups, spans a block, blocks, head], contiguous, in the queries' dtype; anything where no span is yet."""
        ...


@triton.jit
def load_queries(q, block, group, n, stride, GROUP: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr):
    """The tile's rows: their queries [ROWS, HEAD], whose tokens they are, and which are real."""
    row = block * ROWS + tl.arange(0, ROWS)
    step = row // GROUP
    at = step[:, None].to(tl.int64) * stride + (group * GROUP + row % GROUP)[:, None] * HEAD
    return tl.load(q + at + tl.arange(0, HEAD)[None, :], mask=(step < n)[:, None], other=0.0), row, step


@triton.jit
def ended_spans(index, KERNEL: tl.constexpr, STRIDE: tl.constexpr):
    """How many spans have ended before the token `index`."""
    return tl.maximum(index - KERNEL + STRIDE, 0) // STRIDE


@triton.jit
def crest_kernel(
    q, pooled, tops, norms, first, n, width, stride, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, RATIO: tl.constexpr,
    ROWS: tl.constexpr, SPANS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of each row the largest score and the sum of all exponentials, by part of the spans.

    Spans that begin at the same place of their blocks stand side by side, `width` of them: so they are read and told.
    """
    block, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, row, step = load_queries(q, block, group, n, stride, GROUP, HEAD, ROWS)
    ended = ended_spans(first + step, KERNEL, STRIDE)
    most = ended_spans(first + tl.minimum((block * ROWS + ROWS - 1) // GROUP, n - 1), KERNEL, STRIDE)
    tiles = tl.cdiv(tl.cdiv(most, RATIO), SPANS)
    column = tl.arange(0, SPANS)
    top = tl.full((ROWS,), -1e30, tl.float32)
    norm = tl.zeros((ROWS,), tl.float32)
    for phase in tl.static_range(RATIO):
        keys = pooled + (group * RATIO + phase) * width * HEAD + tl.arange(0, HEAD)[:, None]
        for tile in range(tiles * split // SPLITS, tiles * (split + 1) // SPLITS):
            number = tile * SPANS + column
            span = number * RATIO + phase
            k = tl.load(keys + number[None, :] * HEAD, mask=(span < most)[None, :], other=0.0)
            score = tl.dot(rows, k, input_precision=PRECISION)
            shown = span[None, :] < ended[:, None]
            score = tl.where(shown, score, -1e30)
            higher = tl.maximum(top, tl.max(score, 1) * scale)
            share = tl.where(shown, tl.exp2(score * scale - higher[:, None]), 0.0)
            norm = norm * tl.exp2(top - higher) + tl.sum(share, 1)
            top = higher
    total = n * GROUP
    to = (split * tl.num_programs(1) + group).to(tl.int64) * total + row
    tl.store(tops + to, top, mask=row < total)
    tl.store(norms + to, norm, mask=row < total)


@triton.jit
def share_kernel(
    q, pooled, tops, norms, shares, first, n, width, stride, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, RATIO: tl.constexpr,
    ROWS: tl.constexpr, SPANS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What each span has of a query's attention, summed over the heads of the group; beyond those that have ended, nothing."""
    block, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, row, step = load_queries(q, block, group, n, stride, GROUP, HEAD, ROWS)
    ended = ended_spans(first + step, KERNEL, STRIDE)
    most = ended_spans(first + tl.minimum((block * ROWS + ROWS - 1) // GROUP, n - 1), KERNEL, STRIDE)
    total = n * GROUP
    part = (tl.arange(0, SPLITS)[None, :] * tl.num_programs(1) + group).to(tl.int64) * total + row[:, None]
    real = (row < total)[:, None]
    some = tl.load(tops + part, mask=real, other=-1e30)
    top = tl.max(some, 1)
    norm = tl.sum(tl.load(norms + part, mask=real, other=0.0) * tl.exp2(some - top[:, None]), 1)
    top += tl.log2(tl.where(norm > 0, norm, 1.0))
    tiles = tl.cdiv(tl.cdiv(most, RATIO), SPANS)
    column = tl.arange(0, SPANS)
    own = block * (ROWS // GROUP) + tl.arange(0, ROWS // GROUP)
    for phase in tl.static_range(RATIO):
        keys = pooled + (group * RATIO + phase) * width * HEAD + tl.arange(0, HEAD)[:, None]
        to = shares + ((group * n + own)[:, None].to(tl.int64) * RATIO + phase) * width
        for tile in range(tiles * split // SPLITS, tiles * (split + 1) // SPLITS):
            number = tile * SPANS + column
            span = number * RATIO + phase
            k = tl.load(keys + number[None, :] * HEAD, mask=(span < most)[None, :], other=0.0)
            score = tl.dot(rows, k, input_precision=PRECISION)
            share = tl.where(span[None, :] < ended[:, None], tl.exp2(score * scale - top[:, None]), 0.0)
            both = tl.sum(tl.reshape(share, (ROWS // GROUP, GROUP, SPANS)), 1)
            tl.store(to + number[None, :], both, mask=(own < n)[:, None] & (span < most)[None, :])


@triton.jit
def choose_kernel(
    shares, table, chosen, places, counts, first, n, width, window,
    SIZE: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, INIT: tl.constexpr, TOP: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """The numbers of the blocks that a query sees beside the last tokens, in their order, where they lie, and how many they are."""
    step, group = tl.program_id(0), tl.program_id(1)
    index = first + step
    number = tl.arange(0, BLOCKS)
    eligible = (number >= INIT) & (number * SIZE <= index - window)
    ratio: tl.constexpr = SIZE // STRIDE
    row = shares + (group * n + step).to(tl.int64) * (ratio * width)
    best = tl.full((BLOCKS,), -1.0, tl.float32)
    before: tl.constexpr = KERNEL // STRIDE - 1
    for part in tl.static_range(ratio + before):
        span = number * ratio + (part - before)
        here = eligible & (span >= 0) & (span * STRIDE + KERNEL <= index)
        at = (part + before * (ratio - 1)) % ratio * width + span // ratio
        best = tl.maximum(best, tl.load(row + at, mask=here, other=-1.0))
    # Bits of floats that are not negative stand in the order of their values: the least key that is among the best is found
    # bit by bit, without sorting.
    key = tl.where(best >= 0, best.to(tl.int32, bitcast=True) + 1, 0)
    key = tl.where(eligible, key, -1)
    least = tl.sum(number, 0) * 0
    for bit in range(31):
        higher = least | (1 << (30 - bit))
        enough = tl.sum((key >= higher).to(tl.int32), 0) >= TOP
        least = tl.where(enough, higher, least)
    above, equal = key > least, key == least
    room = TOP - tl.sum(above.to(tl.int32), 0)
    seen = eligible & (above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room)))
    seen = seen | ((number < INIT) & (number * SIZE <= index))
    place = tl.cumsum(seen.to(tl.int32), 0) - 1
    own = group * n + step
    to = own.to(tl.int64) * (INIT + TOP) + place
    tl.store(chosen + to, number, mask=seen)
    tl.store(places + to, tl.load(table + number, mask=seen, other=0), mask=seen)
    tl.store(counts + own, tl.sum(seen.to(tl.int32), 0))


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
    index = first + step
    newest = first + tl.minimum((block * ROWS + ROWS - 1) // GROUP, n - 1)
    oldest = tl.maximum(first + block * ROWS // GROUP - window + 1, 0)
    column = tl.arange(0, KEYS)
    for tile in range(oldest // KEYS, newest // KEYS + 1):
        token = tile * KEYS + column
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
        entry = tile * (KEYS // SIZE) + column // SIZE
        here = entry < count
        at = tl.load(places + entry, mask=here, other=0).to(tl.int64) * SIZE + column % SIZE
        k = tl.load(keys + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        v = tl.load(values + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        number = tl.load(chosen + entry, mask=here, other=0)
        shown = here & (index - (number * SIZE + column % SIZE) >= window)
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
    near_kernel[(tiles, groups)](
        q, held.keys, held.values, held.table, near, tops, norms, first, n, q.stride(0), group_stride, window, scale,
        **sizes, SIZE=policy.block_size, ROWS=lines, KEYS=32 if wide else 64, WHOLE=dense,
        num_warps=8 if lines >= 128 else 4, num_stages=2,
    )  # fmt: skip
    if dense:
        return
    chosen, places, counts = choose(q, first, held, policy)
    far_kernel[(n, groups)](
        q, held.keys, held.values, chosen, places, counts, near, tops, norms, out, first, n, q.stride(0),
        group_stride, window, scale, **sizes, SIZE=policy.block_size, MOST=chosen.shape[-1],
        ROWS=max(16, group), KEYS=32 if wide else 64, num_warps=4 if wide else 2, num_stages=2 if wide else 3,
    )  # fmt: skip


def choose(q: Tensor, first: int, held: Held, policy: RetrievalPolicy) -> tuple[Tensor, Tensor, Tensor]:
    """Which blocks each of `q` [n, heads, head] from `first` on sees beside the last tokens.

    Returns their numbers in order and their places in the pool, both int32 [groups, n, init_blocks + topk], and how many of
    these are meant, int32 [groups, n].
    """
    n, heads, head = q.shape
    groups, device = held.keys.shape[0], q.device
    group, wide = heads // groups, q.dtype == torch.float32
    size, kernel, stride = policy.block_size, policy.kernel_size, policy.kernel_stride
    ratio, width = policy.ratio, held.pooled.shape[2]
    chosen, places = torch.empty(2, groups, n, policy.init_blocks + policy.topk, device=device, dtype=torch.int32)
    counts = torch.empty(groups, n, device=device, dtype=torch.int32)
    lines = max(16, group, min(32 if wide else 128, triton.next_power_of_2(n * group)))
    tiles, columns = triton.cdiv(n * group, lines), 32 if wide else 64
    splits = 1
    while tiles * groups * splits * 2 <= PROCESSORS and splits * 2 <= triton.cdiv(width, columns):
        splits *= 2
    tops, norms = torch.empty(2, splits, groups, n * group, device=device)
    shares = torch.empty(groups, n, ratio, width, device=device)
    same = (first, n, width, q.stride(0), head**-0.5 * LOG2E)
    cut = {
        "GROUP": group, "HEAD": head, "KERNEL": kernel, "STRIDE": stride, "RATIO": ratio, "ROWS": lines, "SPANS": columns, "SPLITS": splits,
        "PRECISION": "tf32x3" if wide else "tf32", "num_warps": 8 if lines >= 128 else 4,
    }  # fmt: skip
    crest_kernel[(tiles, groups, splits)](q, held.pooled, tops, norms, *same, **cut)
    share_kernel[(tiles, groups, splits)](q, held.pooled, tops, norms, shares, *same, **cut)
    # As swept on an H200 at 8,192 blocks: four warps. Twice the blocks need twice the threads, or they spill.
    blocks = max(64, triton.next_power_of_2((first + n - 1) // size + 1))
    choose_kernel[(n, groups)](
        shares, held.table, chosen, places, counts, first, n, width, policy.window_size, SIZE=size, KERNEL=kernel, STRIDE=stride,
        INIT=policy.init_blocks, TOP=policy.topk, BLOCKS=blocks, num_warps=max(4, min(16, blocks // 2048)),
    )  # fmt: skip
    return chosen, places, counts
