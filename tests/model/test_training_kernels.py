"""Training's kernels against the plain modules and the plain painter, gradients too. Needs triton, and CUDA or TRITON_INTERPRET=1."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import AttentionPolicy, nano
from model.families.infinitevl import InfiniteVL
from model.training.cuda import initialise

pytest.importorskip("triton", reason="triton is not installed; needs CUDA or its interpreter")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs CUDA or triton's interpreter", allow_module_level=True)

from model.preprocess import STD
from model.training.fused import patch_fused
from model.world.generate import draw_scene
from model.world.layout import layout
from model.world.render import Assets, Painter, kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def test_patched_network_and_its_gradients_are_the_plain_ones():
    torch.backends.cuda.matmul.allow_tf32 = False
    whole = nano()
    config = replace(
        whole,
        vision=replace(whole.vision, depth=2, hidden_size=96, intermediate_size=70, fullatt_block_indexes=(1,)),
        decoder=replace(whole.decoder, num_hidden_layers=4, layer_types=(), intermediate_size=100),
        policy=AttentionPolicy(sinks=20, window=90),
    )
    torch.manual_seed(0)
    model = InfiniteVL(config)
    initialise(model)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn_like(p)
    model.to(DEVICE)
    grid = (16, 16)
    patches = torch.randn(2, 3, 256, 1176, device=DEVICE)
    seconds = torch.tensor([[0.0, 0.5, 1.2], [0.0, 0.4, 2.1]], dtype=torch.float64, device=DEVICE)
    tokens = torch.randint(0, 1000, (2, 3, 9), device=DEVICE)

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        memory = model.watch(patches[:, :2], grid, seconds[:, :2])
        first = model.answer(tokens, seconds[:, 1], grid, memory)
        memory = model.watch(patches[:, 2:], grid, seconds[:, 2:], memory)
        second = model.answer(tokens, seconds[:, 2], grid, memory)
        logits = torch.stack((first, second))
        (logits.log_softmax(-1)[..., 7].mean() + logits.square().mean() * 0.01).backward()
        return logits.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]

    model.train()
    wanted, gradients = run()
    patch_fused(model)
    found, quick = run()
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    for (name, _), a, b in zip(model.named_parameters(), quick, gradients, strict=True):
        assert float((a - b).norm()) <= 2e-4 * float(b.norm()) + 1e-7, name
    with torch.no_grad():
        plain = model.answer(tokens, seconds[:, 1], grid, model.watch(patches[:, :2], grid, seconds[:, :2]))
    assert float((plain - wanted[0]).norm() / wanted[0].norm()) < 1e-5


def test_brushed_patches_are_the_painter_s():
    assets = Assets.load()
    plain, quick = Painter(assets, DEVICE), Painter(assets, DEVICE)
    plain.kernels, quick.kernels = None, kernels()
    rng = np.random.default_rng(4)
    sheet = layout([draw_scene(rng, 10, "train", assets.gallery) for _ in range(5)])
    assert len({*sheet.kind.tolist()}) == 3
    sheet.film[:, 1] = 0  # noise is drawn otherwise
    sheet.film[:, 3] = 0  # and quantising turns a last bit into a step
    wanted, labels = plain.patches(sheet, 3, torch.float32)
    found, same = quick.patches(sheet, 3, torch.float32)
    assert torch.equal(labels, same)
    step = (wanted - found).abs() * torch.tensor(STD, device=DEVICE).repeat_interleave(392) * 255
    assert (
        float((step > 1.01).float().mean()) < 2e-5
    )  # a shade more or less by rounding, and edges of the nearest pixel
    assert float((step > 0.5).float().mean()) < 2e-3


def test_grain_has_the_size_and_the_smoothness_of_the_painter_s():
    assets = Assets.load()
    plain, quick = Painter(assets, DEVICE), Painter(assets, DEVICE)
    plain.kernels, quick.kernels = None, kernels()
    sheet = layout([draw_scene(np.random.default_rng(4), 2, "train", assets.gallery)])
    sheet.film[:] = (1.0, 0.05, 0.0, 0.0)
    sheet.exposure[:] = 1.0

    def noise(painter: Painter, seed: int) -> torch.Tensor:
        developed = torch.full((2, 3, 64, 64), 0.5, device=DEVICE)
        arrays = {name: torch.as_tensor(getattr(sheet, name), device=DEVICE) for name in ("film", "exposure")}
        generator = torch.Generator(DEVICE).manual_seed(seed)
        return painter.develop(developed, sheet, arrays, slice(0, 2), generator) - 0.5

    a, b = (torch.cat([noise(painter, seed) for seed in range(4)]) for painter in (plain, quick))

    def facts(x: torch.Tensor) -> list[float]:
        return [
            float(x.std()), float((x[..., 1:] * x[..., :-1]).mean() / x.var()), float((x[:, 0] * x[:, 1]).mean() / x.var())
        ]  # fmt: skip

    assert facts(b) == pytest.approx(facts(a), abs=0.04, rel=0.05)
    assert not torch.equal(noise(quick, 1), noise(quick, 2))
    assert torch.equal(noise(quick, 1), noise(quick, 1))
