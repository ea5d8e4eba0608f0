"""What comes before the delta rule, in one pass: short convolution over kept and new inputs, SiLU, L2 norm of q and k, gates."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.dependence import dependent, follow


@triton.jit
def convolve(
    source, past, weight, step, channel, n, stride, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, OPENS: tl.constexpr
):  # fmt: skip
    """Sums over the last WIDTH inputs at each of `step`; those before the call are at `past`, read only where these steps open it."""
    total = tl.zeros((step.shape[0], channel.shape[0]), tl.float32)
    for i in tl.static_range(WIDTH):
        t = step + i - (WIDTH - 1)
        here = ((t >= 0) & (t < n))[:, None] if OPENS else (t < n)[:, None]
        x = tl.load(source + t[:, None] * stride + channel[None, :], mask=here, other=0.0).to(tl.float32)
        if OPENS:
            kept = past + (t + WIDTH - 1)[:, None] * CHANNELS + channel[None, :]
            x += tl.load(kept, mask=(t < 0)[:, None], other=0.0).to(tl.float32)
        total += x * tl.load(weight + channel * WIDTH + i).to(tl.float32)[None, :]
    return total


@triton.jit
def mix_kernel(
    joint, kept, weight, a_log, dt_bias, slots, counts, out, decay, beta,
    n, batch_stride, stride, b_offset, a_offset,
    CHANNELS: tl.constexpr, NORMED: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    PADDED: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, TAIL: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    part, first, batch = tl.program_id(0), tl.program_id(1) * STEPS, tl.program_id(2).to(tl.int64)
    step = first + tl.arange(0, STEPS)
    count = tl.load(counts + batch)
    source = joint + batch * batch_stride
    if part == CHANNELS // BLOCK:
        head = tl.arange(0, PADDED)
        some = head < HEADS
        inside = (step < n)[:, None] & some[None, :]
        real = (step < count)[:, None]
        at = step[:, None] * stride + head[None, :]
        b = tl.load(source + at + b_offset, mask=inside, other=0.0).to(tl.float32)
        a = tl.load(source + at + a_offset, mask=inside, other=0.0).to(tl.float32)
        a += tl.load(dt_bias + head, mask=some, other=0.0).to(tl.float32)[None, :]
        soft = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
        g = -tl.exp(tl.load(a_log + head, mask=some, other=0.0).to(tl.float32))[None, :] * soft
        to = (batch * n + step)[:, None] * HEADS + head[None, :]
        tl.store(decay + to, tl.where(real, g, 0.0), mask=inside)
        tl.store(beta + to, tl.where(real, tl.sigmoid(b), 0.0), mask=inside)
    else:
        channel = part * BLOCK + tl.arange(0, BLOCK)
        past = kept + tl.load(slots + batch) * (WIDTH - 1) * CHANNELS
        if first < WIDTH - 1:
            total = convolve(source, past, weight, step, channel, n, stride, CHANNELS, WIDTH, True)
        else:
            total = convolve(source, past, weight, step, channel, n, stride, CHANNELS, WIDTH, False)
        y = total * tl.sigmoid(total)
        if part * BLOCK < NORMED:
            y *= tl.rsqrt(tl.sum(y * y, 1) + 1e-6)[:, None]
        tl.store(
            out + (batch * n + step)[:, None] * CHANNELS + channel[None, :],
            y.to(out.dtype.element_ty),
            mask=(step < n)[:, None],
        )
        # Only the programs of the first steps read the kept inputs, so they alone may replace them.
        if first == 0:
            row = tl.arange(0, TAIL)
            from_call = count + row - (WIDTH - 1)
            wanted = row < WIDTH - 1
            late = tl.load(
                source + from_call[:, None] * stride + channel[None, :],
                mask=((from_call >= 0) & wanted)[:, None],
                other=0.0,
            )
            early = tl.load(
                past + (count + row)[:, None] * CHANNELS + channel[None, :],
                mask=((from_call < 0) & wanted)[:, None],
                other=0.0,
            )
            tail = tl.where((from_call >= 0)[:, None], late, early)
            tl.debug_barrier()
            tl.store(past + row[:, None] * CHANNELS + channel[None, :], tail, mask=wanted[:, None])


def mix(
    joint: Tensor, kept: Tensor, weight: Tensor, a_log: Tensor, dt_bias: Tensor, slots: Tensor, counts: Tensor,
    head: int, gate_channels: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Takes `joint` [batch, n, q, k, v, gate, b and a side by side] to what the delta rule wants, and keeps its last inputs.

    `kept` [slots of the pool, width - 1, channels of q, k and v] is read and updated at `slots` int64 [batch], of whose n
    tokens only the first `counts` int64 [batch] are real; those of `joint` may stand farther apart than they are wide.
    `weight` is [channels, width], `head` the size of q's and k's heads, of which there may be fewer than
    of v's; the gate has `gate_channels`, as v has.
    Returns q, k (L2-normalised) and v side by side [batch, n, channels], the log decay and beta, float32 [batch, n, heads],
    both 0 where padding.
    """
    batch, n, _ = joint.shape
    channels, width = weight.shape
    heads = a_log.shape[0]
    out = torch.empty(batch, n, channels, device=joint.device, dtype=joint.dtype)
    decay = torch.empty(batch, n, heads, device=joint.device, dtype=torch.float32)
    beta = torch.empty_like(decay)
    steps = 1 if n == 1 else 32 if batch * n >= 1024 else 16
    mix_kernel[(channels // head + 1, triton.cdiv(n, steps), batch)](
        joint, kept, weight, a_log, dt_bias, slots, counts, out, decay, beta,
        n, joint.stride(0), joint.stride(1), channels + gate_channels, channels + gate_channels + heads,
        CHANNELS=channels, NORMED=channels - gate_channels, WIDTH=width, HEADS=heads, PADDED=triton.next_power_of_2(heads),
        BLOCK=head, STEPS=steps, TAIL=triton.next_power_of_2(width - 1), num_warps=2 if n == 1 else 4,
        **dependent(joint, batch * n),
    )  # fmt: skip
    return out, decay, beta
