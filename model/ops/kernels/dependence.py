"""Programmatic dependent launch: a kernel begins while the one before it on its stream still runs, and waits for what that writes.

Where rows are few, kernels are small, and beginning and ending is much of their time. On Hopper and later each lets the next one
begin once it has what it waited for itself: so the next stands ready, and may ask for its weights, which nobody writes (CUDA C++
Programming Guide, "Programmatic Dependent Launch and Synchronization"). Between larger kernels there is nothing to gain.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from model.ops.kernels.activation import FEW


def dependent(beside: Tensor, rows: int) -> dict[str, Any]:
    """What a launch of a kernel that calls `follow` is to be given, where it is of `rows` rows on the device of `beside`."""
    return {"EARLY": True, "launch_pdl": True} if rows <= FEW and knows(beside.device) else {"EARLY": False}


@cache
def knows(device: torch.device) -> bool:
    """Whether kernels of a device can begin so."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def follow(EARLY: tl.constexpr):
    """Waits for the kernel before, then lets the next one begin. What is read before it may be weights alone; nothing is written."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def fetch(at):
    """Has the lines at pointers `at` brought to the second-level cache, without waiting for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )
