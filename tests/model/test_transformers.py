"""The whole model with full attention in every layer, against transformers' Qwen2.5-VL: pictures, video and text."""

from dataclasses import replace

import pytest
import torch

from model.cache import SequenceCache
from model.config import FULL, InfiniteVLConfig
from model.state import StreamState

from .qwen import qwen
from .small import DECODER, VISION, build, error, patches, small

WIDE = replace(
    DECODER, hidden_size=64, num_hidden_layers=4, num_linear_heads=4, layer_types=("attention",) * 4, rope_theta=1e4
)
FULL_ATTENTION = small(decoder=WIDE, vision=replace(VISION, out_hidden_size=64), policy=FULL, tokens_per_frame=40)
UNTIED = replace(FULL_ATTENTION, decoder=replace(WIDE, tie_word_embeddings=False))
GRID = (4, 16)
TEXT = [5, 300, 17, 1999, 6, 42, 9, 801]


@pytest.mark.parametrize("config", [FULL_ATTENTION, UNTIED], ids=["tied", "untied"])
@torch.no_grad()
def test_a_video_and_a_question(config: InfiniteVLConfig) -> None:
    """Four frames a second apart; later times would fall where transformers lets text overlap the time axis."""
    model = build(config)
    frames, tokens = 4, GRID[0] * GRID[1] // 4
    x = patches(config.vision, frames, grid=GRID)
    ids = [config.vision_start_token_id] + [config.video_token_id] * frames * tokens
    ids += [config.vision_end_token_id, *TEXT]
    oracle = qwen(model)(
        input_ids=torch.tensor([ids]),
        mm_token_type_ids=torch.tensor([[2 if i == config.video_token_id else 0 for i in ids]]),
        pixel_values_videos=x.flatten(0, 1),
        video_grid_thw=torch.tensor([[frames, *GRID]]),
        second_per_grid_ts=[1.0],
    ).logits[0]

    state, slots = StreamState.allocate(config, 1), torch.tensor([0])
    model.open(state, slots)
    for i in range(frames):
        model.see(x[i : i + 1], GRID, torch.tensor([float(i)], dtype=torch.float64), state, slots)
    logits = [model.read(torch.tensor([[token]]), state, slots)[0] for token in ids[-len(TEXT) - 1 :]]
    assert error(torch.stack(logits), oracle[-len(TEXT) - 1 :]) <= 1e-4


@torch.no_grad()
def test_pictures_between_text() -> None:
    """Two pictures of unlike grids in one prompt, every logit, at transformers' positions."""
    config = FULL_ATTENTION
    model = build(config)
    grids = [(6, 10), (8, 4)]
    pictures = [patches(config.vision, 1, grid=grid, seed=i) for i, grid in enumerate(grids)]
    start, end, pad = config.vision_start_token_id, config.vision_end_token_id, config.image_token_id
    ids = [7, 8, start, *[pad] * 15, end, 9, 10, 11, start, *[pad] * 8, end, *TEXT]
    twin = qwen(model)
    thw = torch.tensor([[1, *grid] for grid in grids])
    kinds = torch.tensor([[int(i == pad) for i in ids]])
    oracle = twin(
        input_ids=torch.tensor([ids]),
        mm_token_type_ids=kinds,
        pixel_values=torch.cat([picture[0] for picture in pictures]),
        image_grid_thw=thw,
    ).logits[0]

    positions, _ = twin.model.get_rope_index(torch.tensor([ids]), kinds, image_grid_thw=thw)
    x = model.model.embed_tokens(torch.tensor([ids]))
    x[0, kinds[0] == 1] = torch.cat(
        [model.visual(picture, *grid)[0] for picture, grid in zip(pictures, grids, strict=True)]
    )
    memory = SequenceCache(config.decoder, config.policy, 1, x.device, x.dtype)
    assert error(model.logits(model.model(x, positions, memory))[0], oracle) <= 1e-4
