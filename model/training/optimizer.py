"""The optimizer: Muon for the matrices of the layers, AdamW for all else; float32 masters of a bfloat16 model."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of [n, rows, columns] by five Newton-Schulz steps (Muon, Jordan et al. 2024)."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result


class Optimizer:
    """Steps `model`'s parameters. Moments are not kept between runs: they are rebuilt within the warm-up of the next.

    The matrices' learning rate is `lr` with updates scaled to AdamW's size (Moonlight, arXiv 2502.16982, eq. 4).
    """

    MOMENTUM, DECAY, CLIP, SMALL = 0.95, 0.02, 1.0, 0.5

    def __init__(self, model: nn.Module, extra: nn.Module) -> None:
        named = [*model.named_parameters(), *(("extra." + name, p) for name, p in extra.named_parameters())]
        self.names = [name for name, _ in named]
        self.params = [p for _, p in named]
        self.masters = [p.detach().float().clone() for p in self.params]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        others = []
        for i, (name, p) in enumerate(named):
            layered = ".layers." in name or ".blocks." in name or "merger.mlp" in name
            if p.dim() == 2 and layered and min(p.shape) >= 64:
                groups[p.shape[0], p.shape[1]].append(i)
            else:
                others.append(i)
        self.groups = list(groups.values())
        self.momenta = [torch.zeros_like(torch.stack([self.masters[i] for i in group])) for group in self.groups]
        self.others = others
        decayed = [i for i in others if self.masters[i].dim() >= 2 and "embed" not in self.names[i]]
        plain = [i for i in others if i not in set(decayed)]
        self.adam = torch.optim.AdamW(
            [
                {"params": [self.masters[i] for i in decayed], "weight_decay": self.DECAY},
                {"params": [self.masters[i] for i in plain], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            fused=self.masters[0].is_cuda,
        )

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """One update; a gradient that isn't finite is left out. Returns the gradient's norm."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        grads = [grad.float() for grad in grads]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        scale = torch.where(norm.isfinite(), (self.CLIP / (norm + 1e-6)).clamp(max=1.0), torch.zeros_like(norm))
        grads = [torch.nan_to_num(grad, 0.0, 0.0, 0.0) for grad in grads]
        torch._foreach_mul_(grads, scale)
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            grad = torch.stack([grads[i] for i in group])
            momentum.lerp_(grad, 1 - self.MOMENTUM)
            update = orthogonalise(grad.lerp(momentum, self.MOMENTUM)).float()
            size = 0.2 * max(update.shape[1:]) ** 0.5
            masters = [self.masters[i] for i in group]
            torch._foreach_mul_(masters, 1 - lr * self.DECAY)
            torch._foreach_add_(masters, list(update.unbind(0)), alpha=-lr * size)
        for i in self.others:
            self.masters[i].grad = grads[i]
        for part in self.adam.param_groups:
            part["lr"] = lr * self.SMALL
        self.adam.step()
        torch._foreach_copy_(list[Tensor](self.params), self.masters)
        for p in self.params:
            p.grad = None
        result: Tensor = norm
        return result

    def load(self, weights: dict[str, Tensor]) -> None:
        """Puts weights by name into masters and model."""
        with torch.no_grad():
            for name, master, p in zip(self.names, self.masters, self.params, strict=True):
                master.copy_(weights[name])
                p.copy_(master)

    def weights(self) -> dict[str, Tensor]:
        """The masters by name."""
        return dict(zip(self.names, self.masters, strict=True))
