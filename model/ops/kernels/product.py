"""Matrix products of few rows: the weights stream through once, by as many programs as keep the memory busy."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.activation import FEW, PROCESSORS, Activation, Quantized
from model.ops.kernels.dependence import dependent, fetch, follow

COUNTERS: dict[torch.device, Tensor] = {}
"""Zeros of each device, where the programs that share a block of outputs count themselves; left as they were found."""
AHEAD = 2
"""Tiles of weights that a program asks for before the kernel before it has ended; more only keep others from theirs."""


@triton.jit
def product_kernel(
    x, x_scales, weight, weight_scales, bias, out, parts, arrived, rows, outs, width, splits,
    SHARED: tl.constexpr, ROWS: tl.constexpr, OUTS: tl.constexpr, DEEP: tl.constexpr, EARLY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    block, split = tl.program_id(0), tl.program_id(1)
    o, row, deep = block * OUTS + tl.arange(0, OUTS), tl.arange(0, ROWS), tl.arange(0, DEEP)
    tiles = width // DEEP
    low, high = tiles * split // splits, tiles * (split + 1) // splits
    # Rows beyond the last are read as the last, and never written: cheaper than masks.
    first = weight + tl.minimum(o, outs - 1)[:, None].to(tl.int64) * width
    weights = first + deep[None, :]
    inputs = x + tl.minimum(row, rows - 1)[None, :] * width + deep[:, None]
    if EARLY:
        line: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
        lines = first + tl.arange(0, DEEP // line)[None, :] * line
        for ahead in tl.static_range(AHEAD):
            fetch(lines + tl.minimum(low + ahead, high - 1) * DEEP)
    follow(EARLY)
    total = tl.zeros((OUTS, ROWS), tl.float32)
    for tile in range(low, high):
        w = tl.load(weights + tile * DEEP, eviction_policy="evict_first")
        total = tl.dot(w, tl.load(inputs + tile * DEEP), total)
    at = row[None, :] * outs + o[:, None]
    inside = (row < rows)[None, :] & (o < outs)[:, None]
    last = True
    if SHARED:
        tl.store(parts + split * rows * outs + at, total, mask=inside)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + block, 1) == splits - 1
        tl.debug_barrier()
        if last:
            total = tl.zeros((OUTS, ROWS), tl.float32)
            for i in range(0, splits):
                total += tl.load(parts + i * rows * outs + at, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(arrived + block, 0)
    if last:
        if weight_scales is not None:
            total *= tl.load(weight_scales + o, mask=o < outs, other=0.0)[:, None]
            total *= tl.load(x_scales + row, mask=row < rows, other=0.0)[None, :]
        if bias is not None:
            total += tl.load(bias + o, mask=o < outs, other=0.0).to(tl.float32)[:, None]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def row_kernel(
    x, weight, out, outs, width,
    OUTS: tl.constexpr, DEEP: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    o, deep = tl.program_id(0) * OUTS + tl.arange(0, OUTS), tl.arange(0, DEEP)
    # Rows beyond the last are read as the last, and never written, as in `product_kernel`.
    weights = weight + tl.minimum(o, outs - 1)[:, None].to(tl.int64) * width + deep[None, :]
    follow(EARLY)
    total = tl.zeros((OUTS, DEEP), tl.float32)
    for at in tl.range(0, width, DEEP, num_stages=STAGES):
        inside = at + deep < width
        w = tl.load(weights + at, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
        total += w.to(tl.float32) * tl.load(x + at + deep, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(out + o, tl.sum(total, 1).to(out.dtype.element_ty), mask=o < outs)


class Cut(NamedTuple):
    """How `product_kernel` is cut: outputs a program, depth of a tile, programs that share a block, warps, tiles in flight."""

    outs: int
    deep: int
    splits: int
    warps: int
    stages: int


FP8 = {
    (22016, 2048): Cut(64, 256, 1, 4, 3),
    (2048, 11008): Cut(64, 256, 4, 4, 5),
    (12320, 2048): Cut(64, 256, 1, 4, 4),
    (151936, 2048): Cut(128, 256, 1, 4, 3),
    (2048, 4096): Cut(64, 256, 4, 4, 4),
    (2560, 2048): Cut(64, 256, 3, 4, 4),
    (2048, 2048): Cut(64, 256, 4, 4, 5),
}
"""Outputs and width of the 4B's products, and what was the best of 19 to 103 cuts on an H100 for one row and eight together."""
BFLOAT16 = {
    (22016, 2048): Cut(128, 64, 1, 4, 4),
    (2048, 11008): Cut(64, 256, 4, 4, 4),
    (12320, 2048): Cut(128, 64, 1, 4, 5),
    (151936, 2048): Cut(128, 128, 1, 4, 5),
    (2048, 4096): Cut(64, 256, 4, 4, 3),
    (2560, 2048): Cut(64, 256, 3, 4, 3),
    (2048, 2048): Cut(64, 256, 4, 4, 3),
}
"""The same of up to 111 cuts on an H200 for eight rows."""


@cache
def roomy(device: torch.device) -> bool:
    """Whether a program may have the shared memory that BFLOAT16's cuts take: on an H100 it may, not on an A100 or an RTX 4090."""
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor >= 200_000


def cutting(outs: int, width: int, dtype: torch.dtype) -> Cut:
    """For `outs` outputs of inputs `width` deep: as measured, else such that all processors stream some tiles each."""
    measured = BFLOAT16 if dtype == torch.bfloat16 else FP8
    if (outs, width) in measured:
        return measured[outs, width]
    deep, blocks = 256 if width % 256 == 0 else 128, triton.cdiv(outs, 64)
    splits, tiles = 1, width // deep
    if dtype == torch.bfloat16:
        if blocks >= PROCESSORS:
            return Cut(128, 64, 1, 4, 4)
        return Cut(64, deep, max(1, min(PROCESSORS // blocks, tiles // 2)), 4, 3)
    while blocks * splits < 2 * PROCESSORS and splits * 4 <= tiles:
        splits *= 2
    return Cut(64, deep, splits, 4, 4)


def product(x: Activation, weight: Activation, bias: Tensor | None, cut: Cut | None = None) -> Tensor:
    """`x` [rows, width] times `weight` [outs, width] transposed, plus `bias` [outs]: bfloat16 [rows, outs].

    Both are contiguous, in bfloat16 or in fp8 with their scales. At most `FEW` rows; `width` a multiple of 128. `cut` overrides
    the one chosen by size. Sums are taken in one order: the same input gives the same bits.
    """
    rows_of, x_scales = x if isinstance(x, Quantized) else (x, None)
    weights, weight_scales = weight if isinstance(weight, Quantized) else (weight, None)
    assert rows_of.is_contiguous() and weights.is_contiguous()
    (rows, width), outs, device = rows_of.shape, weights.shape[0], rows_of.device
    cut = cut or cutting(outs, width, weights.dtype)
    if device not in COUNTERS:
        COUNTERS[device] = torch.zeros(1 << 13, device=device, dtype=torch.int32)
    out = torch.empty(rows, outs, device=device, dtype=torch.bfloat16)
    parts = torch.empty(cut.splits, rows, outs, device=device) if cut.splits > 1 else out
    product_kernel[(triton.cdiv(outs, cut.outs), cut.splits)](
        rows_of, x_scales, weights, weight_scales, bias, out, parts, COUNTERS[device],
        rows, outs, width, cut.splits,
        SHARED=cut.splits > 1, ROWS=FEW, OUTS=cut.outs, DEEP=cut.deep,
        num_warps=cut.warps, num_stages=cut.stages, AHEAD=AHEAD, **dependent(rows_of, rows),
    )  # fmt: skip
    return out


def row_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x` [1, width] times `weight` [outs, width] transposed, summed in float32: [1, outs]. Both contiguous."""
    assert x.is_contiguous() and weight.is_contiguous()
    outs, width = weight.shape
    out = torch.empty(1, outs, device=x.device, dtype=x.dtype)
    row_kernel[(triton.cdiv(outs, 4),)](
        x, weight, out, outs, width, OUTS=4, DEEP=1024, STAGES=4, num_warps=4, **dependent(x, 1)
    )
    return out
