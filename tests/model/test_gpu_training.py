"""Stages on a GPU held to plain torch: attention without a mask in memory, chosen blocks, each objective fused and as a graph."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; needs CUDA")
if not torch.cuda.is_available():
    pytest.skip("needs CUDA", allow_module_level=True)

from model.ops.attention import causal_attention, masked_attention, visible
from model.ops.retrieval import Whole, retrieve, retrieve_together
from model.policy import FULL, AttentionPolicy, RetrievalPolicy
from model.training import start
from model.training.cuda import without_cudnn_attention
from model.training.fused import patch_fused
from model.training.objectives import objective
from model.training.stages import SIZES, Recipe, attentive, hybrid, policy

from .test_stages import lesson

DEVICE = "cuda"
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("n", "m"), [(64, 64), (32, 200), (300, 1000)])
def test_causal_attention_without_a_mask(n: int, m: int) -> None:
    torch.manual_seed(0)
    inputs = [
        torch.randn(2, x, heads, 64, device=DEVICE, dtype=torch.bfloat16) for x, heads in ((n, 4), (m, 2), (m, 2))
    ]
    weight = torch.randn_like(inputs[0])
    index = torch.arange(m, device=DEVICE)
    shown = visible(index[m - n :], index, FULL)[None]

    def run(quick: bool) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = causal_attention(*leaves) if quick else masked_attention(*(x.float() for x in leaves), shown)
        return [out.detach(), *torch.autograd.grad((out.float() * weight).sum(), leaves)]

    for found, wanted in zip(run(True), run(False), strict=True):
        assert float((found.float() - wanted.float()).norm() / wanted.float().norm()) < 0.02


@pytest.mark.parametrize("keys", [576, 1088, 577, 640])
def test_the_gradient_of_low_scores_is_not_lost(keys: int) -> None:
    """A window's blocks under its mask, all scores about -120: cuDNN's gradient was NaN where there are 64 mod 128 keys."""
    torch.manual_seed(0)
    q, k = (0.1 * torch.randn(1, n, 4, 64, device=DEVICE, dtype=torch.bfloat16) for n in (512, keys))
    v = torch.randn_like(k)
    q[..., 0], k[..., 0] = 1.0, -120 * 8
    index = torch.arange(keys, device=DEVICE)
    shown = visible(index[-512:], index, AttentionPolicy(64, 512))[None]
    weight = torch.randn_like(q)

    def run(dtype: torch.dtype, guard: AbstractContextManager[None]) -> list[torch.Tensor]:
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        with guard:
            out = masked_attention(*leaves, shown)
        return [x.float() for x in torch.autograd.grad((out.float() * weight).sum(), leaves)]

    unguarded = sum(int((~x.isfinite()).sum()) for x in run(torch.bfloat16, nullcontext()))
    print(f"{keys} keys: {unguarded} gradients by torch's own choice are not finite")
    # Of the first number in a query, which makes scores low, nothing but rounding is left of its gradient.
    plain = run(torch.float32, nullcontext())
    for found, wanted in zip(run(torch.bfloat16, without_cudnn_attention()), plain, strict=True):
        assert bool(found.isfinite().all())
        assert float((found - wanted)[..., 1:].norm() / wanted[..., 1:].norm()) < 0.05


def test_blocks_are_chosen_as_one_by_one() -> None:
    torch.manual_seed(0)
    chosen = RetrievalPolicy(block_size=8, kernel_size=8, kernel_stride=4, window_size=20, topk=3, dense_len=44)
    q, k, v = (torch.randn(3, 160, heads, 64, device=DEVICE) for heads in (4, 2, 2))
    wanted = torch.stack([retrieve(a, 0, Whole(b, c, chosen), chosen) for a, b, c in zip(q, k, v, strict=True)])
    torch.testing.assert_close(retrieve_together(q, 0, k, v, chosen), wanted, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("part", ["matching", "imitating", "answering", "frozen", "online", "offline"])
def test_an_objective_is_the_same_fused_and_as_a_graph(part: str) -> None:
    """In float32: the loss and all gradients of the nano's size, plain, by training's kernels, and replayed from a graph."""
    config = SIZES["nano"]
    teacher = start.fresh(attentive(config), 1)
    network = start.taught(Recipe("distil", 1), teacher, "").network
    if part in ("online", "offline"):
        network.config = hybrid(config).with_policy(policy(part, config))
    kind = part if part in ("matching", "imitating") else "answering"
    made = objective(kind, network, teacher, part != "answering")
    made.place(torch.device(DEVICE), torch.float32)
    given = {name: x.to(DEVICE) for name, x in lesson(3, streams=2, steps=24).items()}
    given |= {
        "guided": torch.zeros(1, dtype=torch.int64, device=DEVICE),
        "labels": torch.zeros(48, 256, dtype=torch.int64, device=DEVICE),
    }
    weight, parameters = torch.ones((), device=DEVICE), [p for _, p in made.trained()]

    def run() -> list[torch.Tensor]:
        loss, _ = made([24], given, weight)
        return [loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)]

    plain = run()
    for module in (made.model, *made.shown):
        patch_fused(module)
    fused = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        replayed = run()
    graph.replay()
    torch.cuda.synchronize()
    total = float(torch.stack([x.norm() for x in plain[1:] if x is not None]).norm())
    for found in (fused, replayed):
        for a, b in zip(found, plain, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                assert float((a - b).norm()) <= 1e-3 * float(b.norm()) + 1e-5 * total
