"""Which implementation of an operation runs: fla's kernels where CUDA and they are there, plain torch elsewhere."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from model.ops import delta_rule as reference

FLA_GRADIENTS = False
"""Whether fla's backward is to be used; Triton 3.4 to 3.7.0 compiles it wrongly for Hopper, so training checks it first."""


@cache
def fla_available() -> bool:
    """Whether fla's Triton kernels can run here; asked once."""
    if not torch.cuda.is_available():
        return False
    try:
        import fla.ops.gated_delta_rule  # noqa: F401
    except ImportError:
        return False
    return True


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The gated delta rule over n tokens; arguments and results as `model.ops.delta_rule.recurrent`."""
    recording = torch.is_grad_enabled() and q.requires_grad
    if q.is_cuda and q.dtype != torch.float32 and (FLA_GRADIENTS or not recording) and fla_available():
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

        kernel = fused_recurrent_gated_delta_rule if q.shape[1] == 1 else chunk_gated_delta_rule
        output, final = kernel(
            q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
        )
        return output, final
    if q.shape[1] == 1:
        return reference.recurrent(q, k, v, g, beta, state)
    return reference.chunked(q, k, v, g, beta, state)
