"""Matrix products in the model's own numbers or in fp8 (e4m3): weights scaled a row beforehand, activations a row as they come."""

from __future__ import annotations

import os
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.kernels.activation import FEW, FP8_LIMIT, Activation, Quantized

Precision = Literal["model", "fp8", "int8"]
"""What the big products are computed in: the weights' own type, fp8, or (on a CPU: see `int8`) int8."""


def quantize_rows(weight: Tensor) -> Quantized:
    """`weight` [rows, width] as float8_e4m3fn, each row scaled so that its largest element is the largest fp8 number."""
    scales = weight.float().abs().amax(1).clamp(min=1e-12) / FP8_LIMIT
    return Quantized((weight.float() / scales[:, None]).to(torch.float8_e4m3fn), scales)


def share_no_sums() -> None:
    """Leaves cuBLASLt no workspace, unless it was given one: to be called before the process's first product on a card.

    It then chooses kernels that need no memory to be cleared before each of them: steps in fp8 take 1 to 4 % less, those in bf16
    no more.
    """
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "0")


class Matrix:
    """A linear map of rows, `weight` [out, in], in one of the precisions."""

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision) -> None:
        self.fp8 = precision == "fp8"
        self.bias, self.outs = bias, weight.shape[0]
        self.weight: Tensor | Quantized = weight
        half = weight.is_cuda and weight.dtype == torch.bfloat16
        self.streamed = (half or self.fp8) and weight.shape[1] % 128 == 0
        """Whether weights go past few rows by kernels of ours."""
        if self.fp8:
            # cuBLAS takes fp8 weights of a multiple of 16 outputs only.
            room = -self.outs % 16
            self.weight = quantize_rows(F.pad(weight, (0, 0, 0, room)))
            self.bias = bias if bias is None else F.pad(bias, (0, room))

    def __call__(self, x: Activation) -> Tensor:
        """`x` [rows, in] to [rows, out], its last axis contiguous; a plain `x` is quantized where the product is in fp8."""
        if isinstance(self.weight, Tensor):
            assert isinstance(x, Tensor)
            return self.plain(x, self.weight)
        from model.ops.kernels.norm import quantize
        from model.ops.kernels.product import product

        x = quantize(x) if isinstance(x, Tensor) else x
        if len(x.data) <= FEW and self.streamed:
            return product(x, self.weight, self.bias)[:, : self.outs]
        joint: Tensor = torch._scaled_mm(
            x.data, self.weight.data.T, x.scales[:, None], self.weight.scales[None], self.bias,
            out_dtype=torch.bfloat16, use_fast_accum=True,
        )  # fmt: skip
        return joint[:, : self.outs]

    def plain(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product in the model's own numbers: cuBLAS's, but for few rows of bfloat16 on a GPU."""
        if len(x) > FEW or not self.streamed:
            return F.linear(x, weight, self.bias)
        from model.ops.kernels.product import product, roomy, row_product

        if len(x) == 1 and self.bias is None:
            return row_product(x, weight)
        return product(x, weight, self.bias) if roomy(x.device) else F.linear(x, weight, self.bias)
