"""The vision tower, against transformers' Qwen2.5-VL tower with the same weights."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from model.config import PRESETS, VisionConfig
from model.vision import VisionTower

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


def tokens(twin: Qwen2_5_VisionTransformerPretrainedModel, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The oracle's tokens for `x` [frames, patches, patch_dim], each frame a picture of its own."""
    thw = torch.tensor([[1, *grid]] * len(x))
    return twin(x.flatten(0, 1), grid_thw=thw).pooler_output.unflatten(0, (len(x), -1))


CASES = [(config, grid) for config in (VISION, NANO) for grid in GRIDS] + [(BLOCKS_4B, (12, 20)), (BLOCKS_4B, (16, 8))]


@pytest.mark.parametrize(("config", "grid"), CASES, ids=[f"{c.hidden_size}-{g[0]}x{g[1]}" for c, g in CASES])
@torch.no_grad()
def test_tower_is_qwens(config: VisionConfig, grid: tuple[int, int]) -> None:
    tower = scatter(VisionTower(config)).eval()
    x = patches(config, 3, grid=grid)
    assert error(tower(x, *grid), tokens(oracle(tower), x, grid)) <= 1e-5


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
