"""Norms, gates and activations between the matrix products: one pass over memory each, optionally straight to fp8."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.activation import FP8_LIMIT, PROCESSORS, Activation, Quantized
from model.ops.kernels.dependence import dependent, follow


@triton.jit
def keep_scale(most, scales, row, LIMIT: tl.constexpr):
    """Writes the scale that brings a row's largest element, `most`, to the largest fp8 number; and returns it."""
    scale = tl.maximum(most, 1e-12) / LIMIT
    tl.store(scales + row, scale)
    return scale


@triton.jit
def quantize_row(y, out, scales, row, offsets, inside, LIMIT: tl.constexpr):
    """Writes one row as fp8, scaled."""
    scale = keep_scale(tl.max(tl.abs(y)), scales, row, LIMIT)
    tl.store(out + offsets, (y / scale).to(tl.float8e4nv), mask=inside)


@triton.jit
def add_norm_kernel(
    x, residual, weight, bias, out, scales, width, eps,
    ADD: tl.constexpr, FP8: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    offsets = row * width + column
    total = tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        total += tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        total = total.to(residual.dtype.element_ty)
        tl.store(residual + offsets, total, mask=inside)
        total = total.to(tl.float32)
    if bias is not None:
        total = tl.where(inside, total - tl.sum(total) / width, 0.0)
    scale = tl.rsqrt(tl.sum(total * total) / width + eps)
    y = total * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if FP8:
        quantize_row(y, out, scales, row, offsets, inside, LIMIT)
    else:
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def opened(joint, column, inner):
    """silu(gate) * up of one row at `joint`, at `column`."""
    inside = column < inner
    gate = tl.load(joint + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(joint + inner + column, mask=inside, other=0.0).to(tl.float32)
    return gate * tl.sigmoid(gate) * up


@triton.jit
def swiglu_kernel(joint, out, inner, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = opened(joint + row * 2 * inner, column, inner)
    tl.store(out + row * inner + column, y.to(out.dtype.element_ty), mask=column < inner)


@triton.jit
def swiglu_fp8_kernel(
    joint, out, scales, inner, LIMIT: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """A whole row, of BLOCK columns and up to REST more: as its largest must be known, and one power of 2 would be far too many."""
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column, beyond = tl.arange(0, BLOCK), BLOCK + tl.arange(0, REST)
    y, z = opened(joint + row * 2 * inner, column, inner), opened(joint + row * 2 * inner, beyond, inner)
    scale = keep_scale(tl.maximum(tl.max(tl.abs(y)), tl.max(tl.abs(z))), scales, row, LIMIT)
    tl.store(out + row * inner + column, (y / scale).to(tl.float8e4nv), mask=column < inner)
    tl.store(out + row * inner + beyond, (z / scale).to(tl.float8e4nv), mask=beyond < inner)


@triton.jit
def gelu_kernel(x, out, scales, inner, LIMIT: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    value = tl.load(x + row * inner + column, mask=inside, other=0.0).to(tl.float32)
    # The tanh of half an argument, raised to between 0 and 1, is its sigmoid.
    y = value * tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    if FP8:
        quantize_row(y, out, scales, row, row * inner + column, inside, LIMIT)
    else:
        tl.store(out + row * inner + column, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def open_gate_kernel(
    x, gate, out, scales, width, gate_stride,
    LIMIT: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    y = value * tl.sigmoid(tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32))
    if FP8:
        quantize_row(y, out, scales, row, row * width + column, inside, LIMIT)
    else:
        tl.store(out + row * width + column, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_norm_kernel(
    x, gate, weight, out, scales, gate_stride, eps,
    HEADS: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr, FP8: tl.constexpr, LIMIT: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    tile = tl.arange(0, PADDED)[:, None] * SIZE + column[None, :]
    inside = tile < HEADS * SIZE
    value = tl.load(x + row * HEADS * SIZE + tile, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1) / SIZE + eps)
    opened = tl.load(gate + row * gate_stride + tile, mask=inside, other=0.0).to(tl.float32)
    y = value * scale[:, None] * tl.load(weight + column).to(tl.float32)[None, :] * opened * tl.sigmoid(opened)
    offsets = row * HEADS * SIZE + tile
    if FP8:
        quantize_row(y, out, scales, row, offsets, inside, LIMIT)
    else:
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def quantize_kernel(x, out, scales, width, LIMIT: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    y = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    quantize_row(y, out, scales, row, row * width + column, inside, LIMIT)


@triton.jit
def rotate_kernel(
    x, cos, sin, row_stride, patches, heads, HALF: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (head < heads) & (column < HALF)
    table = row % patches * 2 * HALF + column
    c = tl.load(cos + table, mask=column < HALF, other=0.0)
    s = tl.load(sin + table, mask=column < HALF, other=0.0)
    first = x + row * row_stride + head * 2 * HALF + column
    low = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(first + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(first, (low * c - high * s).to(x.dtype.element_ty), mask=inside)
    tl.store(first + HALF, (high * c + low * s).to(x.dtype.element_ty), mask=inside)


def output(x: Tensor, width: int, fp8: bool) -> tuple[Tensor, Tensor]:
    """Room for a result of `x`'s rows × `width`, and for a scale a row (one element where none is kept)."""
    rows = x.shape[0]
    out = torch.empty(rows, width, device=x.device, dtype=torch.float8_e4m3fn if fp8 else x.dtype)
    return out, torch.empty(rows if fp8 else 1, device=x.device, dtype=torch.float32)


def finished(out: Tensor, scales: Tensor, fp8: bool) -> Activation:
    return Quantized(out, scales) if fp8 else out


def warps(block: int, rows: int) -> int:
    """Warps of a program of `block` columns, a power of 2: as `rows` fill the card or, where they are few, so that one ends soon."""
    assert block & (block - 1) == 0, "a program has as many warps as a power of 2"
    return max(1, min(32, block // (512 if rows > PROCESSORS else 256)))


def add_norm(
    x: Tensor | None, residual: Tensor, weight: Tensor, eps: float, fp8: bool = False, bias: Tensor | None = None
) -> Activation:
    """`residual += x` in place (where there is an x), then its RMS norm, or layer norm where there is a `bias`.

    Both are [rows, width], contiguous.
    """
    rows, width = residual.shape
    out, scales = output(residual, width, fp8)
    block = triton.next_power_of_2(width)
    add_norm_kernel[(rows,)](
        residual if x is None else x, residual, weight, bias, out, scales, width, eps,
        ADD=x is not None, FP8=fp8, LIMIT=FP8_LIMIT, BLOCK=block, num_warps=warps(block, rows),
        **dependent(residual, rows),
    )  # fmt: skip
    return finished(out, scales, fp8)


def cut(inner: int, rows: int, fp8: bool) -> tuple[int, int]:
    """Columns and warps of a program that makes a part of a row, or all of one whose scale must be known."""
    whole = triton.next_power_of_2(inner)
    return (whole, warps(whole, rows)) if fp8 else (min(2048, whole), 4)


def swiglu(joint: Tensor, fp8: bool = False) -> Activation:
    """silu(gate) * up of `joint` [rows, 2 * inner], contiguous, gate first. Returns [rows, inner]."""
    assert joint.is_contiguous(), "rows that a product padded would be read askew"
    rows, inner = joint.shape[0], joint.shape[1] // 2
    out, scales = output(joint, inner, fp8)
    if fp8:
        block = triton.next_power_of_2(triton.cdiv(inner, 2))
        rest = triton.next_power_of_2(max(1, inner - block))
        swiglu_fp8_kernel[(rows,)](
            joint, out, scales, inner, LIMIT=FP8_LIMIT, BLOCK=block, REST=rest, num_warps=warps(2 * block, rows),
            **dependent(joint, rows),
        )  # fmt: skip
    else:
        block, number = cut(inner, rows, fp8)
        swiglu_kernel[(rows, triton.cdiv(inner, block))](
            joint, out, inner, BLOCK=block, num_warps=number, **dependent(joint, rows)
        )
    return finished(out, scales, fp8)


def gelu(x: Tensor, fp8: bool = False) -> Activation:
    """GELU, as tanh approximates it, of `x` [rows, inner], contiguous."""
    assert x.is_contiguous(), "rows that a product padded would be read askew"
    rows, inner = x.shape
    out, scales = output(x, inner, fp8)
    block, number = cut(inner, rows, fp8)
    gelu_kernel[(rows, triton.cdiv(inner, block))](
        x, out, scales, inner, LIMIT=FP8_LIMIT, FP8=fp8, BLOCK=block, num_warps=number
    )
    return finished(out, scales, fp8)


def open_gate(x: Tensor, gate: Tensor, fp8: bool = False) -> Activation:
    """`x` [rows, width], contiguous, times the sigmoid of `gate`, whose rows may be strided."""
    rows, width = x.shape
    out, scales = output(x, width, fp8)
    block, number = cut(width, rows, fp8)
    open_gate_kernel[(rows, triton.cdiv(width, block))](
        x, gate, out, scales, width, gate.stride(0), LIMIT=FP8_LIMIT, FP8=fp8, BLOCK=block, num_warps=number,
        **dependent(x, rows),
    )  # fmt: skip
    return finished(out, scales, fp8)


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, fp8: bool = False) -> Activation:
    """RMS norm of each head of `x` [rows, heads, size] times silu(gate); `gate` [rows, heads * size], rows may be strided."""
    rows, heads, size = x.shape
    out, scales = output(x.view(rows, -1), heads * size, fp8)
    padded = triton.next_power_of_2(heads)
    gated_norm_kernel[(rows,)](
        x, gate, weight, out, scales, gate.stride(0), eps,
        HEADS=heads, PADDED=padded, SIZE=size, FP8=fp8, LIMIT=FP8_LIMIT,
        num_warps=warps(padded * size, rows), **dependent(x, rows),
    )  # fmt: skip
    return finished(out, scales, fp8)


def quantize(x: Tensor) -> Quantized:
    """`x` [rows, width] in fp8 with a scale a row."""
    rows, width = x.shape
    out, scales = output(x, width, True)
    block = triton.next_power_of_2(width)
    quantize_kernel[(rows,)](
        x, out, scales, width, LIMIT=FP8_LIMIT, BLOCK=block, num_warps=warps(block, rows), **dependent(x, rows)
    )
    return Quantized(out, scales)


def rotate_heads(x: Tensor, heads: int, head: int, cos: Tensor, sin: Tensor) -> None:
    """Rotates the first `heads` heads of `x` [rows, …] in place, row i by `cos`, `sin` float32 [patches, head] at i % patches."""
    rotate_kernel[(x.shape[0],)](
        x, cos, sin, x.stride(0), cos.shape[0], heads, HALF=head // 2,
        HEADS=triton.next_power_of_2(heads), BLOCK=triton.next_power_of_2(head // 2), num_warps=4,
    )  # fmt: skip
