"""Attention that retrieves: each query chooses the blocks of history it sees (InfLLM-V2, arXiv 2509.24663), as plain torch.

A query token at `index` below `dense_len` sees all before it. Any other sees the first `init_blocks` blocks, the last
`window_size` tokens and the `topk` best of the blocks between them. Keys are mean-pooled over spans of `kernel_size` tokens, one every
`kernel_stride`; those that end before the query are scored by the softmax of q·pooled, summed over the heads that share keys, and a
block's score is the largest of the spans that touch it. Of equal blocks the earlier is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.attention import grouped
from model.policy import RetrievalPolicy

ROWS = 64
"""Queries that are scored and attended at once: what they have chosen together is fetched once, and memory stays bounded."""

TOGETHER = 8192
"""Queries of whole sequences that are scored and attended at once."""


class Scored(Protocol):
    """What blocks are scored by."""

    groups: int
    """Heads of keys and values."""

    def pooled(self, spans: int) -> Tensor:
        """The first `spans` pooled keys, [groups, spans, head]."""
        ...


class History(Scored, Protocol):
    """Keys and values of one sequence in one layer, by blocks; the last block may be filled in part."""

    def fetch(self, group: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [len(blocks) * block_size, head] of `blocks` int64 [any]; finite beyond the end."""
        ...


class Spans:
    """Pooled keys [groups, spans, head], of as many sequences as there are groups for."""

    def __init__(self, spans: Tensor) -> None:
        self.groups, self.spans = len(spans), spans

    def pooled(self, spans: int) -> Tensor:
        """See `Scored.pooled`."""
        return self.spans[:, :spans]


class Whole:
    """A history in two tensors [n, groups, head]."""

    def __init__(self, keys: Tensor, values: Tensor, policy: RetrievalPolicy) -> None:
        self.groups, self.policy = keys.shape[1], policy
        self.spans = pool(keys.transpose(0, 1), policy)
        short = -len(keys) % policy.block_size
        self.blocks = [
            F.pad(x.transpose(0, 1), (0, 0, 0, short)).unflatten(1, (-1, policy.block_size)) for x in (keys, values)
        ]

    def pooled(self, spans: int) -> Tensor:
        """See `Scored.pooled`."""
        return self.spans[:, :spans]

    def fetch(self, group: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """See `History.fetch`."""
        keys, values = (x[group][blocks].flatten(0, 1) for x in self.blocks)
        return keys, values


def pool(keys: Tensor, policy: RetrievalPolicy) -> Tensor:
    """Means of `keys` [..., n, head] over the spans that are complete, float32 [..., spans, head]."""
    stride, parts = policy.kernel_stride, policy.kernel_size // policy.kernel_stride
    whole = keys.shape[-2] // stride
    sums = keys[..., : whole * stride, :].unflatten(-2, (whole, stride)).sum(-2, dtype=torch.float32)
    spans = max(0, whole - parts + 1)
    total: Tensor = reduce(torch.add, [sums[..., part : part + spans, :] for part in range(parts)])
    return total / policy.kernel_size


def retrieve(q: Tensor, first: int, history: History, policy: RetrievalPolicy) -> Tensor:
    """Attention of `q` [n, heads, head], the tokens from index `first` on, over a history that holds them. Returns its shape.

    Which part of a sequence is asked for at once changes nothing. Differentiable, save for the choice of blocks.
    """
    parts, stop, start = [], first + len(q), first
    while start < stop:
        end = min(start + ROWS, stop)
        if start < policy.dense_len < end:
            end = policy.dense_len
        parts.append(_attend(q[start - first : end - first], start, history, policy))
        start = end
    return torch.cat(parts)


def retrieve_together(q: Tensor, first: int, keys: Tensor, values: Tensor, policy: RetrievalPolicy) -> Tensor:
    """`retrieve` for a batch of sequences of one length, by a mask over all keys: more to compute, but at once and without a word
    from the host, so that it can be learned from. `q` [batch, n, heads, head], `keys` and `values` [batch, first + n, groups, head].
    """
    batch, n = q.shape[:2]
    size, groups = policy.block_size, keys.shape[2]
    k, v = (x.transpose(1, 2).flatten(0, 1)[:, None] for x in (keys, values))
    history = Spans(pool(k[:, 0].detach(), policy))
    number = torch.arange(-(-(first + n) // size), device=q.device)
    parts, start, stop = [], first, first + n
    while start < stop:
        end = min(start + TOGETHER, stop)
        if start < policy.dense_len < end:
            end = policy.dense_len
        part = q[:, start - first : end - first]
        heads = part.transpose(1, 2).unflatten(1, (groups, -1)).flatten(0, 1)
        index = torch.arange(start, end, device=q.device)
        key = torch.arange(end, device=q.device)
        shown = (key <= index[:, None])[None]
        if start >= policy.dense_len:
            chosen = choose(heads.flatten(0, 1).transpose(0, 1), start, history, policy)
            seen = (chosen | (number[: chosen.shape[-1]] < policy.init_blocks)).repeat_interleave(size, -1)[..., :end]
            shown = shown & (seen | (index[:, None] - key < policy.window_size))
        shape = heads.shape[1]
        output = F.scaled_dot_product_attention(
            heads, k[:, :, :end].expand(-1, shape, -1, -1), v[:, :, :end].expand(-1, shape, -1, -1), shown[:, None]
        )
        parts.append(output.unflatten(0, (batch, groups)).flatten(1, 2).transpose(1, 2))
        start = end
    return torch.cat(parts, 1)


def choose(q: Tensor, first: int, history: Scored, policy: RetrievalPolicy) -> Tensor:
    """Which blocks each of `q` [n, heads, head] at `first` and after chooses: bool [groups, n, blocks up to the last query's]."""
    index = torch.arange(first, first + len(q), device=q.device)
    last = first + len(q) - 1
    blocks, far = last // policy.block_size + 1, (last - policy.window_size) // policy.block_size + 1
    chosen = torch.zeros(history.groups, len(q), blocks, dtype=torch.bool, device=q.device)
    if far <= policy.init_blocks:
        return chosen
    number = torch.arange(far, device=q.device)
    eligible = (number >= policy.init_blocks) & (number * policy.block_size <= index[:, None] - policy.window_size)
    if far - policy.init_blocks > policy.topk:
        scores = block_scores(q, first, history, policy, far)
        scores.masked_fill_(~eligible, -2.0)  # below those that no span has touched yet
        least = lowest_of_best(scores, policy.topk)
        above, equal = scores > least, scores == least
        room = policy.topk - above.sum(-1, keepdim=True)
        eligible = eligible & (above | (equal & (equal.cumsum(-1) <= room)))
    chosen[..., :far] = eligible
    return chosen


def lowest_of_best(scores: Tensor, count: int) -> Tensor:
    """The `count`th largest of the last axis of `scores`, [..., 1]."""
    if scores.device.type == "cpu" and not torch.is_grad_enabled():  # a seventh of the time that PyTorch's own takes
        at = scores.shape[-1] - count
        return torch.from_numpy(np.partition(scores.numpy(), at, -1)[..., at : at + 1])
    return scores.topk(count, -1).values[..., -1:]


def block_scores(q: Tensor, first: int, history: Scored, policy: RetrievalPolicy, blocks: int) -> Tensor:
    """Scores float32 [groups, n, blocks] of the first `blocks` blocks for `q` [n, heads, head] at index `first` and after."""
    stride, parts, ratio = policy.kernel_stride, policy.kernel_size // policy.kernel_stride, policy.ratio
    index = torch.arange(first, first + len(q), device=q.device)
    # Counted on the host: a graph is not captured across a word from the device.
    ended, spans = (max(0, (each - policy.kernel_size) // stride + 1) for each in (first, first + len(q) - 1))
    pooled = history.pooled(spans).detach()
    heads = grouped(q.detach().float(), history.groups)
    weights = torch.bmm(heads.flatten(1, 2), pooled.mT).unflatten(1, heads.shape[1:3])
    # Those that ended before the first query have for all.
    late = torch.arange(ended, spans, device=q.device) * stride + policy.kernel_size > index[:, None]
    weights[..., ended:].masked_fill_(late, float("-inf"))
    shares = weights.softmax(-1).sum(1)
    shares[..., ended:].masked_fill_(late, -1.0)
    shares = F.pad(shares, (parts - 1, max(0, blocks * ratio - spans)), value=-1.0)
    touching = [shares[..., part : part + blocks * ratio : ratio] for part in range(ratio + parts - 1)]
    return reduce(torch.maximum, touching)


def attended(q: Tensor, first: int, history: History, policy: RetrievalPolicy) -> Tensor:
    """How much of its attention the query `q` [1, heads, head] at index `first` gives to each block: float32 [blocks], its heads' sum."""
    size, shares = policy.block_size, q.new_zeros(first // policy.block_size + 1, dtype=torch.float32)
    for heads, blocks, keys, _, shown in _shown(q, first, history, policy):
        weights = (heads[:, 0].float() @ keys.float().T * q.shape[-1] ** -0.5).masked_fill(~shown, float("-inf"))
        shares[blocks] += weights.softmax(-1).sum(0).unflatten(0, (-1, size)).sum(-1)
    return shares


def _attend(q: Tensor, first: int, history: History, policy: RetrievalPolicy) -> Tensor:
    """Attention of at most ROWS queries, all of them below `dense_len` or none."""
    outputs = []
    for heads, _, keys, values, shown in _shown(q, first, history, policy):
        k, v = (x[None].expand(heads.shape[0], -1, -1) for x in (keys, values))
        outputs.append(F.scaled_dot_product_attention(heads, k, v, shown))
    return torch.cat(outputs).transpose(0, 1)


def _shown(
    q: Tensor, first: int, history: History, policy: RetrievalPolicy
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """By group: its queries [heads, n, head], the blocks that they see between them, those' keys and values, and who sees which."""
    n, size, last = len(q), policy.block_size, first + len(q) - 1
    index = torch.arange(first, first + n, device=q.device)
    number = torch.arange(last // size + 1, device=q.device)
    heads = q.transpose(0, 1).unflatten(0, (history.groups, -1))
    dense = first < policy.dense_len
    if dense:
        seen = torch.ones(1, 1, 1, dtype=torch.bool, device=q.device).expand(history.groups, n, len(number))
    else:
        seen = choose(q, first, history, policy) | (number < policy.init_blocks)
    near = (number + 1) * size > first - policy.window_size + 1
    for group in range(history.groups):
        blocks = number if dense else (seen[group].any(0) | near).nonzero().flatten()
        keys, values = history.fetch(group, blocks)
        key = (blocks[:, None] * size + torch.arange(size, device=q.device)).flatten()
        age = index[:, None] - key
        shown = (age >= 0) & (seen[group][:, blocks].repeat_interleave(size, 1) | (age < policy.window_size))
        yield heads[group], blocks, keys, values, shown
