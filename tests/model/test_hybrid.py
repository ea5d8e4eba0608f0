"""The hybrid under its attention policies, against the float64 formulas: eq. 8, the ring, the sinks and the horizon."""

from dataclasses import replace

import pytest
import torch

from model.cache import SequenceCache
from model.config import FULL, AttentionPolicy, ConfigError, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.ops.attention import visible
from model.state import StreamState

from .small import DECODER, build, error, small
from .streams import Stream, ask, by_formula, watch

QUESTION = [2, 5, 700, 41, 6, 5, 1200]
SHALLOW = replace(
    DECODER, num_hidden_layers=5, layer_types=("attention", "delta_net", "delta_net", "delta_net", "attention")
)
# 4×4 patches are 4 tokens: a window of 10 and 3 sinks end inside frames, and frames leave it from the second on.
ONLINE = small(decoder=SHALLOW, policy=AttentionPolicy(sinks=3, window=10), tokens_per_frame=4)
GRID = (4, 4)
POLICIES = {
    "online": ONLINE,
    "more sinks than a frame": replace(ONLINE, policy=AttentionPolicy(sinks=7, window=5)),
    "sliding": replace(ONLINE, policy=AttentionPolicy(sinks=0, window=9)),
    "window of one": replace(ONLINE, policy=AttentionPolicy(sinks=2, window=1)),
    "full": replace(ONLINE, policy=FULL),
    "untied": replace(ONLINE, decoder=replace(SHALLOW, tie_word_embeddings=False)),
}


@pytest.mark.parametrize("config", POLICIES.values(), ids=POLICIES.keys())
@torch.no_grad()
def test_every_step_is_the_formula(config: InfiniteVLConfig) -> None:
    """Asked after every frame: before the window fills, while it fills, and as the ring (of 14 tokens) wraps twice."""
    model = build(config)
    state = StreamState.allocate(config, 2)
    seconds = [0.0, 0.5, 1.2, 2.0, 2.1, 6.0, 6.9, 8.0]
    whole = Stream(config, GRID, seconds)
    for n in range(1, len(seconds) + 1):
        watch(model, whole, state, 0, n - 1, n)
        part = Stream(config, GRID, seconds[:n])
        part.frames = whole.frames[:n]
        assert error(ask(model, state, 0, QUESTION, 1), by_formula(model, part, QUESTION)) <= 1e-4, n


@torch.no_grad()
def test_long_after_the_ring_has_wrapped() -> None:
    """With projections fused, as they are when serving."""
    model = build(ONLINE)
    state = StreamState.allocate(ONLINE, 2)
    stream = Stream(ONLINE, GRID, [i / 3 for i in range(60)])
    oracle = by_formula(model, stream, QUESTION)
    model.fuse()
    watch(model, stream, state, 0)
    assert error(ask(model, state, 0, QUESTION, 1), oracle) <= 1e-4


@torch.no_grad()
def test_fusing_takes_no_memory() -> None:
    """The parts become views of the joint weights: the names stay, nothing is held twice."""

    def held(model: InfiniteVL) -> int:
        return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())

    model = build(ONLINE)
    before, names = held(model), {name: p.clone() for name, p in model.named_parameters()}
    model.fuse()
    assert held(model) == before
    assert all(torch.equal(p, names[name]) for name, p in model.named_parameters())
    mixer = model.model.layers[0].self_attn
    for part in (mixer.q_proj, mixer.k_proj, mixer.v_proj):
        for parameter, joint in ((part.weight, mixer.inward.weight), (part.bias, mixer.inward.bias)):
            assert parameter.untyped_storage().data_ptr() == joint.untyped_storage().data_ptr()


@torch.no_grad()
def test_a_grid_of_fewer_tokens_than_a_step() -> None:
    config = replace(ONLINE, tokens_per_frame=7)
    model = build(config)
    state = StreamState.allocate(config, 2)
    stream = Stream(config, (2, 6), [float(i) for i in range(12)])
    watch(model, stream, state, 0)
    assert error(ask(model, state, 0, QUESTION, 1), by_formula(model, stream, QUESTION)) <= 1e-4


@torch.no_grad()
def test_a_question_longer_than_a_step_and_the_window() -> None:
    model = build(ONLINE)
    state = StreamState.allocate(ONLINE, 2)
    stream = Stream(ONLINE, GRID, [0.0, 1.0, 2.0])
    watch(model, stream, state, 0)
    question = [(7 * i) % 2048 for i in range(23)]
    oracle = by_formula(model, stream, question)
    assert error(ask(model, state, 0, question, 1), oracle) <= 1e-4
    state.fork(0, 1)
    prefilled = model.read(torch.tensor([question]), state, torch.tensor([1]))
    assert error(prefilled[0], oracle[-1]) <= 1e-4


@pytest.mark.parametrize("seconds", [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 3, 6, 9, 12, 14, 15], [0, 5, 10, 15, 20]])
@torch.no_grad()
def test_horizon_is_the_formula(seconds: list[float]) -> None:
    """Sinks are placed, and the question's positions chosen, as if the stream had begun at most 6 s ago."""
    config = replace(ONLINE, position_horizon=6.0)
    model = build(config)
    state = StreamState.allocate(config, 2)
    stream = Stream(config, GRID, seconds)
    watch(model, stream, state, 0)
    capped, free = by_formula(model, stream, QUESTION), by_formula(build(ONLINE), stream, QUESTION)
    assert error(ask(model, state, 0, QUESTION, 1), capped) <= 1e-4
    assert error(capped, free) > 1e-3


def test_a_horizon_shorter_than_the_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="position_horizon 2 s is shorter than the attention window's span of 3 s"):
        replace(ONLINE, position_horizon=2.0)


@torch.no_grad()
def test_online_with_a_wide_window_is_base() -> None:
    stream = Stream(ONLINE, GRID, [i / 2 for i in range(20)])
    found = []
    for policy in (AttentionPolicy(sinks=3, window=200), FULL):
        config = replace(ONLINE, policy=policy)
        model, state = build(config), StreamState.allocate(config, 2)
        watch(model, stream, state, 0)
        found.append(ask(model, state, 0, QUESTION, 1))
    assert error(*found) <= 1e-5


@pytest.mark.parametrize("policy", [policy.policy for policy in POLICIES.values()], ids=POLICIES.keys())
def test_visible_is_equation_8(policy: AttentionPolicy) -> None:
    index = torch.arange(-1, 40)
    shown = visible(index, index, policy)
    for a, i in enumerate(index.tolist()):
        for b, j in enumerate(index.tolist()):
            expected = 0 <= j <= i and (policy.window is None or j < policy.sinks or i - j < policy.window)
            assert shown[a, b] == expected, (i, j)


@pytest.mark.parametrize("config", POLICIES.values(), ids=POLICIES.keys())
@torch.no_grad()
def test_whole_sequences_are_frames_one_by_one(config: InfiniteVLConfig) -> None:
    """The differentiable path, at once and in segments, against the slots."""
    model = build(config)
    state = StreamState.allocate(config, 3)
    streams = [Stream(config, GRID, [i * pace for i in range(12)], seed=i) for i, pace in enumerate((0.4, 1.0))]
    frames = torch.stack([stream.frames for stream in streams])
    seconds = torch.tensor([stream.seconds for stream in streams], dtype=torch.float64)
    questions = torch.tensor([QUESTION, QUESTION[::-1], [9] * 7])
    one_by_one = []
    for i, stream in enumerate(streams):
        watch(model, stream, state, i)
        one_by_one.append(torch.stack([ask(model, state, i, question, 2) for question in questions.tolist()]))
    for segments in ([12], [5, 1, 6]):
        memory: SequenceCache | None = None
        for part, clock in zip(frames.split(segments, 1), seconds.split(segments, 1), strict=True):
            memory = model.watch(part, GRID, clock, memory)
        assert memory is not None
        found = model.answer(questions.expand(2, -1, -1), seconds[:, -1], GRID, memory)
        assert error(found, torch.stack(one_by_one)) <= 1e-4, segments
