"""What flows between matrix products: a plain tensor, or one in fp8 with its scales."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

FP8_LIMIT = 448.0
"""The largest number of float8_e4m3fn."""
PROCESSORS = 132
"""Of the card that kernels were cut for."""
FEW = 16
"""Rows up to which weights are streamed past them, and kernels are too small to fill a card."""


class Quantized(NamedTuple):
    """`data` float8_e4m3fn [rows, width]; row i stands for `data[i] * scales[i]`, float32 [rows]."""

    data: Tensor
    scales: Tensor


Activation = Tensor | Quantized
