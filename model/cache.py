"""What a pass through the decoder remembers: the interface the layers use, and its differentiable form for whole sequences.

The serving form, over a pool of slots, is `model.state.SlotMemory`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import AttentionPolicy, DecoderConfig


class Memory(Protocol):
    """The past of a batch of sequences, extended by one call's n tokens layer by layer."""

    def attend(self, layer: int, q: Tensor, k: Tensor, k_rotated: Tensor, v: Tensor) -> Tensor:
        """Keeps the new keys and values; attends to all that the policy shows. Shapes [batch, n, heads, head]."""
        ...

    def recurrence(self, layer: int, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the convolution's kept inputs before `mixed` [batch, n, channels]; also gives the layer's recurrent state."""
        ...

    def gates(self, beta: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """Silences padding in the gates, each [batch, n, heads]."""
        ...

    def remember(self, layer: int, state: Tensor) -> None:
        """Keeps the layer's recurrent state, float32 [batch, heads, key, value]."""
        ...


def visible(query: Tensor, key: Tensor, policy: AttentionPolicy) -> Tensor:
    """Eq. 8 over token indices: `query` int64 [..., n], `key` int64 [..., m] (negative: no such key). Returns bool [..., n, m]."""
    i, j = query[..., :, None], key[..., None, :]
    shown = (j >= 0) & (j <= i)
    if policy.window is not None:
        shown &= (j < policy.sinks) | (i - j < policy.window)
    return shown


def masked_attention(q: Tensor, k: Tensor, v: Tensor, shown: Tensor) -> Tensor:
    """Softmax attention, scaled by 1/sqrt(head); `shown` bool [batch or 1, n, m]; others [batch, n or m, heads, head]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.is_cuda:  # its memory-efficient kernel knows masks but not grouped keys
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, shown[:, None], enable_gqa=not q.is_cuda).transpose(1, 2)


class SequenceMemory:
    """The memory of sequences that all have the same length, as differentiable tensors that are replaced, never written to.

    A stream may be fed in segments; `branch` gives each of several questions a memory of its own. Ages beyond the
    position horizon do not occur here: the caller keeps the time axis within it.
    """

    def __init__(
        self, config: DecoderConfig, policy: AttentionPolicy, batch: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.policy = policy
        self.window = policy.window if policy.window is not None else policy.context
        self.length = 0
        heads, head = config.num_key_value_heads, config.head_dim
        none = torch.zeros(batch, 0, heads, head, device=device, dtype=dtype)
        self.sinks: dict[int, tuple[Tensor, Tensor]] = {i: (none, none) for i in config.attention_layers}
        self.tail: dict[int, tuple[Tensor, Tensor]] = {i: (none, none) for i in config.attention_layers}
        channels = config.num_linear_heads * (2 * config.linear_head_dim + config.linear_value_dim)
        shape = (batch, config.num_linear_heads, config.linear_head_dim, config.linear_value_dim)
        self.inputs = {
            i: torch.zeros(batch, config.conv_size - 1, channels, device=device, dtype=dtype)
            for i in config.delta_layers
        }
        self.states = {i: torch.zeros(shape, device=device) for i in config.delta_layers}

    def attend(self, layer: int, q: Tensor, k: Tensor, k_rotated: Tensor, v: Tensor) -> Tensor:
        """See `Memory.attend`; long inputs are attended in blocks of the window, so that cost stays linear."""
        n, policy = q.shape[1], self.policy
        sink_k, sink_v = self.sinks[layer]
        tail_k, tail_v = self.tail[layer]
        missing = max(0, policy.sinks - sink_k.shape[1])
        sink_k, sink_v = torch.cat((sink_k, k_rotated[:, :missing]), 1), torch.cat((sink_v, v[:, :missing]), 1)
        all_k, all_v = torch.cat((tail_k, k_rotated), 1), torch.cat((tail_v, v), 1)
        before = tail_k.shape[1]
        size = n if policy.window is None or n <= policy.window else policy.window
        parts = []
        sink_index = torch.arange(sink_k.shape[1], device=q.device)
        for start in range(0, n, size):
            stop = min(start + size, n)
            first = max(0, before + start - self.window)
            query = self.length + torch.arange(start, stop, device=q.device)
            key = self.length - before + torch.arange(first, before + stop, device=q.device)
            key = torch.where(key < policy.sinks, -1, key)
            shown = visible(query, torch.cat((sink_index, key)), policy)[None]
            keys = torch.cat((sink_k, all_k[:, first : before + stop]), 1)
            values = torch.cat((sink_v, all_v[:, first : before + stop]), 1)
            parts.append(masked_attention(q[:, start:stop], keys, values, shown))
        self.sinks[layer] = sink_k, sink_v
        self.tail[layer] = all_k[:, -self.window :], all_v[:, -self.window :]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def recurrence(self, layer: int, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """See `Memory.recurrence`."""
        whole = torch.cat((self.inputs[layer].to(mixed.dtype), mixed), 1)
        self.inputs[layer] = whole[:, mixed.shape[1] :]
        return whole, self.states[layer]

    def gates(self, beta: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """See `Memory.gates`: nothing is padding here."""
        return beta, decay

    def remember(self, layer: int, state: Tensor) -> None:
        """See `Memory.remember`."""
        self.states[layer] = state

    def advance(self, n: int) -> None:
        """Counts the `n` tokens that every layer has now taken."""
        self.length += n

    def branch(self, copies: int) -> SequenceMemory:
        """A memory whose batch holds each of this one's sequences `copies` times, side by side; this one stays as it is."""
        twin = object.__new__(SequenceMemory)
        twin.policy, twin.window, twin.length = self.policy, self.window, self.length

        def spread(x: Tensor) -> Tensor:
            return x.repeat_interleave(copies, 0)

        twin.sinks = {i: (spread(k), spread(v)) for i, (k, v) in self.sinks.items()}
        twin.tail = {i: (spread(k), spread(v)) for i, (k, v) in self.tail.items()}
        twin.inputs = {i: spread(x) for i, x in self.inputs.items()}
        twin.states = {i: spread(x) for i, x in self.states.items()}
        return twin
