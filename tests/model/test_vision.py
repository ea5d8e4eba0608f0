"""The vision tower, against transformers' Qwen2.5-VL tower with the same weights."""

from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from model.config import PRESETS, VisionConfig
from model.layers.vision import VisionTower, plan_grid

from .small import VISION, error, patches, scatter

NANO = replace(PRESETS["nano"].vision, position_table=0)
BLOCKS_4B = replace(PRESETS["4b"].vision, depth=2, fullatt_block_indexes=(1,))
# Windows are 8×8 patches: grids of whole windows, of parts of them on either side, smaller than one, and one token thin.
GRIDS = [(16, 16), (8, 24), (12, 20), (10, 8), (4, 6), (2, 34), (2, 2)]


def oracle(tower: VisionTower) -> Qwen2_5_VisionTransformerPretrainedModel:
    """transformers' tower with the same weights."""
    plain = {key: value for key, value in asdict(tower.config).items() if key != "position_table"}
    config = Qwen2_5_VLVisionConfig(**plain, rope_parameters=None)
    config._attn_implementation = "eager"
    twin = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    weights = {name: value for name, value in tower.state_dict().items() if name != "position_table"}
    twin.load_state_dict(weights)
    return twin


@cache
def both(config: VisionConfig) -> tuple[VisionTower, Qwen2_5_VisionTransformerPretrainedModel]:
    """A tower of random weights and its twin; the 4B's widths take seconds to draw."""
    tower = scatter(VisionTower(config)).eval()
    return tower, oracle(tower)


def tokens(twin: Qwen2_5_VisionTransformerPretrainedModel, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The oracle's tokens for `x` [frames, patches, patch_dim], each frame a picture of its own."""
    thw = torch.tensor([[1, *grid]] * len(x))
    return twin(x.flatten(0, 1), grid_thw=thw).pooler_output.unflatten(0, (len(x), -1))


CASES = [(config, grid) for config in (VISION, NANO) for grid in GRIDS] + [(BLOCKS_4B, (12, 20)), (BLOCKS_4B, (16, 8))]


@pytest.mark.parametrize(("config", "grid"), CASES, ids=[f"{c.hidden_size}-{g[0]}x{g[1]}" for c, g in CASES])
@torch.no_grad()
def test_tower_is_qwens(config: VisionConfig, grid: tuple[int, int]) -> None:
    tower, twin = both(config)
    x = patches(config, 3, grid=grid)
    assert error(tower(x, *grid), tokens(twin, x, grid)) <= 1e-5


class Placed(nn.Module):
    """A patch embedding with learned positions added, the patches counted in merge-group order."""

    def __init__(self, inner: nn.Module, table: Tensor, frames: int) -> None:
        super().__init__()
        channels, rows, columns = table.shape
        groups = table.view(channels, rows // 2, 2, columns // 2, 2).permute(1, 3, 2, 4, 0)
        self.inner, self.added = inner, groups.reshape(rows * columns, channels).repeat(frames, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.added


@torch.no_grad()
def test_learned_positions_belong_to_their_patches() -> None:
    config = PRESETS["nano"].vision
    tower = scatter(VisionTower(config)).eval()
    twin = oracle(tower)
    twin.patch_embed = Placed(twin.patch_embed, tower.position_table, 2)
    x = patches(config, 2, grid=(16, 16))
    assert error(tower(x, 16, 16), tokens(twin, x, (16, 16))) <= 1e-5


@torch.no_grad()
def test_learned_positions_are_interpolated_to_other_grids() -> None:
    """Bilinear between the centres of the entries, flat beyond the outermost; seen through a tower without blocks."""
    config = replace(NANO, depth=0, position_table=4, hidden_size=8, num_heads=1, out_hidden_size=32)
    tower = VisionTower(config)
    tower.position_table.copy_(torch.arange(4)[:, None] + 10.0 * torch.arange(4) + torch.zeros(8, 1, 1))
    tower.merger.ln_q = tower.merger.mlp = nn.Identity()
    seen = tower(torch.zeros(1, 6 * 8, config.patch_dim), 6, 8)[0].view(3, 4, 2, 2, 8)
    rows = ((torch.arange(6) + 0.5) * 4 / 6 - 0.5).clamp(0, 3)[:, None]
    columns = ((torch.arange(8) + 0.5) * 4 / 8 - 0.5).clamp(0, 3)
    added = seen.permute(0, 2, 1, 3, 4).reshape(6, 8, 8)
    torch.testing.assert_close(added, (rows + 10 * columns)[..., None].expand(-1, -1, 8), rtol=0, atol=1e-5)


@torch.no_grad()
def test_joined_projections_change_nothing() -> None:
    tower = scatter(VisionTower(VISION)).eval()
    x = patches(VISION, 2, grid=(12, 10))
    apart = tower(x, 12, 10)
    for block in tower.blocks:
        block.mlp.fuse()
    assert error(tower(x, 12, 10), apart) <= 1e-6


def test_it_learns_after_it_served_in_the_same_process() -> None:
    """What is kept between calls must not be bound to the mode it was made in."""
    plan_grid.cache_clear()
    tower = scatter(VisionTower(VISION))
    x = patches(VISION, 1, grid=(12, 10))
    with torch.inference_mode():
        tower(x, 12, 10)
    tower(x, 12, 10).sum().backward()
    assert all(weight.grad is not None for weight in tower.parameters())
