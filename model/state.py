"""All streaming state in one typed object: a pool of slots, one a stream or an open answer."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from model.cache import masked_attention, visible
from model.config import ConfigError, InfiniteVLConfig
from model.ops.rope import frame_positions, rotate, rotation

Snapshot = dict[str, Tensor]
"""One slot's state by field name, on the CPU."""


@dataclass
class StreamState:
    """Everything that survives a frame, for `slots` independent streams; every cursor is a tensor.

    `delta` float32 [delta layers, slots, heads, key, value]; `inputs` [delta layers, slots, conv - 1, channels];
    `keys`, `values` [attention layers, slots, rows, kv heads, head], whose rows are the sinks (keys unrotated), the ring
    (keys rotated) and one that takes what padding writes. The rest is int64: `sink_positions` [slots, 3, sinks], and
    [slots] each: `length` (tokens taken), `base` (position where the frames' grid begins), `time` (last frame's step on
    the time axis, -1 before the first), `skipped` (time steps left out of gaps longer than the horizon), `next` (next
    text position of a stream that shows at most the horizon's age), `origin` (added to every position).
    """

    config: InfiniteVLConfig
    delta: Tensor
    inputs: Tensor
    keys: Tensor
    values: Tensor
    sink_positions: Tensor
    length: Tensor
    base: Tensor
    time: Tensor
    skipped: Tensor
    next: Tensor
    origin: Tensor

    @classmethod
    def allocate(
        cls,
        config: InfiniteVLConfig,
        slots: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StreamState:
        """A pool of `slots` empty slots; keys, values and convolution inputs in `dtype`."""
        decoder, policy = config.decoder, config.policy
        rows = policy.sinks + policy.ring_size(config.step_tokens) + 1
        kv = (len(decoder.attention_layers), slots, rows, decoder.num_key_value_heads, decoder.head_dim)
        heads, key, value = decoder.num_linear_heads, decoder.linear_head_dim, decoder.linear_value_dim
        deltas = len(decoder.delta_layers)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        return cls(
            config,
            delta=torch.zeros(deltas, slots, heads, key, value, device=device),
            inputs=torch.zeros(
                deltas, slots, decoder.conv_size - 1, heads * (2 * key + value), device=device, dtype=dtype
            ),
            keys=torch.zeros(kv, device=device, dtype=dtype),
            values=torch.zeros(kv, device=device, dtype=dtype),
            sink_positions=integers(slots, 3, policy.sinks),
            length=integers(slots),
            base=integers(slots),
            time=integers(slots) - 1,
            skipped=integers(slots),
            next=integers(slots),
            origin=integers(slots),
        )

    @property
    def slots(self) -> int:
        return self.length.shape[0]

    @property
    def bytes_per_slot(self) -> int:
        """Bytes that one stream keeps, for ever."""
        return sum(tensor.nbytes for _, tensor, _ in self.tensors()) // self.slots

    def tensors(self) -> list[tuple[str, Tensor, int]]:
        """Each tensor with its name and the axis that counts slots."""
        layered = ("delta", "inputs", "keys", "values")
        return [(f.name, getattr(self, f.name), int(f.name in layered)) for f in fields(self) if f.name != "config"]

    def reset(self, slot: int) -> None:
        """Empties a slot."""
        for name, tensor, axis in self.tensors():
            tensor.select(axis, slot).fill_(-1 if name == "time" else 0)

    def fork(self, source: int, target: int) -> None:
        """Makes `target` the same as `source`; `source` is only read."""
        for _, tensor, axis in self.tensors():
            tensor.select(axis, target).copy_(tensor.select(axis, source))

    def kept(self, slot: int) -> Snapshot:
        """Views of all that one slot keeps: the row that takes padding is left out."""
        parts = {name: tensor.select(axis, slot) for name, tensor, axis in self.tensors()}
        return parts | {name: parts[name][:, :-1] for name in ("keys", "values")}

    def snapshot(self, slot: int) -> Snapshot:
        """A copy of one slot on the CPU."""
        return {name: part.detach().to("cpu", copy=True) for name, part in self.kept(slot).items()}

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Puts a snapshot into a slot.

        Raises ConfigError where it was taken from a model of other sizes or policy; the slot is then as it was.
        """
        parts = self.kept(slot)
        for name, part in parts.items():
            if name not in snapshot or snapshot[name].shape != part.shape:
                found = "is missing" if name not in snapshot else f"has shape {tuple(snapshot[name].shape)}"
                raise ConfigError(
                    f"snapshot's {name} {found}, this model keeps {tuple(part.shape)}: restore it into the model it was taken from"
                )
        for name, part in parts.items():
            part.copy_(snapshot[name])

    def shift(self, slots: Tensor) -> Tensor:
        """Time steps by which a stream is older than it shows, int64 [batch]."""
        horizon = self.config.horizon_steps
        time = self.time[slots]
        return torch.zeros_like(time) if horizon is None else (time - horizon).clamp(min=0)

    def text_positions(self, slots: Tensor, n: int, counts: Tensor | None = None) -> Tensor:
        """Positions of the next `n` text tokens, int64 [3, batch, n]; advances `next` by `counts` (or n)."""
        start = self.next[slots]
        self.next[slots] = start + (n if counts is None else counts)
        flat = start[:, None] + torch.arange(n, device=start.device)
        return torch.stack((flat + self.shift(slots)[:, None], flat, flat)) + self.origin[slots][:, None]

    def begin(self, slots: Tensor) -> None:
        """Puts the grid of the frames to come at the next text position."""
        self.base[slots] = self.next[slots]

    def frame_positions(self, slots: Tensor, seconds: Tensor, height: int, width: int) -> Tensor:
        """Positions of one frame at `seconds` (float64 [batch]) of stream time, int64 [3, batch, height * width].

        The time axis advances by `tokens_per_second * floor(seconds)` and never goes back; a gap longer than the horizon
        counts as the horizon.
        """
        rate, horizon = self.config.tokens_per_second, self.config.horizon_steps
        before = self.time[slots]
        time = rate * seconds.floor().to(torch.int64) - self.skipped[slots]
        time = torch.maximum(time, before.clamp(min=0))
        if horizon is not None:
            excess = torch.where(before < 0, time - time.clamp(max=horizon), (time - before - horizon).clamp(min=0))
            self.skipped[slots] += excess
            time = time - excess
        self.time[slots] = time
        base = self.base[slots]
        self.next[slots] = (
            base + torch.maximum(time - self.shift(slots), torch.full_like(time, max(height, width) - 1)) + 1
        )
        return frame_positions(base, time, height, width) + self.origin[slots][:, None]


class SlotMemory:
    """The memory of some slots during one call that adds n tokens to each, in place (see `model.cache.Memory`).

    With `counts` (int64 [batch]) only the first `counts[b]` tokens of row b are real; the rest is padding on the right.
    """

    def __init__(self, state: StreamState, slots: Tensor, positions: Tensor, counts: Tensor | None = None) -> None:
        config, policy = state.config, state.config.policy
        n, device = positions.shape[-1], slots.device
        ring, sinks = policy.ring_size(config.step_tokens), policy.sinks
        self.state, self.slots, self.counts = state, slots, counts
        steps = torch.arange(n, device=device)
        start = state.length[slots]
        index = start[:, None] + steps
        self.taken = torch.full_like(start, n) if counts is None else counts
        self.valid = None if counts is None else steps < counts[:, None]
        rows = torch.where(index < sinks, index, sinks + index % ring)
        if self.valid is not None:
            rows = torch.where(self.valid, rows, sinks + ring)
        self.rows = rows
        last = (start + self.taken - 1)[:, None]
        in_ring = last - (last - torch.arange(ring, device=device)) % ring
        in_sinks = torch.arange(sinks, device=device).expand(len(slots), -1)
        in_sinks = torch.where(in_sinks <= last, in_sinks, -1)
        kept = torch.cat((in_sinks, torch.where(in_ring < sinks, -1, in_ring)), 1)
        self.visible = visible(index, kept, policy)
        self.visible[..., 0] |= ~self.visible.any(-1)
        self.layer_row = {
            layer: i
            for kind in (config.decoder.attention_layers, config.decoder.delta_layers)
            for i, layer in enumerate(kind)
        }
        if sinks:
            is_sink = index < sinks if self.valid is None else (index < sinks) & self.valid
            place = torch.where(is_sink, index, sinks)
            padded = torch.cat((state.sink_positions[slots], positions.new_zeros(len(slots), 3, 1)), -1)
            padded.scatter_(
                2, place[:, None].expand(-1, 3, -1), (positions - state.origin[slots][:, None]).movedim(0, 1)
            )
            state.sink_positions[slots] = padded[..., :-1]
            placed = padded[..., :-1] + state.origin[slots][:, None, None]
            placed[:, 0] += state.shift(slots)[:, None]
            decoder = config.decoder
            self.sink_rotation = rotation(
                placed.movedim(1, 0), decoder.head_dim, decoder.rope_theta, decoder.mrope_section
            )

    def attend(self, layer: int, q: Tensor, k: Tensor, k_rotated: Tensor, v: Tensor) -> Tensor:
        """See `Memory.attend`."""
        row, at, sinks = self.layer_row[layer], self.slots[:, None], self.state.config.policy.sinks
        keys, values = self.state.keys[row], self.state.values[row]
        keys[at, self.rows] = torch.where((self.rows < sinks)[..., None, None], k, k_rotated)
        values[at, self.rows] = v
        seen, held = keys[self.slots, :-1], values[self.slots, :-1]
        if sinks:
            seen = torch.cat((rotate(seen[:, :sinks], self.sink_rotation), seen[:, sinks:]), 1)
        return masked_attention(q, seen, held, self.visible)

    def recurrence(self, layer: int, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """See `Memory.recurrence`."""
        row = self.layer_row[layer]
        whole = torch.cat((self.state.inputs[row][self.slots], mixed), 1)
        if self.counts is None:
            kept = whole[:, mixed.shape[1] :]
        else:
            width = self.state.inputs.shape[2]
            wanted = self.counts[:, None] + torch.arange(width, device=mixed.device)
            kept = whole.gather(1, wanted[..., None].expand(-1, -1, whole.shape[-1]))
        self.state.inputs[row][self.slots] = kept
        return whole, self.state.delta[row][self.slots]

    def gates(self, beta: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """See `Memory.gates`: padding neither writes nor forgets."""
        if self.valid is None:
            return beta, decay
        return beta * self.valid[..., None], decay * self.valid[..., None]

    def remember(self, layer: int, state: Tensor) -> None:
        """See `Memory.remember`."""
        self.state.delta[self.layer_row[layer]][self.slots] = state

    def commit(self) -> None:
        """Counts the tokens that every layer has now taken."""
        self.state.length[self.slots] += self.taken
