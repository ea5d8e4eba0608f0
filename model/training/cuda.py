"""Training on a GPU: compiled kernels kept from run to run, fla's and attention's gradients where they are right, starting weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from model.ops import delta_rule, dispatch

TRUSTED = 0.03
"""Relative error of bf16 gradients that is still rounding."""


def keep_caches(folder: Path) -> None:
    """Compiled kernels go into `folder`, to be carried to the next run; call before anything is compiled."""
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    os.environ["TRITON_CACHE_AUTOTUNING"] = "1"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """What is recorded within is differentiated by other kernels of attention than cuDNN's.

    On Hopper cuDNN's gradient of a query is NaN under a mask where all its scores are below about -88 and the keys are 64 more
    than a multiple of 128 (torch's issue 196678; torch prefers cuDNN there since 2.11). Blocks of Online and of a plain window are
    of such lengths, those of Base and Offline never.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def trust_fla() -> bool:
    """Lets fla differentiate the delta rule if its gradients are right here; says whether it does. Else plain torch does.

    Triton 3.4 to 3.7.0 miscompiles one backward kernel on Hopper where its key tile is 64 wide (fla's issue 640), and fla
    refuses there altogether; narrower tiles are right, which is measured against plain torch before it is believed.
    """
    if not dispatch.fla_available():
        return False
    from fla.ops.common import chunk_o

    chunk_o.IS_NVIDIA_HOPPER = False
    chunk_o.check_shared_mem = lambda *_, **__: False
    torch.manual_seed(0)
    shape = (4, 257, 4)
    inputs = [torch.randn(*shape, width, device="cuda") for width in (64, 64, 128)]
    inputs += [-0.1 * torch.rand(shape, device="cuda"), torch.rand(shape, device="cuda")]
    start = torch.randn(4, 4, 64, 128, device="cuda")
    weight, last = torch.randn(*shape, 128, device="cuda"), torch.randn_like(start)

    def gradients(rule: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
        q, k, v, g, beta = (x.clone() for x in inputs)
        leaves = [q.to(dtype), k.to(dtype), v.to(dtype), g, beta.to(dtype), start.clone()]
        output, final = rule(*(leaf.requires_grad_() for leaf in leaves))
        total = (output.float() * weight).sum() + (final * last).sum()
        return [x.float() for x in torch.autograd.grad(total, leaves)]

    wanted = gradients(delta_rule.chunked, torch.float32)
    dispatch.FLA_GRADIENTS = True
    try:
        found = gradients(dispatch.delta_rule, torch.bfloat16)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    except Exception as error:  # whatever a compiler says: plain torch is slower, not wrong
        print(f"fla can't differentiate here: {str(error)[:300]}", flush=True)
        errors = [float("inf")]
    dispatch.FLA_GRADIENTS = max(errors) < TRUSTED
    used = "used" if dispatch.FLA_GRADIENTS else "not used"
    print(
        f"fla's gradients of q, k, v, g, beta, state are off by {' '.join(f'{e:.4f}' for e in errors)}: {used}",
        flush=True,
    )
    return dispatch.FLA_GRADIENTS


def initialise(network: nn.Module) -> None:
    """Starting weights: small embeddings (they are the output layer too), quiet residual branches, memory from a moment to for ever."""
    gates = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            quiet = name.endswith(("o_proj", "down_proj", "attn.proj"))
            nn.init.normal_(module.weight, std=module.in_features**-0.5 * (0.3 if quiet else 0.8))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if hasattr(module, "A_log"):
            gates.append(module)
    heads = sum(len(gate.A_log) for gate in gates)
    # What a head forgets in a token, at a neutral input: log-spaced, the slow and the fast in every layer.
    rates = torch.logspace(-6.5, -1.2, heads)
    with torch.no_grad():
        for i, gate in enumerate(gates):
            rate = rates[i :: len(gates)]
            gate.A_log.zero_()
            gate.dt_bias.copy_(rate + torch.log(-torch.expm1(-rate)))
            nn.init.normal_(gate.a_proj.weight, std=0.3 * gate.a_proj.in_features**-0.5)
