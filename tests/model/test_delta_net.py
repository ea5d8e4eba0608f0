"""The Gated DeltaNet layer, against transformers' qwen3_next parts and a float64 loop from the formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextRMSNormGated,
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from model.cache import SequenceCache
from model.layers.delta_net import GatedDeltaNet
from model.ops.convolution import short_convolution
from model.ops.delta_rule import chunked, recurrent

from .formulas import delta_net, delta_rule
from .small import DECODER, error, scatter, small

HEADS, KEY, VALUE = 3, 8, 16
CASES = [(1, 1), (2, 5), (1, 63), (1, 64), (2, 65), (1, 200)]


def draw(batch: int, n: int, seed: int = 0, decay: float = 1.0) -> list[Tensor]:
    """q, k, v, g, beta and a state; `decay` scales the log decay."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    q, k, v = (normal(batch, n, HEADS, size) for size in (KEY, KEY, VALUE))
    g = -decay * F.softplus(normal(batch, n, HEADS))
    return [q, k, v, g, normal(batch, n, HEADS).sigmoid(), normal(batch, HEADS, KEY, VALUE)]


def loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The float64 loop over a batch."""
    rows = [delta_rule(*parts) for parts in zip(q, k, v, g, beta, state, strict=True)]
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


@pytest.mark.parametrize("form", [recurrent, chunked])
@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0, 40.0])
@pytest.mark.parametrize(("batch", "n"), CASES)
def test_rule_is_the_formula(form, decay: float, batch: int, n: int) -> None:
    inputs = draw(batch, n, decay=decay)
    for found, oracle in zip(form(*inputs), loop(*inputs), strict=True):
        assert error(found, oracle) <= 1e-5


@pytest.mark.parametrize(("batch", "n"), CASES)
def test_rule_is_transformers(batch: int, n: int) -> None:
    q, k, v, g, beta, state = draw(batch, n)
    options = {"initial_state": state, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
    pairs = (
        (recurrent(q, k, v, g, beta, state), torch_recurrent_gated_delta_rule(q, k, v, g=g, beta=beta, **options)),
        (chunked(q, k, v, g, beta, state), torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, **options)),
    )
    for ours, theirs in pairs:
        for found, oracle in zip(ours, theirs, strict=True):
            assert error(found, oracle) <= 1e-5


@pytest.mark.parametrize(("batch", "n"), CASES)
def test_chunked_is_recurrent(batch: int, n: int) -> None:
    inputs = draw(batch, n, seed=1)
    for found, oracle in zip(chunked(*inputs), recurrent(*inputs), strict=True):
        assert error(found, oracle) <= 1e-5


def test_gradients_survive_forgetting_everything() -> None:
    """Log decays that add up to thousands within a chunk: what lies above the diagonal must not overflow into them."""
    inputs = [x.requires_grad_() for x in draw(1, 130, decay=100.0)]
    output, state = chunked(*inputs)
    (output.sum() + state.sum()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


def test_state_stays_float32_whatever_the_inputs() -> None:
    *inputs, state = draw(1, 70)
    for form in (recurrent, chunked):
        output, after = form(*(x.bfloat16() for x in inputs), state)
        assert output.dtype == torch.bfloat16
        assert after.dtype == torch.float32


def run(layer: GatedDeltaNet, x: Tensor, pieces: list[int]) -> tuple[Tensor, Tensor]:
    """The layer over `x` in pieces of these lengths: its outputs and final state."""
    memory = SequenceCache(DECODER, small().policy, len(x), x.device, x.dtype)
    outputs = [layer(part, None, memory) for part in x.split(pieces, 1)]
    return torch.cat(outputs, 1), memory.load(1, "delta")


def qwen3_next(layer: GatedDeltaNet, x: Tensor) -> Tensor:
    """The layer put together from qwen3_next's parts and torch's own convolution."""
    heads, n = layer.heads, x.shape[1]

    def mixed(project: torch.nn.Linear, convolve: torch.nn.Conv1d) -> Tensor:
        padded = F.pad(project(x).transpose(1, 2), (convolve.kernel_size[0] - 1, 0))
        return F.silu(convolve(padded)).transpose(1, 2).unflatten(-1, (heads, -1))

    q = mixed(layer.q_proj, layer.q_conv1d)
    k = mixed(layer.k_proj, layer.k_conv1d)
    v = mixed(layer.v_proj, layer.v_conv1d)
    g = -layer.A_log.exp() * F.softplus(layer.a_proj(x) + layer.dt_bias)
    rule = torch_chunk_gated_delta_rule(q, k, v, g=g, beta=layer.b_proj(x).sigmoid(), use_qk_l2norm_in_kernel=True)
    norm = Qwen3NextRMSNormGated(layer.value, eps=DECODER.norm_eps)
    norm.weight = layer.o_norm.weight
    gate = layer.g_proj(x).view(-1, layer.value)
    return layer.o_proj(norm(rule[0].reshape(-1, layer.value), gate).view(len(x), n, -1))


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_layer_is_the_formula_and_transformers(fused: bool) -> None:
    layer = scatter(GatedDeltaNet(DECODER, 1))
    x = torch.randn(2, 90, DECODER.hidden_size, generator=torch.Generator().manual_seed(3))
    by_qwen = qwen3_next(layer, x)
    by_formula = torch.stack([delta_net(layer, row, DECODER) for row in x])
    if fused:
        layer.fuse()
    output, _ = run(layer, x, [90])
    assert error(output, by_qwen) <= 1e-5
    assert error(output, by_formula) <= 1e-5


@torch.no_grad()
def test_layer_in_pieces_is_the_layer_at_once() -> None:
    layer = scatter(GatedDeltaNet(DECODER, 1))
    x = torch.randn(2, 90, DECODER.hidden_size, generator=torch.Generator().manual_seed(3))
    output, state = run(layer, x, [90])
    for pieces in ([1] * 90, [1, 2, 3, 70, 14], [64, 26]):
        for found, oracle in zip(run(layer, x, pieces), (output, state), strict=True):
            assert error(found, oracle) <= 1e-5


def test_convolution_is_causal_and_depthwise() -> None:
    x, weight = torch.randn(2, 12, 5), torch.randn(5, 4)
    oracle = F.silu(F.conv1d(x.transpose(1, 2), weight[:, None], groups=5)).transpose(1, 2)
    assert error(short_convolution(x, weight), oracle) <= 1e-6
