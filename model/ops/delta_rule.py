"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464, eq. 10): chunked for many tokens, recurrent for one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    output, state = (block if q.shape[2] <= CHUNK else blocks)(q, k, v, g, beta, state)
    return output.transpose(1, 2).to(dtype), state


def blocks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Many blocks at once, [batch, heads, n, …], float32.

    All that doesn't depend on the state is computed for all blocks together; a block then takes the state through one
    affine map, S' = A S + B, so that the only sequential work is one small product a block.
    """
    n = q.shape[2]
    missing = -n % CHUNK
    q, k, v = (F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, CHUNK)) for x in (q, k, v))
    g, beta = (F.pad(x, (0, missing)).unflatten(2, (-1, CHUNK)) for x in (g, beta))
    total = g.cumsum(-1)
    grown = total.exp()[..., None]
    decay = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    weighted = k * beta[..., None]
    lower = (weighted @ k.mT) * decay
    right = torch.cat((v * beta[..., None], weighted * grown), -1)
    solved = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    fresh, stale = solved.split((v.shape[-1], k.shape[-1]), -1)
    left = (k * (total[..., -1:] - total).exp()[..., None]).mT
    identity = torch.eye(k.shape[-1], device=k.device)
    through = grown[..., -1:, :] * identity - left @ stale
    added = left @ fresh
    states = [state]
    for i in range(q.shape[2]):
        states.append(
            torch.baddbmm(
                added[:, :, i].flatten(0, 1), through[:, :, i].flatten(0, 1), states[-1].flatten(0, 1)
            ).view_as(state)
        )
    before = torch.stack(states[:-1], 2)
    output = (q * grown) @ before + ((q @ k.mT) * decay) @ (fresh - stale @ before)
    return output.flatten(2, 3)[:, :, :n], states[-1]


def block(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One block, [batch, heads, n, …], float32."""
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
