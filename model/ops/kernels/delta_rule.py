"""The gated delta rule over slots of a pool, in place: chunked for many tokens, recurrent for one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.delta_rule import CHUNK
from model.ops.kernels.dependence import dependent, follow


@triton.jit
def chunk_kernel(
    mixed, decay, beta, inverse, scores, total, n, chunks, scale,
    CHANNELS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, KEY: tl.constexpr, SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = tl.arange(0, SIZE)
    step = chunk * SIZE + i
    inside = step < n
    gates = (batch * n + step) * HEADS + head
    sum_g = tl.cumsum(tl.load(decay + gates, mask=inside, other=0.0), 0)
    tl.store(total + gates, sum_g, mask=inside)
    b = tl.load(beta + gates, mask=inside, other=0.0)
    rows = mixed + (batch * n + step)[:, None] * CHANNELS + head // GROUP * KEY + tl.arange(0, KEY)[None, :]
    q = tl.load(rows, mask=inside[:, None], other=0.0)
    k = tl.load(rows + HEADS // GROUP * KEY, mask=inside[:, None], other=0.0)
    below = i[:, None] >= i[None, :]
    fade = tl.where(below, tl.exp(tl.minimum(sum_g[:, None] - sum_g[None, :], 0.0)), 0.0)
    alike = tl.dot(k, tl.trans(k), input_precision=PRECISION) * fade * b[:, None]
    # The unit lower triangular 1 + alike is inverted block by block, each twice the size of the last: exact, and stable. In
    # bf16 runs plain tf32 products do: the inverse is rounded to bf16 anyway, and three products for one took most of the kernel.
    pair = (i[:, None] // 2 == i[None, :] // 2) & (i[:, None] > i[None, :])
    x = tl.where(i[:, None] == i[None, :], 1.0, 0.0) - tl.where(pair, alike, 0.0)
    size = 2
    while size < SIZE:
        twice = 2 * size
        corner = (
            (i[:, None] // twice == i[None, :] // twice) & (i[:, None] % twice >= size) & (i[None, :] % twice < size)
        )
        lower = tl.where(corner, alike, 0.0)
        x -= tl.dot(tl.dot(x, lower, input_precision=PRECISION), x, input_precision=PRECISION)
        size = twice
    square = ((batch * HEADS + head) * chunks + chunk) * SIZE * SIZE + i[:, None] * SIZE + i[None, :]
    tl.store(inverse + square, x.to(inverse.dtype.element_ty))
    seen = tl.dot(q, tl.trans(k), input_precision=PRECISION) * fade * scale
    tl.store(scores + square, seen.to(scores.dtype.element_ty))


@triton.jit
def carry_kernel(
    mixed, beta, inverse, scores, total, slots, state, out, n, chunks, scale,
    CHANNELS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    part, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dtype = mixed.dtype.element_ty
    i, key = tl.arange(0, SIZE), tl.arange(0, KEY)
    value = part * BLOCK + tl.arange(0, BLOCK)
    place = state + (tl.load(slots + batch) * HEADS + head) * KEY * VALUE + key[:, None] * VALUE + value[None, :]
    s = tl.load(place)
    for chunk in range(chunks):
        step = chunk * SIZE + i
        inside = step < n
        gates = (batch * n + step) * HEADS + head
        last = tl.minimum((chunk + 1) * SIZE, n) - 1
        g_last = tl.load(total + (batch * n + last) * HEADS + head)
        g = tl.load(total + gates, mask=inside, other=0.0)
        b = tl.load(beta + gates, mask=inside, other=0.0)
        rows = mixed + (batch * n + step)[:, None] * CHANNELS
        q = tl.load(rows + head // GROUP * KEY + key[None, :], mask=inside[:, None], other=0.0)
        k = tl.load(rows + (HEADS + head) // GROUP * KEY + key[None, :], mask=inside[:, None], other=0.0)
        v = tl.load(rows + 2 * (HEADS // GROUP) * KEY + head * VALUE + value[None, :], mask=inside[:, None], other=0.0)
        square = ((batch * HEADS + head) * chunks + chunk) * SIZE * SIZE + i[:, None] * SIZE + i[None, :]
        x = tl.load(inverse + square)
        p = tl.load(scores + square)
        held = s.to(dtype)
        grown = tl.exp(g)[:, None]
        old = tl.dot(k, held, input_precision=PRECISION)
        right = b[:, None] * (v.to(tl.float32) - grown * old)
        new = tl.dot(x, right.to(dtype), input_precision=PRECISION).to(dtype)
        o = tl.dot(q, held, input_precision=PRECISION) * (grown * scale)
        o += tl.dot(p, new, input_precision=PRECISION)
        tl.store(
            out + ((batch * n + step)[:, None] * HEADS + head) * VALUE + value[None, :],
            o.to(out.dtype.element_ty),
            mask=inside[:, None],
        )
        left = tl.where(inside, tl.exp(g_last - g), 0.0)
        faded = (new.to(tl.float32) * left[:, None]).to(dtype)
        s = s * tl.exp(g_last) + tl.dot(tl.trans(k), faded, input_precision=PRECISION)
    tl.store(place, s)


@triton.jit
def recurrent_kernel(
    mixed, decay, beta, slots, state, out, scale,
    CHANNELS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    part, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    key = tl.arange(0, KEY)
    value = part * BLOCK + tl.arange(0, BLOCK)
    place = state + (tl.load(slots + batch) * HEADS + head) * KEY * VALUE + key[:, None] * VALUE + value[None, :]
    row = mixed + batch * CHANNELS
    q = tl.load(row + head // GROUP * KEY + key).to(tl.float32)
    k = tl.load(row + (HEADS + head) // GROUP * KEY + key).to(tl.float32)
    v = tl.load(row + 2 * (HEADS // GROUP) * KEY + head * VALUE + value).to(tl.float32)
    s = tl.load(place) * tl.exp(tl.load(decay + batch * HEADS + head))
    seen = tl.sum(k[:, None] * s, 0)
    s += k[:, None] * (tl.load(beta + batch * HEADS + head) * (v - seen))[None, :]
    o = tl.sum(q[:, None] * s, 0) * scale
    tl.store(out + (batch * HEADS + head) * VALUE + value, o.to(out.dtype.element_ty))
    tl.store(place, s)


def delta_rule(
    mixed: Tensor, decay: Tensor, beta: Tensor, slots: Tensor, state: Tensor, heads: int, value: int
) -> Tensor:
    """Advances `state` float32 [slots of the pool, heads, key, value] at `slots` int64 [batch] by n tokens, in place.

    `mixed` [batch, n, channels of q, k (both L2-normalised) and v], `decay` (log) and `beta` float32 [batch, n, heads] (0
    where padding). Where there are fewer heads of q and k than of v, each serves as many neighbours of v's. Returns
    [batch, n, heads, value]. The formula is `model.ops.delta_rule.recurrent`'s.
    """
    batch, n, channels = mixed.shape
    key = state.shape[2]
    scale = key**-0.5
    out = torch.empty(batch, n, heads, value, device=mixed.device, dtype=mixed.dtype)
    sizes = {"CHANNELS": channels, "HEADS": heads, "GROUP": 2 * heads * key // (channels - heads * value), "KEY": key}
    if n == 1:
        block = 32
        recurrent_kernel[(value // block, heads, batch)](
            mixed, decay, beta, slots, state, out, scale, **sizes, VALUE=value, BLOCK=block, num_warps=4,
            **dependent(mixed, batch),
        )  # fmt: skip
        return out
    precision = "tf32x3" if mixed.dtype == torch.float32 else "tf32"
    size = min(CHUNK, max(16, triton.next_power_of_2(n)))
    warps, carriers = (8 if mixed.dtype == torch.float32 and size == 64 else 4), 4
    if mixed.dtype != torch.float32 and (key < 128 or n <= CHUNK):
        # Triton 3.6 seems to get such shapes wrong with Hopper's warp-group products: with keys of 64 in one chunk of 64, state
        # and output were garbage on an H100. Two warps and small chunks keep to the older tensor-core instructions.
        size, warps, carriers = min(size, 32), 2, 2
    chunks = triton.cdiv(n, size)
    inverse = torch.empty(batch, heads, chunks, size, size, device=mixed.device, dtype=mixed.dtype)
    scores = torch.empty_like(inverse)
    total = torch.empty_like(decay)
    chunk_kernel[(chunks, heads, batch)](
        mixed, decay, beta, inverse, scores, total, n, chunks, scale,
        **sizes, SIZE=size, PRECISION=precision, num_warps=warps,
    )  # fmt: skip
    # As measured on an H200: few streams need small parts to fill the card, and loads ahead of their use; a full card hides its
    # own loads. Not 32 columns with one stage: Triton 3.6 gets that wrong on Hopper, by more than the state itself.
    block = min(value, 32 if batch * heads * value < 2 * 16 * 256 else 64)
    stages = 3 if block == 32 else 1
    carry_kernel[(value // block, heads, batch)](
        mixed, beta, inverse, scores, total, slots, state, out, n, chunks, scale,
        **sizes, VALUE=value, SIZE=size, BLOCK=block, PRECISION=precision, num_warps=carriers, num_stages=stages,
    )  # fmt: skip
    return out
