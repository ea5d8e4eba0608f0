"""The short causal convolution before the delta rule: depthwise, with SiLU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def short_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise causal convolution and SiLU.

    `x` [batch, width - 1 + n, channels] begins with the inputs kept from before; `weight` is [channels, width].
    Returns [batch, n, channels].
    """
    width, weight = weight.shape[1], weight.to(x.dtype)
    n = x.shape[1] - width + 1
    total = x[:, :n] * weight[:, 0]
    for i in range(1, width):
        total = total.addcmul(x[:, i : i + n], weight[:, i])
    return F.silu(total)
