"""Softmax attention with grouped keys; what a query sees is the policy's to say, not the layer's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.cache import Cache
from model.config import AttentionPolicy, DecoderConfig
from model.layers.mixer import Mixer
from model.ops.linear import JointLinear, laid_out
from model.ops.rope import Rotation, rotate
from model.state import Part


class Attention(Mixer, kind="attention"):
    """One attention layer: bias on q, k and v, none on o, rotary positions on q and k."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.head_dim = config.head_dim
        width, queries = config.hidden_size, config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, queries)
        self.k_proj = nn.Linear(width, keys)
        self.v_proj = nn.Linear(width, keys)
        self.o_proj = nn.Linear(queries, width, bias=False)
        self.inward = JointLinear(self.q_proj, self.k_proj, self.v_proj)

    @staticmethod
    def declare(config: DecoderConfig, policy: AttentionPolicy, step: int) -> tuple[Part, ...]:
        """Keys and values [rows, kv heads, head]: the sinks (keys unrotated), the ring (keys rotated) and a row for padding.

        All attention layers share the sinks' positions, int64 [3, sinks], less the stream's origin.
        """
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

    def forward(self, x: Tensor, rotation: Rotation, cache: Cache, outputs: bool = True) -> Tensor:
        """See `Mixer.forward`."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self.inward(x))
        output: Tensor = cache.attend(self.layer, rotate(q, rotation), k, rotate(k, rotation), v)
        result: Tensor = self.o_proj(output.flatten(-2))
        return result
