"""Matrix products in the model's own numbers or in fp8 (e4m3): weights scaled a row beforehand, activations a row as they come."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.kernels.activation import FP8_LIMIT, Activation, Quantized

Precision = Literal["model", "fp8", "int8"]
"""What the big products are computed in: the weights' own type, fp8, or (on a CPU: see `int8`) int8."""


def quantize_rows(weight: Tensor) -> Quantized:
    """`weight` [rows, width] as float8_e4m3fn, each row scaled so that its largest element is the largest fp8 number."""
    scales = weight.float().abs().amax(1).clamp(min=1e-12) / FP8_LIMIT
    return Quantized((weight.float() / scales[:, None]).to(torch.float8_e4m3fn), scales)


class Matrix:
    """A linear map of rows, `weight` [out, in], in one of the precisions."""

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision) -> None:
        self.fp8 = precision == "fp8"
        self.bias, self.outs = bias, weight.shape[0]
        self.weight: Tensor | Quantized = weight
        # cuBLAS cuts a row's products in parts that a launch more adds up; only of a head's it makes enough programs.
        self.alone = weight.is_cuda and weight.dtype == torch.bfloat16 and bias is None and self.outs < 1 << 16
        if self.fp8:
            # cuBLAS takes fp8 weights of a multiple of 16 outputs only.
            room = -self.outs % 16
            self.weight = quantize_rows(F.pad(weight, (0, 0, 0, room)))
            self.bias = bias if bias is None else F.pad(bias, (0, room))

    def __call__(self, x: Activation) -> Tensor:
        """`x` [rows, in] to [rows, out], its last axis contiguous; a plain `x` is quantized where the product is in fp8."""
        if isinstance(self.weight, Tensor):
            assert isinstance(x, Tensor)
            if self.alone and len(x) == 1:
                from model.ops.kernels.product import row_product

                return row_product(x, self.weight)
            return F.linear(x, self.weight, self.bias)
        from model.ops.kernels.norm import quantize
        from model.ops.kernels.product import FEW, product

        x = quantize(x) if isinstance(x, Tensor) else x
        rows, width = x.data.shape
        if rows <= FEW and width % 128 == 0:
            return product(x, self.weight, self.bias)[:, : self.outs]
        joint: Tensor = torch._scaled_mm(
            x.data, self.weight.data.T, x.scales[:, None], self.weight.scales[None], self.bias,
            out_dtype=torch.bfloat16, use_fast_accum=True,
        )  # fmt: skip
        return joint[:, : self.outs]
