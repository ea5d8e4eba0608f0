"""Single kernels against brute force, on any device: needs triton, and CUDA or TRITON_INTERPRET=1."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.cache import SlotCache
from model.config import AttentionPolicy, InfiniteVLConfig
from model.ops.rope import rotation
from model.state import StreamState

from .small import DECODER, small

pytest.importorskip("triton", reason="triton is not installed; needs CUDA or its interpreter")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs CUDA or triton's interpreter", allow_module_level=True)

from model.ops.convolution import short_convolution
from model.ops.delta_rule import recurrent
from model.ops.kernels.attention import HeadNorms, Tiling, attend
from model.ops.kernels.convolution import mix
from model.ops.kernels.delta_rule import delta_rule
from model.ops.kernels.gated import gated
from model.ops.kernels.norm import add_norm, gated_norm, gelu, open_gate, swiglu
from model.ops.kernels.product import Cut, product, row_product
from model.ops.kernels.window_attention import attend_windows
from model.serving.cursor_kernels import Span, frame_span, step_span, text_span
from model.serving.quantize import quantize_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def ratio(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x` [n, heads, head], the first of its values rotated by [n, turned / 2]."""
    half = cos.shape[-1]
    low, high, still = x.double().split((half, half, x.shape[-1] - 2 * half), -1)
    cos, sin = cos[:, None].double(), sin[:, None].double()
    return torch.cat((low * cos - high * sin, high * cos + low * sin, still), -1)


@pytest.mark.parametrize("policy", [AttentionPolicy(20, 75), AttentionPolicy(0, 75), AttentionPolicy(33, 30)], ids=str)
@pytest.mark.parametrize(
    "dtype, cut, half",
    [
        (torch.float32, None, 16),
        (torch.float32, Tiling(64, 32, 2, 4, 2), 16),
        (torch.bfloat16, Tiling(16, 32, 4, 4, 2), 16),
        (torch.float32, None, 4),
        (torch.bfloat16, Tiling(16, 32, 4, 4, 2), 4),
    ],
    ids=str,
)
def test_attention_sees_exactly_what_the_policy_shows(
    policy: AttentionPolicy, dtype: torch.dtype, cut: Tiling | None, half: int
) -> None:
    """Streams of different ages, padded calls, a ring that wraps at no tile's edge: against softmax over the whole past.

    Where only a part of each head is turned, heads are normed before, and gates follow the values.
    """
    torch.manual_seed(0)
    heads, group, head, step, pool = 2, 3, 32, 23, 3
    weights = [1 + 0.3 * torch.randn(head, device=DEVICE) for _ in range(2)]
    norms = HeadNorms(weights[0], weights[1], 1e-6) if half < head // 2 else None

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x.double()
        return x if norms is None else x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()

    sinks, ring = policy.sinks, policy.ring_size(step)
    keys = torch.randn(pool, sinks + ring + 1, heads, head, device=DEVICE).to(dtype)
    values = torch.randn_like(keys)
    past: dict[int, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {0: [], 2: []}
    lengths = {0: 0, 2: 0}
    sink_turn = (torch.randn(2, max(sinks, 1), half, device=DEVICE).cos(),) * 2
    for call in range(9):
        order, n = ([0, 2] if call % 2 else [2, 0]), 1 if call == 6 else step
        counts = [n, n] if call != 4 else [n - 4, 0]
        joint = torch.randn(2, n, (group + 2 + (norms is not None)) * heads * head, device=DEVICE).to(dtype)
        angle = torch.randn(2, n, half, device=DEVICE)
        turn = angle.cos(), angle.sin()
        starts = torch.tensor([lengths[slot] for slot in order], device=DEVICE)
        found = attend(
            joint, turn, sink_turn, torch.tensor(order, device=DEVICE), starts, torch.tensor(counts, device=DEVICE),
            keys, values, heads * group, policy, cut, norms,
        )  # fmt: skip
        for i, slot in enumerate(order):
            q, k, v = (
                joint[i].unflatten(-1, (-1, head))[:, : (group + 2) * heads].split((heads * group, heads, heads), 1)
            )
            q, k = normed(q, weights[0]), normed(k, weights[1])
            placed = turned(k, turn[0][i], turn[1][i]).to(dtype)
            past[slot] += [(k[j], placed[j], v[j]) for j in range(counts[i])]
            lengths[slot] += counts[i]
            raw, kept, held = (torch.stack(part).double() for part in zip(*past[slot], strict=True))
            some = min(sinks, len(raw))
            kept[:some] = turned(raw[:some], sink_turn[0][i, :some], sink_turn[1][i, :some]).to(dtype)
            index = int(starts[i]) + torch.arange(counts[i], device=DEVICE)[:, None]
            j = torch.arange(len(kept), device=DEVICE)[None]
            shown = (j <= index) & ((j < sinks) | (index - j < policy.window))
            query = turned(q, turn[0][i], turn[1][i])[: counts[i]].unflatten(1, (heads, group))
            score = torch.einsum("nhgd,mhd->hgnm", query.to(dtype).double(), kept) * head**-0.5
            mass = score.masked_fill(~shown, -torch.inf).softmax(-1)
            wanted = torch.einsum("hgnm,mhd->nhgd", mass, held).flatten(1)
            if counts[i]:
                assert ratio(found[i, : counts[i]], wanted) < (1e-5 if dtype == torch.float32 else 2e-2), (call, slot)


@pytest.mark.parametrize(
    "key, value, n, heads, group",
    [
        (64, 128, 64, 2, 1),
        (64, 128, 20, 2, 1),
        (64, 128, 150, 2, 1),
        (128, 64, 40, 2, 1),
        (32, 64, 1, 2, 1),
        (128, 256, 256, 2, 1),
        (128, 256, 256, 32, 1),
        (128, 256, 150, 32, 1),
        (128, 128, 208, 4, 2),
        (128, 128, 100, 6, 3),
        (128, 128, 1, 6, 3),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("alike", [False, True])
def test_delta_rule_is_the_recurrence(
    key: int, value: int, n: int, heads: int, group: int, dtype: torch.dtype, alike: bool
) -> None:
    """In place at the chosen slots and nowhere else, in one chunk and in several; keys of a nano's size, keys that `group`
    heads of values share, and keys that hardly differ, whose system is the worst to solve."""
    torch.manual_seed(0)
    batch, pool = 2, 4
    q, k = (torch.randn(batch, n, heads // group, key, device=DEVICE) for _ in range(2))
    if alike:
        k = 0.1 * k + torch.randn(key, device=DEVICE)
    q, k = (torch.nn.functional.normalize(part, dim=-1) for part in (q, k))
    v = torch.randn(batch, n, heads, value, device=DEVICE)
    mixed = torch.cat([part.flatten(-2) for part in (q, k, v)], -1).to(dtype)
    decay, beta = -0.2 * torch.rand(batch, n, heads, device=DEVICE), torch.rand(batch, n, heads, device=DEVICE)
    if alike:
        decay, beta = 0.01 * decay, 0.9 + 0.1 * beta
    state = 0.3 * torch.randn(pool, heads, key, value, device=DEVICE)
    before, slots = state.clone(), torch.tensor([3, 1], device=DEVICE)
    found = delta_rule(mixed, decay, beta, slots, state, heads, value)
    keys = heads // group * key
    q, k, v = (
        part.unflatten(-1, (-1, size)).float()
        for part, size in zip(mixed.split((keys, keys, heads * value), -1), (key, key, value), strict=True)
    )
    q, k = (part.repeat_interleave(group, 2) for part in (q, k))
    wanted, last = recurrent(q, k, v, decay, beta, before[slots])
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert ratio(found, wanted) < bound
    assert ratio(state[slots], last) < bound
    assert torch.equal(state[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("n, counts", [(1, (1, 1, 0)), (2, (2, 1, 2)), (20, (20, 3, 17))])
@pytest.mark.parametrize("padding, heads, group", [(0, 2, 1), (8, 2, 1), (0, 6, 3)])
def test_mixing_is_the_short_convolution_of_each_streams_own_tokens(
    n: int, counts: tuple[int, ...], padding: int, heads: int, group: int
) -> None:
    """Slots in any order, padded calls, and tokens that stand farther apart than they are wide, as fp8's products leave them."""
    torch.manual_seed(0)
    key, value, width, batch, pool = 16, 32, 4, 3, 5
    keys, values = heads // group * key, heads * value
    channels = 2 * keys + values
    outs = channels + values + 2 * heads
    joint = torch.randn(batch * n, outs + padding, device=DEVICE)[:, :outs].unflatten(0, (batch, -1))
    kept = torch.randn(pool, width - 1, channels, device=DEVICE)
    weight, slots = torch.randn(channels, width, device=DEVICE), torch.tensor([3, 0, 4], device=DEVICE)
    a_log, dt_bias = torch.rand(heads, device=DEVICE), torch.rand(heads, device=DEVICE)
    inputs, before = torch.cat((kept[slots], joint[..., :channels]), 1), kept.clone()
    number = torch.tensor(counts, device=DEVICE)
    mixed, decay, beta = mix(joint, kept, weight, a_log, dt_bias, slots, number, key, values)
    wanted = short_convolution(inputs, weight)
    q, k = (part.unflatten(-1, (-1, key)) for part in wanted[..., : 2 * keys].split(keys, -1))
    q, k = (part * (part.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for part in (q, k))
    wanted = torch.cat((q.flatten(-2), k.flatten(-2), wanted[..., 2 * keys :]), -1)
    b, a = joint[..., -2 * heads :].split(heads, -1)
    g = -a_log.exp() * torch.nn.functional.softplus(a + dt_bias)
    for i, (slot, count) in enumerate(zip(slots.tolist(), counts, strict=True)):
        assert count == 0 or ratio(mixed[i, :count], wanted[i, :count]) < 1e-6
        assert torch.allclose(decay[i, :count], g[i, :count], rtol=1e-5) and not decay[i, count:].any()
        assert torch.allclose(beta[i, :count], b[i, :count].sigmoid(), rtol=1e-5) and not beta[i, count:].any()
        assert torch.equal(kept[slot], inputs[i, count : count + width - 1])
    assert torch.equal(kept[[1, 2]], before[[1, 2]])


def test_what_lies_between_the_products_is_the_plain_formula() -> None:
    """At widths and numbers of heads that are no power of two, gates in rows of something wider."""
    torch.manual_seed(0)
    x, y = (torch.randn(5, 200, device=DEVICE) for _ in range(2))
    weight, bias = torch.randn(200, device=DEVICE), torch.randn(200, device=DEVICE)
    residual = y.clone()
    found = add_norm(x, residual, weight, 1e-6, bias=bias)
    assert ratio(residual, x + y) < 1e-6
    assert ratio(found, F.layer_norm((x + y).double(), (200,), weight.double(), bias.double(), 1e-6)) < 1e-6
    assert ratio(gelu(3 * x), F.gelu(3 * x.double(), approximate="tanh")) < 1e-6
    gates = torch.randn(5, 300, device=DEVICE)[:, 50:250]
    assert ratio(open_gate(x, gates), x.double() * gates.double().sigmoid()) < 1e-6
    heads = torch.randn(5, 12, 128, device=DEVICE)
    gates, weight = torch.randn(5, 1600, device=DEVICE)[:, :1536], torch.randn(128, device=DEVICE)
    opened = F.silu(gates.double()).unflatten(-1, (12, 128))
    wanted = F.rms_norm(heads.double(), (128,), weight.double(), 1e-6) * opened
    assert ratio(gated_norm(heads, gates, weight, 1e-6), wanted.flatten(1)) < 1e-6


@pytest.mark.parametrize("coarse", [True, False], ids=["fp8", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("cut", [None, Cut(64, 128, 1, 4, 2), Cut(64, 128, 3, 4, 2)], ids=str)
def test_product_of_few_rows_is_that_of_the_numbers_kept(rows: int, cut: Cut | None, coarse: bool) -> None:
    torch.manual_seed(0)
    kept = quantize_rows if coarse else torch.Tensor.bfloat16
    x, weight = kept(torch.randn(rows, 512, device=DEVICE)), kept(torch.randn(200, 512, device=DEVICE))
    bias = torch.randn(200, device=DEVICE).bfloat16()
    whole = [
        part.double() if isinstance(part, torch.Tensor) else part.data.double() * part.scales.double()[:, None]
        for part in (x, weight)
    ]
    wanted = whole[0] @ whole[1].T
    assert ratio(product(x, weight, None, cut), wanted) < 4e-3
    assert ratio(product(x, weight, bias, cut), wanted + bias) < 4e-3
    first, again = (product(x, weight, bias, cut) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("outs, width", [(203, 2560), (2560, 912)])
def test_product_of_one_row_is_the_rounded_sum(outs: int, width: int) -> None:
    """At outputs and widths that no tile divides."""
    torch.manual_seed(0)
    x, weight = (torch.randn(rows, width, device=DEVICE).bfloat16() for rows in (1, outs))
    wanted = x.double() @ weight.double().T
    assert ratio(row_product(x, weight), wanted) < 4e-3
    assert ratio(row_product(x.float(), weight.float()), wanted) < 1e-6


def test_padded_rows_are_refused_where_they_would_be_read_askew() -> None:
    padded = torch.zeros(4, 40, device=DEVICE)[:, :32]
    with pytest.raises(AssertionError, match="askew"):
        swiglu(padded)
    none = torch.empty(0, device=DEVICE)
    with pytest.raises(AssertionError, match="askew"):
        attend(padded[:, None], (none, none), (none, none), none, none, none, none, none, 2, AttentionPolicy(1, 4))


POOL, SPARE = 6, 5


def aged(config: InfiniteVLConfig) -> StreamState:
    """A pool whose slots hold none, some or all of the sinks, at positions up to 2 * 10**10."""
    state = StreamState.allocate(config, POOL, DEVICE)
    for name, tensor, _ in state.tensors():
        if name in ("sink_positions", "next", "time", "origin"):
            tensor.copy_(torch.randint(0, 10**10, tensor.shape, device=DEVICE))
    state.length.copy_(torch.tensor([0, 3, config.policy.sinks, 10**10, 1, 4], device=DEVICE))
    state.time[:3] = torch.tensor([-1, 119, 125], device=DEVICE)
    state.origin[:2] = 0
    return state


def check_span(found: Span, state: StreamState, reference: StreamState, positions: torch.Tensor) -> None:
    """A span and the cursors that it moved, against the reference's memory of the same call."""
    config, decoder = state.config, state.config.decoder
    assert torch.equal(found.starts, reference.length[found.slots])
    memory = SlotCache(reference, found.slots, positions, found.counts)
    real, taken = found.counts > 0, reference.length.clone()
    taken[found.slots[real]] += found.counts[real]
    reference.length.copy_(taken)
    for (name, x, _), (_, y, _) in zip(state.tensors(), reference.tensors(), strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y), name
    turn = rotation(positions, decoder.rotary_dim, decoder.rope_theta, decoder.mrope_section, decoder.mrope_interleaved)
    pairs = [(found.turn, turn)] + ([(found.sink_turn, memory.sink_rotation)] if config.policy.sinks else [])
    for some, wanted in pairs:
        for x, y in zip(some, wanted, strict=True):
            assert x.dtype == torch.float32 and x.is_contiguous()
            assert torch.allclose(x, y[..., : decoder.rotary_dim // 2], rtol=0, atol=2e-7)


@pytest.mark.parametrize("sinks", [0, 6, 21])
@pytest.mark.parametrize("horizon", [None, 60.0])
@pytest.mark.parametrize(
    "n, counts", [(1, (1, 1, 0, 1)), (5, (5, 0, 2, 4)), (16, (16, 3, 1, 16)), (16, (0, 0, 0, 0))], ids=str
)
def test_text_is_placed_as_the_reference_places_it(
    sinks: int, horizon: float | None, n: int, counts: tuple[int, ...]
) -> None:
    """Every cursor moves as in the reference, or not at all where nothing is read; padding names the spare slot twice."""
    torch.manual_seed(0)
    config = small(policy=AttentionPolicy(sinks, 20), position_horizon=horizon, tokens_per_frame=16)
    table = torch.randn(50, 48, device=DEVICE).bfloat16()
    for order in ([0, 1, 2, 3], [4, 3, 1, 2]):
        state, reference = aged(config), StreamState.allocate(config, POOL, DEVICE)
        for (_, x, _), (_, y, _) in zip(reference.tensors(), state.tensors(), strict=True):
            x.copy_(y)
        slots = torch.tensor([*order, SPARE, SPARE], device=DEVICE)
        number = torch.tensor([*counts, 0, 0], device=DEVICE)
        tokens = torch.randint(0, 50, (n, 6), device=DEVICE).T
        for _ in range(2):
            found, rows = text_span(tokens, table, state, slots, number)
            check_span(found, state, reference, reference.text_positions(slots, n, number))
            assert torch.equal(rows, table[tokens].flatten(0, 1))


@pytest.mark.parametrize("sinks", [0, 21])
@pytest.mark.parametrize("horizon", [None, 60.0])
def test_frames_are_placed_as_the_reference_places_them(sinks: int, horizon: float | None) -> None:
    torch.manual_seed(0)
    config = small(policy=AttentionPolicy(sinks, 20), position_horizon=horizon)
    state, reference = aged(config), StreamState.allocate(config, POOL, DEVICE)
    for (_, x, _), (_, y, _) in zip(reference.tensors(), state.tensors(), strict=True):
        x.copy_(y)
    slots = torch.tensor([2, 0, 4, 1], device=DEVICE)
    counts = torch.full_like(slots, 12)
    for second in (3.0, 90.0):
        seconds = torch.full((4,), second, dtype=torch.float64, device=DEVICE)
        positions = [each.frame_positions(slots, seconds, 3, 4) for each in (state, reference)]
        check_span(frame_span(positions[0], state, slots, counts), state, reference, positions[1])


@pytest.mark.parametrize("sinks", [0, 21])
@pytest.mark.parametrize("cap", [None, 60])
def test_text_and_grids_are_placed_as_the_reference_counts_them(sinks: int, cap: int | None) -> None:
    """Steps of a grid between texts of different lengths, questions after them; half of each head turned, axes in turns."""
    torch.manual_seed(0)
    config = small(
        policy=AttentionPolicy(sinks, 20), positions="counter", position_cap=cap, step_text=7, tokens_per_frame=12,
        decoder=replace(DECODER, partial_rotary_dim=8, mrope_section=(2, 1, 1), mrope_interleaved=True),
    )  # fmt: skip
    state, reference = aged(config), StreamState.allocate(config, POOL, DEVICE)
    for (_, x, _), (_, y, _) in zip(reference.tensors(), state.tensors(), strict=True):
        x.copy_(y)
    slots = torch.tensor([2, 0, 4], device=DEVICE)
    table = torch.randn(50, 48, device=DEVICE)
    for height, width in ((3, 4), (2, 5)):
        text = torch.randint(0, 50, (9, 3), device=DEVICE).T
        text[:, :2] = torch.tensor([[3, 4], [5, 7], [0, 1]], device=DEVICE)
        grid = torch.randn(3, height * width, 48, device=DEVICE)
        found, rows = step_span(text, grid, (height, width), table, state, slots)
        lead, count = text[:, 0], text[:, 1]
        positions = reference.step_positions(slots, lead, count, 7, height, width)
        assert torch.equal(found.counts, count + height * width)
        check_span(found, state, reference, positions)
        for row, told, shown in zip(rows.unflatten(0, (3, -1)), text, grid, strict=True):
            before, after = table[told[2 : 2 + told[0]]], table[told[2 + told[0] : 2 + told[1]]]
            assert torch.equal(row[: told[1] + height * width], torch.cat((before, shown, after)))
        tokens, number = torch.randint(0, 50, (3, 5), device=DEVICE), torch.tensor([5, 0, 2], device=DEVICE)
        found, _ = text_span(tokens, table, state, slots, number)
        check_span(found, state, reference, reference.text_positions(slots, 5, number))


@pytest.mark.parametrize("rows, width, inner", [(17, 128, 128), (300, 1280, 3456), (2048, 2048, 11008)])
@pytest.mark.parametrize("biased", [False, True])
def test_swiglu_within_its_product_is_the_formula(rows: int, width: int, inner: int, biased: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, width, device=DEVICE).bfloat16()
    weight = (torch.randn(2 * inner, width, device=DEVICE) / width**0.5).bfloat16()
    bias = torch.randn(2 * inner, device=DEVICE).bfloat16() if biased else None
    gate, up = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).chunk(2, -1)
    assert ratio(gated(x, weight, bias), F.silu(gate) * up) < 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("span, heads, head", [(64, 16, 80), (4, 3, 16), (16, 2, 80), (24, 2, 32)])
def test_windows_attend_to_their_own_rotated_keys(span: int, heads: int, head: int, dtype: torch.dtype) -> None:
    """Where the rows of a product are padded, and where two pictures of three windows have one table of rotations."""
    torch.manual_seed(0)
    rows, width = 6 * span, heads * head
    joint = torch.randn(rows, 3 * width + 8, device=DEVICE).to(dtype)[:, : 3 * width]
    angles = torch.randn(3 * span, head // 2, device=DEVICE)
    cos, sin = angles.cos(), angles.sin()
    q, k, v = joint.view(rows, 3, heads, head).unbind(1)
    q, k = (turned(x, cos.repeat(2, 1), sin.repeat(2, 1)) for x in (q, k))
    shown = torch.block_diag(*torch.ones(6, span, span, device=DEVICE)).bool()
    wanted = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v.double())), shown)
    found = attend_windows(joint, heads, span, cos.repeat(1, 2), sin.repeat(1, 2))
    assert ratio(found, wanted.transpose(0, 1).flatten(1)) < (1e-5 if dtype == torch.float32 else 6e-3)
