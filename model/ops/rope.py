"""Three-axis rotary positions (time, height, width), with angles from float64 so that a stream's age costs no precision."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each float32 [..., n, head_dim], to be applied by `rotate`."""


def rotation(
    positions: Tensor, head_dim: int, theta: float, sections: tuple[int, int, int], interleaved: bool = False
) -> Rotation:
    """Cosines and sines of `positions`, int64 [3, ..., n] (time, height, width), one section of frequency pairs an axis.

    Multimodal rotary embedding of Qwen2-VL (arXiv 2409.12191, section 2.1); interleaved (Qwen3-VL, arXiv 2511.21631) pairs
    take turns among the axes. `head_dim` is what is turned of a head. Returns two float32 [..., n, head_dim].
    """
    axis, frequencies = axes(head_dim, theta, sections, positions.device, interleaved)
    angles = positions.to(torch.float64)[axis].movedim(0, -1) * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def axes(
    head_dim: int, theta: float, sections: tuple[int, int, int], device: torch.device, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Each frequency pair's axis (int64) and frequency (float64), both [head_dim / 2]; kept, since graphs can't copy from the host."""
    owner = [axis for axis, pairs in enumerate(sections) for _ in range(pairs)]
    if interleaved:
        owner = [pair % 3 for pair in range(head_dim // 2)]
    exponents = torch.arange(head_dim // 2, dtype=torch.float64, device=device) * (2.0 / head_dim)
    return torch.tensor(owner, device=device), theta**-exponents


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotates `x` [..., n, heads, head_dim] by `by` [..., n, turned]; computed in float32, returned in x's dtype.

    Where `turned` is less than `head_dim`, the rest of each head stays as it is.
    """
    turned_dim = by[0].shape[-1]
    if turned_dim < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned_dim], by), x[..., turned_dim:]), -1)
    cos, sin = (part.unsqueeze(-2) for part in by)
    wide = x.float()
    half = wide.shape[-1] // 2
    turned = torch.cat((-wide[..., half:], wide[..., :half]), -1)
    return (wide * cos + turned * sin).to(x.dtype)


def frame_positions(start: Tensor, time: Tensor, height: int, width: int) -> Tensor:
    """Positions of one frame of `height` × `width` tokens: `start + (time, h, w)`.

    `start` and `time` are int64 [batch]. Returns int64 [3, batch, height * width].
    """
    rows = torch.arange(height, device=start.device).repeat_interleave(width)
    columns = torch.arange(width, device=start.device).repeat(height)
    times = (start + time)[:, None].expand(-1, height * width)
    return torch.stack((times, start[:, None] + rows, start[:, None] + columns))


def vision_rotation(rows: Tensor, columns: Tensor, head_dim: int, theta: float = 1e4) -> Rotation:
    """Cosines and sines of 2-D rotary positions, `rows` and `columns` int64 [n]: half of the frequency pairs an axis."""
    exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float64, device=rows.device) / (head_dim // 2)
    frequencies = theta**-exponents
    angles = torch.cat((rows[:, None] * frequencies, columns[:, None] * frequencies), -1)
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
