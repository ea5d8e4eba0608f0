"""Softmax attention as plain torch: which keys a query sees, and what it makes of them. The kernel is `model.ops.kernels.attention`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import FULL, AttentionPolicy

SCORES = 2**18
"""Of a block of keys: a megabyte, which a core's cache holds."""
LOWEST = -1e30
"""Added to the score of a key that is not seen. Where all of a block's are such, what they gave is forgotten at the next."""


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


def attention_in_place(q: Tensor, parts: Sequence[tuple[Tensor, Tensor]], bias: Tensor) -> Tensor:
    """Softmax attention of one stream on a CPU, scaled by 1/sqrt(head), which reads keys and values where they lie.

    `q` [n, heads, head]; keys and values [m, kv heads, head] in `parts` that follow each other; `bias` [n, m of all parts] is 0
    where a key is seen, else `LOWEST`. All float32. Over blocks of keys, with the softmax mended as they come (arXiv
    2205.14135): PyTorch's own takes five times as long for one token, and half as much again for sixty.
    """
    n, heads, _ = q.shape
    query = grouped(q, parts[0][0].shape[1])
    output, total, _ = unfinished(query.flatten(1, 2), ((k.transpose(0, 1), v.transpose(0, 1)) for k, v in parts), bias)
    return output.div_(total).view(heads, n, -1).transpose(0, 1)


def grouped(q: Tensor, groups: int) -> Tensor:
    """Queries `q` [n, heads, head], scaled by 1/sqrt(head), as [groups, heads of a group, n, head]: a copy."""
    heads: Tensor = (q * q.shape[-1] ** -0.5).transpose(0, 1)
    return heads.unflatten(0, (groups, -1)).contiguous()  # type: ignore[no-any-return]


def unfinished(query: Tensor, parts: Iterable[tuple[Tensor, Tensor]], bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of `query` float32 [groups, heads of a group and n, head], scaled, that may be joined with attention to more keys.

    Keys and values [groups, m, head], `bias` as `attention_in_place` has it. Returns the values' sum [groups, heads and n, head]
    and the weights' [groups, heads and n, 1], each weight the exponential of a score less the highest, and that.
    """
    n, rows = len(bias), query.shape[1]
    most, total = query.new_full((*query.shape[:2], 1), LOWEST), query.new_zeros(*query.shape[:2], 1)
    output, size, column = torch.zeros_like(query), max(1, SCORES // (len(query) * rows)), 0
    for keys, values in parts:
        for k, v in zip(keys.split(size, 1), values.split(size, 1), strict=True):
            scores = torch.bmm(query, k.mT).unflatten(1, (-1, n))
            scores = scores.add_(bias[:, column : column + k.shape[1]]).flatten(1, 2)
            column += k.shape[1]
            higher = torch.maximum(most, scores.amax(-1, keepdim=True))
            scores, kept = scores.sub_(higher).exp_(), (most - higher).exp_()
            total = total.mul_(kept).add_(scores.sum(-1, keepdim=True))
            output = torch.baddbmm(output.mul_(kept), scores, v)
            most = higher
    return output, total, most


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of the last n of m tokens to all up to themselves: `q` [batch, n, heads, head], `k` and `v` [batch, m, …].

    On a GPU, in half precision, without a mask in memory: by the kernel that knows this one.
    """
    n, m = q.shape[1], k.shape[1]
    if not q.is_cuda or q.dtype == torch.float32:
        index = torch.arange(m, device=q.device)
        return masked_attention(q, k, v, visible(index[m - n :], index, FULL)[None])
    from torch.nn.attention.bias import causal_lower_right  # loads torch's compiler

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, causal_lower_right(n, m)).transpose(1, 2)
