"""The network's small operations, but for its norms, as one kernel each way, differentiable: where training's time would go.

Each says which plain operation it stands for; tests hold it and its gradients to that one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.rope import Rotation


@triton.jit
def swiglu_forward(joint, out, total, inner, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    source = at // inner * 2 * inner + at % inner
    gate = tl.load(joint + source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(joint + source + inner, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(joint, d_out, d_joint, total, inner, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    source = at // inner * 2 * inner + at % inner
    gate = tl.load(joint + source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(joint + source + inner, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(d_out + at, mask=inside, other=0.0).to(tl.float32)
    half = tl.sigmoid(gate)
    d_gate = grad * up * half * (1 + gate * (1 - half))
    tl.store(d_joint + source, d_gate.to(d_joint.dtype.element_ty), mask=inside)
    tl.store(d_joint + source + inner, (grad * gate * half).to(d_joint.dtype.element_ty), mask=inside)


class SwiGLU(torch.autograd.Function):
    """`silu(gate) * up` of `joint` [..., 2 * inner], gate first."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor) -> Tensor:
        joint = joint.contiguous()
        inner = joint.shape[-1] // 2
        out = torch.empty(*joint.shape[:-1], inner, dtype=joint.dtype, device=joint.device)
        swiglu_forward[(triton.cdiv(out.numel(), 2048),)](joint, out, out.numel(), inner, BLOCK=2048)
        ctx.save_for_backward(joint)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Tensor:
        (joint,) = ctx.saved_tensors
        d_joint = torch.empty_like(joint)
        inner = joint.shape[-1] // 2
        swiglu_backward[(triton.cdiv(d_out.numel(), 2048),)](
            joint, d_out.contiguous(), d_joint, d_out.numel(), inner, BLOCK=2048
        )
        return d_joint


@triton.jit
def rotate_kernel(
    x, cos, sin, out, rows, period, x_stride, out_stride, SIGN: tl.constexpr,
    HEADS: tl.constexpr, H: tl.constexpr, SIZE: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    head = tl.arange(0, H)
    column = tl.arange(0, SIZE // 2)
    inside = (row < rows)[:, None, None] & (head < HEADS)[None, :, None] & (column >= 0)[None, None, :]
    turn = (row % period)[:, None, None] * SIZE + column[None, None, :]
    known = (row < rows)[:, None, None] & (column >= 0)[None, None, :]
    c = tl.load(cos + turn, mask=known, other=0.0)
    s = tl.load(sin + turn, mask=known, other=0.0) * SIGN
    within = head[None, :, None] * SIZE + column[None, None, :]
    at = row.to(tl.int64)[:, None, None] * x_stride + within
    to = row.to(tl.int64)[:, None, None] * out_stride + within
    left = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(x + at + SIZE // 2, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + to, (left * c - right * s).to(out.dtype.element_ty), mask=inside)
    tl.store(out + to + SIZE // 2, (right * c + left * s).to(out.dtype.element_ty), mask=inside)


def turn(x: Tensor, out: Tensor, by: Rotation, sign: float, heads: int, size: int, strides: tuple[int, int]) -> None:
    """Rotates rows of `heads` heads; row r is turned by row r modulo the rotation's rows."""
    cos, sin = (part.contiguous().view(-1, size) for part in by)
    rows = x.numel() // x.shape[-1] if x.dim() == 2 else x.shape[0] * x.shape[1]
    r = max(1, 4096 // (triton.next_power_of_2(heads) * size))
    rotate_kernel[(triton.cdiv(rows, r),)](
        x,
        cos,
        sin,
        out,
        rows,
        len(cos),
        *strides,
        SIGN=sign,
        HEADS=heads,
        H=triton.next_power_of_2(heads),
        SIZE=size,
        R=r,
    )


class Rotate(torch.autograd.Function):
    """`model.rope.rotate` of `x` [batch, n, heads, size] by float32 [batch or none, n, size]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads, size = x.shape[-2:]
        if x.stride(-1) != 1 or x.stride(-2) != size or x.stride(0) != x.shape[1] * x.stride(1):
            x = x.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        turn(x, out, (cos, sin), 1.0, heads, size, (x.stride(1), heads * size))
        ctx.save_for_backward(cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        d_out = d_out.contiguous()
        heads, size = d_out.shape[-2:]
        d_x = torch.empty_like(d_out)
        turn(d_out, d_x, ctx.saved_tensors, -1.0, heads, size, (heads * size, heads * size))
        return d_x, None, None


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """`model.rope.rotate`."""
    result: Tensor = Rotate.apply(x, *by)
    return result


class SplitRotate(torch.autograd.Function):
    """A joint q, k, v [batch, n, 3 * heads * size] apart, each [batch, n, heads, size], q and k rotated."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        joint = joint.contiguous()
        batch, n, width = joint.shape
        size = width // (3 * heads)
        parts = joint.view(batch, n, 3, heads, size)
        q, k = (torch.empty(batch, n, heads, size, dtype=joint.dtype, device=joint.device) for _ in range(2))
        for i, out in enumerate((q, k)):
            turn(parts[:, :, i], out, (cos, sin), 1.0, heads, size, (width, heads * size))
        ctx.save_for_backward(cos, sin)
        return q, k, parts[:, :, 2].contiguous()

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor, None, None, None]:
        batch, n, heads, size = d_q.shape
        joint = torch.empty(batch, n, 3, heads, size, dtype=d_q.dtype, device=d_q.device)
        for i, grad in enumerate((d_q, d_k)):
            turn(
                grad.contiguous(),
                joint[:, :, i],
                ctx.saved_tensors,
                -1.0,
                heads,
                size,
                (heads * size, 3 * heads * size),
            )
        joint[:, :, 2].copy_(d_v)
        return joint.view(batch, n, -1), None, None, None


@triton.jit
def convolution_forward(
    x, weight, kept, out, n, channels, x_batch, x_stride, WIDTH: tl.constexpr, N: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * N + tl.arange(0, N)
    c = tl.program_id(1) * C + tl.arange(0, C)
    inside = (t < n)[:, None] & (c < channels)[None, :]
    total = tl.zeros((N, C), tl.float32)
    for i in tl.static_range(WIDTH):
        value = tl.load(x + batch * x_batch + (t + i)[:, None] * x_stride + c[None, :], mask=inside, other=0.0)
        total += (
            value.to(tl.float32) * tl.load(weight + c * WIDTH + i, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        )
    at = (batch * n + t)[:, None] * channels + c[None, :]
    tl.store(kept + at, total.to(kept.dtype.element_ty), mask=inside)
    tl.store(out + at, (total * tl.sigmoid(total)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def convolution_backward(
    x, weight, kept, d_out, d_x, d_weight, n, channels, x_batch, x_stride,
    WIDTH: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * N
    c = tl.program_id(1) * C + tl.arange(0, C)
    known = c < channels
    # Inputs first .. first + N: each is a tap of the outputs at its own place and the WIDTH - 1 before.
    t = first + tl.arange(0, N)
    change = tl.zeros((N, C), tl.float32)
    place = (batch * tl.num_programs(0) + tl.program_id(0)) * channels * WIDTH + c * WIDTH
    value = tl.load(
        x + batch * x_batch + t[:, None] * x_stride + c[None, :],
        mask=(t < n + WIDTH - 1)[:, None] & known[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    for i in tl.static_range(WIDTH):
        o = t - i
        there = ((o >= 0) & (o < n))[:, None] & known[None, :]
        at = (batch * n + o)[:, None] * channels + c[None, :]
        total = tl.load(kept + at, mask=there, other=0.0).to(tl.float32)
        half = tl.sigmoid(total)
        grad = tl.load(d_out + at, mask=there, other=0.0).to(tl.float32)
        grad = grad * half * (1 + total * (1 - half))
        change += grad * tl.load(weight + c * WIDTH + i, mask=known, other=0.0).to(tl.float32)[None, :]
        tl.store(d_weight + place + i, tl.sum(grad * value, 0), mask=known)
    length = n + WIDTH - 1
    tl.store(
        d_x + (batch * length + t)[:, None] * channels + c[None, :], change.to(d_x.dtype.element_ty),
        mask=(t < length)[:, None] & known[None, :],
    )  # fmt: skip


class ShortConvolution(torch.autograd.Function):
    """`model.ops.convolution.short_convolution`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        if x.stride(-1) != 1:
            x = x.contiguous()
        weight = weight.contiguous()
        batch, length, channels = x.shape
        width = weight.shape[1]
        n = length - width + 1
        out = torch.empty(batch, n, channels, dtype=x.dtype, device=x.device)
        block = min(64, triton.next_power_of_2(n))
        kept = torch.empty_like(out)
        convolution_forward[(triton.cdiv(n, block), triton.cdiv(channels, 64), batch)](
            x, weight, kept, out, n, channels, x.stride(0), x.stride(1), WIDTH=width, N=block, C=64
        )
        ctx.save_for_backward(x, weight, kept)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, kept = ctx.saved_tensors
        batch, length, channels = x.shape
        width = weight.shape[1]
        block = min(64, triton.next_power_of_2(length))
        parts = triton.cdiv(length, block)
        d_x = torch.empty(batch, length, channels, dtype=x.dtype, device=x.device)
        d_weight = torch.empty(batch * parts, channels * width, device=x.device)
        convolution_backward[(parts, triton.cdiv(channels, 64), batch)](
            x, weight, kept, d_out.contiguous(), d_x, d_weight, length - width + 1, channels, x.stride(0), x.stride(1),
            WIDTH=width, N=block, C=64,
        )  # fmt: skip
        return d_x, d_weight.sum(0).view(channels, width).to(weight.dtype)


def short_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """`model.ops.convolution.short_convolution`."""
    result: Tensor = ShortConvolution.apply(x, weight)
    return result
