"""The fused path against the reference, and graphs against the same kernels without one. Needs CUDA and triton."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from model.config import PRESETS, AttentionPolicy, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.serving.quantize import Precision
from model.state import StreamState

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

if torch.cuda.is_available():
    from model.evaluation.distributed import limit_autotuning
    from model.ops.kernels import dependence
    from model.serving.cuda_graphs import Graphs
    from model.serving.fused import FastInfiniteVL
    from model.serving.roofline import Words

    limit_autotuning()  # fla's, in the plain path: a cold start tries candidates for a minute

COMPARED = (1, 2, 5, 9, 10, 11, 12, 13, 59, 500)
"""Frames of a stream after which its state is compared to the bit; the rings of both sizes wrap on the way."""


def small(horizon: float | None = 4.0) -> InfiniteVLConfig:
    """Nano's widths, 4 layers, and sinks and a window that a few frames fill and wrap, at no multiple of any tile."""
    nano = PRESETS["nano"]
    return replace(
        nano,
        vision=replace(nano.vision, depth=2, fullatt_block_indexes=(1,), intermediate_size=500),
        decoder=replace(nano.decoder, num_hidden_layers=4, layer_types=()),
        policy=AttentionPolicy(sinks=70, window=150),
        position_horizon=horizon,
    )


def wide() -> InfiniteVLConfig:
    """The 4b's widths in 4 layers and 4 vision blocks."""
    whole = PRESETS["4b"]
    return replace(
        whole,
        vision=replace(whole.vision, depth=4, fullatt_block_indexes=(1, 3)),
        decoder=replace(whole.decoder, num_hidden_layers=4, layer_types=(), vocab_size=4096),
        vision_start_token_id=1,
    )


def build(config: InfiniteVLConfig, dtype: torch.dtype) -> InfiniteVL:
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = InfiniteVL(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(dtype).eval().requires_grad_(False).fuse()
    return model


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        yield


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


def ratio(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def drive(
    model: InfiniteVL, fast: FastInfiniteVL, reference: StreamState, state: StreamState, frames: int, batch: int = 2
) -> None:
    """Feeds both the same streams, whose slots come in changing order and numbers."""
    config, grid = model.config, (16, 16) if model.config.square_grid else (32, 32)
    generator = torch.Generator("cuda").manual_seed(1)
    slots = torch.arange(batch, device="cuda").flip(0)
    model.open(reference, slots)
    start = torch.full((batch, 1), config.vision_start_token_id, device="cuda")
    fast.read(start, state, slots, torch.ones_like(slots))
    state.begin(slots)
    dtype = reference.keys.dtype
    for i in range(frames):
        chosen = slots if i % 3 else slots.flip(0)
        chosen = chosen[:1] if i % 4 == 3 else chosen
        patches = torch.randn(
            len(chosen), grid[0] * grid[1], config.vision.patch_dim, device="cuda", generator=generator
        )
        seconds = chosen.double() * 0.3 + i * 0.7
        model.see(patches.to(dtype), grid, seconds, reference, chosen)
        fast.see(patches.to(dtype), grid, seconds, state, chosen)


@pytest.mark.parametrize("config", [small(), small(None), wide()], ids=["small", "unlimited", "wide"])
def test_fast_matches_the_reference_in_float32(config: InfiniteVLConfig) -> None:
    model = build(config, torch.float32)
    fast = FastInfiniteVL(model)
    reference, state = (StreamState.allocate(config, 5, "cuda") for _ in range(2))
    drive(model, fast, reference, state, 14)
    assert distance(reference, state) <= 1e-4
    for each in (reference, state):
        each.fork(0, 2)
        each.fork(1, 3)
    slots = torch.tensor([3, 2], device="cuda")
    tokens = torch.randint(0, 2048, (2, 20), device="cuda")
    counts = torch.tensor([20, 7], device="cuda")
    assert ratio(fast.read(tokens, state, slots, counts), model.read(tokens, reference, slots, counts)) <= 1e-4
    for step in range(3):
        counts = torch.tensor([1, step % 2], device="cuda")
        wanted = model.read(tokens[:, step : step + 1], reference, slots, counts)
        assert ratio(fast.read(tokens[:, step : step + 1], state, slots, counts), wanted) <= 1e-4
    assert distance(reference, state) <= 1e-4


@pytest.mark.parametrize("config", [small(), wide()], ids=["small", "wide"])
def test_fast_in_bfloat16_is_no_farther_from_float32_than_twice_the_plain_path(config: InfiniteVLConfig) -> None:
    plain = build(config, torch.bfloat16)
    exact = build(config, torch.bfloat16).float()
    exact.fuse()
    fast = FastInfiniteVL(plain)
    states = [
        StreamState.allocate(config, 3, "cuda", dtype) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    ]
    drive(plain, fast, states[1], states[2], 14)
    drive(exact, FastInfiniteVL(exact), states[0], StreamState.allocate(config, 3, "cuda"), 14)
    for name in ("delta", "values"):
        wanted, near, found = (getattr(state, name) for state in states)
        if name == "values":
            wanted, near, found = (x[:, :, :-1] for x in (wanted, near, found))
        print(name, ratio(near, wanted), ratio(found, wanted))
        assert ratio(found, wanted) <= 2 * ratio(near, wanted)


def test_fast_in_bfloat16_is_no_farther_after_a_thousand_frames() -> None:
    config = small()
    plain, exact = build(config, torch.bfloat16), build(config, torch.bfloat16).float()
    exact.fuse()
    fast = FastInfiniteVL(plain)
    wanted, near, found = (
        StreamState.allocate(config, 4, "cuda", dtype) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    slots = torch.tensor([1, 0], device="cuda")
    for state in (wanted, near, found):
        (exact if state is wanted else plain).open(state, slots)
    generator = torch.Generator("cuda").manual_seed(1)
    for i in range(1, 1001):
        patches = torch.randn(2, 256, config.vision.patch_dim, device="cuda", generator=generator).bfloat16()
        seconds = i * 0.08 + slots.double()
        exact.see(patches.float(), (16, 16), seconds, wanted, slots)
        plain.see(patches, (16, 16), seconds, near, slots)
        fast.see(patches, (16, 16), seconds, found, slots)
        if i in (10, 100, 400, 1000):
            for name in ("delta", "keys", "values"):
                truth, one, other = (getattr(state, name)[:, :2] for state in (wanted, near, found))
                if name != "delta":
                    truth, one, other = (x[:, :, :-1] for x in (truth, one, other))
                print(name, "after", i, ratio(one, truth), ratio(other, truth))
                assert ratio(other, truth) <= 2 * ratio(one, truth)
    tokens = torch.randint(0, 2048, (2, 20), device="cuda", generator=generator)
    forks, counts = slots + 2, torch.full_like(slots, 20)
    for state in (wanted, near, found):
        state.fork(0, 2)
        state.fork(1, 3)
    truth = exact.read(tokens, wanted, forks, counts)
    one, other = (
        ratio(model.read(tokens, state, forks, counts), truth) for model, state in ((plain, near), (fast, found))
    )
    print("values of an answer's first token after 1000", one, other)
    assert other <= 2 * one


@pytest.mark.parametrize("config", [small(), wide()], ids=["small", "wide"])
def test_graph_is_the_same_kernels_to_the_bit(config: InfiniteVLConfig) -> None:
    model = build(config, torch.bfloat16)
    fast = FastInfiniteVL(model)
    eager, state = (StreamState.allocate(config, 6, "cuda", torch.bfloat16) for _ in range(2))
    graphs = Graphs(fast, Words(config), state)
    grid = (16, 16) if config.square_grid else (32, 32)
    side = grid[0] * config.vision.patch_size
    from model.preprocess import arrange

    for slot in (0, 1, 2):
        graphs.read([slot], [[config.vision_start_token_id]])
        state.begin(torch.tensor([slot], device="cuda"))
        start = torch.tensor([[config.vision_start_token_id]], device="cuda")
        where = torch.tensor([slot], device="cuda")
        fast.read(start, eager, where, torch.ones_like(where))
        eager.begin(where)
    shape = (7, config.frames_per_step, side, side, 3)
    pictures = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    seen: Counter[int] = Counter()
    for i in range(667):
        chosen = [[0, 1], [1, 0, 2], [2], [2, 0, 1]][i % 4]
        frames = pictures[[(i + 2 * slot) % 7 for slot in chosen]]
        seconds = [0.1 * i + slot for slot in chosen]
        shown = graphs.encode([[picture.numpy() for picture in pair] for pair in frames], grid)
        finite = graphs.ingest(chosen, shown, seconds, grid)()
        assert finite == [True] * len(chosen)
        patches = arrange(config, frames.cuda().permute(0, 1, 4, 2, 3), torch.bfloat16)
        times = torch.tensor(seconds, dtype=torch.float64, device="cuda")
        fast.see(patches, grid, times, eager, torch.tensor(chosen, device="cuda"))
        seen.update(chosen)
        for slot in chosen:
            if seen[slot] in COMPARED:
                for (name, x, axis), (_, y, _) in zip(eager.tensors(), state.tensors(), strict=True):
                    assert torch.equal(x.select(axis, slot), y.select(axis, slot)), (name, slot, seen[slot])
    assert min(seen.values()) == 500
    before = [tensor.select(axis, 0).clone() for _, tensor, axis in state.tensors()]
    for each in (eager, state):
        each.fork(0, 3)
        each.fork(2, 4)
    question = torch.randint(0, 2000, (20,)).tolist()
    for slot in (3, 4):
        _, logits = graphs.read([slot], [question])
        padded = torch.zeros(1, 32, dtype=torch.int64)
        padded[0, :20] = torch.tensor(question)
        where, counts = torch.tensor([slot], device="cuda"), torch.tensor([20], device="cuda")
        assert torch.equal(fast.read(padded.cuda(), eager, where, counts), logits)
    for token in (3, 4, 5):
        likeliest, logits = graphs.read([4, 3], [[token], [token + 1]])
        tokens, where = torch.tensor([[token], [token + 1]], device="cuda"), torch.tensor([4, 3], device="cuda")
        assert torch.equal(fast.read(tokens, eager, where, torch.ones_like(where)), logits)
        assert torch.equal(likeliest, logits.argmax(-1))
    after = [tensor.select(axis, 0) for _, tensor, axis in state.tensors()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("precision", ["model", "fp8"])
@pytest.mark.parametrize("answers", [1, 3])
def test_kernels_that_begin_early_give_the_same_bits(
    answers: int, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain of a thousand tokens by graphs whose kernels stand ready before those before them have ended, and by one after the other."""
    model = build(wide(), torch.bfloat16)
    found = []
    for early in (True, False):
        if not early:
            monkeypatch.setattr(dependence, "knows", lambda device: False)
        state = StreamState.allocate(model.config, 4, "cuda", torch.bfloat16)
        graphs = Graphs(FastInfiniteVL(model, precision), Words(model.config), state)
        slots, said, tokens = list(range(answers)), [], [[7 + i] for i in range(answers)]
        for _ in range(1000 // answers):
            tokens = [[token] for token in graphs.read(slots, tokens)[0].tolist()]
            said.append(tokens)
        found.append((said, [tensor.clone() for _, tensor, _ in state.tensors()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(x, y) for x, y in zip(found[0][1], found[1][1], strict=True))


def test_age_changes_nothing() -> None:
    """Positions as after ten years at 2 a second, and 20 billion tokens in: the same answer but for float32's rounding."""
    config = small()
    model = build(config, torch.float32)
    fast = FastInfiniteVL(model)
    answers = []
    patches = torch.randn(12, 1, 256, config.vision.patch_dim, device="cuda")
    slots = torch.tensor([0], device="cuda")
    for age in (0, 10 * 365 * 86_400):
        state = StreamState.allocate(config, 1, "cuda")
        state.origin += config.tokens_per_second * age
        fast.read(torch.ones(1, 1, dtype=torch.int64, device="cuda"), state, slots, torch.ones_like(slots))
        state.begin(slots)
        for i, one in enumerate(patches):
            if i == 6 and age:
                state.length += config.policy.ring_size(config.step_tokens) * 10**8
            fast.see(one, (16, 16), torch.tensor([i * 0.5], dtype=torch.float64, device="cuda"), state, slots)
        tokens = torch.arange(10, 30, device="cuda")[None]
        answers.append(fast.read(tokens, state, slots, torch.full_like(slots, 20)))
    assert ratio(answers[1], answers[0]) <= 1e-4


def test_fp8_stays_near_bfloat16_with_outlier_channels() -> None:
    config = wide()
    model = build(config, torch.bfloat16)
    for layer in model.model.layers:
        layer.input_layernorm.weight[::173] *= 20
    plain, coarse = FastInfiniteVL(model), FastInfiniteVL(model, "fp8")
    a, b = (StreamState.allocate(config, 2, "cuda", torch.bfloat16) for _ in range(2))
    slots = torch.tensor([1], device="cuda")
    for i in range(10):
        patches = torch.randn(1, 1024, config.vision.patch_dim, device="cuda", dtype=torch.bfloat16)
        seconds = torch.tensor([i * 0.5], dtype=torch.float64, device="cuda")
        plain.see(patches, (32, 32), seconds, a, slots)
        coarse.see(patches, (32, 32), seconds, b, slots)
    tokens = torch.arange(20, device="cuda")[None]
    counts = torch.full_like(slots, 20)
    error = ratio(coarse.read(tokens, b, slots, counts), plain.read(tokens, a, slots, counts))
    print("fp8 logits", error)
    for name in ("delta", "keys", "values"):
        whole, near = getattr(a, name), getattr(b, name)
        print(f"fp8 {name} by layer", [round(ratio(y[1], x[1]), 4) for x, y in zip(whole, near, strict=True)])
    assert error <= 0.15
