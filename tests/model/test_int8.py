"""Products in int8 on a CPU: close to float64, each stream and each answer alone, and the same through traces."""

import gc
import weakref
from typing import Any

import pytest
import torch

from model import load_runner
from model.config import ConfigError
from model.serving import int8
from model.serving.int8 import LEVELS, Choice, Int8Joint, Int8Linear, choose, pack, to_int8
from model.serving.traced import TRACEABLE, TracedInfiniteVL
from model.state import StreamState

from .small import build, error, small
from .streams import Stream, index, times

pytestmark = pytest.mark.skipif(
    int8.ENGINE not in torch.backends.quantized.supported_engines, reason="torch has no int8 products for this machine"
)
CONFIG, GRID = small(), (4, 6)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_near_float64_and_each_row_is_alone(bias: bool) -> None:
    weight, added = numbers(48, 96), numbers(48, seed=1) if bias else None
    linear = Int8Linear(weight, added, Choice(True, True))
    assert linear.weight is None
    x = numbers(3, 20, 96, seed=2) * torch.logspace(-4, 4, 20)[:, None]
    exact, found = x.double() @ weight.double().T, linear(x)
    for row, true, each in zip(x.flatten(0, 1), exact.flatten(0, 1), found.flatten(0, 1), strict=True):
        assert error(each, true + (0 if added is None else added.double())) <= 0.03
        assert torch.equal(each, linear(row[None])[0])
    x[1] = float("nan")
    assert torch.equal(linear(x)[::2], found[::2]) and linear(x)[1].isnan().all()
    assert torch.equal(linear(torch.zeros(1, 96))[0], torch.zeros(48) if added is None else added)


def test_weights_are_scaled_an_output() -> None:
    weight = numbers(8, 32) * torch.logspace(-3, 3, 8)[:, None]
    rows, _ = pack(weight).unpack()
    assert all(error(row, true) <= 0.02 for row, true in zip(rows.dequantize(), weight, strict=True))


def test_what_is_slower_in_int8_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says: one row is faster in float32 here, a step's rows in int8."""
    taken = iter([[2.0, 1.0], [3.0, 9.0]])
    monkeypatch.setattr(int8, "fastest", lambda *ways: next(taken))
    found = choose(numbers(8, 16), None, 64)
    assert found == Choice(few=False, many=True)
    linear, x = Int8Linear(numbers(8, 16), None, found), numbers(1, 1, 16)
    assert torch.equal(linear(x), x @ numbers(8, 16).T)
    monkeypatch.setattr(int8, "choose", lambda *_: Choice(False, False))
    model = build(CONFIG)
    model.fuse(), to_int8(model)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


def test_what_slows_the_machine_for_a_while_slows_both_ways_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of a machine that is busy at first, and quiet for the last few runs alone."""
    now, runs = [0.0], [0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def takes(seconds: float) -> None:
        runs[0] += 1
        now[0] += seconds * (10 if runs[0] <= 2 * int8.TRIES - 2 else 1)

    assert int8.fastest(lambda: takes(3.0), lambda: takes(2.0)) == [3.0, 2.0]


@torch.inference_mode()
@pytest.mark.skipif(not TRACEABLE, reason="PyTorch traces up to Python 3.13")
@pytest.mark.parametrize("few", [True, False])
def test_traces_share_no_weights(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of one make: each speaks with its own, what was chosen is part of the make, and nothing of one stays."""
    monkeypatch.setattr("model.serving.traced.TRACES", {})
    monkeypatch.setattr(int8, "choose", lambda *_: Choice(few, True))
    gone, frames, tokens = [], Stream(CONFIG, GRID, [0.0]).frames, torch.tensor([[5, 9, 12]])
    for seed in (0, 1):
        model = build(CONFIG, seed)
        model.fuse(), to_int8(model)
        assert sum(isinstance(module, Int8Joint) for module in model.modules()) >= 2 * CONFIG.decoder.num_hidden_layers
        traced, said = TracedInfiniteVL(model), []
        for served in (traced, model):
            state = StreamState.allocate(CONFIG, 1)
            model.open(state, index(0))
            with monkeypatch.context() as patch:
                if served is model:
                    patch.setattr(int8, "product", rounded)
                served.ingest(served.encode(frames, GRID), GRID, times(1.0), state, index(0))
                said.append([served.read(tokens[:, :n], state, index(0)) for n in (3, 1)])
        for ours, oracle in zip(*said, strict=True):
            assert error(ours, oracle) <= 0.02  # the last bit of a sum decides how a number is rounded
        assert len(traced.traces) == 4
        gone += [weakref.ref(x) for x in (*model.parameters(), *model.buffers())]
    del model, traced, served, state
    gc.collect()
    assert not [ref for ref in gone if ref() is not None]


def rounded(x: torch.Tensor, packed: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """What a product in int8 is, in plain operations of float64."""
    scale = x.abs().amax(-1, keepdim=True) / LEVELS
    y = ((x / scale).round() * scale).double() @ packed.unpack()[0].dequantize().double().T
    return (y if bias is None else y + bias).float()


def test_it_is_refused_where_there_is_no_cpu() -> None:
    with pytest.raises(ConfigError, match="dtype 'int8' needs the CPU, not 'cuda': choose bfloat16 or fp8"):
        load_runner("nano", device="cuda", dtype="int8")


def test_a_machine_without_such_products_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "ENGINE", "none")
    monkeypatch.setattr("model.serving.runner.load_checkpoint", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(
        ConfigError, match="dtype 'int8' needs an x86 CPU, for which torch has int8 products: choose float32"
    ):
        load_runner("nano", dtype="int8")
