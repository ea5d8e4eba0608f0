"""The painter's work on CUDA as three kernels: composing a picture, exposing it, cutting it into patches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Pixels of a program."""


@triton.jit
def mapped(matrix, x, y):
    """Picture coordinates through the 3×3 matrix at `matrix`."""
    u = tl.load(matrix) * x + tl.load(matrix + 1) * y + tl.load(matrix + 2)
    v = tl.load(matrix + 3) * x + tl.load(matrix + 4) * y + tl.load(matrix + 5)
    w = tl.load(matrix + 6) * x + tl.load(matrix + 7) * y + tl.load(matrix + 8)
    return u / w, v / w


@triton.jit
def tap(source, channel_size, row, column, height, width, weight, known, c: tl.constexpr):
    """One of the four neighbours of a bilinear sample, nothing outside."""
    inside = known & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return weight * tl.load(source + c * channel_size + row * width + column, mask=inside, other=0.0)


@triton.jit
def sampled(source, height, width, row, column, across, down, known, c: tl.constexpr):
    """Channel `c` of a bilinear sample between whole `row`, `column` and the next."""
    size = height * width
    total = tap(source, size, row, column, height, width, (1 - across) * (1 - down), known, c)
    total += tap(source, size, row, column + 1, height, width, across * (1 - down), known, c)
    total += tap(source, size, row + 1, column, height, width, (1 - across) * down, known, c)
    return total + tap(source, size, row + 1, column + 1, height, width, across * down, known, c)


@triton.jit
def compose_kernel(
    grounds, ground, ground_matrix, light, things, lines, kind, shown, matrix, out,
    height, width, side, line_height, line_width, ground_side,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    area = height * width
    known = pixel < area
    x = ((pixel % width).to(tl.float32) + 0.5) / width * 2 - 1
    y = ((pixel // width).to(tl.float32) + 0.5) / height * 2 - 1
    u, v = mapped(ground_matrix + frame * 9, x, y)
    u = tl.minimum(tl.maximum(((u + 1) * ground_side - 1) / 2, 0.0), ground_side - 1.0)
    v = tl.minimum(tl.maximum(((v + 1) * ground_side - 1) / 2, 0.0), ground_side - 1.0)
    column, row = u.to(tl.int32), v.to(tl.int32)
    source = grounds + tl.load(ground + frame) * 3 * ground_side * ground_side
    across, down = u - column.to(tl.float32), v - row.to(tl.float32)
    lit = light + frame * 6
    red = sampled(source, ground_side, ground_side, row, column, across, down, known, 0)
    green = sampled(source, ground_side, ground_side, row, column, across, down, known, 1)
    blue = sampled(source, ground_side, ground_side, row, column, across, down, known, 2)
    red = tl.minimum(tl.maximum(red * tl.load(lit) + tl.load(lit + 3), 0.0), 1.0)
    green = tl.minimum(tl.maximum(green * tl.load(lit + 1) + tl.load(lit + 4), 0.0), 1.0)
    blue = tl.minimum(tl.maximum(blue * tl.load(lit + 2) + tl.load(lit + 5), 0.0), 1.0)
    for slot in tl.static_range(SLOTS):
        visit = tl.load(shown + frame * SLOTS + slot)
        if visit >= 0:
            u, v = mapped(matrix + (frame * SLOTS + slot) * 9, x, y)
            written = tl.load(kind + visit) == 2
            sprite = things + visit * 4 * side * side
            high, wide = side, side
            if written:
                u = u * line_height / line_width
                sprite = lines + visit * 4 * line_height * line_width
                high, wide = line_height, line_width
            u = ((u + 1) * wide - 1) / 2
            v = ((v + 1) * high - 1) / 2
            # What lies far outside has no neighbours inside; kept small so that it is a whole number.
            u = tl.minimum(tl.maximum(u, -9.0), wide + 9.0)
            v = tl.minimum(tl.maximum(v, -9.0), high + 9.0)
            left, top = tl.floor(u), tl.floor(v)
            column, row = left.to(tl.int32), top.to(tl.int32)
            across, down = u - left, v - top
            clear = 1 - sampled(sprite, high, wide, row, column, across, down, known, 3)
            red = red * clear + sampled(sprite, high, wide, row, column, across, down, known, 0)
            green = green * clear + sampled(sprite, high, wide, row, column, across, down, known, 1)
            blue = blue * clear + sampled(sprite, high, wide, row, column, across, down, known, 2)
    at = out + frame * 3 * area + pixel
    tl.store(at, red, mask=known)
    tl.store(at + area, green, mask=known)
    tl.store(at + 2 * area, blue, mask=known)


def compose(grounds: Tensor, arrays: dict[str, Tensor], part: slice, height: int, width: int) -> Tensor:
    """Backgrounds under their light with the visits over them: float32 [frames, 3, height, width]."""
    shown, ground = arrays["shown"][part], arrays["ground"][part]
    frames, slots = shown.shape
    out = torch.empty(frames, 3, height, width, device=grounds.device)
    things, lines = arrays["things"], arrays["lines"]
    compose_kernel[(triton.cdiv(height * width, BLOCK), frames)](
        grounds, ground, arrays["ground_matrix"][part].contiguous(), arrays["light"][part].contiguous(), things.contiguous(),
        lines.contiguous(), arrays["kind"], shown.contiguous(), arrays["matrix"][part].contiguous(), out,
        height, width, things.shape[-1], lines.shape[-2], lines.shape[-1], grounds.shape[-1], SLOTS=slots, BLOCK=BLOCK,
    )  # fmt: skip
    return out


@triton.jit
def expose_kernel(picture, exposure, film, tinted, seed, height, width, BLOCK: tl.constexpr):
    frame = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    area = height * width
    known = pixel < area
    column, row = pixel % width, pixel // width
    gamma, noise = tl.load(film + frame * 4), tl.load(film + frame * 4 + 1)
    grain = 0.7 * tl.randn(seed, frame.to(tl.int32) * area + pixel)
    # Coloured noise at half size, between its four nearest points as a bilinear enlargement has them.
    near_x, near_y = column // 2, row // 2
    far_x = tl.minimum(tl.maximum(near_x + column % 2 * 2 - 1, 0), width // 2 - 1)
    far_y = tl.minimum(tl.maximum(near_y + row % 2 * 2 - 1, 0), height // 2 - 1)
    near_y, far_y = near_y * (width // 2), far_y * (width // 2)
    at = picture + frame * 3 * area + pixel
    for channel in tl.static_range(3):
        value = tl.load(at + channel * area, mask=known, other=0.5) * tl.load(exposure + frame * 3 + channel)
        value = tl.minimum(tl.maximum(value, 1e-4), 1.0)
        value = tl.exp2(tl.log2(value) * gamma)
        small = tinted + (frame * 3 + channel) * (area // 4)
        colour = 0.5625 * tl.load(small + near_y + near_x, mask=known, other=0.0).to(tl.float32)
        colour += 0.1875 * tl.load(small + near_y + far_x, mask=known, other=0.0).to(tl.float32)
        colour += 0.1875 * tl.load(small + far_y + near_x, mask=known, other=0.0).to(tl.float32)
        colour += 0.0625 * tl.load(small + far_y + far_x, mask=known, other=0.0).to(tl.float32)
        tl.store(at + channel * area, value + noise * (grain + colour), mask=known)


def expose(picture: Tensor, exposure: Tensor, film: Tensor, tinted: Tensor, seed: int) -> None:
    """Exposure [frames, 3], gamma and noise (`film` [frames, 4]: gamma, noise, softness, blocks) onto `picture`, in place.

    `tinted` [frames, 3, height / 2, width / 2] is the coloured part of the noise; the rest is drawn from `seed`.
    """
    frames, _, height, width = picture.shape
    expose_kernel[(triton.cdiv(height * width, BLOCK), frames)](
        picture, exposure.contiguous(), film.contiguous(), tinted, seed, height, width, BLOCK=BLOCK
    )


@triton.jit
def cut_kernel(picture, mean, std, out, height, width, BLOCK: tl.constexpr):
    step, patch = tl.program_id(1).to(tl.int64), tl.program_id(0)
    i = tl.arange(0, BLOCK)
    known = i < 1176
    channel, frame, py, px = i // 392, i // 196 % 2, i // 14 % 14, i % 14
    cell, corner = patch // 4, patch % 4
    wide = width // 28
    row = (cell // wide * 2 + corner // 2) * 14 + py
    column = (cell % wide * 2 + corner % 2) * 14 + px
    at = (step * 2 + frame) * 3 * height * width + channel * height * width + row * width + column
    value = tl.load(picture + at, mask=known, other=0.0)
    value = tl.floor(tl.minimum(tl.maximum(value, 0.0), 1.0) * 255 + 0.5) / 255
    value = (value - tl.load(mean + channel, mask=known, other=0.0)) / tl.load(std + channel, mask=known, other=1.0)
    patches = height * width // 196
    tl.store(out + (step * patches + patch) * 1176 + i, value.to(out.dtype.element_ty), mask=known)


def cut(picture: Tensor, mean: Tensor, std: Tensor, out: Tensor) -> None:
    """Pictures [2 * steps, 3, height, width], rounded to 8 bits, into normalised patches of 14 pixels, pairs of frames, in
    merge-group order: `out` [steps, patches, 1176]."""
    _, _, height, width = picture.shape
    steps, patches, _ = out.shape
    cut_kernel[(patches, steps)](picture, mean.contiguous(), std.contiguous(), out, height, width, BLOCK=2048)
