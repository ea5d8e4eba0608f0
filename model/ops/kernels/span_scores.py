"""Scores of spans, where attention retrieves: what each has of a query's attention, in two passes over the pooled keys.

The formula is `model.ops.retrieval`'s. A tile's rows are the queries of one head of keys, so that what is loaded serves its whole
group.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.activation import PROCESSORS
from model.ops.kernels.attention import LOG2E
from model.policy import RetrievalPolicy

COUNTED = ("first", "n", "width")
"""What differs from call to call: it is not to be compiled for anew whenever 16 divides it, or no longer does."""


class Cut(NamedTuple):
    """How kernels over spans are cut: rows (queries, head by head) and spans a tile, warps, tiles in flight."""

    rows: int
    spans: int
    warps: int
    stages: int

    def of(self, rows: int, group: int) -> Cut:
        """For so few rows, of heads in groups."""
        lines = max(16, group, min(self.rows, triton.next_power_of_2(rows)))
        return self if lines == self.rows else self._replace(rows=lines, warps=4)


CREST, SHARE, WIDE = Cut(256, 64, 8, 2), Cut(128, 64, 4, 3), Cut(32, 32, 4, 2)
"""Of the two passes over the spans, as swept on an H200 at 262,144 tokens, and of both in float32."""


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
def crest_tile(
    rows, keys, tile, phase, width, ended, most, top, norm, scale,
    HEAD: tl.constexpr, RATIO: tl.constexpr, SPANS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of spans into each row's largest score and sum of exponentials; where MASKED, only those that have ended."""
    number = tile * SPANS + tl.arange(0, SPANS)
    at = keys + (phase * width + number)[None, :] * HEAD + tl.arange(0, HEAD)[:, None]
    if MASKED:
        span = number * RATIO + phase
        shown = span[None, :] < ended[:, None]
        score = tl.dot(rows, tl.load(at, mask=(span < most)[None, :], other=0.0), input_precision=PRECISION)
        score = tl.where(shown, score, -1e30)
    else:
        score = tl.dot(rows, tl.load(at), input_precision=PRECISION)
    higher = tl.maximum(top, tl.max(score, 1) * scale)
    share = tl.exp2(score * scale - higher[:, None])
    if MASKED:
        share = tl.where(shown, share, 0.0)
    return higher, norm * tl.exp2(top - higher) + tl.sum(share, 1)


@triton.jit(do_not_specialize=COUNTED)
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
    low, high, whole = part_of_spans(first + block * ROWS // GROUP, most, split, KERNEL, STRIDE, RATIO, SPANS, SPLITS)
    keys = pooled + group * RATIO * width * HEAD
    top = tl.full((ROWS,), -1e30, tl.float32)
    norm = tl.zeros((ROWS,), tl.float32)
    for i in range(low * RATIO, whole * RATIO):
        top, norm = crest_tile(
            rows,
            keys,
            i // RATIO,
            i % RATIO,
            width,
            ended,
            most,
            top,
            norm,
            scale,
            HEAD,
            RATIO,
            SPANS,
            False,
            PRECISION,
        )
    for i in range(whole * RATIO, high * RATIO):
        top, norm = crest_tile(
            rows, keys, i // RATIO, i % RATIO, width, ended, most, top, norm, scale, HEAD, RATIO, SPANS, True, PRECISION
        )
    total = n * GROUP
    to = (split * tl.num_programs(1) + group).to(tl.int64) * total + row
    tl.store(tops + to, top, mask=row < total)
    tl.store(norms + to, norm, mask=row < total)


@triton.jit
def part_of_spans(
    index, most, split,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, RATIO: tl.constexpr, SPANS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """A program's tiles of spans, from and to, and up to where all spans have ended before the token `index`, its first."""
    tiles = tl.cdiv(tl.cdiv(most, RATIO), SPANS)
    low, high = tiles * split // SPLITS, tiles * (split + 1) // SPLITS
    whole = ended_spans(index, KERNEL, STRIDE) // RATIO // SPANS
    return low, high, tl.minimum(tl.maximum(whole, low), high)


@triton.jit
def share_tile(
    rows, keys, to, tile, phase, width, room, ended, most, own, n, top, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, RATIO: tl.constexpr, QUERIES: tl.constexpr, SPANS: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes what a tile of spans has of each query's attention; where MASKED, of those that have ended."""
    number = tile * SPANS + tl.arange(0, SPANS)
    at = keys + (phase * width + number)[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    there = to + phase * room + number[:, None]
    if MASKED:
        span = number * RATIO + phase
        k = tl.load(at, mask=(span < most)[:, None], other=0.0)
        share = tl.exp2(tl.dot(k, tl.trans(rows), input_precision=PRECISION) * scale - top[None, :])
        share = tl.where(span[:, None] < ended[None, :], share, 0.0)
    else:
        share = tl.exp2(tl.dot(tl.load(at), tl.trans(rows), input_precision=PRECISION) * scale - top[None, :])
    both = tl.sum(tl.reshape(share, (SPANS, GROUP, QUERIES)), 1)
    if MASKED:
        tl.store(there, both, mask=(own < n)[None, :] & (span < most)[:, None])
    else:
        tl.store(there, both, mask=(own < n)[None, :])


@triton.jit(do_not_specialize=COUNTED)
def share_kernel(
    q, pooled, tops, norms, shares, first, n, width, stride, scale, room,
    GROUP: tl.constexpr, HEAD: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, RATIO: tl.constexpr,
    ROWS: tl.constexpr, SPANS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What each span has of a query's attention, summed over the heads of the group; beyond those that have ended, nothing.

    The tile is turned: spans are its rows, its columns the queries head by head, so that a thread has all heads of a query and
    adds them up alone.
    """
    block, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    queries: tl.constexpr = ROWS // GROUP
    column, d = tl.arange(0, ROWS), tl.arange(0, HEAD)
    step, head = block * queries + column % queries, column // queries
    real = step < n
    at = step.to(tl.int64) * stride + (group * GROUP + head) * HEAD
    rows = tl.load(q + at[:, None] + d[None, :], mask=real[:, None], other=0.0)
    ended = ended_spans(first + step, KERNEL, STRIDE)
    most = ended_spans(first + tl.minimum(block * queries + queries - 1, n - 1), KERNEL, STRIDE)
    total = n * GROUP
    part = (tl.arange(0, SPLITS)[None, :] * tl.num_programs(1) + group).to(tl.int64) * total
    part += (step * GROUP + head)[:, None]
    some = tl.load(tops + part, mask=real[:, None], other=-1e30)
    top = tl.max(some, 1)
    norm = tl.sum(tl.load(norms + part, mask=real[:, None], other=0.0) * tl.exp2(some - top[:, None]), 1)
    top += tl.log2(tl.where(norm > 0, norm, 1.0))
    low, high, whole = part_of_spans(first + block * queries, most, split, KERNEL, STRIDE, RATIO, SPANS, SPLITS)
    keys = pooled + group * RATIO * width * HEAD
    own = block * queries + tl.arange(0, queries)
    to = shares + (group * n + own)[None, :].to(tl.int64) * (RATIO * room)
    for i in range(low * RATIO, whole * RATIO):
        share_tile(
            rows, keys, to, i // RATIO, i % RATIO, width, room, ended, most, own, n, top, scale,
            GROUP, HEAD, RATIO, queries, SPANS, False, PRECISION,
        )  # fmt: skip
    for i in range(whole * RATIO, high * RATIO):
        share_tile(
            rows, keys, to, i // RATIO, i % RATIO, width, room, ended, most, own, n, top, scale,
            GROUP, HEAD, RATIO, queries, SPANS, True, PRECISION,
        )  # fmt: skip


def score(q: Tensor, first: int, held: Held, policy: RetrievalPolicy) -> Tensor:
    """What of the attention of each of `q` [n, heads, head] from `first` on the spans have that end before it, in two passes.

    Returns float32 [groups, n, spans a block, blocks and some more], the heads' sum, anything for spans that end later.
    """
    n, heads, head = q.shape
    groups, device = held.keys.shape[0], q.device
    group, wide = heads // groups, q.dtype == torch.float32
    ratio, width = policy.ratio, held.pooled.shape[2]
    crest, share = (cut.of(n * group, group) for cut in ((WIDE, WIDE) if wide else (CREST, SHARE)))
    tiles, splits = triton.cdiv(n * group, max(crest.rows, share.rows)), 1
    # Two programs of a processor take turns: one's products run while the other one's exponentials do.
    while tiles * groups * splits <= PROCESSORS and splits * 2 <= triton.cdiv(width, max(crest.spans, share.spans)):
        splits *= 2
    tops, norms = torch.empty(2, splits, groups, n * group, device=device)
    room = 16 * (width // 16 + 1)  # so that whole rows are read at once
    shares = torch.empty(groups, n, ratio, room, device=device)
    same = (first, n, width, q.stride(0), head**-0.5 * LOG2E)
    sizes = {
        "GROUP": group, "HEAD": head, "KERNEL": policy.kernel_size, "STRIDE": policy.kernel_stride, "RATIO": ratio,
        "SPLITS": splits, "PRECISION": "tf32x3" if wide else "tf32",
    }  # fmt: skip
    crest_kernel[(triton.cdiv(n * group, crest.rows), groups, splits)](
        q, held.pooled, tops, norms, *same, **sizes,
        ROWS=crest.rows, SPANS=crest.spans, num_warps=crest.warps, num_stages=crest.stages,
    )  # fmt: skip
    share_kernel[(triton.cdiv(n * group, share.rows), groups, splits)](
        q, held.pooled, tops, norms, shares, *same, room, **sizes,
        ROWS=share.rows, SPANS=share.spans, num_warps=share.warps, num_stages=share.stages,
    )  # fmt: skip
    return shares
