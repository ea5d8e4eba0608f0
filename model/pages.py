"""Keys and values that grow: pages of a pool that slots share, a fork's with its source's until one of them writes."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.config import DecoderConfig
from model.ops.retrieval import pool
from model.policy import RetrievalPolicy

BLOCKS = 8
"""Of a page."""
GROWTH = 1.5


class FullError(Exception):
    """A history that may not become longer, in one line."""


class Pages:
    """What attention that retrieves keeps of each slot: all keys (rotated) and values, and the keys pooled over spans.

    By layer, `keys` and `values` are [groups, blocks of the pool, block, head] and `pooled` float32 [groups, strides of all
    pages, head], a span where its last stride is, so that a page that is full is never written to again.

    Where `resident` says so the pool holds no more pages than that; the keys and values of those that were begun longest ago are
    then in the host's memory, from where the blocks are fetched that are chosen.
    """

    def __init__(
        self, config: DecoderConfig, policy: RetrievalPolicy, slots: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.policy, self.size = policy, BLOCKS * policy.block_size
        self.layers = [i for i, kind in enumerate(config.layer_types) if kind == "attention"]
        self.groups, self.head = config.num_key_value_heads, config.head_dim
        self.tables: list[list[int]] = [[] for _ in range(slots)]
        self.lengths = [0] * slots
        self.users: list[int] = []
        """Of each page, the slots that have it."""
        self.frames: list[int] = []
        """Where in the pool each page's keys and values are; below 0, where in the host's memory, counted down from -1."""
        self.resident: int | None = None
        self.begun: dict[int, None] = {}
        """Pages that are in use, in order of their beginning."""
        self.busy: set[int] = set()
        """Those that calls in hand write to, or pool from."""
        self.free: tuple[list[int], list[int]] = [], []
        """Frames of the pool, and of the host's memory, that no page has."""
        empty = torch.zeros(self.groups, 0, policy.block_size, self.head, dtype=dtype, device=device)
        self.keys = {layer: empty for layer in self.layers}
        self.values = dict(self.keys)
        beyond = torch.zeros(2, *empty.shape, dtype=dtype)
        self.host = {layer: beyond for layer in self.layers}
        """Keys and values [2, groups, blocks, block, head] that are not in the pool."""
        self.pooled = {layer: empty[:, :, 0].float() for layer in self.layers}
        self.call: Extension | OneToken | None = None
        """The call in hand, where one slot is taken at a time."""
        self.version = self.generation = 0
        """Count what happened to tables and frames, and to the pool's tensors."""
        self.attention: dict[int, int] = {}
        """Slots whose attention is noted, and of how many blocks so far."""
        self.noted = self.pooled[self.layers[0]].new_empty(slots, 0)
        """What their calls' last queries have seen, by block, summed over layers and heads: float32 [slots, blocks]."""
        self.laid: tuple[int, int, Tensor] | None = None
        """A slot, the version, and its `table` at that."""

    @property
    def strides(self) -> int:
        """Of a page."""
        return self.size // self.policy.kernel_stride

    @property
    def free_bytes(self) -> int:
        """Of the pool, what no page has."""
        return len(self.free[0]) * self.size * self.token_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values, those pooled left out."""
        return 2 * len(self.layers) * self.groups * self.head * self.keys[self.layers[0]].element_size()

    def reserve(self, slot: int, tokens: int) -> None:
        """Makes room for `tokens` more, in pages that nobody else has. Raises FullError."""
        table, length = self.tables[slot], self.lengths[slot]
        if length + tokens > self.policy.context:
            raise FullError(
                f"a history of {length} tokens has no room for {tokens} more: {self.policy.context} are kept"
            )
        shared, first = length // self.size, max(0, length - self.policy.kernel_size) // self.size
        self.busy.update(table[first:])
        for page in table[first:]:
            if self.frames[page] < 0:
                self._bring_in(page)
        if length % self.size and self.users[table[shared]] > 1:
            page = self._take()
            self._copy(table[shared], page)
            self.users[table[shared]] -= 1
            table[shared] = page
        while len(table) * self.size < length + tokens:
            table.append(self._take())

    def advance(self, slot: int, tokens: int) -> None:
        """Counts the tokens that every layer has now taken."""
        self.lengths[slot] += tokens

    def reset(self, slot: int) -> None:
        """Empties a slot."""
        for page in self.tables[slot]:
            self.users[page] -= 1
            if not self.users[page]:
                self.begun.pop(page)
                self._let_go(self.frames[page])
        self.tables[slot], self.lengths[slot] = [], 0
        self.version += 1

    def fork(self, source: int, target: int) -> None:
        """Makes `target` the same as `source`, in the same pages."""
        for page in self.tables[source]:
            self.users[page] += 1
        table, length = list(self.tables[source]), self.lengths[source]
        self.reset(target)
        self.tables[target], self.lengths[target] = table, length

    def rows(self, slot: int, start: int, stop: int) -> Tensor:
        """Tokens `start` to `stop` as they are kept outside, [tokens, layers, 2 (keys, values), groups, head]: a copy.

        Nobody waits for a device where all of the slot's pages are in the pool.
        """
        where, away = self.tokens(slot, start, stop), self.away(slot)
        pairs = [torch.stack([self.taken(layer, x, where, None, away) for x in (0, 1)]) for layer in self.layers]
        return torch.stack(pairs).permute(3, 0, 1, 2, 4).contiguous()

    def extend(self, slot: int, rows: Tensor) -> None:
        """Puts what `rows` gave after the slot's tokens. Raises FullError."""
        self.busy.clear()
        more = Extension(self, slot, len(rows))
        for layer, pair in zip(self.layers, rows.unbind(1), strict=True):
            k, v = pair.to(self.keys[layer].device).unbind(1)
            more.write(layer, k, v)
        more.end()

    def watch(self, slot: int) -> None:
        """Notes from now on what is attended to in `slot`."""
        if not self.noted.shape[1]:
            with torch.inference_mode(False):
                self.noted = self.noted.new_zeros(len(self.tables), -(-self.policy.context // self.policy.block_size))
        self.noted[slot] = 0
        self.attention[slot] = 0

    def unwatch(self, slot: int) -> Tensor:
        """Notes it no more; what was attended to since, float32 [blocks], on the CPU."""
        return self.noted[slot, : self.attention.pop(slot, 0)].to("cpu", copy=True)

    def note(self, slot: int, shares: Tensor) -> None:
        """Adds shares of attention, float32 [blocks]."""
        self.noted[slot, : len(shares)] += shares
        self.attention[slot] = max(self.attention[slot], len(shares))

    def make_room(self, tokens: int) -> None:
        """Lets the pool grow at once, if need be, by what `tokens` more will take, instead of little by little."""
        missing = -(-tokens // self.size) - self.users.count(0)
        if missing > 0:
            self._grow(missing)
            room = len(self.users) if self.resident is None else min(self.resident, len(self.users))
            self._widen(max(0, room - self._held))

    def shrink(self) -> None:
        """Gives the pool's memory back where no slot has a page."""
        if not any(self.users):
            self.users, self.frames, self.free = [], [], ([], [])
            for held in (self.keys, self.values, self.pooled):
                held.update({layer: x[:, :0].clone() for layer, x in held.items()})
            self.host.update({layer: x[:, :, :0].clone() for layer, x in self.host.items()})
            self.version, self.generation = self.version + 1, self.generation + 1

    def _take(self) -> int:
        """A page that is free, in the pool; more are made where there is none. Raises FullError."""
        free = next((page for page, users in enumerate(self.users) if not users), None)
        if free is None:
            free = len(self.users)
            self._grow(max(8, int(free * (GROWTH - 1))))
        self.frames[free] = self._frame()
        self.users[free], self.begun[free] = 1, None
        self.busy.add(free)
        self.version += 1
        return free

    def _frame(self) -> int:
        """A frame of the pool for a page: free, new, or of the page that was begun longest ago, which goes to the host's memory."""
        if not self.free[0]:
            most = len(self.users) if self.resident is None else self.resident
            self._widen(min(max(8, int(self._held * (GROWTH - 1))), most - self._held))
        if self.free[0]:
            return self.free[0].pop()
        oldest = next((page for page in self.begun if self.frames[page] >= 0 and page not in self.busy), None)
        if oldest is None:
            raise FullError(
                f"the device's {self.resident} pages of {self.size} tokens are too few for one call: free some memory"
            )
        frame = self.frames[oldest]
        if not self.free[1]:
            count = self.host[self.layers[0]].shape[2] // BLOCKS
            more = max(8, int(count * (GROWTH - 1)))
            _widened(self.host, 2, more * BLOCKS)
            self.free[1].extend(range(count, count + more))
        self.frames[oldest] = -1 - self.free[1].pop()
        self._exchange(frame, self.frames[oldest], out=True)
        self.version += 1
        return frame

    def _bring_in(self, page: int) -> None:
        frame, away = self._frame(), self.frames[page]
        self._exchange(frame, away, out=False)
        self.frames[page] = frame
        self._let_go(away)
        self.version += 1

    def _exchange(self, frame: int, away: int, *, out: bool) -> None:
        """Copies a page between the pool and the host's memory."""
        here, there = (slice(at * BLOCKS, (at + 1) * BLOCKS) for at in (frame, -1 - away))
        for layer, host in self.host.items():
            for held, kept in ((self.keys[layer], host[0]), (self.values[layer], host[1])):
                source, target = (held[:, here], kept[:, there]) if out else (kept[:, there], held[:, here])
                target.copy_(source)

    def _let_go(self, frame: int) -> None:
        self.free[frame < 0].append(frame if frame >= 0 else -1 - frame)

    @property
    def _held(self) -> int:
        """Frames that the pool has."""
        return self.keys[self.layers[0]].shape[1] // BLOCKS

    def _grow(self, pages: int) -> None:
        self.users += [0] * pages
        self.frames += [0] * pages
        _widened(self.pooled, 1, pages * self.strides)
        self.generation += 1

    def _widen(self, frames: int) -> None:
        held = self._held
        _widened(self.keys, 1, frames * BLOCKS)
        _widened(self.values, 1, frames * BLOCKS)
        self.free[0].extend(range(held + frames - 1, held - 1, -1))
        self.generation += 1

    def _copy(self, source: int, target: int) -> None:
        frame, per = self.frames[target], self.strides
        for held in (self.keys, self.values):
            for x in held.values():
                paged = x.unflatten(1, (-1, BLOCKS))
                paged[:, frame] = paged[:, self.frames[source]]
        for x in self.pooled.values():
            paged = x.unflatten(1, (-1, per))
            paged[:, target] = paged[:, source]

    def table(self, slot: int) -> Tensor:
        """Of the slot's pages their numbers, and their frames as `frames` has them: int32 [2, pages], on the pool's device."""
        if self.laid is None or self.laid[:2] != (slot, self.version):
            table = self.tables[slot]
            told = torch.tensor([table, [self.frames[page] for page in table]], dtype=torch.int32)
            device = self.keys[self.layers[0]].device
            if device.type == "cuda":  # from pinned memory nobody waits for the copy
                told = told.pin_memory().to(device, non_blocking=True)
            self.laid = slot, self.version, told
        return self.laid[2]

    def tokens(self, slot: int, start: int, stop: int) -> Tensor:
        """Where the slot's tokens from `start` to `stop` are: see `placed`."""
        frames = self.table(slot)[1]
        return placed(frames, torch.arange(start, stop, device=frames.device), self.size)

    def away(self, slot: int) -> bool:
        """Whether some of a slot's pages are in the host's memory."""
        return any(self.frames[page] < 0 for page in self.tables[slot])

    def taken(self, layer: int, kind: int, where: Tensor, group: int | None, away: bool = True) -> Tensor:
        """Keys (`kind` 0) or values (1) of a layer, on the pool's device, at `where`: tokens [groups, n, head], of a `group` blocks
        [n, block, head]; `away` says whether some may be in the host's memory."""
        held, host = (self.keys, self.values)[kind][layer], self.host[layer][kind]
        if group is None:
            held, host = held.flatten(1, 2), host.flatten(1, 2)
        else:
            held, host = held[group : group + 1], host[group : group + 1]
        found = held[:, where.clamp(min=0)]
        if away and bool((there := where < 0).any()):
            found[:, there] = host[:, (-1 - where[there]).cpu()].to(found.device)
        return found if group is None else found[0]


def placed(frames: Tensor, numbers: Tensor, each: int) -> Tensor:
    """Where the tokens, blocks or strides `numbers` int64 of a slot are whose pages, of `each`, lie in `frames` int32: int64.

    In the pool; below 0 in the host's memory, counted down from -1.
    """
    of = frames.long()[numbers // each]
    away = of < 0
    found = torch.where(away, -1 - of, of) * each + numbers % each
    return torch.where(away, -1 - found, found)


def _widened(held: dict[int, Tensor], axis: int, more: int) -> None:
    """Each layer's tensor with so many zeros more."""
    if more <= 0:
        return
    with torch.inference_mode(False), torch.no_grad():
        for layer, x in held.items():
            shape = (*x.shape[:axis], x.shape[axis] + more, *x.shape[axis + 1 :])
            grown = zeros(shape, x)
            grown.narrow(axis, 0, x.shape[axis]).copy_(x)
            held[layer] = grown


def zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros as `like`, of which those on a CPU take memory only once they are written to."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros(math.prod(shape) * like.element_size(), np.uint8)).view(like.dtype).view(shape)


class Held(NamedTuple):
    """What one sequence has in one layer: `keys` and `values` [groups, blocks of the pool, block, head], where its blocks lie
    there, int32 [blocks], and its pooled keys [groups, spans a block, blocks, head], where there are such."""

    keys: Tensor
    values: Tensor
    table: Tensor
    pooled: Tensor


class Extension:
    """The call that adds `n` tokens to a slot, whose room it reserves: what all layers of it need, worked out once.

    Tensors are on the pool's device, and nothing here waits for it: `numbers` and `frames` int32 [pages], the slot's pages and where
    they lie; `table` int32 [blocks] and `strides` int64 [spans], where the slot's blocks and spans lie once they are there.
    """

    def __init__(self, pages: Pages, slot: int, n: int) -> None:
        """Raises FullError."""
        pages.reserve(slot, n)
        self.pages, self.slot, self.n, self.first = pages, slot, n, pages.lengths[slot]
        self.numbers, self.frames = pages.table(slot)
        policy, stop, self.device = pages.policy, self.first + n, self.frames.device
        self.stride, self.parts = policy.kernel_stride, policy.kernel_size // policy.kernel_stride
        self.ended = stop // self.stride
        self.spans = max(0, self.ended - self.parts + 1)
        """How many are complete with the call's tokens."""
        self.table = placed(self.frames, self._range(0, -(-stop // policy.block_size)), BLOCKS).int()
        self.away = pages.away(slot)
        """Whether some of the blocks are in the host's memory."""

    def _range(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, max(start, stop), device=self.device)

    @cached_property
    def strides(self) -> Tensor:
        return placed(self.numbers, self._range(self.parts - 1, self.ended), self.pages.strides)

    @cached_property
    def rows(self) -> Tensor:
        """Where the tokens go, int64 [n]."""
        return placed(self.frames, self._range(self.first, self.first + self.n), self.pages.size)

    @cached_property
    def fresh(self) -> tuple[Tensor, Tensor]:
        """Where the new spans go, int64 [new], and the tokens are that they are pooled from."""
        new = max(self.first // self.stride, self.parts - 1)
        start = (new - self.parts + 1) * self.stride
        read = self._range(start, self.ended * self.stride if new < self.ended else start)
        return (
            placed(self.numbers, self._range(new, self.ended), self.pages.strides),
            placed(self.frames, read, self.pages.size),
        )

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Puts `k` and `v` [n, groups, head] where the call's tokens go, and pools what has become complete."""
        pages = self.pages
        for held, x in ((pages.keys, k), (pages.values, v)):
            held[layer].flatten(1, 2)[:, self.rows] = x.transpose(0, 1).to(held[layer].dtype)
        spans, read = self.fresh
        if len(spans):
            pages.pooled[layer][:, spans] = pool(pages.keys[layer].flatten(1, 2)[:, read], pages.policy)

    def end(self) -> None:
        """Counts the tokens that every layer has now taken."""
        self.pages.advance(self.slot, self.n)


class OneToken:
    """The call that adds one token to a slot, whose room is reserved: all that it tells the kernels is on the device.

    `numbers` and `frames` int32 [pages], the slot's pages and where they lie, of which there are some more than it has; it has at
    most `blocks` blocks. `noted`: whether what it attends to is.
    """

    def __init__(self, pages: Pages, numbers: Tensor, frames: Tensor, blocks: int, noted: bool) -> None:
        self.pages, self.numbers, self.frames, self.blocks, self.noted = pages, numbers, frames, blocks, noted


class Paged:
    """A slot's history in one layer, as a call leaves it: see `model.ops.retrieval.History`."""

    def __init__(self, call: Extension, layer: int) -> None:
        self.call, self.pages, self.layer, self.groups = call, call.pages, layer, call.pages.groups
        self.gathered: Tensor | None = None

    def pooled(self, spans: int) -> Tensor:
        """See `Scored.pooled`."""
        if self.gathered is None:
            self.gathered = self.pages.pooled[self.layer].index_select(1, self.call.strides)
        return self.gathered[:, :spans]

    def fetch(self, group: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """See `History.fetch`."""
        where, pages = self.call.table[blocks], self.pages
        if self.call.away:
            keys, values = (pages.taken(self.layer, kind, where.long(), group) for kind in (0, 1))
        else:
            keys, values = (x[self.layer][group].index_select(0, where) for x in (pages.keys, pages.values))
        return keys.flatten(0, 1), values.flatten(0, 1)
