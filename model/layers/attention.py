"""Softmax attention with grouped keys; what a query sees is the policy's to say, not the layer's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.cache import Cache
from model.config import AttentionPolicy, DecoderConfig
from model.layers.mixer import Mixer
from model.layers.vision import RMSNorm
from model.ops.linear import JointLinear, laid_out
from model.ops.rope import Rotation, rotate
from model.policy import RetrievalPolicy
from model.state import Part


class Attention(Mixer, kind="attention"):
    """One attention layer: rotary positions on q and k; bias on q, k and v, head norms and output gate as configured; o has no bias."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.head_dim = config.head_dim
        width, queries = config.hidden_size, config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, width, bias=False)
        self.gated, inward = config.attention_gate, [self.q_proj, self.k_proj, self.v_proj]
        if config.attention_gate:
            self.g_proj = nn.Linear(width, queries, bias=False)
            inward.append(self.g_proj)
        self.normed = config.head_norms
        if config.head_norms:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.inward = JointLinear(*inward)

    @staticmethod
    def declare(config: DecoderConfig, policy: AttentionPolicy, step: int) -> tuple[Part, ...]:
        """Keys and values [rows, kv heads, head]: the sinks (keys unrotated), the ring (keys rotated) and a row for padding.

        All attention layers share the sinks' positions, int64 [3, sinks], less the stream's origin.
        """
        if isinstance(policy, RetrievalPolicy):
            return ()  # in pages, as they grow
        rows = (policy.sinks + policy.ring_size(step) + 1, config.num_key_value_heads, config.head_dim)
        return (
            Part("keys", rows, spare=1),
            Part("values", rows, spare=1),
            Part("sink_positions", (3, policy.sinks), torch.int64, shared=True),
        )

    def fuse(self) -> None:
        """Joins the input projections for inference."""
        self.inward.fuse()
        self.o_proj.weight.data = laid_out(self.o_proj.weight.data)

    def forward(self, x: Tensor, rotation: Rotation, cache: Cache, outputs: bool = True) -> Tensor | None:
        """See `Mixer.forward`."""
        q, k, v, *gate = self.inward(x)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k, v))
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = cache.attend(self.layer, rotate(q, rotation), k, rotate(k, rotation), v, outputs)
        if not outputs:
            return None
        output: Tensor = mixed.flatten(-2)
        if self.gated:
            output = output * gate[0].sigmoid()
        result: Tensor = self.o_proj(output)
        return result
