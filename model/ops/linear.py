"""Several linear maps of one input as one matrix product, their weights views of one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class JointLinear(nn.Module):
    """Applies several `nn.Linear` of its owner to one input. After `fuse` they are one product; until then (training) one each."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, *parts: nn.Linear) -> None:
        super().__init__()
        self.parts = parts
        self.sizes = [part.out_features for part in parts]
        self.register_buffer("weight", None, persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """`x` [..., in] to one [..., out] a part, views of one tensor where fused."""
        if self.weight is None:
            return [part(x) for part in self.parts]
        joint: Sequence[Tensor] = F.linear(x, self.weight, self.bias).split(self.sizes, -1)
        return joint

    @torch.no_grad()
    def fuse(self) -> None:
        """Moves the parts' weights into one tensor, of which they become views: no memory is added, the names stay."""
        self.weight = laid_out(torch.cat([part.weight for part in self.parts]))
        for part, view in zip(self.parts, self.weight.split(self.sizes), strict=True):
            part.weight.data = view
        biases = [part.bias for part in self.parts]
        if any(bias is not None for bias in biases):
            self.bias = torch.cat(
                [
                    b if b is not None else part.weight.new_zeros(part.out_features)
                    for b, part in zip(biases, self.parts, strict=True)
                ]
            )
            for part, view in zip(self.parts, self.bias.split(self.sizes), strict=True):
                if part.bias is not None:
                    part.bias.data = view


def laid_out(weight: Tensor) -> Tensor:
    """`weight` [out, in] as float32 products of few rows on a CPU read it fastest: each input's weights together in memory.

    In bfloat16 that is three times as slow.
    """
    together = weight.device.type == "cpu" and weight.dtype == torch.float32
    return weight.t().contiguous().t() if together else weight
