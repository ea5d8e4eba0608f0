"""All streaming state in one object, built from what the layers declare: a pool of slots, one a stream or an open answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from model.config import AttentionPolicy, ConfigError, DecoderConfig, InfiniteVLConfig
from model.ops.rope import frame_positions
from model.pages import Pages
from model.policy import RetrievalPolicy

Snapshot = dict[str, Tensor]
"""One slot's state by name, on the CPU."""


@dataclass(frozen=True)
class Part:
    """A tensor that every slot keeps: `shape` is one slot's, `dtype` None the model's own, `initial` its value when empty.

    Each layer that declares it has one of its own, unless it is `shared`: then all of them have one together. The last
    `spare` rows of the first axis take what padding writes; snapshots leave them out.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    initial: float = 0
    shared: bool = False
    spare: int = 0


Declare = Callable[[DecoderConfig, AttentionPolicy, int], tuple[Part, ...]]
"""What a kind of layer keeps, from the decoder's sizes, the policy and the most tokens that one call adds."""
DECLARED: dict[str, Declare] = {}
"""By the name that `layer_types` has for it; every `Mixer` enters its own."""
CURSORS = tuple(
    Part(name, (), torch.int64, initial, shared=True)
    for name, initial in (("length", 0), ("base", 0), ("time", -1), ("skipped", 0), ("next", 0), ("origin", 0))
)
"""What every stream keeps, whatever its layers: see `StreamState`."""


@lru_cache(maxsize=64)
def layout(config: InfiniteVLConfig) -> dict[str, tuple[Part, tuple[int, ...]]]:
    """By name, each part of the state and the layers that keep one; none where it is shared.

    Raises ConfigError for a kind of layer that nobody declares, and where two declare different parts under one name.
    """
    parts = {part.name: part for part in CURSORS}
    owners: dict[str, tuple[int, ...]] = {part.name: () for part in CURSORS}
    for layer, kind in enumerate(config.decoder.layer_types):
        if kind not in DECLARED:
            raise ConfigError(f"layer_types names {kind!r}: it may hold {', '.join(sorted(DECLARED))}")
        for part in DECLARED[kind](config.decoder, config.policy, config.step_tokens):
            if parts.setdefault(part.name, part) != part:
                raise ConfigError(
                    f"layer {layer} ({kind}) declares a state {part.name!r} unlike an earlier layer's: rename it"
                )
            owners[part.name] = owners.get(part.name, ()) + (() if part.shared else (layer,))
    return {name: (part, owners[name]) for name, part in parts.items()}


class StreamState:
    """Everything that survives a frame, for all slots of a pool; every cursor is a tensor.

    A layer's part is a tensor [layers that keep it, slots, *its shape], a shared one [slots, *its shape]; each is an
    attribute by its name. The cursors are int64 [slots]: `length` (tokens ingested), `base` (position where the frames'
    grid begins), `time` (last frame's step on the time axis, -1 before the first), `skipped` (time steps left out of gaps
    longer than the horizon), `next` (next text position of a stream that shows at most the horizon's age), `origin` (added
    to every position).
    """

    length: Tensor
    base: Tensor
    time: Tensor
    skipped: Tensor
    next: Tensor
    origin: Tensor

    def __init__(self, config: InfiniteVLConfig, tensors: Sequence[Tensor], pages: Pages | None = None) -> None:
        """`tensors` in the order of `layout`; `pages` where attention retrieves."""
        self.config, self.layout = config, layout(config)
        self.held = dict(zip(self.layout, tensors, strict=True))
        self.pages = pages
        vars(self).update(self.held)

    def __getattr__(self, name: str) -> Tensor:
        """Reached only for what no layer of this model declares."""
        raise AttributeError(f"this model's state has no part {name!r}")

    @classmethod
    def allocate(
        cls,
        config: InfiniteVLConfig,
        slots: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StreamState:
        """A pool of `slots` empty slots; what layers declare without a dtype is in `dtype`."""

        def empty(part: Part, layers: tuple[int, ...]) -> Tensor:
            shape = (slots, *part.shape) if part.shared else (len(layers), slots, *part.shape)
            return torch.full(shape, part.initial, dtype=part.dtype or dtype, device=device)

        policy, tensors = config.policy, [empty(*declared) for declared in layout(config).values()]
        if isinstance(policy, RetrievalPolicy):
            return cls(config, tensors, Pages(config.decoder, policy, slots, device, dtype))
        return cls(config, tensors)

    @property
    def slots(self) -> int:
        return self.length.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The model's own: of what is declared without one."""
        return next((x.dtype for name, x in self.held.items() if self.layout[name][0].dtype is None), torch.float32)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes that one stream keeps, for ever."""
        return sum(tensor.nbytes for tensor in self.held.values()) // self.slots

    def tensors(self) -> list[tuple[str, Tensor, int]]:
        """Each tensor with its name and the axis that counts slots."""
        return [(name, tensor, int(not self.layout[name][0].shared)) for name, tensor in self.held.items()]

    def of(self, layer: int, name: str) -> Tensor:
        """One layer's part, [slots, *shape]: a view."""
        return self.held[name][self.layout[name][1].index(layer)]

    def reset(self, slot: int) -> None:
        """Empties a slot."""
        for name, tensor, axis in self.tensors():
            tensor.select(axis, slot).fill_(self.layout[name][0].initial)
        if self.pages is not None:
            self.pages.reset(slot)

    def fork(self, source: int, target: int) -> None:
        """Makes `target` the same as `source`; `source` is only read."""
        for _, tensor, axis in self.tensors():
            tensor.select(axis, target).copy_(tensor.select(axis, source))
        if self.pages is not None:
            self.pages.fork(source, target)

    def kept(self, slot: int) -> Snapshot:
        """Views of all that one slot keeps: rows that take padding are left out."""
        parts = {}
        for name, tensor, axis in self.tensors():
            view, spare = tensor.select(axis, slot), self.layout[name][0].spare
            parts[name] = view.narrow(axis, 0, view.shape[axis] - spare) if spare else view
        return parts

    def snapshot(self, slot: int) -> Snapshot:
        """A copy of one slot on the CPU, the tokens in its pages with it."""
        snapshot = {name: part.detach().to("cpu", copy=True) for name, part in self.kept(slot).items()}
        if self.pages is not None:
            snapshot["tokens"] = self.pages.rows(slot, 0, self.pages.lengths[slot]).cpu()
        return snapshot

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Puts a snapshot into a slot.

        Raises ConfigError where it was taken from a model of other sizes or policy; the slot is then as it was.
        """
        parts, pages = self.kept(slot), self.pages
        if pages is not None:
            tokens, each = snapshot.get("tokens"), (len(pages.layers), 2, pages.groups, pages.head)
            if tokens is None or tokens.shape[1:] != each or len(tokens) != int(snapshot["length"]):
                raise ConfigError(f"snapshot's tokens are not {each} each: restore it into the model it was taken from")
        for name, part in parts.items():
            if name not in snapshot or snapshot[name].shape != part.shape:
                found = "is missing" if name not in snapshot else f"has shape {tuple(snapshot[name].shape)}"
                raise ConfigError(
                    f"snapshot's {name} {found}, this model keeps {tuple(part.shape)}: restore it into the model it was taken from"
                )
        for name, part in parts.items():
            part.copy_(snapshot[name])
        if pages is not None:
            pages.reset(slot)
            pages.extend(slot, snapshot["tokens"])

    def finite(self, slots: Tensor) -> Tensor:
        """Whether each slot's recurrence is finite, bool [batch]: the last layer's, which what went wrong below it reaches.

        A recurrence is what is declared in float32; in a model without any it is what its last layer keeps.
        """
        layered = [
            (layers[-1], part.dtype == torch.float32, part.name) for part, layers in self.layout.values() if layers
        ]
        layer, _, name = max([one for one in layered if one[1]] or layered)
        return self.of(layer, name)[slots].flatten(1).sum(1).isfinite()

    def shift(self, slots: Tensor) -> Tensor:
        """Time steps, or positions where they are counted, by which a stream is older than it shows, int64 [batch]."""
        if self.config.positions == "counter":
            cap, next_ = self.config.position_cap, self.next[slots]
            return torch.zeros_like(next_) if cap is None else (next_ - cap).clamp(min=0)
        horizon = self.config.horizon_steps
        time = self.time[slots]
        return torch.zeros_like(time) if horizon is None else (time - horizon).clamp(min=0)

    def text_positions(self, slots: Tensor, n: int, counts: Tensor | None = None) -> Tensor:
        """Positions of the next `n` text tokens, int64 [3, batch, n]; advances `next` by `counts` (or n)."""
        start = self.next[slots]
        self.next[slots] = start + (n if counts is None else counts)
        flat = start[:, None] + torch.arange(n, device=start.device)
        if self.config.positions == "counter":
            return (flat + self.origin[slots][:, None]).expand(3, -1, -1)
        return torch.stack((flat + self.shift(slots)[:, None], flat, flat)) + self.origin[slots][:, None]

    def step_positions(self, slots: Tensor, lead: Tensor, counts: Tensor, rows: int, height: int, width: int) -> Tensor:
        """Positions of a step where they are counted, int64 [3, batch, rows + height * width]; advances `next`.

        `lead` of its `counts` text tokens (int64 [batch], of at most `rows`) stand before the grid, the others after it; what
        follows is padding. A grid begins where text would go on, and takes as many positions as its longer side.
        """
        tokens, side = height * width, max(height, width)
        start = self.next[slots]
        self.next[slots] = start + counts + side
        row = torch.arange(rows + tokens, device=start.device)
        inside = row - lead[:, None]
        in_grid = (inside >= 0) & (inside < tokens)
        flat = start[:, None] + row - (inside >= tokens) * (tokens - side)
        cell = torch.where(in_grid, inside, 0)
        corner = (start + lead)[:, None]
        placed = torch.stack((corner.expand_as(cell), corner + cell // width, corner + cell % width))
        return torch.where(in_grid, placed, flat) + self.origin[slots][:, None]

    def placed(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Where sinks at `positions` int64 [batch, 3, n] stand for what is read now, no farther back than a stream shows."""
        shift = self.shift(slots)[:, None]
        positions = positions + self.origin[slots][:, None, None]
        if self.config.positions == "counter":
            return positions + shift[..., None]
        return torch.cat((positions[:, :1] + shift[..., None], positions[:, 1:]), 1)

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
