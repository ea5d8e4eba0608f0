"""Softmax attention with grouped keys; what a query sees is the memory's policy, not the layer's."""

from __future__ import annotations

from torch import Tensor, nn

from model.cache import Memory
from model.config import DecoderConfig
from model.ops.linear import JointLinear, laid_out
from model.ops.rope import Rotation, rotate


class Attention(nn.Module):
    """One attention layer: bias on q, k and v, none on o, rotary positions on q and k."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        width, queries = config.hidden_size, config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, queries)
        self.k_proj = nn.Linear(width, keys)
        self.v_proj = nn.Linear(width, keys)
        self.o_proj = nn.Linear(queries, width, bias=False)
        self.inward = JointLinear(self.q_proj, self.k_proj, self.v_proj)

    def fuse(self) -> None:
        """Joins the input projections for inference."""
        self.inward.fuse()
        self.o_proj.weight.data = laid_out(self.o_proj.weight.data)

    def forward(self, x: Tensor, rotation: Rotation, memory: Memory) -> Tensor:
        """`x` [batch, n, hidden], `rotation` of its positions; extends `memory`. Returns [batch, n, hidden]."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self.inward(x))
        output: Tensor = memory.attend(self.layer, rotate(q, rotation), k, rotate(k, rotation), v)
        result: Tensor = self.o_proj(output.flatten(-2))
        return result
