"""How long a stream has run changes nothing: shifted positions, and streams far beyond their horizon."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import AttentionPolicy, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.state import StreamState

from .small import DECODER, VISION, build, error, small
from .streams import Grid, Stream, ask, index, times, watch

MONTH = 5_184_000
"""Thirty days in steps of the time axis."""
QUESTION = [2, 5, 700, 41, 6, 5, 1200]
GRID = (4, 6)
# The 4B's head and sections: 64 frequencies from one radian a step down to one in a million steps.
WIDE = replace(
    DECODER, hidden_size=64, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=128,
    mrope_section=(16, 24, 24), layer_types=("attention", "delta_net") * 2,
)  # fmt: skip
POLICY = AttentionPolicy(sinks=9, window=40)
LITERAL = small(decoder=WIDE, vision=replace(VISION, out_hidden_size=64), policy=POLICY, tokens_per_frame=6)
CAPPED = replace(LITERAL, position_horizon=60.0)


@pytest.mark.parametrize("config", [LITERAL, CAPPED], ids=["literal", "horizon"])
@torch.no_grad()
def test_shifting_every_position_by_thirty_days(config: InfiniteVLConfig) -> None:
    model = build(config)
    state = StreamState.allocate(config, 3)
    stream = Stream(config, GRID, [7.0 * i for i in range(14)])
    watch(model, stream, state, 0)
    state.reset(1)
    state.origin[1] = MONTH
    model.open(state, index(1))
    for frame, second in zip(stream.frames, stream.seconds, strict=True):
        model.see(frame[None], stream.grid, times(second), state, index(1))
    assert int(state.sink_positions[1].max()) < 1000
    assert error(ask(model, state, 1, QUESTION, 2), ask(model, state, 0, QUESTION, 2)) <= 1e-4


def turn_time(keys: Tensor, steps: int, config: InfiniteVLConfig) -> Tensor:
    """Rotated keys [..., head] as if they stood `steps` later on the time axis; float64 complex numbers."""
    half, pairs = keys.shape[-1] // 2, config.decoder.mrope_section[0]
    angles = steps * config.decoder.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles[pairs:] = 0
    pairs_of = torch.complex(keys[..., :half].double(), keys[..., half:].double())
    turned = pairs_of * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1).float()


def age(state: StreamState, source: int, target: int, steps: int) -> None:
    """A stream with the same sinks, ring and recurrence that has run `steps` longer."""
    state.fork(source, target)
    sinks = state.config.policy.sinks
    ring = state.keys[:, target, sinks:]
    ring.copy_(turn_time(ring, steps, state.config))
    state.time[target] += steps


def prepared(config: InfiniteVLConfig, grid: Grid = GRID) -> tuple[InfiniteVL, StreamState, Stream]:
    """A stream of ten minutes in slot 0, a frame every 5 s, and the 2 minutes of frames that follow."""
    model = build(config)
    state = StreamState.allocate(config, 3)
    stream = Stream(config, grid, [5.0 * i for i in range(145)])
    watch(model, stream, state, 0, 0, 121)
    return model, state, stream


@torch.no_grad()
def test_thirty_days_answer_as_ten_minutes_do() -> None:
    model, state, stream = prepared(CAPPED)
    later = MONTH - 1200
    age(state, 0, 1, later)
    assert error(ask(model, state, 1, QUESTION, 2), ask(model, state, 0, QUESTION, 2)) <= 1e-4
    for i in range(121, 145):
        for slot, more in ((0, 0.0), (1, later / 2)):
            model.see(stream.frames[i : i + 1], GRID, times(stream.seconds[i] + more), state, index(slot))
    assert error(ask(model, state, 1, QUESTION, 2), ask(model, state, 0, QUESTION, 2)) <= 1e-4


@torch.no_grad()
def test_without_a_horizon_age_shows() -> None:
    model, state, _ = prepared(LITERAL)
    age(state, 0, 1, MONTH - 1200)
    state.next[1] += MONTH - 1200
    assert error(ask(model, state, 1, QUESTION, 2), ask(model, state, 0, QUESTION, 2)) > 1e-2


@torch.no_grad()
def test_a_stream_younger_than_its_horizon_is_literal() -> None:
    answers = []
    for config in (LITERAL, CAPPED):
        model, state = build(config), StreamState.allocate(config, 2)
        watch(model, Stream(config, GRID, [4.0 * i for i in range(16)]), state, 0)
        answers.append(ask(model, state, 0, QUESTION, 1))
    assert torch.equal(*answers)


@torch.no_grad()
def test_question_positions_stay_near_the_grid() -> None:
    """At any age a question's height and width coordinates are at most the horizon's steps beyond the grid."""
    _, state, _ = prepared(CAPPED)
    age(state, 0, 1, MONTH)
    text = state.text_positions(index(0, 1), 1)[..., 0]
    assert text[1:].tolist() == [[122, 122]] * 2
    assert (text[0] - state.time[[0, 1]]).tolist() == [2, 2]


@torch.no_grad()
def test_a_silence_longer_than_the_horizon_counts_as_the_horizon() -> None:
    """A camera that was away for an hour, or for the horizon, left the same stream behind."""
    answers = []
    for silence in (60.0, 3600.0, 2.0**30):
        model, state = build(CAPPED), StreamState.allocate(CAPPED, 2)
        seconds = [0.0, 5.0, 10.0, *(10.0 + silence + 5 * i for i in range(4))]
        watch(model, Stream(CAPPED, GRID, seconds), state, 0)
        answers.append(ask(model, state, 0, QUESTION, 1))
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
