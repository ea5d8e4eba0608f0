"""Traces are the model: at every age of a stream, for every shape."""

import ctypes
import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import Runner, Sampling
from model.config import AttentionPolicy
from model.families.infinitevl import InfiniteVL
from model.serving.traced import DECODE_BATCH, TRACEABLE, TracedInfiniteVL
from model.state import StreamState
from model.tokenizer import Tokenizer

from .small import build, error, picture, small
from .streams import Stream, index, times

pytestmark = pytest.mark.skipif(not TRACEABLE, reason="PyTorch traces up to Python 3.13")
CONFIG = small(
    policy=AttentionPolicy(sinks=20, window=70), tokens_per_frame=40, position_horizon=8.0
)  # text of up to 16, 32 and 40 tokens
GRIDS = (4, 6), (6, 4)
TOKENS = torch.randint(7, 2048, (1, 100), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True, params=[False, True], ids=["copied", "in place"])
def no_traces(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Before each test; keys are copied, as of short windows, or read where they lie."""
    monkeypatch.setattr("model.serving.traced.TRACES", {})
    monkeypatch.setattr("model.cache.IN_PLACE", 0 if request.param else 10**9)


def assert_the_same(found: StreamState, expected: StreamState) -> None:
    for (name, tensor, _), (_, oracle, _) in zip(found.tensors(), expected.tensors(), strict=True):
        if name in ("keys", "values"):  # their last row takes what padding writes
            tensor, oracle = tensor[:, :, :-1], oracle[:, :, :-1]
        if tensor.dtype == torch.int64:
            assert torch.equal(tensor, oracle), name
        else:
            assert error(tensor, oracle) <= 1e-5, name


@torch.inference_mode()
def test_traces_of_a_streams_first_steps_serve_its_whole_age() -> None:
    """Two streams in turn, past their sinks, window and horizon, with a gap beyond it; questions between the steps."""
    model = build(CONFIG)
    traced, state, oracle = (
        TracedInfiniteVL(build(CONFIG)),
        StreamState.allocate(CONFIG, 4),
        StreamState.allocate(CONFIG, 4),
    )
    seconds = [0.7 * i + (30.0 if i > 20 else 0.0) for i in range(40)]
    streams = [Stream(CONFIG, grid, seconds, seed=i) for i, grid in enumerate(GRIDS)]
    for slot in range(2):
        for each in (state, oracle):
            model.open(each, index(slot))
    made = set()
    for step, second in enumerate(seconds):
        for slot, stream in enumerate(streams):
            patches = stream.frames[step : step + 1]
            traced.ingest(traced.encode(patches, stream.grid), stream.grid, times(second), state, index(slot))
            model.see(patches, stream.grid, times(second), oracle, index(slot))
        for each in (state, oracle):
            each.fork(step % 2, 2)
        for length in (1, 2, 16, 17, 33, 40, 41, 100) if step % 13 == 0 else (step,) if step else ():
            said = traced.read(TOKENS[:, :length], state, index(2))
            # A trace's text is padded, which parts sums otherwise.
            assert error(said, model.read(TOKENS[:, :length], oracle, index(2))) <= 2e-5
        assert_the_same(state, oracle)
        made.add(len(traced.traces))
    assert made == {2 * len(GRIDS) + 1 + 3}, "the first step's traces are all there ever are"


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 2, 3, DECODE_BATCH, DECODE_BATCH + 1])
def test_a_token_each_of_several_answers(batch: int) -> None:
    model, slots = build(CONFIG), list(range(batch))[::-1]
    traced = TracedInfiniteVL(build(CONFIG))
    state, oracle = StreamState.allocate(CONFIG, batch), StreamState.allocate(CONFIG, batch)
    for each in (state, oracle):
        for slot in slots:
            model.open(each, index(slot))
            model.read(TOKENS[:, : 9 * slot + 1], each, index(slot))
    for step in range(60):
        tokens = TOKENS[0, step : step + batch, None]
        assert error(traced.read(tokens, state, index(*slots)), model.read(tokens, oracle, index(*slots))) <= 1e-5
    assert_the_same(state, oracle)
    assert len(traced.traces) == (batch <= DECODE_BATCH)


@torch.inference_mode()
def test_several_streams_of_one_step() -> None:
    model, traced = build(CONFIG), TracedInfiniteVL(build(CONFIG))
    state, oracle = StreamState.allocate(CONFIG, 2), StreamState.allocate(CONFIG, 2)
    frames = torch.stack([Stream(CONFIG, GRIDS[0], [0.0], seed=i).frames[0] for i in range(2)])
    for each in (state, oracle):
        model.open(each, index(0, 1))
    traced.ingest(traced.encode(frames, GRIDS[0]), GRIDS[0], times(1.0, 2.0), state, index(1, 0))
    model.see(frames, GRIDS[0], times(1.0, 2.0), oracle, index(1, 0))
    assert_the_same(state, oracle)


@torch.inference_mode()
def test_models_of_one_make_share_traces_that_keep_none_of_them() -> None:
    """A daemon that begins again, a program that opens one assistant after another: nothing piles up."""
    said, gone, made = [], [], []
    frames = Stream(CONFIG, GRIDS[0], [0.0]).frames
    for slots, seed in enumerate((0, 1, 0), 1):
        model, (state, oracle) = build(CONFIG, seed), (StreamState.allocate(CONFIG, slots) for _ in range(2))
        model.fuse()
        traced = TracedInfiniteVL(model)
        for each in (state, oracle):
            model.open(each, index(0))
        traced.ingest(traced.encode(frames, GRIDS[0]), GRIDS[0], times(1.0), state, index(0))
        model.see(frames, GRIDS[0], times(1.0), oracle, index(0))
        for length in (9, 1):
            said.append(traced.read(TOKENS[:, :length], state, index(0)))
            assert error(said[-1], model.read(TOKENS[:, :length], oracle, index(0))) <= 1e-5
        assert_the_same(state, oracle)
        gone += [weakref.ref(x) for x in (*model.parameters(), *model.buffers(), state.delta)]
        made.append(dict(traced.traces))
    del model, state, oracle, traced, each
    gc.collect()
    assert torch.equal(said[0], said[4]) and not torch.equal(said[0], said[2])
    assert torch.equal(said[1], said[5]) and not torch.equal(said[1], said[3])
    assert not [ref for ref in gone if ref() is not None]
    assert made[0] == made[1] == made[2] and len(made[0]) == 4


@torch.inference_mode()
def test_models_of_other_makes_have_traces_of_their_own() -> None:
    """Another window over the same weights; joined projections, whose weights have other names; another dtype."""
    narrow = replace(CONFIG, policy=AttentionPolicy(sinks=20, window=41))
    joined, half = build(CONFIG), build(CONFIG).bfloat16()
    joined.fuse()
    for model in (build(CONFIG), build(narrow), joined, half):
        traced, dtype = TracedInfiniteVL(model), model.model.embed_tokens.weight.dtype
        state, oracle = (StreamState.allocate(model.config, 1, dtype=dtype) for _ in range(2))
        for each in (state, oracle):
            model.open(each, index(0))
            model.read(TOKENS, each, index(0))
        said = traced.read(TOKENS[:, :1], state, index(0))
        assert error(said, model.read(TOKENS[:, :1], oracle, index(0))) <= 1e-5
        assert len(traced.traces) == 1


@torch.inference_mode()
def test_a_trace_that_fails_is_made_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, frames = TracedInfiniteVL(build(CONFIG)), Stream(CONFIG, GRIDS[0], [0.0]).frames
    model = traced.model

    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            traced.encode(frames, GRIDS[0])
    assert error(traced.encode(frames, GRIDS[0]), model.encode(frames, GRIDS[0])) <= 1e-5
    assert len(traced.traces) == 1


def show(
    model: InfiniteVL,
    traced: TracedInfiniteVL,
    grids: Sequence[tuple[int, int]],
    oracle: StreamState,
    state: StreamState,
) -> None:
    """A step of each grid, in a slot of its own: by the model into `oracle`, by its twin's traces into `state`."""
    for slot, grid in enumerate(grids):
        patches = Stream(model.config, grid, [0.0], seed=slot).frames
        for each in (state, oracle):
            model.open(each, index(slot))
        traced.ingest(traced.encode(patches, grid), grid, times(1.0), state, index(slot))
        model.see(patches, grid, times(1.0), oracle, index(slot))


@torch.inference_mode()
def test_grids_beyond_the_most_traces_are_served_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.serving.traced.MOST_TRACES", 3)
    model, traced = build(CONFIG), TracedInfiniteVL(build(CONFIG))
    state, oracle = StreamState.allocate(CONFIG, 3), StreamState.allocate(CONFIG, 3)
    show(model, traced, [(4, 6), (6, 4), (2, 8)], oracle, state)
    assert_the_same(state, oracle)
    assert len(traced.traces) == 3


@torch.inference_mode()
def test_frames_of_a_model_of_slow_steps_are_never_traced() -> None:
    """Whatever grids come, nothing is made for them; text has its few traces all the same."""
    config = replace(CONFIG, frames_per_second=2.0)
    model, traced = build(config), TracedInfiniteVL(build(config))
    state, oracle = StreamState.allocate(config, 2), StreamState.allocate(config, 2)
    show(model, traced, GRIDS, oracle, state)
    assert_the_same(state, oracle)
    assert not traced.traces
    for count in (1, 16):
        traced.read(TOKENS[:, :count], state, index(0))
    assert len(traced.traces) == 2


def test_a_runner_without_traces_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Python that PyTorch does not trace on."""
    tokenizer = Tokenizer.load(Path("model/nano/tokenizer.json"), CONFIG)
    traced = Runner("small", build(CONFIG), tokenizer, 2, trained=False)
    monkeypatch.setattr("model.serving.runner.TRACEABLE", False)
    plain = Runner("small", build(CONFIG), tokenizer, 2, trained=False)
    assert isinstance(traced.backend.steps, TracedInfiniteVL) and plain.backend.steps is plain.model
    said = []
    for runner in (traced, plain):
        runner.open(0, 90, 160)
        runner.see([0], [[picture(90, 160)]], [0.0])
        runner.fork(0, 1)
        token = runner.prefill(1, runner.tokenizer.encode_question("where?"))
        said.append([token, *runner.decode([1], [token], [Sampling()])])
    assert said[0] == said[1]


class Allocated(ctypes.Structure):
    """glibc's `mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t) for name in ("arena", "o", "s", "h", "mapped", "u", "f", "used", "free", "keep")
    )


def allocated() -> int:
    """Bytes of the C heap in use."""
    gc.collect()
    told = ctypes.CDLL(None).mallinfo2
    told.restype = Allocated
    now = told()
    return int(now.used + now.mapped)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
@torch.inference_mode()
def test_what_a_trace_takes() -> None:
    """As it comes from PyTorch it keeps a text of the whole stack for each operation: these then take 33 to 43 MB each, not 10."""
    traced, state = TracedInfiniteVL(build(CONFIG)), StreamState.allocate(CONFIG, 4)
    for slot in range(4):
        traced.model.open(state, index(slot))
    traced.read(TOKENS[:, :1], state, index(0))
    before = allocated()
    for batch in (2, 3, 4):
        traced.read(TOKENS[:, :batch].T, state, index(*range(batch)))
    assert len(traced.traces) == 4 and allocated() - before < 3 * 18e6
