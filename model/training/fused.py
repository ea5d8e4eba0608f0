"""The network's forward pass with one kernel for each small operation, for training on CUDA; what it computes is `model`'s own.

The plain modules stay what is read, tested and served; tests hold this to them.
"""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cache import Cache
from model.families.infinitevl import InfiniteVL
from model.layers.attention import Attention
from model.layers.decoder import Decoder, DecoderLayer
from model.layers.delta_net import GatedDeltaNet
from model.layers.vision import MLP, GridPlan, RMSNorm, VisionAttention, VisionBlock, VisionTower, plan_grid
from model.ops.dispatch import delta_rule
from model.ops.rope import Rotation, rotation
from model.training.kernels import Rotate, ShortConvolution, SplitRotate, SwiGLU
from model.training.norm_kernels import AddNorm, GatedNorm, Norm
from model.training.pair import Pair


def joint(x: Tensor, *parts: nn.Linear) -> Tensor:
    """Several linear maps of one input as one product, side by side."""
    biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
    weights: list[Tensor] = [part.weight for part in parts]
    return F.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)


def feed(mlp: MLP, x: Tensor) -> Tensor:
    """`MLP.forward`."""
    result: Tensor = mlp.down_proj(SwiGLU.apply(joint(x, mlp.gate_proj, mlp.up_proj)))
    return result


class Residual:
    """The float32 residual stream; a branch is added where the next norm reads it."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.branch = x.float(), None

    branch: Tensor | None

    def normed(self, norm: RMSNorm) -> Tensor:
        """The norm of all that was added so far."""
        if self.branch is None:
            first: Tensor = Norm.apply(self.x, norm.weight, norm.eps)
            return first
        self.x, out = AddNorm.apply(self.x, self.branch, norm.weight, norm.eps)
        self.branch = None
        result: Tensor = out
        return result


def look(attention: VisionAttention, x: Tensor, plan: GridPlan, full: bool) -> Tensor:
    """`VisionAttention.forward`."""
    frames, patches, _ = x.shape
    q, k, v = SplitRotate.apply(attention.qkv(x), *plan.rotation, attention.heads)
    span = patches if full or plan.shown is not None else plan.window
    q, k, v = (part.view(frames * patches // span, span, attention.heads, -1).transpose(1, 2) for part in (q, k, v))
    output = F.scaled_dot_product_attention(q, k, v, None if full else plan.shown)
    result: Tensor = attention.proj(output.transpose(1, 2).reshape(frames, patches, -1))
    return result


def see(tower: VisionTower, patches: Tensor, height: int, width: int) -> Tensor:
    """`VisionTower.forward`."""
    config = tower.config
    plan = plan_grid(config, height, width, patches.device)
    x = tower.patch_embed(patches)
    x = x.unflatten(1, (-1, config.spatial_merge_size**2))[:, plan.order].flatten(1, 2)
    x = x + tower.position_table[:, plan.rows, plan.columns].T
    stream = Residual(x)
    for i, block in enumerate(tower.blocks):
        assert isinstance(block, VisionBlock)
        stream.branch = look(block.attn, stream.normed(block.norm1), plan, i in config.fullatt_block_indexes)
        stream.branch = feed(block.mlp, stream.normed(block.norm2))
    merged = stream.normed(tower.merger.ln_q).reshape(len(patches), -1, tower.merger.inner)
    tokens: Tensor = tower.merger.mlp(merged)[:, plan.restore]
    return tokens


def attend(layer: Attention, x: Tensor, by: Rotation, cache: Cache) -> Tensor:
    """`Attention.forward`."""
    sizes = [part.out_features for part in layer.inward.parts]
    q, k, v = (part.unflatten(-1, (-1, layer.head_dim)) for part in joint(x, *layer.inward.parts).split(sizes, -1))
    output = cache.attend(layer.layer, Rotate.apply(q, *by), k, Rotate.apply(k, *by), v)
    result: Tensor = layer.o_proj(output.flatten(-2))
    return result


def remember(layer: GatedDeltaNet, x: Tensor, cache: Cache, outputs: bool) -> Tensor | None:
    """`GatedDeltaNet.forward`."""
    keys, values, heads = layer.heads * layer.key, layer.heads * layer.value, layer.heads
    mixed, gate, b, a = joint(x, *layer.inward.parts).split((2 * keys + values, values, heads, heads), -1)
    mixed = cache.extend(layer.layer, "inputs", mixed)
    mixed = ShortConvolution.apply(mixed, layer.joint_filters())
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in mixed.split((keys, keys, values), -1))
    decay = -layer.A_log.float().exp() * F.softplus(a.float() + layer.dt_bias.float())
    beta, decay = cache.mask(b.sigmoid()), cache.mask(decay)
    output, state = delta_rule(q, k, v, decay, beta, cache.load(layer.layer, "delta"))
    cache.store(layer.layer, "delta", state)
    if not outputs:
        return None
    output = GatedNorm.apply(output, gate.unflatten(-1, (heads, -1)), layer.o_norm.weight, layer.o_norm.eps)
    result: Tensor = layer.o_proj(output.flatten(-2))
    return result


def forward(decoder: Decoder, x: Tensor, positions: Tensor, cache: Cache, outputs: bool = True) -> Tensor | None:
    """`Decoder.forward`."""
    config = decoder.config
    by = rotation(positions, config.head_dim, config.rope_theta, config.mrope_section)
    final = config.num_hidden_layers - 1
    stream = Residual(x)
    for i, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        inner = stream.normed(layer.input_layernorm)
        if isinstance(layer.self_attn, Attention):
            stream.branch = attend(layer.self_attn, inner, by, cache)
        elif isinstance(layer.self_attn, Pair):
            pair = layer.self_attn
            learned = remember(pair.student, inner, cache, outputs or i < final)
            stream.branch = pair.compare(attend(pair.teacher, inner, by, cache), learned)
        else:
            assert isinstance(layer.self_attn, GatedDeltaNet)
            stream.branch = remember(layer.self_attn, inner, cache, outputs or i < final)
        if i == final and not outputs:
            return None
        stream.branch = feed(layer.mlp, stream.normed(layer.post_attention_layernorm))
    return stream.normed(decoder.norm)


def patch_fused(model: InfiniteVL) -> None:
    """Makes `model` compute by these functions while it is in training mode."""
    plain = model.visual.forward, model.model.forward

    def visual(self: VisionTower, patches: Tensor, height: int, width: int) -> Tensor:
        return see(self, patches, height, width) if self.training else plain[0](patches, height, width)

    def decoder(self: Decoder, x: Tensor, positions: Tensor, cache: Cache, outputs: bool = True) -> Tensor | None:
        run = forward if self.training else None
        return run(self, x, positions, cache, outputs) if run else plain[1](x, positions, cache, outputs)

    model.visual.forward = MethodType(visual, model.visual)
    model.model.forward = MethodType(decoder, model.model)  # type: ignore[method-assign]
