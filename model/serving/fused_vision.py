"""The vision towers as a GPU serves them: fused kernels between the matrix products, for the weights of the families' own."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import qwen_vision
from model.layers.qwen_vision import QwenVisionTower
from model.layers.vision import MLP, RMSNorm, VisionAttention, VisionBlock, VisionTower, plan_grid
from model.ops.kernels.activation import Activation
from model.ops.kernels.gated import DEEP, MANY, OUTS, gated
from model.ops.kernels.norm import add_norm, gelu, rotate_heads, swiglu
from model.ops.kernels.product import roomy
from model.ops.kernels.window_attention import WIDEST, attend_windows
from model.serving.quantize import Matrix, Precision


def widened(weight: Tensor, outs: int, width: int) -> Tensor:
    """`weight` [≤ outs, ≤ width] with zeros beyond it."""
    return F.pad(weight, (0, width - weight.shape[1], 0, outs - weight.shape[0]))


def aligned(inner: int) -> int:
    """An inner width at which the products run on aligned tiles."""
    return -(-inner // 128) * 128


class FastMLP:
    """SwiGLU; the inner width is padded to a multiple of 128 where that lets the products run on aligned tiles."""

    def __init__(self, mlp: MLP, precision: Precision) -> None:
        gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        inner, width = gate.weight.shape
        room = aligned(inner)
        if room == inner and mlp.inward.weight is not None:
            joint, bias, out = mlp.inward.weight, mlp.inward.bias, down.weight
        else:
            joint = torch.cat([widened(part.weight, room, width) for part in (gate, up)])
            bias = None
            if gate.bias is not None:
                bias = torch.cat([F.pad(part.bias, (0, room - inner)) for part in (gate, up)])
            out = widened(down.weight, width, room)
        self.inward = Matrix(joint, bias, precision)
        self.outward = Matrix(out, down.bias, precision)
        half = joint.is_cuda and joint.dtype == torch.bfloat16
        self.tiled = half and room % OUTS == 0 and width % DEEP == 0 and roomy(joint.device)
        """Whether many rows go through `gated`."""

    def __call__(self, x: Activation) -> Tensor:
        inward = self.inward
        if isinstance(x, Tensor) and isinstance(inward.weight, Tensor) and len(x) >= MANY and self.tiled:
            return self.outward(gated(x, inward.weight, inward.bias))
        return self.outward(swiglu(inward(x), self.outward.fp8))


class FastGeluMLP:
    """Two maps with GELU between them, padded as `FastMLP`."""

    def __init__(self, mlp: qwen_vision.VisionMLP, precision: Precision) -> None:
        first, second = mlp.linear_fc1, mlp.linear_fc2
        inner, width = first.weight.shape
        room = aligned(inner)
        self.inward = Matrix(widened(first.weight, room, width), F.pad(first.bias, (0, room - inner)), precision)
        self.outward = Matrix(widened(second.weight, width, room), second.bias, precision)

    def __call__(self, x: Activation) -> Tensor:
        first = self.inward
        half = isinstance(x, Tensor) and x.is_cuda and x.dtype == torch.bfloat16
        if half and isinstance(x, Tensor) and isinstance(first.weight, Tensor) and first.bias is not None:
            # cuBLAS applies the same approximation to sums that it has not rounded yet, in one launch. On a CPU this call is the
            # exact function.
            return self.outward(torch._addmm_activation(first.bias, x, first.weight.T, use_gelu=True))
        return self.outward(gelu(first(x), self.outward.fp8))


class FastVisionBlock:
    """One block's products; `norms` are weights alone, or weights and biases."""

    def __init__(
        self,
        norms: tuple[RMSNorm | nn.LayerNorm, RMSNorm | nn.LayerNorm],
        attention: VisionAttention,
        mlp: FastMLP | FastGeluMLP,
        precision: Precision,
    ) -> None:
        self.norms = [(norm.weight, None if isinstance(norm, RMSNorm) else norm.bias) for norm in norms]
        self.heads = attention.heads
        self.qkv = Matrix(attention.qkv.weight, attention.qkv.bias, precision)
        self.proj = Matrix(attention.proj.weight, attention.proj.bias, precision)
        self.mlp = mlp

    def __call__(
        self,
        mixed: Tensor | None,
        residual: Tensor,
        rotation: tuple[Tensor, Tensor],
        span: int,
        shown: Tensor | None = None,
    ) -> Tensor:
        """Adds `mixed` to `residual` [rows, hidden] in place and returns what is to be added next.

        Attention is within `span` patches, where `shown` if that is given.
        """
        (weight, bias), (later_weight, later_bias) = self.norms
        rows, width = residual.shape
        joint = self.qkv(add_norm(mixed, residual, weight, 1e-6, self.qkv.fp8, bias))
        if shown is None and span <= WIDEST:
            seen = attend_windows(joint, self.heads, span, *rotation)
        else:
            head = width // self.heads
            rotate_heads(joint, 2 * self.heads, head, *rotation)
            q, k, v = joint.view(-1, span, 3, self.heads, head).permute(2, 0, 3, 1, 4)
            seen = F.scaled_dot_product_attention(q, k, v, shown).transpose(1, 2).reshape(rows, -1)
        mixed = self.proj(seen)
        return self.mlp(add_norm(mixed, residual, later_weight, 1e-6, self.mlp.inward.fp8, later_bias))


class FastTower(Protocol):
    """A vision tower as kernels."""

    blocks: list[FastVisionBlock]
    merger: list[nn.Linear]

    def __call__(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """`patches` [batch, patches, patch_dim] to [batch, tokens, hidden], contiguous."""
        ...


class FastVisionTower:
    """`VisionTower`."""

    def __init__(self, tower: VisionTower, precision: Precision) -> None:
        self.tower = tower
        found = [block for block in tower.blocks if isinstance(block, VisionBlock)]
        self.blocks = [
            FastVisionBlock((block.norm1, block.norm2), block.attn, FastMLP(block.mlp, precision), precision)
            for block in found
        ]
        self.merger = [layer for layer in tower.merger.mlp if isinstance(layer, nn.Linear)]

    def __call__(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """See `FastTower`."""
        tower = self.tower
        config = tower.config
        plan = plan_grid(config, *grid, patches.device)
        batch, count, _ = patches.shape
        x = tower.patch_embed(patches.unflatten(1, (-1, config.spatial_merge_size**2))[:, plan.order].flatten(1, 2))
        if config.position_table:
            table: Tensor = tower.position_table
            if table.shape[1:] != grid:
                table = F.interpolate(table[None], grid, mode="bilinear", align_corners=False)[0]
            x = x + table[:, plan.rows, plan.columns].T
        residual = x.flatten(0, 1)
        mixed: Tensor | None = None
        for i, block in enumerate(self.blocks):
            full = i in config.fullatt_block_indexes
            windowed = not full and plan.shown is None
            shown = None if full or windowed else plan.shown
            mixed = block(mixed, residual, plan.rotation, plan.window if windowed else count, shown)
        normed = add_norm(mixed, residual, tower.merger.ln_q.weight, 1e-6)
        assert isinstance(normed, Tensor)
        merged: Tensor = tower.merger.mlp(normed.view(batch, -1, tower.merger.inner))
        return merged[:, plan.restore]


class FastQwenTower:
    """`QwenVisionTower`."""

    def __init__(self, tower: QwenVisionTower, precision: Precision) -> None:
        self.tower = tower
        found = [block for block in tower.blocks if isinstance(block, qwen_vision.VisionBlock)]
        self.blocks = [
            FastVisionBlock((block.norm1, block.norm2), block.attn, FastGeluMLP(block.mlp, precision), precision)
            for block in found
        ]
        self.merger = [tower.merger.linear_fc1, tower.merger.linear_fc2]
        self.positions: dict[tuple[int, int], Tensor] = {}

    def __call__(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """See `FastTower`."""
        tower, merger = self.tower, self.tower.merger
        plan = qwen_vision.plan_grid(tower.config, *grid, patches.device)
        batch, count, _ = patches.shape
        x = tower.patch_embed(patches)
        if grid not in self.positions:
            self.positions[grid] = tower.learned_positions(*grid)[plan.rows, plan.columns].to(x.dtype)
        residual = (x + self.positions[grid]).flatten(0, 1)
        mixed: Tensor | None = None
        for block in self.blocks:
            mixed = block(mixed, residual, plan.rotation, count)
        normed = add_norm(mixed, residual, merger.norm.weight, 1e-6, bias=merger.norm.bias)
        assert isinstance(normed, Tensor)
        merged: Tensor = merger.linear_fc2(F.gelu(merger.linear_fc1(normed.view(batch, -1, merger.inner))))
        return merged


def fast_tower(tower: nn.Module, precision: Precision) -> FastTower:
    """What serves a family's tower on a GPU."""
    if isinstance(tower, QwenVisionTower):
        return FastQwenTower(tower, precision)
    assert isinstance(tower, VisionTower)
    return FastVisionTower(tower, precision)
