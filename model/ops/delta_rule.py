"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464, eq. 10): chunked for many tokens, recurrent for one."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64


def l2_normalise(x: Tensor) -> Tensor:
    """`x` over its last axis' L2 norm, eps 1e-6 under the root."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token, from the formula.

    q, k are [batch, n, heads, key] (normalised and scaled here), v [batch, n, heads, value], g (log decay) and beta
    [batch, n, heads], state float32 [batch, heads, key, value]. Returns o [batch, n, heads, value] in v's dtype and the
    new state, float32.
    """
    dtype = v.dtype
    q, k, v, g, beta = (x.float() for x in (q, k, v, g, beta))
    q, k = l2_normalise(q) * q.shape[-1] ** -0.5, l2_normalise(k)
    outputs = []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        seen = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + k[:, t, :, :, None] * (beta[:, t, :, None] * (v[:, t] - seen))[:, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1).to(dtype), state


def chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same in blocks of `CHUNK` tokens: each block is one triangular solve (the WY form of section 3.3).

    Shapes, dtypes and results as in `recurrent`.
    """
    dtype = v.dtype
    q, k, v, g, beta = (x.float().transpose(1, 2) for x in (q, k, v, g, beta))
    q, k = l2_normalise(q) * q.shape[-1] ** -0.5, l2_normalise(k)
    outputs = []
    for start in range(0, q.shape[2], CHUNK):
        part = slice(start, start + CHUNK)
        output, state = block(q[:, :, part], k[:, :, part], v[:, :, part], g[:, :, part], beta[:, :, part], state)
        outputs.append(output)
    whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
    return whole.transpose(1, 2).to(dtype), state


def block(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One block of `chunked`, [batch, heads, n, …], float32."""
    total = g.cumsum(-1)
    grown = total.exp()[..., None]
    decay = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    weighted = k * beta[..., None]
    lower = (weighted @ k.mT) * decay
    right = v * beta[..., None] - (weighted * grown) @ state
    new = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    output = (q * grown) @ state + ((q @ k.mT) * decay) @ new
    left = (total[..., -1:] - total).exp()[..., None]
    state = state * grown[..., -1:, :] + (k * left).mT @ new
    return output, state
