"""The vision tower of Qwen3-VL and Qwen3.5: LayerNorm, GELU and biases, full attention, learned and rotary positions."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VisionConfig
from model.layers.vision import VisionAttention
from model.ops.linear import laid_out
from model.ops.rope import Rotation, vision_rotation

EPS = 1e-6


class GridPlan(NamedTuple):
    """Where the patches of a grid lie, in merge-group order: rows and columns int64 [patches], and their rotation."""

    rows: Tensor
    columns: Tensor
    rotation: Rotation


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what one caller makes while serving, another learns with
def plan_grid(config: VisionConfig, height: int, width: int, device: torch.device) -> GridPlan:
    """The plan for a grid of `height` × `width` patches (both multiples of the merge size)."""
    merge = config.spatial_merge_size

    def grouped(x: Tensor) -> Tensor:
        parts = x.view(height // merge, merge, width // merge, merge)
        return parts.transpose(1, 2).flatten().to(device)

    rows = grouped(torch.arange(height).repeat_interleave(width))
    columns = grouped(torch.arange(width).repeat(height))
    return GridPlan(rows, columns, vision_rotation(rows, columns, config.hidden_size // config.num_heads))


class VisionMLP(nn.Module):
    """Two maps with GELU, as tanh approximates it, between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class VisionBlock(nn.Module):
    """Pre-norm attention within one temporal patch, and the MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, EPS)
        self.norm2 = nn.LayerNorm(config.hidden_size, EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """A linear map of each flattened patch, kept as the convolution it is in checkpoints."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.hidden_size, kernel, stride=kernel)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class PatchMerger(nn.Module):
    """Norm, then each 2×2 patches together through two maps with exact GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.inner = config.hidden_size * config.spatial_merge_size**2
        self.norm = nn.LayerNorm(config.hidden_size, EPS)
        self.linear_fc1 = nn.Linear(self.inner, self.inner)
        self.linear_fc2 = nn.Linear(self.inner, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).reshape(x.shape[0], -1, self.inner)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))  # type: ignore[no-any-return]


class QwenVisionTower(nn.Module):
    """Patches to tokens in the decoder's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Embedding(config.position_table**2, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def fuse(self) -> None:
        """Lays weights out for inference."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = laid_out(module.weight.data)

    def learned_positions(self, height: int, width: int) -> Tensor:
        """The table resampled to a grid, float32 [height, width, hidden]: bilinear, its corners on the grid's corners."""
        side = self.config.position_table
        table = self.pos_embed.weight.float().view(side, side, -1).movedim(-1, 0)
        return F.interpolate(table[None], (height, width), mode="bilinear", align_corners=True)[0].movedim(0, -1)

    def forward(self, patches: Tensor, height: int, width: int) -> Tensor:
        """`patches` [frames, height * width, 3 * temporal * patch * patch], in merge-group order, of a grid of `height` × `width`.

        Returns [frames, height * width / merge², out_hidden_size], row by row.
        """
        plan = plan_grid(self.config, height, width, patches.device)
        x = self.patch_embed(patches)
        x = x + self.learned_positions(height, width)[plan.rows, plan.columns].to(x.dtype)
        for block in self.blocks:
            x = block(x, plan.rotation)
        return self.merger(x)  # type: ignore[no-any-return]
