"""InfiniteVL's decoder once more: short, slow, float64, one sequence, token by token, from the formulas alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import DecoderConfig
from model.families.infinitevl import InfiniteVL


def weight(module: nn.Module, name: str = "weight") -> Tensor:
    return module.get_parameter(name).detach().double()


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def linear(module: nn.Module, x: Tensor) -> Tensor:
    y = x @ weight(module).T
    return y if getattr(module, "bias", None) is None else y + weight(module, "bias")


def rms_norm(gain: Tensor, x: Tensor, eps: float) -> Tensor:
    return gain * x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence: q, k [n, heads, key] before their norms, v [n, heads, value], g, beta [n, heads], state [heads, key, value]."""
    q, k, v, g, beta, states = q.double(), k.double(), v.double(), g.double(), beta.double(), list(state.double())
    outputs = torch.zeros_like(v)
    for t in range(len(q)):
        for h in range(len(states)):
            key = k[t, h] / ((k[t, h] ** 2).sum() + 1e-6).sqrt()
            query = q[t, h] / ((q[t, h] ** 2).sum() + 1e-6).sqrt() / math.sqrt(len(key))
            S = math.exp(g[t, h]) * states[h]
            S = S + torch.outer(key, beta[t, h] * (v[t, h] - key @ S))
            outputs[t, h] = query @ S
            states[h] = S
    return outputs, torch.stack(states)


def delta_net(layer: nn.Module, x: Tensor, config: DecoderConfig) -> Tensor:
    """One Gated DeltaNet layer over `x` [n, hidden]."""
    x = x.double()
    n, heads = len(x), config.num_linear_heads

    def part(name: str) -> Tensor:
        inputs, filters = linear(layer.get_submodule(f"{name}_proj"), x), weight(layer.get_submodule(f"{name}_conv1d"))
        width, mixed = filters.shape[-1], torch.zeros_like(inputs)
        for t in range(n):
            for i in range(width):
                if t - i >= 0:
                    mixed[t] += filters[:, 0, width - 1 - i] * inputs[t - i]
        return silu(mixed).view(n, heads, -1)

    q, k, v = part("q"), part("k"), part("v")
    beta = 1 / (1 + (-linear(layer.get_submodule("b_proj"), x)).exp())
    rate = linear(layer.get_submodule("a_proj"), x) + weight(layer, "dt_bias")
    g = -weight(layer, "A_log").exp() * (1 + rate.exp()).log()
    output, _ = delta_rule(q, k, v, g, beta, torch.zeros(heads, q.shape[-1], v.shape[-1]))
    gate = linear(layer.get_submodule("g_proj"), x).view(n, heads, -1)
    normed = rms_norm(weight(layer.get_submodule("o_norm")), output, config.norm_eps) * silu(gate)
    return linear(layer.get_submodule("o_proj"), normed.reshape(n, -1))


def rotated(x: Tensor, position: Tensor, config: DecoderConfig) -> Tensor:
    """`x` [head] turned by `position` [3]: pair p of frequency theta^(-2p/head) belongs to the axis of its section."""
    half, values, turned = len(x) // 2, x.tolist(), x.tolist()
    axes = [axis for axis, pairs in enumerate(config.mrope_section) for _ in range(pairs)]
    for p in range(half):
        angle = int(position[axes[p]]) * config.rope_theta ** (-2 * p / len(x))
        turned[p] = values[p] * math.cos(angle) - values[p + half] * math.sin(angle)
        turned[p + half] = values[p + half] * math.cos(angle) + values[p] * math.sin(angle)
    return torch.tensor(turned, dtype=x.dtype)


def attention(
    layer: nn.Module,
    x: Tensor,
    positions: Tensor,
    config: DecoderConfig,
    sinks: int,
    window: int | None,
    shifts: list[int],
) -> Tensor:
    """One attention layer over `x` [n, hidden] at `positions` [3, n], by eq. 8; query i sees sinks `shifts[i]` later on the time axis."""
    n, heads, group = len(x), config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    q, k, v = (linear(layer.get_submodule(f"{name}_proj"), x).view(n, -1, config.head_dim) for name in "qkv")
    later = torch.tensor([1, 0, 0])
    placed: dict[tuple[int, int], Tensor] = {}

    def key(j: int, shift: int) -> Tensor:
        if (j, shift) not in placed:
            where = positions[:, j] + shift * later
            placed[j, shift] = torch.stack([rotated(head, where, config) for head in k[j]])
        return placed[j, shift]

    outputs = torch.zeros(n, heads, config.head_dim, dtype=torch.float64)
    for i in range(n):
        seen = [j for j in range(i + 1) if window is None or j < sinks or i - j < window]
        keys = torch.stack([key(j, shifts[i] if j < sinks else 0) for j in seen])
        for h in range(heads):
            query = rotated(q[i, h], positions[:, i], config)
            scores = keys[:, h // group] @ query / math.sqrt(config.head_dim)
            outputs[i, h] = (scores - scores.max()).softmax(0) @ v[seen, h // group]
    return linear(layer.get_submodule("o_proj"), outputs.view(n, -1))


def logits(model: InfiniteVL, x: Tensor, positions: Tensor, shifts: list[int] | None = None) -> Tensor:
    """Float64 logits [n, vocabulary] of embeddings `x` [n, hidden] at `positions` [3, n], under the model's attention policy."""
    config, policy = model.config.decoder, model.config.policy
    x = x.double()
    shifts = shifts or [0] * len(x)
    for i, layer in enumerate(model.model.layers):
        mixer, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        inner = rms_norm(weight(layer.get_submodule("input_layernorm")), x, config.rms_norm_eps)
        if config.layer_types[i] == "attention":
            x = x + attention(mixer, inner, positions, config, policy.sinks, policy.window, shifts)
        else:
            x = x + delta_net(mixer, inner, config)
        inner = rms_norm(weight(layer.get_submodule("post_attention_layernorm")), x, config.rms_norm_eps)
        gate, up = linear(mlp.get_submodule("gate_proj"), inner), linear(mlp.get_submodule("up_proj"), inner)
        x = x + linear(mlp.get_submodule("down_proj"), silu(gate) * up)
    head = model.model.embed_tokens if config.tie_word_embeddings else model.lm_head
    return rms_norm(weight(model.model.norm), x, config.rms_norm_eps) @ weight(head).T
