"""Rotary positions, against transformers' Qwen2.5-VL where the conventions coincide, and the streaming convention beyond."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLModel,
    Qwen2_5_VLRotaryEmbedding,
    apply_rotary_pos_emb,
)

from model.config import PRESETS, InfiniteVLConfig
from model.evaluation.reference import qwen25
from model.ops.rope import rotate, rotation
from model.state import StreamState

from .small import error, small

CONFIG = small(tokens_per_frame=64)
SLOT = torch.tensor([0])


def positions(state: StreamState, seconds: list[float], grid: tuple[int, int], text: int) -> Tensor:
    """Positions of a stream's start, its frames and `text` question tokens, [3, n]."""
    state.reset(0)
    parts = [state.text_positions(SLOT, 1)]
    state.begin(SLOT)
    for second in seconds:
        time = torch.tensor([second], dtype=torch.float64)
        parts.append(state.frame_positions(SLOT, time, grid[0] // 2, grid[1] // 2))
    parts.append(state.text_positions(SLOT, text))
    return torch.cat(parts, -1)[:, 0]


def oracle(config: InfiniteVLConfig, frames: int, grid: tuple[int, int], text: int, video: bool) -> Tensor:
    """transformers' positions of `<|vision_start|>`, one picture or a video of a frame a second, and text."""
    with torch.device("meta"):
        model = Qwen2_5_VLModel(qwen25(config))
    count = frames * grid[0] * grid[1] // 4
    pad = config.video_token_id if video else config.image_token_id
    ids = torch.tensor([[config.vision_start_token_id, *[pad] * count, config.vision_end_token_id, *[9] * (text - 1)]])
    kinds = (ids == pad).int() * (2 if video else 1)
    thw = torch.tensor([[frames, *grid]])
    if video:
        return model.get_rope_index(ids, kinds, video_grid_thw=thw, second_per_grid_ts=[1.0])[0][:, 0]
    return model.get_rope_index(ids, kinds, image_grid_thw=thw)[0][:, 0]


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (6, 20), (16, 4)])
def test_a_picture_and_text(grid: tuple[int, int]) -> None:
    found = positions(StreamState.allocate(CONFIG, 1), [0.0], grid, 9)
    assert torch.equal(found, oracle(CONFIG, 1, grid, 9, video=False))


@pytest.mark.parametrize(("frames", "grid"), [(4, (4, 16)), (3, (10, 6)), (5, (18, 4))])
def test_a_frame_a_second_and_text(frames: int, grid: tuple[int, int]) -> None:
    """Exact while the time axis stays within the grid, after which transformers lets text overlap it."""
    found = positions(StreamState.allocate(CONFIG, 1), [float(i) for i in range(frames)], grid, 9)
    assert torch.equal(found, oracle(CONFIG, frames, grid, 9, video=True))


def test_frames_of_a_long_video() -> None:
    found = positions(StreamState.allocate(CONFIG, 1), [float(i) for i in range(40)], (4, 6), 1)
    assert torch.equal(found[:, :-1], oracle(CONFIG, 40, (4, 6), 1, video=True)[:, :-1])


def test_the_streaming_convention() -> None:
    """Whole seconds count two steps each; question text continues from the largest position on all axes."""
    found = positions(StreamState.allocate(CONFIG, 1), [0.0, 0.04, 0.96, 1.0, 1.99, 7.5], (4, 4), 3)
    time = found[0, 1:-3].view(6, 4)
    assert time.tolist() == [[1 + t] * 4 for t in (0, 0, 0, 2, 2, 14)]
    assert found[1, 1:-3].view(6, 4).tolist() == [[1, 1, 2, 2]] * 6
    assert found[2, 1:-3].view(6, 4).tolist() == [[1, 2, 1, 2]] * 6
    assert found[:, -3:].tolist() == [[16, 17, 18]] * 3


def test_time_never_goes_back() -> None:
    found = positions(StreamState.allocate(CONFIG, 1), [5.0, 3.0, 6.0], (2, 2), 1)
    assert found[0].tolist() == [0, 11, 11, 13, 14]
    assert positions(StreamState.allocate(CONFIG, 1), [-3.0, 0.5], (2, 2), 1)[0].tolist() == [0, 1, 1, 2]


def test_batch_members_keep_their_own_time() -> None:
    state = StreamState.allocate(CONFIG, 3)
    slots = torch.tensor([2, 0])
    state.text_positions(slots, 1)
    state.begin(slots)
    state.frame_positions(slots, torch.tensor([9.0, 0.0], dtype=torch.float64), 1, 2)
    found = state.text_positions(slots, 2, torch.tensor([2, 1]))
    assert found[:, 0].tolist() == [[20, 21]] * 3
    assert found[:, 1].tolist() == [[3, 4]] * 3
    assert state.text_positions(slots, 1)[0].tolist() == [[22], [4]]


@pytest.mark.parametrize("name", ["nano", "4b"])
def test_rotation_is_qwens(name: str) -> None:
    config = PRESETS[name]
    decoder = config.decoder
    text = qwen25(replace(config, vision=replace(config.vision, position_table=0))).text_config
    where = torch.randint(0, 60, (3, 2, 7), generator=torch.Generator().manual_seed(0))
    q, k = torch.randn(2, 2, 7, 4, decoder.head_dim)
    cos, sin = Qwen2_5_VLRotaryEmbedding(text)(q, where)
    expected = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    by = rotation(where, decoder.head_dim, decoder.rope_theta, decoder.mrope_section)
    for x, oracle in zip((q, k), expected, strict=True):
        assert error(rotate(x, by), oracle.transpose(1, 2)) <= 1e-5


@pytest.mark.parametrize("age", [5_184_000, 2**31 + 1])
def test_scores_do_not_depend_on_age(age: int) -> None:
    """A query and a key 5, 3 and 8 steps apart on the three axes have the same product at any age."""
    decoder = PRESETS["4b"].decoder
    q, k = torch.randn(2, 64, 1, decoder.head_dim, generator=torch.Generator().manual_seed(0))

    def score(shift: int) -> Tensor:
        at, before = torch.tensor([[5], [3], [8]]) + shift, torch.full((3, 1), shift)
        turned = [
            rotate(x[:, None], rotation(where, decoder.head_dim, decoder.rope_theta, decoder.mrope_section))
            for x, where in ((q, at), (k, before))
        ]
        return (turned[0] * turned[1]).sum(-1)

    assert error(score(age), score(0)) <= 1e-6
