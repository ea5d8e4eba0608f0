"""What the trained nano computes in fp8 on the card, piece by piece: each product and each kernel that writes fp8, beside plain torch.

Wrong cases are printed, one a line, and the test goes on to the next: one run names them all.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.serving.runner import NANO

from .small import error

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(110)]
ROWS = (1, 2, 15, 16, 17, 32, 64, 100, 512, 1024, 2048, 8192)
BOUND = 0.01
"""bfloat16's rounding of a result is .002; of fp8 (.03) nothing may be left, as both sides start from the same fp8."""


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    """Normal, with a few channels far out."""
    torch.manual_seed(seed + count)
    x = torch.randn(count, width, device="cuda")
    x[:, ::37] *= 20
    return x.bfloat16()


def matrices() -> Iterator[tuple[str, object]]:
    from model.serving.fused import FastAttention, FastInfiniteVL

    network, _ = load_checkpoint(NANO, device="cuda", dtype=torch.bfloat16)
    network.eval().fuse()
    engine = FastInfiniteVL(network, "fp8")
    for i, block in enumerate(engine.tower.blocks):
        yield f"block {i} qkv", block.qkv
        yield f"block {i} proj", block.proj
        yield f"block {i} mlp in", block.mlp.inward
        yield f"block {i} mlp out", block.mlp.outward
    for i, layer in enumerate(engine.layers):
        kind = "attention" if isinstance(layer.mixer, FastAttention) else "delta"
        yield f"layer {i} {kind} in", layer.mixer.inward
        yield f"layer {i} {kind} out", layer.mixer.outward
        yield f"layer {i} mlp in", layer.mlp.inward
        yield f"layer {i} mlp out", layer.mlp.outward
    yield "head", engine.head


@torch.inference_mode()
def test_each_product_is_that_of_its_fp8_numbers() -> None:
    from model.ops.kernels.activation import Quantized
    from model.ops.kernels.norm import quantize
    from model.serving.quantize import Matrix

    wrong, asked = [], 0
    for name, matrix in matrices():
        assert isinstance(matrix, Matrix) and isinstance(matrix.weight, Quantized)
        weight = matrix.weight.data.float() * matrix.weight.scales[:, None]
        for count in ROWS:
            x = quantize(rows(count, weight.shape[1]))
            whole = (x.data.float() * x.scales[:, None]).double() @ weight.double().T
            if matrix.bias is not None:
                whole = whole + matrix.bias.double()
            whole = whole[:, : matrix.outs]
            for kind in ("served", "exact sums"):
                if kind == "served":
                    found = matrix(x)
                else:
                    found = torch._scaled_mm(
                        x.data, matrix.weight.data.T, x.scales[:, None], matrix.weight.scales[None], matrix.bias,
                        out_dtype=torch.bfloat16, use_fast_accum=False,
                    )[:, : matrix.outs]  # fmt: skip
                asked += 1
                off = error(found, whole)
                if not off <= BOUND:
                    bad = ((found.double() - whole).abs() > 0.05 * whole.abs().amax()).nonzero()
                    span = (
                        f"rows {bad[:, 0].min()}-{bad[:, 0].max()} columns {bad[:, 1].min()}-{bad[:, 1].max()}"
                        if len(bad)
                        else ""
                    )
                    wrong.append((name, tuple(weight.shape), count, kind, round(off, 4)))
                    print("fp8 product", *wrong[-1], span)
    print(f"fp8 products: {len(wrong)} wrong of {asked}")
    assert not [case for case in wrong if case[3] == "served"]


@torch.inference_mode()
def test_each_kernel_writes_the_fp8_it_should() -> None:
    from model.ops.kernels.activation import Quantized
    from model.ops.kernels.norm import add_norm, gated_norm, quantize, swiglu

    wrong = []

    def check(name: str, count: int, found: object, wanted: Tensor) -> None:
        assert isinstance(found, Quantized)
        off = error(found.data.float() * found.scales[:, None], wanted)
        if not off <= 0.04:
            wrong.append((name, tuple(wanted.shape), count, round(off, 4)))
            print("fp8 kernel", *wrong[-1])

    for count in ROWS:
        for width in (192, 256, 512, 768, 1280, 2048):
            x, residual = rows(count, width), rows(count, width, 1)
            weight = torch.rand(width, device="cuda").bfloat16()
            check("quantize", count, quantize(x), x.float())
            total = (x + residual).float()
            normed = total * (total.square().mean(1, keepdim=True) + 1e-6).rsqrt() * weight.float()
            check("add_norm", count, add_norm(x, residual.clone(), weight, 1e-6, True), normed)
            gate, up = rows(count, 2 * width, 2).chunk(2, 1)
            joint = torch.cat((gate, up), 1)
            check("swiglu", count, swiglu(joint, True), torch.nn.functional.silu(gate.float()) * up.float())
            if width % 128 == 0 and (width // 128).bit_count() == 1:
                heads = x.view(count, -1, 128)
                scale = torch.rand(128, device="cuda").bfloat16()
                wide = rows(count, width + 16, 3)
                opened = wide[:, :width]
                value = heads.float() * (heads.float().square().mean(2, keepdim=True) + 1e-5).rsqrt() * scale.float()
                check("gated_norm", count, gated_norm(heads, opened, scale, 1e-5, True),
                      value.flatten(1) * torch.nn.functional.silu(opened.float()))  # fmt: skip
    assert not wrong
