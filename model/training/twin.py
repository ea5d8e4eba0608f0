"""A bf16 model for the passes and its float32 master weights for the optimizer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.checkpoint import KEPT_FLOAT32
from model.config import InfiniteVLConfig
from model.infinitevl import InfiniteVL

SLOWEST, FASTEST = 10**-4.5, 10**-1
"""Decay a token of the slowest and the fastest Gated DeltaNet head at the start."""


def initialise(model: InfiniteVL) -> None:
    """Starting weights: normal at 0.02, less on what adds to the residual stream; decays spread over all time scales."""
    config = model.config.decoder
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 2)[-2:]
        if parameter.ndim >= 2 and "conv1d" not in name:
            depth = config.num_hidden_layers if name.startswith("model.") else model.config.vision.depth
            outward = leaf[0] in ("o_proj", "down_proj", "proj") and "patch_embed" not in name
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if outward else 0.02)
        elif leaf[-1] == "bias" or leaf[-1] == "A_log":
            nn.init.zeros_(parameter)
        elif leaf[-1] == "dt_bias":
            decay = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), parameter.numel(), dtype=torch.float64)
            parameter.data.copy_(torch.expm1(decay).log())


class Twin:
    """`model` holds bf16 weights (the decays' float32) that follow `masters` after every `step`."""

    def __init__(
        self, config: InfiniteVLConfig, device: torch.device, dtype: torch.dtype, rate: float, decay: float, seed: int
    ) -> None:
        torch.manual_seed(seed)
        model = InfiniteVL(config)
        initialise(model)
        self.names = [name for name, _ in model.named_parameters()]
        self.masters = [parameter.detach().float().to(device).clone() for parameter in model.parameters()]
        self.model = model.to(device)
        for name, parameter in self.model.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if name.endswith(KEPT_FLOAT32) else dtype)
        self.parameters: list[Tensor] = list(self.model.parameters())
        groups = [
            {"params": [m for m in self.masters if m.ndim >= 2], "weight_decay": decay},
            {"params": [m for m in self.masters if m.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=device.type == "cuda")

    def step(self, rate: float, clip: float = 1.0) -> Tensor:
        """One update from the model's gradients, at most `clip` in norm; returns the norm. A gradient that isn't finite changes nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = torch.zeros_like(master) if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        gradients = [master.grad for master in self.masters if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        scale = torch.where(norm.isfinite(), (clip / (norm + 1e-6)).clamp(max=1.0), 0.0)
        for gradient in gradients:
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_mul_(gradients, scale)
        self.optimizer.step()
        self.follow()
        return norm

    @torch.no_grad()
    def follow(self) -> None:
        """Copies the masters into the model."""
        torch._foreach_copy_(self.parameters, self.masters)

    def state(self) -> dict[str, Tensor]:
        """The masters by parameter name."""
        return dict(zip(self.names, self.masters, strict=True))

    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes weights by parameter name into masters and model."""
        for name, master in self.state().items():
            master.copy_(weights[name])
        self.follow()
