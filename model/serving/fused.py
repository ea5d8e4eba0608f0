"""InfiniteVL as a GPU serves it: the same weights and state, fused kernels between the matrix products, nothing asked of the host.

`model.infinitevl` is the reference. Every call here is a fixed sequence of launches for given shapes, fit for a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.layers.attention import Attention
from model.layers.decoder import DecoderLayer
from model.layers.delta_net import GatedDeltaNet
from model.layers.mixer import Mixer
from model.layers.vision import MLP, VisionBlock, plan_grid
from model.ops.kernels.activation import Activation
from model.ops.kernels.attention import attend
from model.ops.kernels.convolution import mix
from model.ops.kernels.delta_rule import delta_rule
from model.ops.kernels.norm import add_norm, gated_norm, rotate_heads, swiglu
from model.serving.cursor_kernels import Span, frame_span, text_span
from model.serving.quantize import Matrix, Precision
from model.state import StreamState


class FastMLP:
    """SwiGLU; the inner width is padded to a multiple of 128 where that lets the products run on aligned tiles."""

    def __init__(self, mlp: MLP, precision: Precision) -> None:
        gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        inner, width = gate.weight.shape
        room = -(-inner // 128) * 128
        if room == inner and mlp.inward.weight is not None:
            joint, bias, out = mlp.inward.weight, mlp.inward.bias, down.weight
        else:
            joint = gate.weight.new_zeros(2 * room, width)
            joint[:inner], joint[room : room + inner] = gate.weight, up.weight
            bias = None
            if gate.bias is not None:
                bias = gate.bias.new_zeros(2 * room)
                bias[:inner], bias[room : room + inner] = gate.bias, up.bias
            out = down.weight.new_zeros(width, room)
            out[:, :inner] = down.weight
        self.inward = Matrix(joint, bias, precision)
        self.outward = Matrix(out, down.bias, precision)

    def __call__(self, x: Activation) -> Tensor:
        return self.outward(swiglu(self.inward(x), self.outward.fp8))


class FastMixer(Protocol):
    """A `Mixer` as kernels, which take the state where it stands."""

    inward: Matrix
    outward: Matrix

    def __call__(self, x: Activation, span: Span, state: StreamState, outputs: bool) -> Tensor | None:
        """Takes `x` [batch * n, hidden], the tokens of `span`, as `inward` wants it; without `outputs` it may return None."""
        ...


class FastAttention:
    """`Attention`."""

    def __init__(self, layer: Attention, config: InfiniteVLConfig, precision: Precision) -> None:
        assert layer.inward.weight is not None
        self.layer, self.config = layer.layer, config
        self.inward = Matrix(layer.inward.weight, layer.inward.bias, precision)
        self.outward = Matrix(layer.o_proj.weight, None, precision)

    def __call__(self, x: Activation, span: Span, state: StreamState, outputs: bool) -> Tensor:
        """See `FastMixer`."""
        batch = len(span.slots)
        joint = self.inward(x).unflatten(0, (batch, -1))
        heads = self.config.decoder.num_attention_heads
        mixed = attend(
            joint,
            span.turn,
            span.sink_turn,
            span.slots,
            span.starts,
            span.counts,
            state.of(self.layer, "keys"),
            state.of(self.layer, "values"),
            heads,
            self.config.policy,
        )
        return self.outward(mixed.flatten(0, 1))


class FastDeltaNet:
    """`GatedDeltaNet`."""

    def __init__(self, layer: GatedDeltaNet, config: InfiniteVLConfig, precision: Precision) -> None:
        assert layer.inward.weight is not None and layer.filters is not None
        self.layer = layer.layer
        self.heads, self.key, self.value = layer.heads, layer.key, layer.value
        self.filters, self.a_log, self.dt_bias = layer.filters, layer.A_log, layer.dt_bias
        self.norm, self.eps = layer.o_norm.weight, layer.o_norm.eps
        self.inward = Matrix(layer.inward.weight, None, precision)
        self.outward = Matrix(layer.o_proj.weight, None, precision)

    def __call__(self, x: Activation, span: Span, state: StreamState, outputs: bool) -> Tensor | None:
        """See `FastMixer`."""
        batch, values = len(span.slots), self.heads * self.value
        joint = self.inward(x)
        mixed, decay, beta = mix(
            joint.unflatten(0, (batch, -1)), state.of(self.layer, "inputs"), self.filters, self.a_log, self.dt_bias,
            span.slots, span.counts, self.key, values,
        )  # fmt: skip
        out = delta_rule(mixed, decay, beta, span.slots, state.of(self.layer, "delta"), self.heads, self.value)
        if not outputs:
            return None
        channels = self.filters.shape[0]
        gate = joint[:, channels : channels + values]
        return self.outward(gated_norm(out.flatten(0, 1), gate, self.norm, self.eps, self.outward.fp8))


FAST: dict[type[Mixer], Callable[..., FastMixer]] = {Attention: FastAttention, GatedDeltaNet: FastDeltaNet}
"""What serves each kind of layer on a GPU."""


class FastLayer:
    """`DecoderLayer`."""

    def __init__(self, layer: DecoderLayer, config: InfiniteVLConfig, precision: Precision) -> None:
        self.norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.mixer: FastMixer = FAST[type(layer.self_attn)](layer.self_attn, config, precision)
        self.mlp = FastMLP(layer.mlp, precision)


class FastVisionBlock:
    def __init__(self, block: VisionBlock, precision: Precision) -> None:
        self.norms = block.norm1.weight, block.norm2.weight
        self.heads = block.attn.heads
        self.qkv = Matrix(block.attn.qkv.weight, block.attn.qkv.bias, precision)
        self.proj = Matrix(block.attn.proj.weight, block.attn.proj.bias, precision)
        self.mlp = FastMLP(block.mlp, precision)


class FastInfiniteVL:
    """Frames and text into a pool of slots, with `InfiniteVL`'s weights (fused beforehand; shared, but for padded and fp8 ones)."""

    def __init__(self, model: InfiniteVL, precision: Precision = "model") -> None:
        self.model, self.config = model, model.config
        layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]
        self.layers = [FastLayer(layer, model.config, precision) for layer in layers]
        blocks = [block for block in model.visual.blocks if isinstance(block, VisionBlock)]
        self.blocks = [FastVisionBlock(block, precision) for block in blocks]
        tied = model.config.decoder.tie_word_embeddings
        self.head = Matrix(model.model.embed_tokens.weight if tied else model.lm_head.weight, None, precision)

    def see(self, patches: Tensor, grid: tuple[int, int], seconds: Tensor, state: StreamState, slots: Tensor) -> None:
        """As `InfiniteVL.see`."""
        merge = self.config.vision.spatial_merge_size
        x = self.encode(patches, grid)
        positions = state.frame_positions(slots, seconds, grid[0] // merge, grid[1] // merge)
        counts = torch.full_like(slots, x.shape[1])
        self.advance(x.flatten(0, 1), frame_span(positions, state, slots, counts), state, outputs=False)

    def read(self, tokens: Tensor, state: StreamState, slots: Tensor, counts: Tensor) -> Tensor:
        """As `InfiniteVL.read`, for at most `config.step_tokens` tokens, padded on the right to one length; each count may be 0."""
        batch, n = tokens.shape
        span, x = text_span(tokens, self.model.model.embed_tokens.weight, state, slots, counts)
        hidden = self.advance(x, span, state, outputs=True)
        assert hidden is not None
        if n > 1:
            hidden = hidden[torch.arange(batch, device=slots.device) * n + (counts - 1).clamp(min=0)]
        return self.head(hidden).float()

    def encode(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """`patches` [batch, patches, patch_dim] through the vision tower to [batch, tokens, hidden]."""
        tower = self.model.visual
        config = tower.config
        plan = plan_grid(config, *grid, patches.device)
        batch, count, _ = patches.shape
        cos, sin = plan.rotation
        x = tower.patch_embed(patches.unflatten(1, (-1, config.spatial_merge_size**2))[:, plan.order].flatten(1, 2))
        if config.position_table:
            table: Tensor = tower.position_table
            if table.shape[1:] != grid:
                table = F.interpolate(table[None], grid, mode="bilinear", align_corners=False)[0]
            x = x + table[:, plan.rows, plan.columns].T
        residual = x.flatten(0, 1)
        mixed: Tensor | None = None
        head = config.hidden_size // config.num_heads
        for i, block in enumerate(self.blocks):
            joint = block.qkv(add_norm(mixed, residual, block.norms[0], 1e-6, block.qkv.fp8))
            rotate_heads(joint, 2 * block.heads, head, cos, sin)
            full = i in config.fullatt_block_indexes
            windowed = not full and plan.shown is None
            span = plan.window if windowed else count
            q, k, v = joint.view(-1, span, 3, block.heads, head).permute(2, 0, 3, 1, 4)
            seen = F.scaled_dot_product_attention(q, k, v, None if full or windowed else plan.shown)
            mixed = block.proj(seen.transpose(1, 2).reshape(batch * count, -1))
            mixed = block.mlp(add_norm(mixed, residual, block.norms[1], 1e-6, block.mlp.inward.fp8))
        normed = add_norm(mixed, residual, tower.merger.ln_q.weight, 1e-6)
        assert isinstance(normed, Tensor)
        merged: Tensor = tower.merger.mlp(normed.view(batch, -1, tower.merger.inner))
        return merged[:, plan.restore]

    def advance(self, residual: Tensor, span: Span, state: StreamState, outputs: bool) -> Tensor | None:
        """Takes embeddings `residual` [batch * n, hidden], contiguous, into the slots of `span`, whose cursors stand after it.

        `residual` is overwritten. Returns the last hidden states [batch * n, hidden], or None without `outputs`.
        """
        eps, final = self.config.decoder.rms_norm_eps, len(self.layers) - 1
        mixed: Tensor | None = None
        for i, layer in enumerate(self.layers):
            normed = add_norm(mixed, residual, layer.norms[0], eps, layer.mixer.inward.fp8)
            mixed = layer.mixer(normed, span, state, outputs or i < final)
            if i == final and not outputs:
                break
            mixed = layer.mlp(add_norm(mixed, residual, layer.norms[1], eps, layer.mlp.inward.fp8))
        if not outputs:
            return None
        normed = add_norm(mixed, residual, self.model.model.norm.weight, eps)
        assert isinstance(normed, Tensor)
        return normed
