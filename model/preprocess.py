"""RGB frames to the vision tower's patches: Qwen2.5-VL's sizes, normalisation and patch order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from math import isqrt

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import InfiniteVLConfig, VisionConfig

MEAN, STD = VisionConfig.mean, VisionConfig.std
GREY = 114
"""What letterboxing pads with, about the mean of the normalisation."""


def choose_grid(config: InfiniteVLConfig, height: int, width: int) -> tuple[int, int]:
    """The grid in patches (height, width) for pictures of `height` × `width` pixels, of at most `tokens_per_frame` tokens.

    Keeps the aspect ratio as Qwen2.5-VL's `smart_resize` does: the nearest multiples of a token's side, scaled down where
    that is too many.
    """
    merge, tokens = config.vision.spatial_merge_size, config.tokens_per_frame
    if config.square_grid:
        side = int(tokens**0.5) * merge
        return side, side
    unit = merge * config.vision.patch_size
    rows, columns = max(1, round(height / unit)), max(1, round(width / unit))
    if rows * columns > tokens:
        rows = max(1, isqrt(height * tokens // width))
        columns = max(1, min(isqrt(width * tokens // height), tokens // rows))
        rows = min(rows, tokens // columns)
    return rows * merge, columns * merge


def patchify(config: InfiniteVLConfig, pictures: Sequence[np.ndarray], grid: tuple[int, int]) -> Tensor:
    """Pictures of one temporal patch (one, which is repeated, or two), uint8 H×W×3 RGB, to float32 [grid patches, patch_dim].

    A picture whose own grid is another than `grid` (the camera changed its shape) is letterboxed into it, others are
    stretched to it. Order and normalisation are those of Qwen2.5-VL's image processor.
    """
    fitted = [fit(config, picture, grid) for picture in pictures]
    return arrange(config, torch.stack(fitted)[None], torch.float32)[0]


def arrange(config: InfiniteVLConfig, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Fitted pictures uint8 [batch, 1 or temporal patch, 3, H, W] as normalised patches [batch, grid patches, patch_dim] of `dtype`."""
    vision = config.vision
    merge, patch, depth = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    batch, given, _, height, width = pixels.shape
    if given < depth:
        pixels = torch.cat((pixels, pixels[:, -1:].expand(-1, depth - given, -1, -1, -1)), 1)
    rows, columns = height // merge // patch, width // merge // patch
    blocks = pixels.reshape(batch, depth, 3, rows, merge, patch, columns, merge, patch)
    flat = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(batch, height * width // patch**2, -1)
    scale, shift = normalisation(vision.mean, vision.std, depth * patch * patch, pixels.device)
    return torch.addcmul(shift, flat.float(), scale).to(dtype)


@lru_cache(maxsize=4)
def normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], values: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale and shift of one patch's values, float32 [3 * values] each, from uint8 to colours less `mean`, over `std`."""
    less, over = (torch.tensor(x, dtype=torch.float64).repeat_interleave(values) for x in (mean, std))
    return (1 / (255 * over)).float().to(device), (-less / over).float().to(device)


def fit(config: InfiniteVLConfig, picture: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """One picture at the grid's size in pixels, uint8 [3, height, width]."""
    return placed(config, torch.from_numpy(picture).permute(2, 0, 1), grid)


def fit_all(
    config: InfiniteVLConfig, pictures: Sequence[np.ndarray], grid: tuple[int, int], device: torch.device | str
) -> Tensor:
    """Pictures at the grid's size in pixels, uint8 [pictures, 3, height, width], made on `device`.

    Those of one size cross in one copy and are resized at once. The host does not wait for a CUDA device.
    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        alike[picture.shape].append(i)
    rows: dict[int, Tensor] = {}
    for shape, places in alike.items():
        host = torch.empty(len(places), *shape, dtype=torch.uint8, pin_memory=torch.device(device).type == "cuda")
        for row, i in zip(host, places, strict=True):
            row.copy_(torch.from_numpy(pictures[i]))
        fitted = placed(config, host.to(device, non_blocking=True).permute(0, 3, 1, 2), grid)
        if len(alike) == 1:
            return fitted
        for row, i in zip(fitted, places, strict=True):
            rows[i] = row
    return torch.stack([rows[i] for i in range(len(pictures))])


def placed(config: InfiniteVLConfig, source: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pictures uint8 [..., 3, H, W] at the grid's size in pixels: stretched, or letterboxed where their own grid is another."""
    patch = config.vision.patch_size
    height, width = grid[0] * patch, grid[1] * patch
    size = source.shape[-2:]
    if size == (height, width):
        return source
    if choose_grid(config, *size) == grid:
        return resize(source, height, width)
    scale = min(height / size[0], width / size[1])
    inner = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas = source.new_full((*source.shape[:-2], height, width), GREY)
    canvas[..., top : top + inner[0], left : left + inner[1]] = resize(source, *inner)
    return canvas


def resize(pictures: Tensor, height: int, width: int) -> Tensor:
    """`pictures` uint8 [..., 3, H, W] resized with antialiasing, bicubic as Qwen2.5-VL's processor."""
    before = pictures.shape[-2:]
    if pictures.is_cuda:
        # An axis at a time, as products: PyTorch's own kernel weighs the whole window for each pixel.
        down, across = bicubic(before[0], height, pictures.device), bicubic(before[1], width, pictures.device)
        return (down @ pictures.float() @ across.T).round_().clamp_(0, 255).to(torch.uint8)
    flat = F.interpolate(pictures.reshape(-1, 3, *before), (height, width), mode="bicubic", antialias=True)
    return flat.reshape(*pictures.shape[:-2], height, width)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def bicubic(before: int, after: int, device: torch.device) -> Tensor:
    """How much each of `before` pixels of an axis weighs in each of `after`, float32 [after, before]: bicubic with antialiasing."""
    alone = torch.eye(before, dtype=torch.float64)[None, None]
    weights = F.interpolate(alone, (after, before), mode="bicubic", antialias=True)
    return weights[0, 0].float().to(device)
