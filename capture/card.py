"""RGB of what CUDA decoded, made where it lies: what crosses to the host, into pinned memory, has its final size."""

from __future__ import annotations

from functools import cache
from threading import Lock

import numpy as np
import torch
import triton
import triton.language as tl
from av.video.frame import VideoFrame

COEFFICIENTS = {
    1: (117489, 138438, 13975, 34925),
    5: (104597, 132201, 25675, 53279),
    6: (104597, 132201, 25675, 53279),
    7: (117579, 136230, 16907, 35559),
    9: (110013, 140363, 12277, 42626),
}
"""By FFmpeg's number of a matrix (ITU-T H.273, table 4): red of V, blue of U, green of U and of V, of 65,536 in the limited range."""
BLOCK = 256
"""Pixels of a row that a program makes."""


@triton.jit
def share(at, low, high):
    """How much of [at, at + 1) lies between `low` and `high`."""
    return tl.maximum(tl.minimum(at + 1.0, high) - tl.maximum(at.to(tl.float32), low), 0.0)


@triton.jit(
    do_not_specialize=(
        "width", "height", "luma_stride", "chroma_stride", "wide", "high", "taps",
        "brightness", "black", "red_v", "blue_u", "green_u", "green_v",
    ),
    do_not_specialize_on_alignment=("luma", "chroma", "out"),
)  # fmt: skip
def colours_kernel(
    luma, chroma, out, width, height, luma_stride, chroma_stride, wide, high, taps,
    brightness, black, red_v, blue_u, green_u, green_v, BLOCK: tl.constexpr,
):  # fmt: skip
    # One kernel for pictures of all sizes, so that none of them waits for a compiler.
    row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < wide
    across, down = width.to(tl.float32) / wide, height.to(tl.float32) / high
    left, right, top, bottom = column * across, (column + 1) * across, row * down, (row + 1) * down
    # As FFmpeg's scaler has it, two pixels share what they cover of the chroma, unless the width is odd.
    odd = wide % 2 == 1
    begin = tl.where(odd, left / 2, column // 2 * across)
    end = tl.where(odd, right / 2, (column // 2 + 1) * across)
    # A pixel is the mean of what it covers: of Y, and of the chroma at half the size.
    y = tl.zeros((BLOCK,), tl.float32)
    u = tl.zeros((BLOCK,), tl.float32)
    v = tl.zeros((BLOCK,), tl.float32)
    for j in range(taps):
        line, half_line = top.to(tl.int32) + j, (top / 2).to(tl.int32) + j
        tall, half_tall = share(line, top, bottom), share(half_line, top / 2, bottom / 2)
        bright_row = luma + tl.minimum(line, height - 1) * luma_stride
        pair_row = chroma + tl.minimum(half_line, (height + 1) // 2 - 1) * chroma_stride
        for i in range(taps):
            at, half_at = left.to(tl.int32) + i, begin.to(tl.int32) + i
            # Beyond the last there is nothing of the pixel either.
            y += share(at, left, right) * tall * tl.load(bright_row + tl.minimum(at, width - 1)).to(tl.float32)
            weight = share(half_at, begin, end) * half_tall
            pair = pair_row + 2 * tl.minimum(half_at, (width + 1) // 2 - 1)
            u += weight * tl.load(pair).to(tl.float32)
            v += weight * tl.load(pair + 1).to(tl.float32)
    area, chroma_area = across * down, (end - begin) * down / 2
    # From here on as FFmpeg's scaler has it, in 16 bits (libswscale, yuv2rgb).
    y8 = tl.floor(y / area + 0.5).to(tl.int32) * 8 - black
    u8 = tl.floor(u / chroma_area + 0.5).to(tl.int32) * 8 - 1024
    v8 = tl.floor(v / chroma_area + 0.5).to(tl.int32) * 8 - 1024
    bright = (y8 * brightness) >> 16
    red = bright + ((v8 * red_v) >> 16)
    green = bright + ((u8 * green_u) >> 16) + ((v8 * green_v) >> 16)
    blue = bright + ((u8 * blue_u) >> 16)
    to = out + (row * wide + column) * 3
    tl.store(to, tl.minimum(tl.maximum(red, 0), 255).to(tl.uint8), mask=inside)
    tl.store(to + 1, tl.minimum(tl.maximum(green, 0), 255).to(tl.uint8), mask=inside)
    tl.store(to + 2, tl.minimum(tl.maximum(blue, 0), 255).to(tl.uint8), mask=inside)


@cache
def factors(space: int, full: bool) -> tuple[int, ...]:
    """What the kernel multiplies by, in 13 bits: brightness, black times 8, red of V, blue of U, green of U and of V."""
    red, blue, green_u, green_v = COEFFICIENTS[space]
    bright, black = 65536 * 255 // 219, 16 * 8
    if full:
        bright, black = 65536, 0
        red, blue, green_u, green_v = (x * 224 // 255 for x in (red, blue, green_u, green_v))
    scaled = [(x * 8192 + 32768) >> 16 for x in (bright, red, blue, -green_u, -green_v)]
    return scaled[0], black, *scaled[1:]


def colours(luma: torch.Tensor, chroma: torch.Tensor, size: tuple[int, int], space: int, full: bool) -> torch.Tensor:
    """RGB uint8 [*size, 3] of NV12: `luma` uint8 [H, W] and `chroma` [⌈H/2⌉, ⌈W/2⌉, 2], the last axes contiguous.

    `size` is height and width, at most theirs. `space` is a key of COEFFICIENTS, `full` the range of 0 to 255.
    """
    (height, width), (high, wide) = luma.shape, size
    out = torch.empty(high, wide, 3, device=luma.device, dtype=torch.uint8)
    colours_kernel[(high, triton.cdiv(wide, BLOCK))](
        luma, chroma, out, width, height, luma.stride(0), chroma.stride(0), wide, high,
        max(triton.cdiv(width, wide), triton.cdiv(height, high)) + 1, *factors(space, full), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return out


PREPARING = Lock()


@cache
def own_stream() -> torch.cuda.Stream:
    """The one for all pictures, beside the model's: PyTorch hands out 32 of a priority in turn, and those of the usual one serve graphs."""
    return torch.cuda.Stream(priority=-1)


def prepare() -> None:
    """Compiles the kernel, once for all threads. Raises what PyTorch, Triton or a compiler raises.

    A camera whose first picture waits for a compiler would seem to stall, and be opened again.
    """
    with PREPARING:
        luma, chroma = (torch.zeros(*shape, device="cuda", dtype=torch.uint8) for shape in ((2, 2), (1, 1, 2)))
        colours(luma, chroma, (2, 2), min(COEFFICIENTS), False)
        own_stream()


def make(frame: VideoFrame, size: tuple[int, int], space: int, full: bool) -> np.ndarray:
    """uint8 [*size, 3] RGB of an NV12 frame of even sizes, in pinned memory. Waits for it asleep.

    Raises RuntimeError where the card or the host has no memory for it.
    """
    luma, chroma = (torch.utils.dlpack.from_dlpack(plane.__dlpack__()) for plane in frame.planes)
    stream = own_stream()
    # Decoders have the context's default stream.
    stream.wait_stream(torch.cuda.default_stream())
    with torch.cuda.stream(stream):
        host = torch.empty(*size, 3, dtype=torch.uint8, pin_memory=True)
        host.copy_(colours(luma, chroma, size, space, full), non_blocking=True)
        done = torch.cuda.Event(blocking=True)
        done.record()
    done.synchronize()
    pixels: np.ndarray = host.numpy()
    return pixels
