"""The vision tower against transformers' Qwen2.5-VL tower with the same random weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from model.config import PRESETS, VisionConfig
from model.vision import VisionTower

from .oracles import randomise, relative_error, transformers_tower

NANO = replace(PRESETS["nano"].vision, position_table=0)
WIDE = replace(PRESETS["4b"].vision, depth=2, fullatt_block_indexes=(1,))
"""The 4B's widths in one window block and one full block."""


@cache
def towers(config: VisionConfig) -> tuple[VisionTower, nn.Module]:
    tower = VisionTower(config)
    randomise(tower)
    return tower.eval(), transformers_tower(tower, config)


def compare(config: VisionConfig, grid: tuple[int, int], frames: int = 1) -> float:
    tower, oracle = towers(config)
    patches = torch.randn(frames, grid[0] * grid[1], config.patch_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = tower(patches, *grid)
        wanted = oracle(patches.flatten(0, 1), torch.tensor([[1, *grid]] * frames)).pooler_output
    return relative_error(found.flatten(0, 1), wanted)


@pytest.mark.parametrize(
    "grid",
    [(16, 16), (16, 24), (8, 40), (10, 14), (12, 20), (18, 16), (16, 18), (26, 6), (2, 2), (2, 30), (8, 8)],
    ids=str,
)
def test_nano_tower_is_transformers(grid: tuple[int, int]) -> None:
    """Square or not, multiples of the attention window (8 patches) or not, smaller than one window too."""
    assert compare(NANO, grid) <= 1e-5


@pytest.mark.parametrize("grid", [(16, 16), (8, 24), (12, 18)], ids=str)
def test_4b_widths_are_transformers(grid: tuple[int, int]) -> None:
    assert compare(WIDE, grid) <= 1e-5


@pytest.mark.parametrize("grid", [(16, 16), (10, 14)], ids=str)
def test_batch_of_frames_is_each_alone(grid: tuple[int, int]) -> None:
    assert compare(NANO, grid, frames=3) <= 1e-5


def test_fused_projections_change_nothing() -> None:
    tower = VisionTower(NANO)
    randomise(tower)
    patches = torch.randn(2, 12 * 10, NANO.patch_dim)
    with torch.no_grad():
        apart = tower(patches, 12, 10)
        for block in tower.blocks:
            block.mlp.fuse()
        assert relative_error(tower(patches, 12, 10), apart) <= 1e-6


def added_positions(height: int, width: int) -> torch.Tensor:
    """What the nano's table of learned positions adds to each patch, [height, width, 8]: seen through a tower without blocks."""
    config = replace(NANO, depth=0, position_table=4, hidden_size=8, num_heads=1, out_hidden_size=32)
    tower = VisionTower(config)
    with torch.no_grad():
        tower.position_table.copy_(torch.arange(4)[:, None] + 10.0 * torch.arange(4) + torch.zeros(8, 1, 1))
        tower.merger.ln_q = nn.Identity()
        tower.merger.mlp = nn.Identity()
        seen = tower(torch.zeros(1, height * width, config.patch_dim), height, width)[0]
    blocks = seen.view(height // 2, width // 2, 2, 2, 8).permute(0, 2, 1, 3, 4)
    return blocks.reshape(height, width, 8)


def test_position_table_gives_each_patch_its_own_entry() -> None:
    rows, columns = torch.arange(4.0)[:, None], torch.arange(4.0)
    assert torch.equal(added_positions(4, 4)[..., 3], rows + 10 * columns)


def test_position_table_is_interpolated_to_other_grids() -> None:
    """Bilinear between the centres of the entries, flat beyond the outermost."""
    rows = ((torch.arange(6) + 0.5) * 4 / 6 - 0.5).clamp(0, 3)[:, None]
    columns = ((torch.arange(8) + 0.5) * 4 / 8 - 0.5).clamp(0, 3)
    assert torch.allclose(added_positions(6, 8)[..., 0], rows + 10 * columns, atol=1e-5)
