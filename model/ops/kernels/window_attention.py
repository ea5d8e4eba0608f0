"""A vision tower's attention within small windows: queries and keys are rotated as they are read, and nothing of them is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.attention import LOG2E

WIDEST = 64
"""Patches of the largest window: its scores are one tile."""
REGISTERS = 128
"""Of a thread: with as few, four programs share a processor, which takes 15 % less time than three."""


@triton.jit
def read(x, inside):
    return tl.load(x, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def turned(x, other, c, s, inside):
    """What lies at `x`, rotated with what lies at `other`, and rounded as where they are kept."""
    return (read(x, inside) * c + read(other, inside) * s).to(x.dtype.element_ty)


@triton.jit
def window_kernel(
    joint, cos, sin, out, patches, stride, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    MAIN_WIDE: tl.constexpr, REST_WIDE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Programs that run at once are the heads of few windows, so that what they read of a row lies together.
    head, window = tl.program_id(0), tl.program_id(1).to(tl.int64)
    half: tl.constexpr = HEAD // 2
    i, j = tl.arange(0, ROWS), tl.arange(0, MAIN_WIDE)
    row, here = window * SPAN + i, i < SPAN
    first = joint + row[:, None] * stride + head * HEAD
    table = (row % patches)[:, None] * HEAD
    keys: tl.constexpr = HEADS * HEAD
    # A tile's width is a power of two. Of 80 queries and keys of a head three are read, for padding costs registers: of each half the
    # first 32, then what is left of both. Values are one tile of 128: cut the same way, Triton 3.6 multiplies them wrongly.
    inside = here[:, None] & (j < MAIN)[None, :]
    low, high = first + j[None, :], first + half + j[None, :]
    c, s = read(cos + table + j[None, :], inside), read(sin + table + j[None, :], inside)
    k = turned(low + keys, high + keys, c, -s, inside)
    score = tl.dot(turned(low, high, c, -s, inside), tl.trans(k), input_precision=PRECISION)
    k = turned(high + keys, low + keys, c, s, inside)
    score = tl.dot(turned(high, low, c, s, inside), tl.trans(k), score, input_precision=PRECISION)
    if REST:
        r = tl.arange(0, REST_WIDE)
        rest = here[:, None] & (r < 2 * REST)[None, :]
        lower, at = r < REST, MAIN + r % REST
        own, other = tl.where(lower, at, half + at), tl.where(lower, half + at, at)
        c, s = read(cos + table + at[None, :], rest), read(sin + table + at[None, :], rest)
        s = tl.where(lower[None, :], -s, s)
        own, other = first + own[None, :], first + other[None, :]
        k = turned(own + keys, other + keys, c, s, rest)
        score = tl.dot(turned(own, other, c, s, rest), tl.trans(k), score, input_precision=PRECISION)
    score = tl.where(here[None, :], score * scale, -1e30)
    p = tl.exp2(score - tl.max(score, 1)[:, None])
    d = tl.arange(0, WIDE)
    inside = here[:, None] & (d < HEAD)[None, :]
    v = tl.load(first + 2 * keys + d[None, :], mask=inside, other=0.0)
    seen = tl.dot(p.to(v.dtype), v, input_precision=PRECISION) / tl.sum(p, 1)[:, None]
    to = out + row[:, None] * (HEADS * HEAD) + head * HEAD + d[None, :]
    tl.store(to, seen.to(out.dtype.element_ty), mask=inside)


def attend_windows(joint: Tensor, heads: int, span: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Attention of `joint` [rows, 3 * heads * head], queries, keys and values side by side, within each `span` rows, WIDEST at most.

    Row i's queries and keys are rotated by `cos`, `sin` float32 [patches, head] at i % patches. Returns [rows, heads * head].
    """
    rows, width = joint.shape[0], joint.shape[1] // 3
    head = width // heads
    main = 1 << ((head // 2).bit_length() - 1)
    rest = head // 2 - main
    out = torch.empty(rows, width, device=joint.device, dtype=joint.dtype)
    window_kernel[(heads, rows // span)](
        joint, cos, sin, out, cos.shape[0], joint.stride(0), head**-0.5 * LOG2E,
        HEADS=heads, HEAD=head, SPAN=span, ROWS=max(16, triton.next_power_of_2(span)),
        MAIN=main, REST=rest, MAIN_WIDE=max(16, main), REST_WIDE=max(16, triton.next_power_of_2(2 * rest)),
        WIDE=max(16, triton.next_power_of_2(head)), PRECISION="tf32x3" if joint.dtype == torch.float32 else "tf32",
        num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
    return out
