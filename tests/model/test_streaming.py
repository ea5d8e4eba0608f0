"""Slots: batches, padding, forks and snapshots change nothing, and state never grows."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.config import AttentionPolicy, ConfigError
from model.state import StreamState

from .small import DECODER, VISION, build, error, small
from .streams import Stream, ask, index, times, watch

QUESTION = [2, 5, 700, 41, 6, 5, 1200]
CONFIG = small(policy=AttentionPolicy(sinks=5, window=14), tokens_per_frame=6, position_horizon=8.0)
GRID = (4, 6)


def bits(state: StreamState, slot: int) -> dict[str, Tensor]:
    return state.snapshot(slot)


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@torch.no_grad()
def test_streams_of_different_ages_in_one_batch_are_each_alone() -> None:
    """One that has just begun, one whose window fills, one beyond its horizon: in one batch, in slots out of order."""
    model = build(CONFIG)
    state, alone = StreamState.allocate(CONFIG, 6), StreamState.allocate(CONFIG, 2)
    ages, slots = [1, 4, 30], [4, 0, 2]
    streams = [Stream(CONFIG, GRID, [0.7 * i for i in range(age + 6)], seed=age) for age in ages]
    for age, slot, stream in zip(ages, slots, streams, strict=True):
        watch(model, stream, state, slot, 0, age)
    for step in range(6):
        batch = torch.stack([stream.frames[age + step] for age, stream in zip(ages, streams, strict=True)])
        clock = times(*(stream.seconds[age + step] for age, stream in zip(ages, streams, strict=True)))
        model.see(batch, GRID, clock, state, index(*slots))
    questions = torch.tensor([QUESTION, QUESTION[::-1], [8] * 7])
    together = model.read(questions, state, index(*slots))
    for i, stream in enumerate(streams):
        watch(model, stream, alone, 0)
        assert error(together[i], ask(model, alone, 0, questions[i].tolist(), 1)[-1]) <= 1e-4


@torch.no_grad()
def test_questions_of_different_lengths_padded_together_are_each_alone() -> None:
    model = build(CONFIG)
    state = StreamState.allocate(CONFIG, 7)
    lengths, questions = [1, 17, 6], torch.randint(0, 2048, (3, 17), generator=torch.Generator().manual_seed(5))
    alone = []
    for i, age in enumerate((1, 9, 3)):
        watch(model, Stream(CONFIG, GRID, [float(s) for s in range(age)], seed=i), state, i)
        alone.append(ask(model, state, i, [*questions[i, : lengths[i]].tolist(), 77], 6))
        state.fork(i, 3 + i)
    found = model.read(questions, state, index(3, 4, 5), torch.tensor(lengths))
    after = model.read(torch.tensor([[77]] * 3), state, index(3, 4, 5))
    for i in range(3):
        assert error(found[i], alone[i][-2]) <= 1e-4
        assert error(after[i], alone[i][-1]) <= 1e-4


@torch.no_grad()
def test_tokens_one_by_one_are_prefilled() -> None:
    model = build(CONFIG)
    state = StreamState.allocate(CONFIG, 3)
    watch(model, Stream(CONFIG, GRID, [float(i) for i in range(20)]), state, 0)
    question = [(31 * i) % 2048 for i in range(40)]
    one_by_one = ask(model, state, 0, question, 1)
    for n in (1, 2, 5, 6, 7, 40):
        state.fork(0, 2)
        assert error(model.read(torch.tensor([question[:n]]), state, index(2))[0], one_by_one[n - 1]) <= 1e-4, n


@torch.no_grad()
def test_questions_leave_the_stream_bit_identical() -> None:
    """Several at a time in forks, some dropped midway, between the frames of two streams in one batch."""
    model = build(CONFIG)
    asked, quiet = StreamState.allocate(CONFIG, 6), StreamState.allocate(CONFIG, 6)
    streams = [Stream(CONFIG, GRID, [0.6 * i for i in range(15)], seed=i) for i in range(2)]
    for state in (asked, quiet):
        model.open(state, index(0, 1))
    for step in range(15):
        batch = torch.stack([stream.frames[step] for stream in streams])
        clock = times(*(stream.seconds[step] for stream in streams))
        for state in (asked, quiet):
            model.see(batch, GRID, clock, state, index(0, 1))
        if step % 3 == 0:  # a new question to each stream, in the place of the last, which may be unfinished
            asked.fork(0, 3)
            asked.fork(1, 5)
            model.read(torch.tensor([QUESTION]), asked, index(3))
        if step % 3 < 2:
            model.read(torch.tensor([[step], [9]]), asked, index(5, 3))
    for slot in (0, 1):
        assert_identical(bits(asked, slot), bits(quiet, slot))


@torch.no_grad()
def test_forks_of_one_state_answer_alike_and_apart() -> None:
    model = build(CONFIG)
    state = StreamState.allocate(CONFIG, 4)
    watch(model, Stream(CONFIG, GRID, [float(i) for i in range(9)]), state, 0)
    expected = ask(model, state, 0, QUESTION, 1)[-1]
    for slot in (1, 2, 3):
        state.fork(0, slot)
    found = model.read(torch.tensor([QUESTION, [1] * 7, QUESTION]), state, index(1, 2, 3))
    assert error(found[0], expected) <= 1e-4 and error(found[2], expected) <= 1e-4
    assert error(found[1], expected) > 1e-2


@torch.no_grad()
def test_a_restored_snapshot_goes_on_bit_identically() -> None:
    model = build(CONFIG)
    state = StreamState.allocate(CONFIG, 3)
    stream = Stream(CONFIG, GRID, [0.6 * i for i in range(20)])
    watch(model, stream, state, 0, 0, 12)
    kept = state.snapshot(0)
    watch(model, Stream(CONFIG, GRID, [0.0, 1.0], seed=9), state, 2)
    state.restore(2, kept)
    for slot in (0, 2):
        watch(model, stream, state, slot, 12)
    assert_identical(bits(state, 2), bits(state, 0))


@torch.no_grad()
def test_a_reset_slot_remembers_nothing() -> None:
    model = build(CONFIG)
    state, fresh = StreamState.allocate(CONFIG, 1), StreamState.allocate(CONFIG, 1)
    stream = Stream(CONFIG, GRID, [0.5 * i for i in range(7)], seed=2)
    watch(model, Stream(CONFIG, GRID, [float(i) for i in range(30)]), state, 0)
    for pool in (state, fresh):
        watch(model, stream, pool, 0)
    assert_identical(bits(state, 0), bits(fresh, 0))


def test_a_snapshot_of_another_model_is_refused() -> None:
    other = replace(CONFIG, policy=AttentionPolicy(sinks=5, window=15))
    snapshot = StreamState.allocate(other, 1).snapshot(0)
    with pytest.raises(ConfigError, match=r"snapshot's keys has shape .*: restore it into the model it was taken from"):
        StreamState.allocate(CONFIG, 1).restore(0, snapshot)


def resident() -> int:
    """Bytes of memory this process holds that no file backs."""
    gc.collect()
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def held(state: StreamState) -> int:
    """Bytes behind every tensor of the state."""
    return sum(tensor.untyped_storage().nbytes() for _, tensor, _ in state.tensors())


@torch.inference_mode()
def test_twenty_thousand_frames_take_no_more_than_a_hundred() -> None:
    """Frames of 4 tokens, the worth of 80 in each step."""
    thin = replace(DECODER, num_hidden_layers=2, layer_types=("attention", "delta_net"))
    tower = replace(VISION, depth=1, fullatt_block_indexes=(0,))
    config = small(decoder=thin, vision=tower, tokens_per_frame=320, position_horizon=60.0)
    model = build(config)
    state = StreamState.allocate(config, 2)
    frames = Stream(config, (32, 40), [0.0] * 5).frames
    model.open(state, index(0))
    after = []
    for seen in range(80, 20_001, 80):
        model.see(frames[seen // 80 % 5][None], (32, 40), times(seen / 10), state, index(0))
        if seen in (160, 20_000):
            assert ask(model, state, 0, QUESTION, 1).isfinite().all()
            after.append((state.bytes_per_slot, held(state), resident()))
    assert int(state.length[0]) == 1 + 20_000 * 4
    (slot, whole, memory), (slot_later, whole_later, memory_later) = after
    assert (slot, whole) == (slot_later, whole_later)
    assert slot * state.slots == whole
    assert memory_later - memory < 4 * 2**20
