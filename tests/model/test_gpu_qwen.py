"""Qwen3.5's fused path against the plain one, its kernels at its sizes against brute force, graphs against the same kernels without one.

Needs CUDA and triton.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PRESETS, AttentionPolicy, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.ops.delta_rule import recurrent
from model.state import StreamState

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

if torch.cuda.is_available():
    from model.checkpoint import kept_dtype
    from model.evaluation.distributed import limit_autotuning
    from model.ops.kernels.attention import HeadNorms, Tiling, attend
    from model.ops.kernels.delta_rule import delta_rule
    from model.serving.backends import step_text
    from model.serving.cuda_graphs import Graphs
    from model.serving.fused import FastInfiniteVL

    limit_autotuning()  # fla's, in the plain path: a cold start tries candidates for a minute

GRID = (16, 12)


class Words:
    """Texts of different lengths around the grids."""

    opening: Sequence[int] = (5, 6, 7)
    after: Sequence[int] = (8,)

    def before(self, seconds: float) -> list[int]:
        return [10 + ord(letter) for letter in f"{seconds:.1f}"] + [9]


def cut(name: str) -> InfiniteVLConfig:
    """A preset's widths in 8 layers and 3 vision blocks, with sinks, a window and a cap that a few steps fill, wrap and reach."""
    whole = PRESETS[name]
    decoder = replace(whole.decoder, num_hidden_layers=8, layer_types=whole.decoder.layer_types[:8], vocab_size=4096)
    return replace(
        whole,
        vision=replace(whole.vision, depth=3),
        decoder=decoder,
        policy=AttentionPolicy(sinks=70, window=150),
        tokens_per_frame=48,
        position_cap=215,
    )


def build(config: InfiniteVLConfig, dtype: torch.dtype) -> InfiniteVL:
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = InfiniteVL(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.data = parameter.data.to(kept_dtype(config.decoder, name, dtype))
    model.eval().requires_grad_(False).fuse()
    return model


def exactly(config: InfiniteVLConfig) -> InfiniteVL:
    """The bfloat16 model's weights in float32."""
    model = build(config, torch.bfloat16).float()
    model.fuse()
    return model


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        yield


def ratio(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def distance(a: StreamState, b: StreamState) -> float:
    """The largest L2 ratio over the kinds of state; cursors must be equal."""
    worst = 0.0
    for (name, x, _), (_, y, _) in zip(a.tensors(), b.tensors(), strict=True):
        if name in ("keys", "values"):
            x, y = x[:, :, :-1], y[:, :, :-1]
        if x.dtype == torch.int64:
            assert torch.equal(x, y), name
        else:
            worst = max(worst, ratio(y, x))
    return worst


def begin(fast: FastInfiniteVL, state: StreamState, slots: Tensor) -> None:
    start = torch.tensor([Words.opening], device="cuda").expand(len(slots), -1)
    fast.read(start, state, slots, torch.full_like(slots, start.shape[1]))
    state.begin(slots)


def steps(config: InfiniteVLConfig, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Slots in changing order and number, with patches, times and texts."""
    generator = torch.Generator("cuda").manual_seed(1)
    slots = torch.arange(batch, device="cuda").flip(0)
    for i in range(count):
        chosen = slots if i % 3 else slots.flip(0)
        chosen = chosen[:1] if i % 4 == 3 else chosen
        shape = len(chosen), GRID[0] * GRID[1], config.vision.patch_dim
        patches = torch.randn(shape, device="cuda", generator=generator)
        seconds = chosen.double() * 30 + i * 0.7
        text = step_text(Words(), config, seconds.tolist())
        assert text is not None
        yield chosen, patches, seconds, text.cuda()


@pytest.mark.parametrize("name", ["qwen3.5-0.8b", "qwen3.5-4b", "qwen3.5-27b"])
def test_fused_is_the_plain_path_in_float32(name: str) -> None:
    """Rings that wrap, sinks held to the cap, questions and tokens of forks."""
    config = cut(name)
    model = build(config, torch.float32)
    fast = FastInfiniteVL(model)
    reference, state = (StreamState.allocate(config, 5, "cuda") for _ in range(2))
    slots = torch.tensor([1, 0], device="cuda")
    model.open(reference, slots, Words.opening)
    begin(fast, state, slots)
    for chosen, patches, seconds, text in steps(config, 20, 2):
        model.see(patches, GRID, seconds, reference, chosen, text)
        fast.see(patches, GRID, seconds, state, chosen, text)
    assert int(state.length[:2].min()) > config.policy.sinks + 3 * config.policy.ring_size(config.step_tokens) // 2
    assert int(state.shift(slots).max()) > 0
    assert (off := distance(reference, state)) <= 1e-4, off
    for each in (reference, state):
        each.fork(0, 2)
        each.fork(1, 3)
    forks, tokens = torch.tensor([3, 2], device="cuda"), torch.randint(0, 4096, (2, 20), device="cuda")
    for n, counts in ((20, [20, 7]), (1, [1, 0]), (1, [1, 1])):
        taken = torch.tensor(counts, device="cuda")
        wanted = model.read(tokens[:, :n], reference, forks, taken)
        assert (off := ratio(fast.read(tokens[:, :n], state, forks, taken), wanted)) <= 1e-4, off
    assert (off := distance(reference, state)) <= 1e-4, off


@pytest.mark.parametrize("name", ["qwen3.5-0.8b", "qwen3.5-4b"])
def test_fused_in_bfloat16_is_no_farther_from_float32_than_twice_the_plain_path(name: str) -> None:
    config = cut(name)
    plain, exact = build(config, torch.bfloat16), exactly(config)
    fast = FastInfiniteVL(plain)
    dtypes = torch.float32, torch.bfloat16, torch.bfloat16
    wanted, near, found = (StreamState.allocate(config, 4, "cuda", dtype) for dtype in dtypes)
    slots = torch.tensor([1, 0], device="cuda")
    exact.open(wanted, slots, Words.opening)
    plain.open(near, slots, Words.opening)
    begin(fast, found, slots)
    for chosen, patches, seconds, text in steps(config, 20, 2):
        patches = patches.bfloat16()
        exact.see(patches.float(), GRID, seconds, wanted, chosen, text)
        plain.see(patches, GRID, seconds, near, chosen, text)
        fast.see(patches, GRID, seconds, found, chosen, text)
    for kind in ("delta", "keys", "values"):
        truth, one, other = (getattr(state, kind)[:, :2] for state in (wanted, near, found))
        if kind != "delta":
            truth, one, other = (x[:, :, :-1] for x in (truth, one, other))
        print("bf16", name, kind, ratio(one, truth), ratio(other, truth))
        assert ratio(other, truth) <= 2 * ratio(one, truth)
    tokens, counts = torch.randint(0, 4096, (2, 20), device="cuda"), torch.full_like(slots, 20)
    truth = exact.read(tokens, wanted, slots, counts)
    one = ratio(plain.read(tokens, near, slots, counts), truth)
    other = ratio(fast.read(tokens, found, slots, counts), truth)
    print("bf16", name, "logits", one, other)
    assert other <= 2 * one


@pytest.mark.parametrize("name", ["qwen3.5-0.8b", "qwen3.5-9b"])
@pytest.mark.parametrize("precision", ["model", "fp8"])
def test_a_graph_is_the_same_kernels_to_the_bit(name: str, precision: str) -> None:
    config = cut(name)
    fast = FastInfiniteVL(build(config, torch.bfloat16), precision)  # type: ignore[arg-type]
    eager, state = (StreamState.allocate(config, 6, "cuda", torch.bfloat16) for _ in range(2))
    graphs = Graphs(fast, Words(), state)
    from model.preprocess import arrange

    for slot in (0, 1, 2):
        graphs.open(slot)
        where = torch.tensor([slot], device="cuda")
        padded = torch.zeros(1, 16, dtype=torch.int64, device="cuda")
        padded[0, :3] = torch.tensor(Words.opening)
        fast.read(padded, eager, where, torch.full_like(where, 3))
        eager.begin(where)
    patch = config.vision.patch_size
    shape = (7, 2, GRID[0] * patch, GRID[1] * patch, 3)
    pictures = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)

    def same(slots: Sequence[int]) -> None:
        for (name, x, axis), (_, y, _) in zip(eager.tensors(), state.tensors(), strict=True):
            for slot in slots:
                a, b = x.select(axis, slot), y.select(axis, slot)
                if name in ("keys", "values"):
                    a, b = a[:, :-1], b[:, :-1]
                assert torch.equal(a, b), (name, slot)

    for i in range(60):
        chosen = [[0, 1], [1, 0, 2], [2], [2, 0, 1]][i % 4]
        frames = pictures[[(i + 2 * slot) % 7 for slot in chosen]]
        seconds = [0.1 * i + 40 * slot for slot in chosen]
        shown = graphs.encode([[picture.numpy() for picture in pair] for pair in frames], GRID)
        assert graphs.ingest(chosen, shown, seconds, GRID)() == [True] * len(chosen)
        patches = arrange(config, frames.cuda().permute(0, 1, 4, 2, 3), torch.bfloat16)
        text = step_text(Words(), config, seconds)
        assert text is not None
        times = torch.tensor(seconds, dtype=torch.float64, device="cuda")
        fast.see(patches, GRID, times, eager, torch.tensor(chosen, device="cuda"), text.cuda())
        if i in (0, 1, 7, 8, 9, 30, 59):
            same(chosen)
    for each in (eager, state):
        each.fork(0, 3)
        each.fork(2, 4)
    question = torch.randint(0, 4000, (20,)).tolist()
    for slot in (3, 4):
        _, logits = graphs.read([slot], [question])
        padded = torch.zeros(1, 32, dtype=torch.int64)
        padded[0, :20] = torch.tensor(question)
        where, counts = torch.tensor([slot], device="cuda"), torch.tensor([20], device="cuda")
        assert torch.equal(fast.read(padded.cuda(), eager, where, counts), logits)
    for token in (3, 4, 5):
        _, logits = graphs.read([4, 3], [[token], [token + 1]])
        tokens, where = torch.tensor([[token], [token + 1]], device="cuda"), torch.tensor([4, 3], device="cuda")
        assert torch.equal(fast.read(tokens, eager, where, torch.ones_like(where)), logits)
    same([0, 1, 2, 3, 4])


def test_streams_together_are_what_each_is_alone() -> None:
    """Within 1e-4, as beside the plain path: cuBLAS sums in an order of its own for each number of rows.

    Summed one by one, 6,144 products in float32 are off by 1.4e-6. Noise of that size in every product of the plain path moves its
    states by 1e-5, and on an H200 it was 3e-5; products in parts of tf32 may be the rest.
    """
    config = cut("qwen3.5-2b")
    fast = FastInfiniteVL(build(config, torch.float32))
    together, alone = (StreamState.allocate(config, 4, "cuda") for _ in range(2))
    slots = torch.tensor([2, 0, 3], device="cuda")
    begin(fast, together, slots)
    for slot in slots:
        begin(fast, alone, slot[None])
    generator = torch.Generator("cuda").manual_seed(3)
    for i in range(12):
        patches = torch.randn(3, GRID[0] * GRID[1], config.vision.patch_dim, device="cuda", generator=generator)
        seconds = torch.tensor([0.5 * i, 100.0 + i, 7.0 * i], dtype=torch.float64, device="cuda")
        text = step_text(Words(), config, seconds.tolist())
        assert text is not None
        text = text.cuda()
        fast.see(patches, GRID, seconds, together, slots, text)
        for row in range(3):
            one = slice(row, row + 1)
            fast.see(patches[one], GRID, seconds[one], alone, slots[one], text[one])
    assert (off := distance(alone, together)) <= 1e-4, off
    tokens, ones = torch.randint(0, 4096, (3, 1), device="cuda"), torch.ones_like(slots)
    logits = fast.read(tokens, together, slots, ones)
    for row in range(3):
        one = slice(row, row + 1)
        assert ratio(logits[one], fast.read(tokens[one], alone, slots[one], ones[one])) <= 1e-4


def test_fp8_stays_near_bfloat16_with_outlier_channels() -> None:
    config = cut("qwen3.5-9b")
    model = build(config, torch.bfloat16)
    for layer in model.model.layers:
        layer.input_layernorm.weight[::173] *= 20
    plain, coarse = FastInfiniteVL(model), FastInfiniteVL(model, "fp8")
    a, b = (StreamState.allocate(config, 2, "cuda", torch.bfloat16) for _ in range(2))
    slots = torch.tensor([1, 0], device="cuda")
    begin(plain, a, slots)
    begin(coarse, b, slots)
    for chosen, patches, seconds, text in steps(config, 10, 2):
        plain.see(patches.bfloat16(), GRID, seconds, a, chosen, text)
        coarse.see(patches.bfloat16(), GRID, seconds, b, chosen, text)
    tokens, counts = torch.arange(40, device="cuda").view(2, 20), torch.full_like(slots, 20)
    off = ratio(coarse.read(tokens, b, slots, counts), plain.read(tokens, a, slots, counts))
    print("fp8 logits", off)
    assert off <= 0.15


def normed(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()


def turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """`x` [..., n, heads, head], the first 64 rotated by [..., n, 32]."""
    low, high, still = x.double().split((32, 32, x.shape[-1] - 64), -1)
    cos, sin = (part.unsqueeze(-2).double() for part in turn)
    return torch.cat((low * cos - high * sin, high * cos + low * sin, still), -1)


TILINGS = (None, (64, 32, 1, 4, 3), (64, 32, 4, 4, 3), (128, 32, 1, 8, 3), (128, 32, 4, 8, 3))


@pytest.mark.parametrize("heads, group", [(2, 4), (4, 4), (4, 6)])
@pytest.mark.parametrize("n, age", [(208, 100_000), (208, 300), (1, 100_000), (16, 2500)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_attention_at_the_families_sizes_is_brute_force(
    heads: int, group: int, n: int, age: int, dtype: torch.dtype
) -> None:
    """Heads of 256 with 64 turned, 256 sinks and a window of 2,048: each tiling that may be chosen, young streams and wrapped ones."""
    torch.manual_seed(0)
    head, policy, batch = 256, AttentionPolicy(256, 2048), 3
    sinks, ring = policy.sinks, policy.ring_size(208)
    pool = torch.randn(2, 5, sinks + ring + 1, heads, head, device="cuda").to(dtype)
    weights = [1 + 0.3 * torch.randn(head, device="cuda") for _ in range(2)]
    norms = HeadNorms(weights[0], weights[1], 1e-6)
    joint = torch.randn(batch, n, (2 * group + 2) * heads * head, device="cuda").to(dtype)
    angles = torch.rand(batch, n, 32, device="cuda") * 6
    sink_angles = torch.rand(batch, sinks, 32, device="cuda") * 6
    turn, sink_turn = (angles.cos(), angles.sin()), (sink_angles.cos(), sink_angles.sin())
    slots = torch.tensor([4, 0, 2], device="cuda")
    starts = torch.tensor([age, age + 1117, age - 299], device="cuda")
    counts = torch.tensor([n, max(1, n - 7), n], device="cuda")

    q, k, v, _ = joint.unflatten(-1, (-1, head)).split((heads * group, heads, heads, heads * group), 2)
    raw, query = normed(k, weights[1]), turned(normed(q, weights[0]), turn).to(dtype)
    placed = turned(raw, turn).to(dtype)
    after = pool.clone()
    wanted = torch.empty(batch, n, heads * group, head, device="cuda", dtype=torch.float64)
    for i, slot in enumerate(slots.tolist()):
        count, start = int(counts[i]), int(starts[i])
        index = start + torch.arange(count, device="cuda")
        rows = torch.where(index < sinks, index, sinks + index % ring)
        after[0, slot, rows] = torch.where((index < sinks)[:, None, None], raw[i, :count].to(dtype), placed[i, :count])
        after[1, slot, rows] = v[i, :count]
        last = start + count - 1
        held = last - (last - torch.arange(ring, device="cuda")) % ring
        first = torch.arange(sinks, device="cuda")
        held = torch.cat((torch.where(first <= last, first, -1), torch.where(held < sinks, -1, held)))
        keys, values = after[0, slot, :-1].clone(), after[1, slot, :-1].double()
        keys[:sinks] = turned(keys[:sinks], (sink_turn[0][i], sink_turn[1][i])).to(dtype)
        asked = start + torch.arange(n, device="cuda")[:, None]
        shown = (held >= 0) & (held <= asked) & ((held < sinks) | (asked - held < policy.window))
        score = torch.einsum("nhgd,mhd->hgnm", query[i].double().unflatten(1, (heads, group)), keys.double()) / 16
        mass = score.masked_fill(~shown, -torch.inf).softmax(-1)
        wanted[i] = torch.einsum("hgnm,mhd->nhgd", mass, values).flatten(1, 2)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    for tiling in TILINGS if dtype == torch.bfloat16 and n > 16 else (None,):
        state = pool.clone()
        found = attend(
            joint, turn, sink_turn, slots, starts, counts, state[0], state[1], heads * group, policy,
            None if tiling is None else Tiling(*tiling), norms,
        ).unflatten(-1, (-1, head))  # fmt: skip
        assert ratio(state[0][:, :-1], after[0][:, :-1]) <= bound and torch.equal(state[1][:, :-1], after[1][:, :-1])
        for i in range(batch):
            count = int(counts[i])
            off = ratio(found[i, :count], wanted[i, :count])
            assert off <= bound, (tiling, i, off)
            worst = (found[i, :count].double() - wanted[i, :count]).norm(dim=-1) / wanted[i, :count].norm(dim=-1)
            assert float(worst.max()) <= 10 * bound, (tiling, i, float(worst.max()))


@pytest.mark.parametrize("heads", [16, 32, 48])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("n", [208, 32, 1])
def test_delta_rule_at_the_families_sizes_is_the_recurrence(heads: int, batch: int, n: int) -> None:
    """16 heads of keys shared by 16, 32 or 48 of values, all of 128, in bfloat16."""
    torch.manual_seed(0)
    shape = batch, n, 16, 128
    q, k = (F.normalize(torch.randn(shape, device="cuda"), dim=-1) for _ in range(2))
    v = torch.randn(batch, n, heads, 128, device="cuda")
    mixed = torch.cat([part.flatten(-2) for part in (q, k, v)], -1).bfloat16()
    decay, beta = -0.2 * torch.rand(batch, n, heads, device="cuda"), torch.rand(batch, n, heads, device="cuda")
    state = 0.3 * torch.randn(batch + 1, heads, 128, 128, device="cuda")
    slots = torch.arange(batch, 0, -1, device="cuda")
    q, k, v = (part.unflatten(-1, (-1, 128)).float() for part in mixed.split((2048, 2048, heads * 128), -1))
    q, k = (part.repeat_interleave(heads // 16, 2) for part in (q, k))
    wanted, last = recurrent(q, k, v, decay, beta, state[slots])
    untouched = state[0].clone()
    found = delta_rule(mixed, decay, beta, slots, state, heads, 128)
    assert ratio(found, wanted) <= 2e-2 and ratio(state[slots], last) <= 2e-2
    assert torch.equal(state[0], untouched)
