"""Attention that retrieves, for many queries at once on a CPU: the same as `model.ops.retrieval.retrieve`, in other tiles.

What 64 queries choose between them is five times what each of them does. Here each block's own queries are put together, so that
no query is held to a block that it has not chosen; what they make of their blocks is joined with the last tokens afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.attention import LOWEST, grouped, unfinished
from model.ops.retrieval import ROWS, History, choose
from model.policy import RetrievalPolicy

TOGETHER = 1024
"""Queries whose choices are put together: the more, the better filled are a block's tiles."""
TILES = 64
"""Tiles at once: what they read and write stays in a core's cache."""
SIZES = (8, 16, 32)
"""Queries of a tile."""


class Tiles(NamedTuple):
    """The pairs of a query and a block that it sees, each block's in tiles of `size` places. A query's row is that of [groups, n]."""

    size: int
    each: list[int]
    """Tiles of each group, one group's after the other's."""
    block: Tensor
    """Of each tile, int64 [tiles]."""
    asked: Tensor
    """The row of the query at each place, int64 [places]; 0 where there is none."""
    row: Tensor
    """Of each pair, int64 [pairs], in order."""
    place: Tensor
    """Of each pair, int64 [pairs]."""


@torch.no_grad()
def retrieve_in_tiles(q: Tensor, first: int, history: History, policy: RetrievalPolicy) -> Tensor:
    """As `retrieve`; no gradients go through it."""
    parts, stop, start = [], first + len(q), first
    while start < stop:
        end = min(start + TOGETHER, stop)
        if start < policy.dense_len < end:
            end = policy.dense_len
        part, dense = q[start - first : end - first], start < policy.dense_len
        query = grouped(part.float(), history.groups)
        found = recent(query, start, history, policy, end if dense else policy.window_size)
        if not dense and bool((seen := distant(part, start, history, policy)).any()):
            tiles = laid(seen)
            found = joined(found, tiles, in_tiles(query, tiles, start, history, policy))
        parts.append((found[0] / found[1]).flatten(0, 1).transpose(0, 1).to(q.dtype))
        start = end
    return torch.cat(parts)


def recent(
    query: Tensor, first: int, history: History, policy: RetrievalPolicy, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `query` float32 [groups, heads, n, head], scaled, makes of the last `window` tokens: see `unfinished`, by head and query."""
    n, size = query.shape[2], policy.block_size
    begin, stop = max(0, first - window + 1) // size, first + n
    blocks = torch.arange(begin, (stop - 1) // size + 1)
    pairs = [history.fetch(group, blocks) for group in range(history.groups)]
    keys, values = (torch.stack(each).float() for each in zip(*pairs, strict=True))
    found = []
    for start in range(first, stop, ROWS):
        end = min(start + ROWS, stop)
        low = max(0, start - window + 1)
        age = torch.arange(start, end)[:, None] - torch.arange(low, end)
        bias = torch.zeros(age.shape).masked_fill_((age < 0) | (age >= window), LOWEST)
        part = query[:, :, start - first : end - first].flatten(1, 2)
        place = slice(low - begin * size, end - begin * size)
        each = unfinished(part, [(keys[:, place], values[:, place])], bias)
        found.append([x.unflatten(1, (-1, end - start)) for x in each])
    output, total, most = (torch.cat(each, 2) for each in zip(*found, strict=True))
    return output, total, most


def distant(q: Tensor, first: int, history: History, policy: RetrievalPolicy) -> Tensor:
    """The blocks that each of `q` [n, heads, head] sees and that begin before its last tokens: bool [groups, n, blocks]."""
    n, size = len(q), policy.block_size
    index, count = torch.arange(first, first + n), max(0, (first + n - 1 - policy.window_size) // size + 1)
    number = torch.arange(count)
    seen = (number < policy.init_blocks).expand(history.groups, n, -1).clone()
    for start in range(0, n, ROWS):
        chosen = choose(q[start : start + ROWS], first + start, history, policy)[..., :count]
        seen[:, start : start + ROWS, : chosen.shape[-1]] |= chosen
    return seen & (number * size <= index[:, None] - policy.window_size)


def laid(seen: Tensor) -> Tiles:
    """What queries see, bool [groups, n, blocks], as tiles: as large as most of them are filled."""
    groups, n, blocks = seen.shape
    counts = seen.sum(1).flatten()
    pairs = seen.transpose(1, 2).reshape(-1).nonzero().flatten()  # by group, block and query
    usual = len(pairs) // max(1, int((counts > 0).sum()))
    size = next((size for size in SIZES if 2 * size > usual), SIZES[-1])
    tiles = (counts + size - 1) // size
    of = pairs // n
    shift = (tiles.cumsum(0) - tiles) * size - (counts.cumsum(0) - counts)
    place, row = torch.arange(len(pairs)) + shift[of], of // blocks * n + pairs % n
    each: list[int] = tiles.view(groups, blocks).sum(1).tolist()
    asked = row.new_zeros(sum(each) * size)
    asked[place] = row
    row, by_query = row.sort(stable=True)
    return Tiles(size, each, torch.arange(blocks).repeat(groups).repeat_interleave(tiles), asked, row, place[by_query])


def in_tiles(
    query: Tensor, tiles: Tiles, first: int, history: History, policy: RetrievalPolicy
) -> tuple[Tensor, Tensor, Tensor]:
    """What each place's query makes of its block alone, see `unfinished`: [places, heads, head], and twice [places, heads]."""
    _, heads, n, head = query.shape
    size, rows = policy.block_size, query.transpose(1, 2).reshape(-1, heads * head)
    output = query.new_empty(len(tiles.block), tiles.size * heads, head)
    total, most = (query.new_empty(*output.shape[:2], 1) for _ in range(2))
    begin = 0
    for group, number in enumerate(tiles.each):
        for start in range(begin, begin + number, TILES):
            some = slice(start, min(start + TILES, begin + number))
            block, asked = tiles.block[some], tiles.asked[some.start * tiles.size : some.stop * tiles.size]
            keys, values = (x.float().unflatten(0, (-1, size)) for x in history.fetch(group, block))
            scores = torch.bmm(rows.index_select(0, asked).view(-1, tiles.size * heads, head), keys.mT)
            if (
                int(block[-1]) + 1
            ) * size > first - policy.window_size + 1:  # its end is among some query's last tokens
                token = block[:, None] * size + torch.arange(size)
                age = (first + asked % n).view(-1, tiles.size, 1, 1) - token[:, None, None]
                scores.view(-1, tiles.size, heads, size).masked_fill_(age < policy.window_size, LOWEST)
            torch.amax(scores, -1, keepdim=True, out=most[some])
            torch.sum(scores.sub_(most[some]).exp_(), -1, keepdim=True, out=total[some])
            torch.bmm(scores, values, out=output[some])
        begin += number
    return output.view(-1, heads, head), total.view(-1, heads), most.view(-1, heads)


def joined(
    nearby: tuple[Tensor, Tensor, Tensor], tiles: Tiles, found: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `recent` gave with what `in_tiles` did, as `recent` gives it."""
    groups, heads, n = nearby[0].shape[:3]
    output, total, most = (x.transpose(1, 2).reshape(groups * n, heads, -1) for x in nearby)
    values, weight, score = found[0].flatten(0, 1), found[1][tiles.place], found[2][tiles.place]
    row = tiles.row[:, None].expand(-1, heads)
    higher = most[..., 0].scatter_reduce(0, row, score, "amax")
    share, kept = (score - higher[tiles.row]).exp_(), (most - higher[..., None]).exp_()
    total = (total * kept)[..., 0].scatter_add_(0, row, weight * share)
    number = torch.bincount(tiles.row, minlength=groups * n)
    begins = number.cumsum(0) - number
    sums = [  # of each query's pairs, weighed, without a copy
        F.embedding_bag(
            tiles.place * heads + i, values, begins, mode="sum", per_sample_weights=share[:, i].contiguous()
        )
        for i in range(heads)
    ]
    output = (output * kept).add_(torch.stack(sums, 1))
    whole = (x.view(groups, n, heads, -1).transpose(1, 2) for x in (output, total, higher))
    return next(whole), next(whole), next(whole)
