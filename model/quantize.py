"""Matrix products in the model's own numbers or in fp8 (e4m3): weights scaled a row beforehand, activations a row as they come."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.kernels.activation import FP8_LIMIT, Activation, Quantized

Precision = Literal["model", "fp8"]
"""What the big products are computed in: the weights' own type, or fp8."""


def quantize_rows(weight: Tensor) -> Quantized:
    """`weight` [rows, width] as float8_e4m3fn, each row scaled so that its largest element is the largest fp8 number."""
    scales = weight.float().abs().amax(1).clamp(min=1e-12) / FP8_LIMIT
    return Quantized((weight.float() / scales[:, None]).to(torch.float8_e4m3fn), scales)


class Matrix:
    """A linear map of rows, `weight` [out, in], in one of the precisions."""

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision) -> None:
        self.fp8 = precision == "fp8"
        self.bias = bias
        self.weight: Tensor | Quantized = quantize_rows(weight) if self.fp8 else weight

    def __call__(self, x: Activation) -> Tensor:
        """`x` [rows, in] to [rows, out]; a plain `x` is quantized where the product is in fp8."""
        if isinstance(self.weight, Tensor):
            assert isinstance(x, Tensor)
            return F.linear(x, self.weight, self.bias)
        from model.ops.kernels.norm import quantize

        data, scales = quantize(x) if isinstance(x, Tensor) else x
        weight = self.weight
        dtype = torch.bfloat16
        return torch._scaled_mm(
            data, weight.data.T, scales[:, None], weight.scales[None], self.bias, out_dtype=dtype, use_fast_accum=True
        )
