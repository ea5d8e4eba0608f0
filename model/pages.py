"""Keys and values that grow: pages of a pool that slots share, a fork's with its source's until one of them writes."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
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

    By layer, `keys` and `values` are [groups, blocks of the pool, block, head] and `pooled` float32 [groups, strides of the
    pool, head], a span where its last stride is, so that a page that is full is never written to again.
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
        empty = torch.zeros(self.groups, 0, policy.block_size, self.head, dtype=dtype, device=device)
        self.keys = {layer: empty for layer in self.layers}
        self.values = dict(self.keys)
        self.pooled = {layer: empty[:, :, 0].float() for layer in self.layers}
        self.call: Extension | None = None
        """The call in hand, where one slot is taken at a time."""
        self.watched: int | None = None
        """A slot whose attention is noted, each call's last query's."""
        self.attention = torch.zeros(0)
        """What that has seen since, by block, summed over layers and heads; on the CPU."""

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
        shared = length // self.size
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
        self.tables[slot], self.lengths[slot] = [], 0

    def fork(self, source: int, target: int) -> None:
        """Makes `target` the same as `source`, in the same pages."""
        for page in self.tables[source]:
            self.users[page] += 1
        table, length = list(self.tables[source]), self.lengths[source]
        self.reset(target)
        self.tables[target], self.lengths[target] = table, length

    def rows(self, slot: int, start: int, stop: int) -> Tensor:
        """Tokens `start` to `stop` as they are kept outside, [tokens, layers, 2 (keys, values), groups, head]: a copy."""
        where = self.tokens(slot, start, stop)
        pairs = [
            torch.stack([x[layer].flatten(1, 2)[:, where] for x in (self.keys, self.values)]) for layer in self.layers
        ]
        return torch.stack(pairs).permute(3, 0, 1, 2, 4).contiguous()

    def extend(self, slot: int, rows: Tensor) -> None:
        """Puts what `rows` gave after the slot's tokens. Raises FullError."""
        more = Extension(self, slot, len(rows))
        for layer, pair in zip(self.layers, rows.unbind(1), strict=True):
            k, v = pair.to(self.keys[layer].device).unbind(1)
            more.write(layer, k, v)
        more.end()

    def watch(self, slot: int | None) -> None:
        """Notes from now on what is attended to in `slot`, of none where it is None."""
        self.watched, self.attention = slot, torch.zeros(0)

    def note(self, shares: Tensor) -> None:
        """Adds shares of attention, float32 [blocks]."""
        more = len(shares) - len(self.attention)
        self.attention = torch.cat((self.attention, torch.zeros(max(0, more))))
        self.attention[: len(shares)] += shares.cpu()

    def _take(self) -> int:
        """A page that is free; the pool grows where there is none."""
        free = next((page for page, users in enumerate(self.users) if not users), None)
        if free is None:
            free = len(self.users)
            more = max(8, int(free * (GROWTH - 1)))
            self.users += [0] * more
            with torch.inference_mode(False), torch.no_grad():
                for held in (self.keys, self.values, self.pooled):
                    rows = self.size // self.policy.kernel_stride if held is self.pooled else BLOCKS
                    for layer, x in held.items():
                        held[layer] = torch.cat((x, x.new_zeros(x.shape[0], more * rows, *x.shape[2:])), 1)
        self.users[free] = 1
        return free

    def _copy(self, source: int, target: int) -> None:
        for held in (self.keys, self.values, self.pooled):
            for x in held.values():
                paged = x.unflatten(1, (len(self.users), -1))
                paged[:, target] = paged[:, source]

    def places(self, slot: int, numbers: Tensor, each: int) -> Tensor:
        """Where in the pool the slot's blocks or strides `numbers` int64 (on the CPU) are, of which a page has `each`."""
        table = torch.tensor(self.tables[slot])
        return (table[numbers // each] * each + numbers % each).to(self.keys[self.layers[0]].device)

    def tokens(self, slot: int, start: int, stop: int) -> Tensor:
        """Where in the pool the slot's tokens from `start` to `stop` are."""
        return self.places(slot, torch.arange(start, stop), self.size)


class Held(NamedTuple):
    """What one sequence has in one layer: `keys` and `values` [groups, blocks of the pool, block, head], where its blocks lie
    there, int32 [blocks], and its pooled keys [groups, spans a block, blocks, head], where there are such."""

    keys: Tensor
    values: Tensor
    table: Tensor
    pooled: Tensor


class Extension:
    """The call that adds `n` tokens to a slot, whose room it reserves: what all layers of it need, worked out once.

    Tensors are on the pool's device: `rows` int64 [n], where the tokens go; `table` int32 [blocks] and `strides` int64 [spans],
    where the slot's blocks and spans lie once they are there; `read` int64 [tokens] and `spans` int64 [new], the tokens that the
    new spans are pooled from and where those go.
    """

    def __init__(self, pages: Pages, slot: int, n: int) -> None:
        """Raises FullError."""
        pages.reserve(slot, n)
        self.pages, self.slot, self.n, self.first = pages, slot, n, pages.lengths[slot]
        policy, stop = pages.policy, self.first + n
        stride, parts = policy.kernel_stride, policy.kernel_size // policy.kernel_stride
        self.rows = pages.tokens(slot, self.first, stop)
        blocks = torch.arange(-(-stop // policy.block_size))
        self.table = pages.places(slot, blocks, BLOCKS).int()
        each, ended = pages.size // stride, stop // stride
        self.strides = pages.places(slot, torch.arange(parts - 1, max(parts - 1, ended)), each)
        new = max(self.first // stride, parts - 1)
        self.spans, self.read = self.strides[:0], self.rows[:0]
        if new < ended:
            self.spans = pages.places(slot, torch.arange(new, ended), each)
            self.read = pages.tokens(slot, (new - parts + 1) * stride, ended * stride)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Puts `k` and `v` [n, groups, head] where the call's tokens go, and pools what has become complete."""
        pages = self.pages
        for held, x in ((pages.keys, k), (pages.values, v)):
            held[layer].flatten(1, 2)[:, self.rows] = x.transpose(0, 1).to(held[layer].dtype)
        if len(self.spans):
            spans = pool(pages.keys[layer].flatten(1, 2)[:, self.read], pages.policy)
            pages.pooled[layer][:, self.spans] = spans

    def held(self, layer: int, dtype: torch.dtype) -> Held:
        """What a kernel reads of one layer."""
        pages = self.pages
        pooled = pages.pooled[layer][:, self.phases].to(dtype)
        return Held(pages.keys[layer], pages.values[layer], self.table, pooled)

    @cached_property
    def phases(self) -> Tensor:
        """`strides` by where in their blocks the spans begin, int64 [spans a block, blocks]; what is beyond the last is any."""
        ratio = self.pages.policy.ratio
        padded: Tensor = F.pad(self.strides, (0, -len(self.strides) % ratio))
        places: Tensor = padded.unflatten(0, (-1, ratio)).T.contiguous()
        return places

    def end(self) -> None:
        """Counts the tokens that every layer has now taken."""
        self.pages.advance(self.slot, self.n)


class Paged:
    """A slot's history in one layer, as a call leaves it: see `model.ops.retrieval.History`."""

    def __init__(self, call: Extension, layer: int) -> None:
        self.call, self.pages, self.layer, self.groups = call, call.pages, layer, call.pages.groups
        self.gathered: Tensor | None = None

    def pooled(self, spans: int) -> Tensor:
        """See `Scored.pooled`."""
        if self.gathered is None:
            self.gathered = self.pages.pooled[self.layer][:, self.call.strides]
        return self.gathered[:, :spans]

    def fetch(self, group: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """See `History.fetch`."""
        where = self.call.table[blocks].long()
        keys, values = (x[self.layer][group][where].flatten(0, 1) for x in (self.pages.keys, self.pages.values))
        return keys, values
