"""The checkpoints that are known: what each takes of memory, and whether a device holds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from model.checkpoint import Unfilled, kept_dtype
from model.config import PRESETS, AttentionPolicy, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.serving import int8
from model.serving.capacity import capacity
from model.state import StreamState

Dtype = Literal["float32", "bfloat16", "fp8", "int8"]
"""As `load_runner` takes it."""


@dataclass(frozen=True)
class Known:
    """A checkpoint: `name` is what `load_runner` takes, `kind` says what it is in a few words."""

    name: str
    kind: str
    licence: str
    config: InfiniteVLConfig


@dataclass(frozen=True)
class Fit:
    """A checkpoint on a device, in bytes: `free` is None where the system does not tell what is free."""

    dtype: Dtype
    weights: int
    state: int
    needed: int
    free: int | None

    @property
    def missing(self) -> int:
        """Bytes that are not free; 0 where it fits, or where nobody knows."""
        return 0 if self.free is None else max(0, self.needed - self.free)


def known() -> list[Known]:
    """Every checkpoint, the smallest of each family first."""
    # What can be downloaded was trained with a plain window (its config.json says so).
    first = replace(PRESETS["4b"], policy=AttentionPolicy(sinks=0, window=8192))
    qwen = [
        Known(f"Qwen/Qwen3.5-{size}", "Qwen3.5, sees and talks", "Apache-2.0", PRESETS[f"qwen3.5-{size.lower()}"])
        for size in ("0.8B", "2B", "4B", "9B", "27B")
    ]
    # Later 27B's have the sizes of the first.
    later = [replace(qwen[-1], name=f"Qwen/Qwen{by}-27B", kind=f"Qwen{by}, sees and talks") for by in ("3.6", "3.8")]
    return [
        Known("nano", "embedded, knows a made world", "Apache-2.0", PRESETS["nano"]),
        Known("hustvl/InfiniteVL", "InfiniteVL, sees and talks", "Apache-2.0", first),
        *qwen,
        *later,
    ]


def outline(config: InfiniteVLConfig) -> InfiniteVL:
    """A model of these sizes without memory for weights."""
    with torch.device("meta"), Unfilled():
        return InfiniteVL(config)


def dtypes(device: torch.device) -> tuple[Dtype, ...]:
    """What its weights may be served in there; the first is the plainest."""
    if device.type != "cuda":
        return ("float32", "int8") if int8.ENGINE in torch.backends.quantized.supported_engines else ("float32",)
    return "bfloat16", "fp8"


def base(dtype: Dtype) -> torch.dtype:
    """What weights are loaded in, and streams kept in."""
    return torch.bfloat16 if dtype in ("bfloat16", "fp8") else torch.float32


def weight_bytes(model: InfiniteVL, dtype: Dtype) -> int:
    """Bytes of its weights; at most, where products of 8 bits stand beside the weights that they were made from."""
    kept = model.config.decoder
    total = sum(x.numel() * kept_dtype(kept, name, base(dtype)).itemsize for name, x in model.named_parameters())
    if dtype in ("fp8", "int8"):
        total += sum(x.weight.numel() for x in model.modules() if isinstance(x, nn.Linear))
    return total


def state_bytes(config: InfiniteVLConfig, dtype: Dtype) -> int:
    """Bytes that one stream keeps, for ever."""
    return StreamState.allocate(config, 1, "meta", base(dtype)).bytes_per_slot


def fit(model: InfiniteVL, dtype: Dtype, device: torch.device, slots: int) -> Fit:
    """How a model (an `outline`) with so many slots fits into the memory of `device` now."""
    weights, state = weight_bytes(model, dtype), state_bytes(model.config, dtype)
    found = capacity(device, state)
    needed = weights + slots * state + (0 if found is None else found.working)
    return Fit(dtype, weights, state, needed, None if found is None else found.free)
