"""Several processes of one examination or training, and a quick start of each on a GPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist


def join(device: torch.device) -> tuple[torch.device, int]:
    """Joins the processes that torchrun started, where it did: this one's device, and how many there are.

    Where they are more than the cards they share these: an examination, which mostly waits for the host, is done sooner so.
    Learning can't: NCCL refuses two of a card.
    """
    devices = int(os.environ.get("WORLD_SIZE", 1))
    if devices > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            torch.cuda.set_device(device)
    return device, devices


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
