"""Training's norms as one kernel each way, differentiable: plain, of a sum with the residual stream, and gated.

Each says which plain operation it stands for; tests hold it and its gradients to that one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 528
"""Programs that sum over rows, each its own part: four a multiprocessor."""


@triton.jit
def add_norm_forward(
    x, branch, weight, total, out, rows, width, eps, ADD: tl.constexpr, R: tl.constexpr, W: tl.constexpr
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, W)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    offsets = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(branch + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + offsets, value, mask=inside)
    scale = tl.rsqrt(tl.sum(value * value, 1) / width + eps)
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(out + offsets, (value * scale[:, None] * gain[None, :]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_backward(
    total, weight, d_total, d_out, d_x, d_branch, d_weight, rows, width, eps,
    ADD: tl.constexpr, KEPT: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, W)
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    sums = tl.zeros((W,), tl.float32)
    for start in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        row = start + tl.arange(0, R)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        offsets = row.to(tl.int64)[:, None] * width + column[None, :]
        value = tl.load(total + offsets, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(d_out + offsets, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 1) / width + eps)[:, None]
        normed = value * scale
        sums += tl.sum(grad * normed, 0)
        pulled = grad * gain[None, :]
        change = scale * (pulled - normed * (tl.sum(pulled * normed, 1) / width)[:, None])
        if KEPT:
            change += tl.load(d_total + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_x + offsets, change.to(d_x.dtype.element_ty), mask=inside)
        if ADD:
            tl.store(d_branch + offsets, change.to(d_branch.dtype.element_ty), mask=inside)
    tl.store(d_weight + tl.program_id(0) * width + column, sums, mask=column < width)


def tile(width: int) -> tuple[int, int]:
    """Rows and columns of a tile over rows of `width`."""
    columns = triton.next_power_of_2(width)
    return max(1, 2048 // columns), columns


def norm_forward(x: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum (or `x` itself) and its norm."""
    width = x.shape[-1]
    rows = x.numel() // width
    total = x if branch is None else torch.empty_like(x)
    out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    r, w = tile(width)
    add_norm_forward[(triton.cdiv(rows, r),)](
        x, x if branch is None else branch, weight, total, out, rows, width, eps, ADD=branch is not None, R=r, W=w
    )
    return total, out


def norm_backward(
    total: Tensor, weight: Tensor, d_total: Tensor | None, d_out: Tensor, d_branch: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the sum, which are written to `d_branch` too, and of the weight."""
    width = total.shape[-1]
    rows = total.numel() // width
    d_x = torch.empty_like(total)
    r, w = tile(width)
    programs = min(PROGRAMS, triton.cdiv(rows, r))
    d_weight = torch.empty(programs, width, device=total.device)
    add_norm_backward[(programs,)](
        total, weight, total if d_total is None else d_total, d_out, d_x, d_x if d_branch is None else d_branch,
        d_weight, rows, width, eps, ADD=d_branch is not None, KEPT=d_total is not None, R=r, W=w,
    )  # fmt: skip
    return d_x, d_weight.sum(0).to(weight.dtype)


class Norm(torch.autograd.Function):
    """`model.layers.vision.RMSNorm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return norm_forward(x, None, weight, eps)[1]

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return *norm_backward(x, weight, None, d_out.contiguous(), None, ctx.eps), None


class AddNorm(torch.autograd.Function):
    """The float32 residual stream `x` plus a branch, and that sum's `model.layers.vision.RMSNorm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        total, out = norm_forward(x.contiguous(), branch.contiguous(), weight, eps)
        ctx.save_for_backward(total, weight)
        ctx.eps, ctx.dtype = eps, branch.dtype
        return total, out

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, d_out: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        if d_out is None:
            return d_total, None if d_total is None else d_total.to(ctx.dtype), None, None
        d_branch = torch.empty(total.shape, dtype=ctx.dtype, device=total.device)
        kept = None if d_total is None else d_total.contiguous()
        d_x, d_weight = norm_backward(total, weight, kept, d_out.contiguous(), d_branch, ctx.eps)
        return d_x, d_branch, d_weight, None


@triton.jit
def gated_norm_forward(
    x, gate, weight, out, rows, gate_stride, eps, HEADS: tl.constexpr, R: tl.constexpr, W: tl.constexpr
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, W)
    inside = (row < rows)[:, None] & (column < W)[None, :]
    offsets = row.to(tl.int64)[:, None] * W + column[None, :]
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1) / W + eps)[:, None]
    at = (row // HEADS).to(tl.int64)[:, None] * gate_stride + (row % HEADS)[:, None] * W + column[None, :]
    opened = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + column).to(tl.float32)[None, :]
    tl.store(out + offsets, (value * scale * gain * opened * tl.sigmoid(opened)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_norm_backward(
    x, gate, weight, d_out, d_x, d_gate, d_weight, rows, gate_stride, eps,
    HEADS: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, W)
    gain = tl.load(weight + column).to(tl.float32)[None, :]
    sums = tl.zeros((W,), tl.float32)
    for start in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        row = start + tl.arange(0, R)
        inside = (row < rows)[:, None] & (column < W)[None, :]
        offsets = row.to(tl.int64)[:, None] * W + column[None, :]
        value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 1) / W + eps)[:, None]
        at = (row // HEADS).to(tl.int64)[:, None] * gate_stride + (row % HEADS)[:, None] * W + column[None, :]
        opened = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(d_out + offsets, mask=inside, other=0.0).to(tl.float32)
        normed = value * scale
        half = tl.sigmoid(opened)
        silu = opened * half
        sums += tl.sum(grad * normed * silu, 0)
        slope = half * (1 + opened * (1 - half))
        tl.store(d_gate + offsets, (grad * normed * gain * slope).to(d_gate.dtype.element_ty), mask=inside)
        pulled = grad * gain * silu
        change = scale * (pulled - normed * (tl.sum(pulled * normed, 1) / W)[:, None])
        tl.store(d_x + offsets, change.to(d_x.dtype.element_ty), mask=inside)
    tl.store(d_weight + tl.program_id(0) * W + column, sums)


class GatedNorm(torch.autograd.Function):
    """`model.layers.delta_net.GatedNorm`: `x` and `gate` [batch, n, heads, size]; rows of `gate` may lie apart."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        heads, size = x.shape[-2:]
        rows = x.numel() // size
        if gate.stride(-2) != size or gate.stride(-1) != 1 or gate.stride(0) != gate.shape[1] * gate.stride(1):
            gate = gate.contiguous()
        out = torch.empty_like(x)
        r = max(1, 2048 // size)
        gated_norm_forward[(triton.cdiv(rows, r),)](
            x, gate, weight, out, rows, gate.stride(1), eps, HEADS=heads, R=r, W=size
        )
        ctx.save_for_backward(x, gate, weight)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate, weight = ctx.saved_tensors
        heads, size = x.shape[-2:]
        rows = x.numel() // size
        d_x, d_gate = torch.empty_like(x), torch.empty(x.shape, dtype=gate.dtype, device=x.device)
        r = max(1, 2048 // size)
        programs = min(PROGRAMS, triton.cdiv(rows, r))
        d_weight = torch.empty(programs, size, device=x.device)
        gated_norm_backward[(programs,)](
            x, gate, weight, d_out.contiguous(), d_x, d_gate, d_weight, rows, gate.stride(1), ctx.eps,
            HEADS=heads, R=r, W=size,
        )  # fmt: skip
        return d_x, d_gate, d_weight.sum(0).to(weight.dtype), None
