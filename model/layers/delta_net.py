"""Gated DeltaNet: the mixer whose constant-size state is the memory of the past (arXiv 2412.06464)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cache import Cache
from model.config import AttentionPolicy, DecoderConfig
from model.layers.mixer import Mixer
from model.layers.vision import rms_norm
from model.ops.convolution import short_convolution
from model.ops.dispatch import delta_rule
from model.ops.linear import JointLinear, laid_out
from model.ops.rope import Rotation
from model.state import Part


class GatedNorm(nn.Module):
    """RMSNorm over each head's values, times SiLU of the output gate."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps) * F.silu(gate)


class GatedDeltaNet(Mixer, kind="delta_net"):
    """One Gated DeltaNet layer; where there are fewer heads of keys than of values, neighbouring heads of values share one."""

    filters: Tensor | None

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.heads, self.shared = config.num_linear_heads, config.num_linear_heads // config.num_linear_key_heads
        self.key, self.value = config.linear_head_dim, config.linear_value_dim
        width, keys, values = config.hidden_size, config.linear_key_width, config.linear_value_width
        self.q_proj = nn.Linear(width, keys, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, values, bias=False)
        self.a_proj = nn.Linear(width, self.heads, bias=False)
        self.b_proj = nn.Linear(width, self.heads, bias=False)
        self.g_proj = nn.Linear(width, values, bias=False)
        self.o_proj = nn.Linear(values, width, bias=False)
        self.q_conv1d = nn.Conv1d(keys, keys, config.conv_size, groups=keys, bias=False)
        self.k_conv1d = nn.Conv1d(keys, keys, config.conv_size, groups=keys, bias=False)
        self.v_conv1d = nn.Conv1d(values, values, config.conv_size, groups=values, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log_())
        self.dt_bias = nn.Parameter(torch.ones(self.heads))
        self.o_norm = GatedNorm(self.value, config.norm_eps)
        self.inward = JointLinear(self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.b_proj, self.a_proj)
        self.register_buffer("filters", None, persistent=False)

    @staticmethod
    def declare(config: DecoderConfig, policy: AttentionPolicy, step: int) -> tuple[Part, ...]:
        """S [heads, key, value] in float32, and the convolution's last inputs [width - 1, channels of q, k and v]."""
        heads, key, value = config.num_linear_heads, config.linear_head_dim, config.linear_value_dim
        return (
            Part("delta", (heads, key, value), torch.float32),
            Part("inputs", (config.conv_size - 1, 2 * config.linear_key_width + config.linear_value_width)),
        )

    @torch.no_grad()
    def fuse(self) -> None:
        """Joins the input projections and the filters for inference."""
        self.inward.fuse()
        self.o_proj.weight.data = laid_out(self.o_proj.weight.data)
        self.filters = self.joint_filters()

    def joint_filters(self) -> Tensor:
        """The three depthwise filters as one, [channels of q, k and v, width]."""
        filters = (self.q_conv1d.weight, self.k_conv1d.weight, self.v_conv1d.weight)
        return torch.cat([weight[:, 0] for weight in filters])

    def forward(self, x: Tensor, rotation: Rotation | None, cache: Cache, outputs: bool = True) -> Tensor | None:
        """See `Mixer.forward`; no position is needed."""
        q, k, v, gate, b, a = self.inward(x)
        mixed = cache.extend(self.layer, "inputs", torch.cat((q, k, v), -1))
        filters = self.joint_filters() if self.filters is None else self.filters
        q, k, v = short_convolution(mixed, filters).split((q.shape[-1], k.shape[-1], v.shape[-1]), -1)
        q, k, v = q.unflatten(-1, (-1, self.key)), k.unflatten(-1, (-1, self.key)), v.unflatten(-1, (self.heads, -1))
        if self.shared > 1:
            q, k = q.repeat_interleave(self.shared, -2), k.repeat_interleave(self.shared, -2)
        decay = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float())
        beta, decay = cache.mask(b.sigmoid()), cache.mask(decay)
        output, state = delta_rule(q, k, v, decay, beta, cache.load(self.layer, "delta"))
        cache.store(self.layer, "delta", state)
        if not outputs:
            return None
        output = self.o_norm(output, gate.unflatten(-1, (self.heads, -1)))
        result: Tensor = self.o_proj(output.flatten(-2))
        return result
