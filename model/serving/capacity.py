"""How many slots fit into a device's free memory, told before any is taken."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

WORKING_SHARE = 0.05
"""Part of a GPU's memory that is left for what steps work in (graphs, activations, libraries)."""


@dataclass(frozen=True)
class Capacity:
    """Memory for slots of `each` bytes, where `free` bytes are free and steps need `working` of them."""

    free: int
    each: int
    working: int = 0

    @property
    def slots(self) -> int:
        """How many slots fit."""
        return max(0, self.free - self.working) // self.each

    def check(self, slots: int) -> None:
        """Raises CapacityError where `slots` slots do not fit."""
        if slots > self.slots:
            raise CapacityError(slots, self)


class CapacityError(Exception):
    """More slots than memory holds; `fit` would. One line: which resource, how much of it is missing."""

    def __init__(self, slots: int, capacity: Capacity) -> None:
        self.fit = capacity.slots
        needed, usable = slots * capacity.each, max(0, capacity.free - capacity.working)
        super().__init__(
            f"{slots} slots of {capacity.each / 1e6:.1f} MB need {needed / 1e9:.2f} GB of memory beside the model, "
            f"{usable / 1e9:.2f} GB are free for them and {(needed - usable) / 1e9:.2f} GB are missing; {self.fit} of them fit"
        )


def capacity(device: torch.device, each: int) -> Capacity | None:
    """Memory for slots of `each` bytes on `device` now; None where the system does not tell what is free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Capacity(free, each, round(WORKING_SHARE * total) + each)  # one more slot takes what padding writes
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return Capacity(next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), each)
    return None
