"""What one call puts into pages: queries and keys turned, keys and values where they go, and the spans that have become complete.

Where a call begins is read from the device, so that a graph of it can be replayed at any length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.attention import load_turned
from model.policy import RetrievalPolicy


@triton.jit
def locate(frames, token, here, EACH: tl.constexpr):
    """Where in the pool the tokens are of a sequence whose pages, of EACH tokens, lie in `frames`."""
    return tl.load(frames + token // EACH, mask=here, other=0).to(tl.int64) * EACH + token % EACH


@triton.jit
def settle_kernel(
    joint, cos, sin, starts, counts, frames, keys, values, queries, n, stride, group_stride,
    QUERIES: tl.constexpr, GROUPS: tl.constexpr, HEAD: tl.constexpr, EACH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    row = block * ROWS + tl.arange(0, ROWS)
    here = row < n
    inside = here[:, None]
    d = tl.arange(0, HEAD)[None, :]
    at = row[:, None].to(tl.int64) * stride + head * HEAD
    turns = row[:, None] * (HEAD // 2)
    if head < QUERIES:
        turned = load_turned(joint, cos + turns, sin + turns, None, inside, at, 0.0, HEAD, HEAD // 2)
        to = (row[:, None].to(tl.int64) * QUERIES + head) * HEAD + d
        tl.store(queries + to, turned.to(queries.dtype.element_ty), mask=inside)
    else:
        here = row < tl.load(counts)
        inside = here[:, None]
        place = locate(frames, (tl.load(starts) + row).to(tl.int32), here, EACH)[:, None] * HEAD + d
        if head < QUERIES + GROUPS:
            turned = load_turned(joint, cos + turns, sin + turns, None, inside, at, 0.0, HEAD, HEAD // 2)
            tl.store(keys + (head - QUERIES) * group_stride + place, turned.to(keys.dtype.element_ty), mask=inside)
        else:
            v = tl.load(joint + at + d, mask=inside, other=0.0)
            to = values + (head - QUERIES - GROUPS) * group_stride + place
            tl.store(to, v.to(values.dtype.element_ty), mask=inside)


@triton.jit
def pool_kernel(
    starts, counts, numbers, frames, keys, pooled, group_stride, pooled_stride,
    HEAD: tl.constexpr, EACH: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, STRIDES: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    first = tl.load(starts).to(tl.int32)
    parts: tl.constexpr = KERNEL // STRIDE
    last = tl.maximum(first // STRIDE, parts - 1) + tl.program_id(0)  # the span's last stride, where it is kept
    if (last + 1) * STRIDE <= first + tl.load(counts):
        row = tl.arange(0, ROWS)
        here = row < KERNEL
        at = locate(frames, (last - parts + 1) * STRIDE + row, here, EACH)
        d = tl.arange(0, HEAD)
        k = tl.load(keys + group * group_stride + at[:, None] * HEAD + d[None, :], mask=here[:, None], other=0.0)
        to = tl.load(numbers + last // STRIDES).to(tl.int64) * STRIDES + last % STRIDES
        tl.store(pooled + group * pooled_stride + to * HEAD + d, tl.sum(k.to(tl.float32), 0) / KERNEL)


@triton.jit
def phase_kernel(
    numbers, pooled, out, spans, width, pooled_stride,
    HEAD: tl.constexpr, RATIO: tl.constexpr, PARTS: tl.constexpr, STRIDES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    block, phase, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    number = block * ROWS + tl.arange(0, ROWS)
    span = number * RATIO + phase
    here = span < spans
    last = span + PARTS - 1
    d = tl.arange(0, HEAD)[None, :]
    at = tl.load(numbers + last // STRIDES, mask=here, other=0).to(tl.int64) * STRIDES + last % STRIDES
    x = tl.load(pooled + group * pooled_stride + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
    to = (group * RATIO + phase).to(tl.int64) * width + number
    tl.store(out + to[:, None] * HEAD + d, x.to(out.dtype.element_ty), mask=(number < width)[:, None])


def by_phase(
    pooled: Tensor, numbers: Tensor, spans: int, dtype: torch.dtype, policy: RetrievalPolicy, page: int
) -> Tensor:
    """The first `spans` pooled keys of a sequence by where in their blocks they begin: [groups, spans a block, blocks, head] in `dtype`.

    `pooled` float32 [groups, strides of all pages, head], `numbers` int32 [pages] the sequence's pages of `page` tokens. There are some
    blocks more than it has, with zeros.
    """
    groups, _, head = pooled.shape
    width = triton.cdiv(max(spans, 1), 16 * policy.ratio) * 16
    out = torch.empty(groups, policy.ratio, width, head, device=pooled.device, dtype=dtype)
    phase_kernel[(triton.cdiv(width, 32), policy.ratio, groups)](
        numbers, pooled, out, spans, width, pooled.stride(0), HEAD=head, RATIO=policy.ratio,
        PARTS=policy.kernel_size // policy.kernel_stride, STRIDES=page // policy.kernel_stride, ROWS=32, num_warps=4,
    )  # fmt: skip
    return out


def settle(
    joint: Tensor, turn: tuple[Tensor, Tensor], starts: Tensor, counts: Tensor, where: tuple[Tensor, Tensor],
    kept: tuple[Tensor, Tensor, Tensor], policy: RetrievalPolicy, page: int,
) -> Tensor:  # fmt: skip
    """Puts the keys and values of a sequence's next tokens, and the spans that these complete, into its pages of `page` tokens.

    `joint` [n, heads of q, k and v side by side], its last axis contiguous; `turn` cosines and sines float32 [1, n, head / 2],
    contiguous; `starts` and `counts` int64 [1], the tokens before, and how many of the n are real; `where` int32 [pages] both, the
    pages' numbers and frames; `kept` the pool's keys and values [groups, blocks, block, head], of the same strides, and pooled keys
    float32 [groups, strides, head]. Returns the queries, turned, [n, heads, head].
    """
    keys, values, pooled = kept
    (n, width), (groups, _, _, head) = joint.shape, keys.shape
    heads = width // head - 2 * groups
    queries = torch.empty(n, heads, head, device=joint.device, dtype=joint.dtype)
    rows = 1 if n == 1 else 16
    settle_kernel[(triton.cdiv(n, rows), heads + 2 * groups)](
        joint, *turn, starts, counts, where[1], keys, values, queries, n, joint.stride(0), keys.stride(0),
        QUERIES=heads, GROUPS=groups, HEAD=head, EACH=page, ROWS=rows, num_warps=1 if n == 1 else 4,
    )  # fmt: skip
    pool_kernel[(n // policy.kernel_stride + 1, groups)](
        starts, counts, *where, keys, pooled, keys.stride(0), pooled.stride(0),
        HEAD=head, EACH=page, KERNEL=policy.kernel_size, STRIDE=policy.kernel_stride, STRIDES=page // policy.kernel_stride,
        ROWS=triton.next_power_of_2(policy.kernel_size), num_warps=4,
    )  # fmt: skip
    return queries
