"""Makes training quick on a GPU: few kernel candidates to try, and compiled elementwise parts where that is faster."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import model.attention
import model.delta_net
import model.vision
from model.delta_net import GatedNorm
from model.vision import MLP, VisionBlock


def keep_caches(folder: Path) -> None:
    """Compiled kernels go into `folder`, to be carried to the next run; call before anything is compiled."""
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    os.environ["TRITON_CACHE_AUTOTUNING"] = "1"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")


def limit_autotuning(candidates: int = 2) -> None:
    """Lets Triton's autotuner try few configurations (a cold start tries hundreds, for a minute and more); call before fla is imported."""
    from triton.runtime.autotuner import Autotuner

    original: Callable[..., None] = Autotuner.__init__

    @functools.wraps(original)
    def start(self: Any, fn: Any, names: Any, configs: Iterable[Any], *args: Any, **kwargs: Any) -> None:
        configs = list(configs)
        usual = [config for config in configs if config.num_warps == 4 and config.num_stages in (2, 3)]
        original(self, fn, names, (usual or configs)[:candidates], *args, **kwargs)

    Autotuner.__init__ = start


class Compiled:
    """The model's elementwise parts and vision blocks, compiled; `on` and `off` switch between them and the plain ones."""

    def __init__(self) -> None:
        torch._dynamo.config.suppress_errors = True
        torch._dynamo.config.cache_size_limit = 64
        self.places: list[tuple[Any, str, Any, Any]] = []
        self.add(VisionBlock, "forward", dynamic=False)
        self.add(model.attention, "rotate", dynamic=True)
        self.add(model.delta_net, "short_convolution", dynamic=True)
        self.add(GatedNorm, "forward", dynamic=True)
        self.add(MLP, "forward", dynamic=True)

    def add(self, owner: Any, name: str, dynamic: bool) -> None:
        plain = getattr(owner, name)
        self.places.append((owner, name, plain, torch.compile(plain, dynamic=dynamic)))

    def on(self) -> None:
        for owner, name, _, fast in self.places:
            setattr(owner, name, fast)

    def off(self) -> None:
        for owner, name, plain, _ in self.places:
            setattr(owner, name, plain)


def initialise(network: nn.Module) -> None:
    """Starting weights: small embeddings (they are the output layer too), quiet residual branches, memory from a moment to for ever."""
    gates = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            quiet = name.endswith(("o_proj", "down_proj", "attn.proj"))
            nn.init.normal_(module.weight, std=module.in_features**-0.5 * (0.3 if quiet else 0.8))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if hasattr(module, "A_log"):
            gates.append(module)
    heads = sum(len(gate.A_log) for gate in gates)
    # What a head forgets in a token, at a neutral input: log-spaced, the slow and the fast in every layer.
    rates = torch.logspace(-6.5, -1.2, heads)
    with torch.no_grad():
        for i, gate in enumerate(gates):
            rate = rates[i :: len(gates)]
            gate.A_log.zero_()
            gate.dt_bias.copy_(rate + torch.log(-torch.expm1(-rate)))
            nn.init.normal_(gate.a_proj.weight, std=0.3 * gate.a_proj.in_features**-0.5)
