"""What a pass through the decoder remembers: the interface the layers use, over a pool of slots and over whole sequences."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from model.config import AttentionPolicy, DecoderConfig
from model.ops.attention import LOWEST, attention_in_place, causal_attention, masked_attention, visible
from model.ops.retrieval import attended, retrieve, retrieve_together
from model.ops.retrieval_tiles import retrieve_in_tiles
from model.ops.rope import rotate, rotation
from model.pages import Extension, Paged
from model.policy import RetrievalPolicy
from model.state import DECLARED, StreamState

IN_PLACE = 2048
"""Rows of a slot from which it pays to read keys and values where they lie, on a CPU."""
IN_TILES = 32
"""Queries from which it pays to put together those that chose the same blocks, on a CPU."""


class Cache(Protocol):
    """The past of a batch of sequences, extended by one call's n tokens layer by layer.

    Parts of the state go by the layer's number and the name under which it declares them (see `model.state.Part`).
    """

    def attend(self, layer: int, q: Tensor, k: Tensor, k_rotated: Tensor, v: Tensor, outputs: bool = True) -> Tensor:
        """Keeps the new keys and values; attends to all that the policy shows. Shapes [batch, n, heads, head].

        Without `outputs` they need only be kept, and what is returned means nothing.
        """
        ...

    def load(self, layer: int, name: str) -> Tensor:
        """A part as the last call left it, [batch, *shape]."""
        ...

    def store(self, layer: int, name: str, x: Tensor) -> None:
        """Keeps a part [batch, *shape] for the next call."""
        ...

    def extend(self, layer: int, name: str, x: Tensor) -> Tensor:
        """Puts the rows that a part [batch, rows, channels] holds before `x` [batch, n, channels], and keeps the last real ones of both."""
        ...

    def mask(self, x: Tensor) -> Tensor:
        """`x` [batch, n, channels] with zeros where tokens are padding."""
        ...


class SlotCache:
    """The past of some slots during one call that adds n tokens to each, in place.

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
        self.bias = None
        if device.type == "cpu" and state.dtype == torch.float32 and sinks + ring >= IN_PLACE:
            self.bias = torch.zeros(self.visible.shape).masked_fill_(~self.visible, LOWEST)
        if sinks and "sink_positions" in state.held:
            is_sink = index < sinks if self.valid is None else (index < sinks) & self.valid
            place = torch.where(is_sink, index, sinks)
            padded = torch.cat((state.sink_positions[slots], positions.new_zeros(len(slots), 3, 1)), -1)
            padded.scatter_(
                2, place[:, None].expand(-1, 3, -1), (positions - state.origin[slots][:, None]).movedim(0, 1)
            )
            state.sink_positions[slots] = padded[..., :-1]
            placed = state.placed(slots, padded[..., :-1])
            decoder = config.decoder
            self.sink_rotation = rotation(
                placed.movedim(1, 0),
                decoder.rotary_dim,
                decoder.rope_theta,
                decoder.mrope_section,
                decoder.mrope_interleaved,
            )

    def attend(self, layer: int, q: Tensor, k: Tensor, k_rotated: Tensor, v: Tensor, outputs: bool = True) -> Tensor:
        """See `Cache.attend`."""
        at, sinks = self.slots[:, None], self.state.config.policy.sinks
        keys, values = self.state.of(layer, "keys"), self.state.of(layer, "values")
        keys[at, self.rows] = torch.where((self.rows < sinks)[..., None, None], k, k_rotated)
        values[at, self.rows] = v
        if not outputs:
            return q
        if self.bias is not None:
            return torch.stack([self.attend_in_place(row, q[row], keys, values) for row in range(len(q))])
        seen, held = keys[self.slots], values[self.slots]
        if sinks:
            seen[:, :sinks] = rotate(seen[:, :sinks], self.sink_rotation)  # a copy of the state's own
        return masked_attention(q, seen[:, :-1], held[:, :-1], self.visible)

    def attend_in_place(self, row: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Row `row` of a batch, `q` [n, heads, head], to its slot's keys and values: nothing but the sinks' keys is copied."""
        assert self.bias is not None
        sinks = self.state.config.policy.sinks
        slot = self.slots[row]
        held, known = keys.narrow(0, slot, 1)[0, :-1], values.narrow(0, slot, 1)[0, :-1]
        parts = [(held[sinks:], known[sinks:])]
        if sinks:
            cosines, sines = (x[row : row + 1] for x in self.sink_rotation)
            parts.insert(0, (rotate(held[None, :sinks], (cosines, sines))[0], known[:sinks]))
        return attention_in_place(q, parts, self.bias[row])

    def load(self, layer: int, name: str) -> Tensor:
        """See `Cache.load`."""
        return self.state.of(layer, name)[self.slots]

    def store(self, layer: int, name: str, x: Tensor) -> None:
        """See `Cache.store`."""
        self.state.of(layer, name)[self.slots] = x

    def extend(self, layer: int, name: str, x: Tensor) -> Tensor:
        """See `Cache.extend`."""
        before = self.load(layer, name)
        whole = torch.cat((before, x), 1)
        if self.counts is None:
            kept = whole[:, x.shape[1] :]
        else:
            wanted = self.counts[:, None] + torch.arange(before.shape[1], device=x.device)
            kept = whole.gather(1, wanted[..., None].expand(-1, -1, whole.shape[-1]))
        self.store(layer, name, kept)
        return whole

    def mask(self, x: Tensor) -> Tensor:
        """See `Cache.mask`."""
        return x if self.valid is None else x * self.valid[..., None]

    def commit(self) -> None:
        """Counts the tokens that every layer has now taken."""
        self.state.length[self.slots] += self.taken


class PagedCache(SlotCache):
    """The past of some slots where attention retrieves: keys and values go into pages. One call may add any number of tokens."""

    def __init__(self, state: StreamState, slots: Tensor, positions: Tensor, counts: Tensor | None = None) -> None:
        n = positions.shape[-1]
        self.state, self.slots, self.counts = state, slots, counts
        self.taken = torch.full_like(slots, n) if counts is None else counts
        self.valid = None if counts is None else torch.arange(n, device=slots.device) < counts[:, None]
        assert state.pages is not None
        self.pages = state.pages
        self.pages.busy.clear()
        added = zip(slots.tolist(), self.taken.tolist(), strict=True)
        self.calls = [Extension(self.pages, slot, taken) for slot, taken in added]

    def attend(self, layer: int, q: Tensor, k: Tensor, k_rotated: Tensor, v: Tensor, outputs: bool = True) -> Tensor:
        """See `Cache.attend`."""
        mixed, pages = torch.zeros_like(q), self.pages
        for row, call in enumerate(self.calls):
            n, first = call.n, call.first
            if n:
                call.write(layer, k_rotated[row, :n], v[row, :n])
                if not outputs:
                    continue
                history = Paged(call, layer)
                attend = retrieve_in_tiles if n >= IN_TILES and not q.is_cuda else retrieve
                mixed[row, :n] = attend(q[row, :n], first, history, pages.policy)
                if call.slot in pages.attention:
                    pages.note(call.slot, attended(q[row, n - 1 : n], first + n - 1, history, pages.policy))
        return mixed

    def commit(self) -> None:
        """See `SlotCache.commit`."""
        super().commit()
        for call in self.calls:
            call.end()


class SequenceCache:
    """The past of sequences that all have the same length, as differentiable tensors that are replaced, never written to.

    A stream may be fed in segments; `branch` gives each of several questions a cache of its own, for one call. Ages beyond the
    position horizon do not occur here: the caller keeps the time axis within it.
    """

    def __init__(
        self, config: DecoderConfig, policy: AttentionPolicy, batch: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.policy = config, policy
        self.window = policy.window if policy.window is not None else policy.context
        self.length, self.batch, self.device, self.dtype = 0, batch, device, dtype
        self.copies = 1
        self.sinks: dict[int, tuple[Tensor, Tensor]] = {}
        self.tail: dict[int, tuple[Tensor, Tensor]] = {}
        self.parts: dict[tuple[int, str], Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, k_rotated: Tensor, v: Tensor, outputs: bool = True) -> Tensor:
        """See `Cache.attend`; long inputs are attended in blocks of the window, so that cost stays linear."""
        n, policy = q.shape[1], self.policy
        if isinstance(policy, RetrievalPolicy):
            return self.retrieve(policy, layer, q, k_rotated, v)
        if self.copies > 1:
            return self.attend_side_by_side(layer, q, k_rotated, v)
        none = k[:, :0]
        sink_k, sink_v = self.sinks.get(layer, (none, none))
        tail_k, tail_v = self.tail.get(layer, (none, none))
        missing = max(0, policy.sinks - sink_k.shape[1])
        sink_k, sink_v = torch.cat((sink_k, k_rotated[:, :missing]), 1), torch.cat((sink_v, v[:, :missing]), 1)
        all_k, all_v = torch.cat((tail_k, k_rotated), 1), torch.cat((tail_v, v), 1)
        before = tail_k.shape[1]
        if policy.window is None and before == self.length:
            self.tail[layer] = all_k[:, -self.window :], all_v[:, -self.window :]
            return causal_attention(q, all_k, all_v)
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

    def retrieve(self, policy: RetrievalPolicy, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend` where each query chooses its blocks: everything is kept."""
        before = self.tail.get(layer, (k[:, :0], v[:, :0]))
        keys, values = (torch.cat(pair, 1) for pair in zip(before, (k, v), strict=True))
        self.tail[layer] = keys, values
        return retrieve_together(q, self.length, keys, values, policy)

    def attend_side_by_side(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend` of a branch: the copies are one row each of what they share, which is not copied, and each sees its own tokens."""
        n, copies, policy = q.shape[1], self.copies, self.policy
        sinks, tail = self.sinks.get(layer, ()), self.tail.get(layer, ())
        q, k, v = (x.unflatten(0, (-1, copies)).flatten(1, 2) for x in (q, k, v))
        keys, values = (
            torch.cat((*(pair[i] for pair in (sinks, tail) if pair), own), 1) for i, own in enumerate((k, v))
        )
        shared, held = keys.shape[1] - k.shape[1], sinks[0].shape[1] if sinks else 0
        query = (self.length + torch.arange(n, device=q.device)).repeat(copies)
        key = torch.arange(self.length - (shared - held), self.length, device=q.device)
        key = torch.cat((torch.arange(held, device=q.device), torch.where(key < policy.sinks, -1, key)))
        of = torch.arange(copies, device=q.device).repeat_interleave(n)
        own = visible(query, query, policy) & (of[:, None] == of)
        shown = torch.cat((visible(query, key, policy), own), 1)[None]
        rows: Tensor = masked_attention(q, keys, values, shown).unflatten(1, (copies, n)).flatten(0, 1)
        return rows

    def load(self, layer: int, name: str) -> Tensor:
        """See `Cache.load`."""
        if (layer, name) not in self.parts:
            declared = DECLARED[self.config.layer_types[layer]](self.config, self.policy, 0)
            part = next(part for part in declared if part.name == name)
            return torch.full(
                (self.batch, *part.shape), part.initial, device=self.device, dtype=part.dtype or self.dtype
            )
        return self.parts[layer, name]

    def store(self, layer: int, name: str, x: Tensor) -> None:
        """See `Cache.store`."""
        self.parts[layer, name] = x

    def extend(self, layer: int, name: str, x: Tensor) -> Tensor:
        """See `Cache.extend`."""
        whole = torch.cat((self.load(layer, name).to(x.dtype), x), 1)
        self.store(layer, name, whole[:, x.shape[1] :])
        return whole

    def mask(self, x: Tensor) -> Tensor:
        """See `Cache.mask`: nothing is padding here."""
        return x

    def advance(self, n: int) -> None:
        """Counts the `n` tokens that every layer has now taken."""
        self.length += n

    def branch(self, copies: int) -> SequenceCache:
        """One whose batch holds each of this one's sequences `copies` times, side by side; this one stays as it is.

        It takes tokens once, of which none sees another copy's; one copy may go on as this one.
        """
        twin = SequenceCache(self.config, self.policy, self.batch * copies, self.device, self.dtype)
        twin.length = self.length

        def spread(x: Tensor) -> Tensor:
            return x.repeat_interleave(copies, 0)

        if isinstance(self.policy, RetrievalPolicy):
            twin.tail = {layer: (spread(k), spread(v)) for layer, (k, v) in self.tail.items()}
        else:
            twin.copies, twin.sinks, twin.tail = copies, dict(self.sinks), dict(self.tail)
        twin.parts = {key: spread(x) for key, x in self.parts.items()}
        return twin
