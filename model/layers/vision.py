"""The vision tower: Qwen2.5-VL's, with window attention in most blocks and full attention in a few."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VisionConfig
from model.ops.linear import JointLinear, laid_out
from model.ops.rope import Rotation, rotate, vision_rotation


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` over the root mean square of its last axis, times `weight`. Computed in the wider of both dtypes, returned in the narrower."""
    if x.dtype == weight.dtype:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    narrow = min(x.dtype, weight.dtype, key=lambda dtype: dtype.itemsize)
    wide = torch.promote_types(x.dtype, weight.dtype)
    return F.rms_norm(x.to(wide), x.shape[-1:], weight.to(wide), eps).to(narrow)


class RMSNorm(nn.Module):
    """Root-mean-square norm. The residual stream may be wider than the weight, and the weight than the stream (see `rms_norm`)."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True)
class GridPlan:
    """How one grid of patches is ordered: by attention window inside the tower, row by row outside.

    `order` int64 [tokens] lists merged tokens window by window, `restore` undoes it; `rotation` is that of the ordered
    patches; `shown` is None where all windows are of `window` patches each, else a bool [patches, patches] mask.
    """

    order: Tensor
    restore: Tensor
    rows: Tensor
    columns: Tensor
    rotation: Rotation
    window: int
    shown: Tensor | None


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what one caller makes while serving, another learns with
def plan_grid(config: VisionConfig, height: int, width: int, device: torch.device) -> GridPlan:
    """The plan for a grid of `height` × `width` patches (both multiples of the merge size)."""
    merge = config.spatial_merge_size
    side = config.window_size // merge // config.patch_size
    rows, columns = height // merge, width // merge
    cell = torch.arange(rows * columns).view(rows, columns)
    windows = [part.flatten() for band in cell.split(side, 0) for part in band.split(side, 1)]
    order = torch.cat(windows)
    unit = torch.arange(merge)
    row = (torch.arange(rows)[:, None, None, None] * merge + unit[None, None, :, None]).expand(
        rows, columns, merge, merge
    )
    column = (torch.arange(columns)[None, :, None, None] * merge + unit[None, None, None, :]).expand(
        rows, columns, merge, merge
    )
    row, column = (x.reshape(rows * columns, merge * merge)[order].flatten() for x in (row, column))
    sizes = {len(part) for part in windows}
    shown = None
    if len(sizes) > 1:
        owner = torch.repeat_interleave(
            torch.arange(len(windows)), torch.tensor([len(part) * merge * merge for part in windows])
        )
        shown = (owner[:, None] == owner[None, :]).to(device)
    turn = vision_rotation(row, column, config.hidden_size // config.num_heads)
    return GridPlan(
        order.to(device), order.argsort().to(device), row.to(device), column.to(device),
        (turn[0].to(device), turn[1].to(device)), len(windows[0]) * merge * merge, shown,
    )  # fmt: skip


class VisionAttention(nn.Module):
    """Bidirectional attention within windows or the whole frame, 2-D rotary positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, window: int = 0, shown: Tensor | None = None) -> Tensor:
        """`x` [frames, patches, hidden], within windows of so many patches each (0: the frame), or where `shown` [patches, patches]."""
        frames, patches, _ = x.shape
        mixed = self.qkv(x).unflatten(-1, (3 * self.heads, -1))
        q, k = rotate(mixed[:, :, : 2 * self.heads], rotation).chunk(2, 2)
        v = mixed[:, :, 2 * self.heads :]
        span = window or patches
        q, k, v = (part.reshape(frames * patches // span, span, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        output = F.scaled_dot_product_attention(q, k, v, shown)
        return self.proj(output.transpose(1, 2).reshape(frames, patches, -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.inward = JointLinear(self.gate_proj, self.up_proj)

    def fuse(self) -> None:
        """Joins gate and up for inference."""
        self.inward.fuse()
        self.down_proj.weight.data = laid_out(self.down_proj.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.inward(x)
        return self.down_proj(F.silu(gate) * up)  # type: ignore[no-any-return]


class VisionBlock(nn.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size)
        self.norm2 = RMSNorm(config.hidden_size)
        self.attn = VisionAttention(config)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, bias=True)

    def forward(self, x: Tensor, plan: GridPlan, full: bool) -> Tensor:
        window, shown = (0, None) if full else (plan.window if plan.shown is None else 0, plan.shown)
        x = x + self.attn(self.norm1(x), plan.rotation, window, shown)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """A linear map of each flattened patch, kept as the convolution it is in checkpoints."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.hidden_size, kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1))


class PatchMerger(nn.Module):
    """Norm, then each 2×2 patches together through a two-layer map."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        inner = config.hidden_size * config.spatial_merge_size**2
        self.inner = inner
        self.ln_q = RMSNorm(config.hidden_size)
        self.mlp = nn.Sequential(nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, config.out_hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).reshape(x.shape[0], -1, self.inner))  # type: ignore[no-any-return]


class VisionTower(nn.Module):
    """Patches to tokens in the decoder's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        if config.position_table:
            table = torch.empty(config.hidden_size, config.position_table, config.position_table)
            self.position_table = nn.Parameter(table.normal_(std=0.02))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, patches: Tensor, height: int, width: int) -> Tensor:
        """`patches` [frames, height * width, 3 * temporal * patch * patch], in merge-group order, of a grid of `height` × `width`.

        Returns [frames, height * width / merge², out_hidden_size], row by row.
        """
        config = self.config
        plan = plan_grid(config, height, width, patches.device)
        group = config.spatial_merge_size**2
        x = self.patch_embed(patches)
        x = x.unflatten(1, (-1, group))[:, plan.order].flatten(1, 2)
        if config.position_table:
            table: Tensor = self.position_table
            if table.shape[1:] != (height, width):
                table = F.interpolate(table[None], (height, width), mode="bilinear", align_corners=False)[0]
            x = x + table[:, plan.rows, plan.columns].T
        if self.training:
            x = x.float()
        for i, block in enumerate(self.blocks):
            x = block(x, plan, i in config.fullatt_block_indexes)
        merged: Tensor = self.merger(x)
        return merged[:, plan.restore]
