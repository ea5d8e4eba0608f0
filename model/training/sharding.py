"""Learning a model that no device holds with its optimizer: FSDP2 shards masters, gradients and moments between devices.

While a lesson is learned its weights are whole on each device in the model's dtype, but for the vision tower's blocks, which are
gathered one by one: a decoder's layer is called several times in one lesson, and what it keeps of the first call is learned
through the later ones, which FSDP2 does not know of a module that it gathers by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.training.objectives import Objective


def shard(objective: Objective, dtype: torch.dtype) -> None:
    """Shards `objective` between all processes, to be computed in `dtype`; afterwards its parameters are float32 shards."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in objective.model.visual.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(objective, mp_policy=policy, reshard_after_forward=False)


class ShardedOptimizer:
    """AdamW as the paper has it, over shards; what `model.training.optimizer.Optimizer` does, for processes that share one model."""

    BETAS, DECAY, CLIP = (0.9, 0.999), 0.01, 1.0
    graph: torch.cuda.CUDAGraph | None = None

    def __init__(self, named: list[tuple[str, nn.Parameter]]) -> None:
        self.names = [name for name, _ in named]
        self.masters = [p for _, p in named]
        self.grads: list[Tensor] = []  # FSDP2 reduces them
        self.adam = torch.optim.AdamW(self.masters, lr=1e-4, betas=self.BETAS, weight_decay=self.DECAY, foreach=False)

    def clear(self) -> None:
        """Begins new gradients."""
        self.adam.zero_grad()

    def step(self, lr: float) -> Tensor:
        """One update; a gradient that isn't finite is left out, by all processes alike. Returns the gradient's norm."""
        norm = self.gather(torch.nn.utils.clip_grad_norm_(self.masters, self.CLIP))
        for group in self.adam.param_groups:
            group["lr"] = lr
        if bool(norm.isfinite()):
            self.adam.step()
        return norm.float()

    @staticmethod
    def lost() -> dict[str, int]:
        """Which gradients were not finite is not kept of shards."""
        return {}

    def average(self, mean: list[Tensor], share: float) -> None:
        """Moves a running mean of the masters towards them by `share`."""
        with torch.no_grad():
            for kept, master in zip(mean, self.masters, strict=True):
                kept.mul_(1 - share).add_(master, alpha=share)

    def weights(self) -> dict[str, Tensor]:
        """The masters' shards by name."""
        return {name: p.detach() for name, p in zip(self.names, self.masters, strict=True)}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Puts weights by name, whole or shards, into the masters."""
        for name, master in zip(self.names, self.masters, strict=True):
            self.fill(master.detach(), weights[name])

    @staticmethod
    def gather(x: Tensor) -> Tensor:
        """A shard's whole; every process takes part."""
        return x.full_tensor() if isinstance(x, DTensor) else x

    @staticmethod
    def fill(place: Tensor, value: Tensor) -> None:
        """Puts a whole tensor, or its shard, where its shard lies."""
        if isinstance(place, DTensor) and not isinstance(value, DTensor):
            value = distribute_tensor(value.to(place.device, place.dtype), place.device_mesh, place.placements)
        place.copy_(value)

    def moments(self) -> dict[str, Tensor]:
        """All moments by parameter, whole, in bfloat16."""
        kept: dict[str, Tensor] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            for key, value in self.adam.state.get(master, {}).items():
                kept[f"{key}.{name}"] = value.float() if key == "step" else self.gather(value).bfloat16()
        return kept

    @torch.no_grad()
    def restore(self, kept: dict[str, Tensor]) -> None:
        """Goes on with what `moments` gave."""
        for name, master in zip(self.names, self.masters, strict=True):
            if f"step.{name}" not in kept:
                continue  # saved before its first step
            state = self.adam.state[master]
            state["step"] = kept[f"step.{name}"].float().cpu().clone()
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros_like(master)
                self.fill(state[key], kept[f"{key}.{name}"].float())
