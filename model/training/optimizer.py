"""The optimizer: Muon for the matrices of the layers, AdamW for all else; float32 masters of a bfloat16 model."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from model.training.saving import narrowed, widened


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of [n, rows, columns] by five Newton-Schulz steps (Muon, Jordan et al. 2024)."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
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
    """Steps named parameters.

    The matrices' learning rate is `lr` with updates scaled to AdamW's size (Moonlight, arXiv 2502.16982, eq. 4).
    """

    MOMENTUM, DECAY, CLIP, SMALL = 0.95, 0.02, 1.0, 0.5

    def __init__(self, named: list[tuple[str, nn.Parameter]], shares: int = 1) -> None:
        """`shares`: how many processes' gradients are summed into each parameter's before a step."""
        self.names = [name for name, _ in named]
        self.params = [p for _, p in named]
        self.masters = [p.detach().float().clone() for p in self.params]
        self.shares = shares
        self.grads = self.gradients()
        device = self.masters[0].device
        self.lr, self.small, self.norm = (torch.zeros((), device=device) for _ in range(3))
        self.broken = torch.zeros(len(self.params), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
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
            lr=self.small if device.type == "cuda" else 1e-3,
            betas=(0.9, 0.98),
            fused=device.type == "cuda",
            capturable=device.type == "cuda",
        )

    def gradients(self) -> list[Tensor]:
        """Room for all gradients of one dtype in one tensor; each parameter's `grad` is a view of its."""
        rooms = []
        for dtype in sorted({p.dtype for p in self.params}, key=str):
            mine = [p for p in self.params if p.dtype == dtype]
            room = torch.zeros(sum(p.numel() for p in mine), dtype=dtype, device=mine[0].device)
            for p, part in zip(mine, room.split([p.numel() for p in mine]), strict=True):
                p.grad = part.view_as(p)
            rooms.append(room)
        return rooms

    def clear(self) -> None:
        """Begins new gradients."""
        torch._foreach_zero_(self.grads)

    def step(self, lr: float) -> Tensor:
        """One update; a gradient that isn't finite is left out. Returns the gradient's norm."""
        self.lr.fill_(lr)
        if self.graph is None:
            self.update()
        else:
            self.graph.replay()
        return self.norm

    def capture(self) -> None:
        """Makes every further step one CUDA graph; moments must exist: call it after a step."""
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """`step` at the learning rate in `lr`, without a word from the host."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        grads = [grad.float() / self.shares for grad in grads]
        norms = torch.stack(torch._foreach_norm(grads))
        self.broken += ~norms.isfinite()
        norm = torch.linalg.vector_norm(norms)
        scale = torch.where(norm.isfinite(), (self.CLIP / (norm + 1e-6)).clamp(max=1.0), torch.zeros_like(norm))
        grads = [torch.nan_to_num(grad, 0.0, 0.0, 0.0) for grad in grads]
        torch._foreach_mul_(grads, scale)
        kept = 1 - self.lr * self.DECAY
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            grad = torch.stack([grads[i] for i in group])
            momentum.lerp_(grad, 1 - self.MOMENTUM)
            update = orthogonalise(grad.lerp(momentum, self.MOMENTUM)).float()
            update = update * (-self.lr * (0.2 * max(update.shape[1:]) ** 0.5))
            masters = [self.masters[i] for i in group]
            torch._foreach_mul_(masters, kept)
            torch._foreach_add_(masters, list(update.unbind(0)))
        for i in self.others:
            self.masters[i].grad = grads[i]
        if self.masters[0].is_cuda:
            self.small.copy_(self.lr * self.SMALL)
        else:
            for part in self.adam.param_groups:
                part["lr"] = float(self.lr) * self.SMALL
        self.adam.step()
        torch._foreach_copy_(list[Tensor](self.params), self.masters)
        self.norm.copy_(norm)

    def lost(self) -> dict[str, int]:
        """In how many updates since it was asked before a parameter's gradient was not finite, in the network's order.

        The last is the nearest to where it began: from there on all that is learned through it is lost too.
        """
        counts = self.broken.tolist()
        self.broken.zero_()
        return {name: int(count) for name, count in zip(self.names, counts, strict=True) if count}

    def moments(self) -> dict[str, Tensor]:
        """All moments by parameter, narrow, for `restore`: float8 with a scale of those of matrices, bfloat16 of the others."""
        kept: dict[str, Tensor] = {}
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            for i, one in zip(group, momentum.unbind(0), strict=True):
                kept["momentum." + self.names[i]], kept["scale." + self.names[i]] = narrowed(one)
        for i in self.others:
            for key, value in self.adam.state.get(self.masters[i], {}).items():
                kept[f"{key}.{self.names[i]}"] = value.float() if key == "step" else value.bfloat16()
        return kept

    @torch.no_grad()
    def restore(self, kept: dict[str, Tensor]) -> None:
        """Goes on with what `moments` gave."""
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            for i, one in zip(group, momentum.unbind(0), strict=True):
                one.copy_(widened(kept["momentum." + self.names[i]], kept["scale." + self.names[i]]))
        for i in self.others:
            name, state = self.names[i], self.adam.state[self.masters[i]]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{key}.{name}" not in kept:
                    continue  # saved before its first step
                value = kept[f"{key}.{name}"].float()
                if key in state:
                    state[key].copy_(value)
                else:
                    state[key] = value.clone()

    def forget(self) -> None:
        """Puts all moments to nothing, where they lie."""
        self.broken.zero_()
        for momentum in self.momenta:
            momentum.zero_()
        for state in self.adam.state.values():
            for value in state.values():
                value.zero_()

    def load(self, weights: dict[str, Tensor]) -> None:
        """Puts weights by name into masters and model."""
        with torch.no_grad():
            for name, master, p in zip(self.names, self.masters, self.params, strict=True):
                master.copy_(weights[name])
                p.copy_(master)

    @staticmethod
    def gather(x: Tensor) -> Tensor:
        """A master or a mean of one, whole: here it is."""
        return x

    @staticmethod
    def fill(place: Tensor, value: Tensor) -> None:
        """Puts a whole tensor where such a one lies."""
        place.copy_(value)

    def average(self, mean: list[Tensor], share: float) -> None:
        """Moves a running mean of the masters towards them by `share`."""
        torch._foreach_lerp_(mean, self.masters, share)

    def weights(self) -> dict[str, Tensor]:
        """The masters by name."""
        return dict(zip(self.names, self.masters, strict=True))
