"""Softmax attention as plain torch: which keys a query sees, and what it makes of them. The kernel is `model.ops.kernels.attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import FULL, AttentionPolicy


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
