"""Frames to patches, against transformers' Qwen2-VL image processor."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from model.config import PRESETS, VisionConfig
from model.preprocess import GREY, MEAN, STD, bicubic, choose_grid, fit, fit_all, patchify

CONFIG = PRESETS["4b"]
sides = st.integers(1, 4000)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def oracle(picture: np.ndarray, resize: bool = False, tokens: int = 256) -> tuple[torch.Tensor, tuple[int, int]]:
    """What the processor of transformers makes of one picture: its patches and its grid."""
    size = {"shortest_edge": 28 * 28, "longest_edge": tokens * 28 * 28}
    found = Qwen2VLImageProcessorPil(do_resize=resize, size=size)([picture], return_tensors="pt")
    _, height, width = found["image_grid_thw"][0].tolist()
    return found["pixel_values"], (height, width)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (224, 224), (448, 448), (84, 392), (336, 140)])
def test_patches_are_the_image_processors(height: int, width: int) -> None:
    picture = noise(height, width)
    expected, grid = oracle(picture)
    assert choose_grid(CONFIG, height, width) == grid
    torch.testing.assert_close(patchify(CONFIG, [picture], grid), expected, rtol=0, atol=2e-6)


def test_merge_size_and_patch_size_are_followed() -> None:
    vision = VisionConfig(patch_size=8, spatial_merge_size=3)
    picture = noise(48, 72)
    found = Qwen2VLImageProcessorPil(do_resize=False, patch_size=8, merge_size=3)([picture], return_tensors="pt")
    patches = patchify(replace(CONFIG, vision=vision), [picture], (6, 9))
    torch.testing.assert_close(patches, found["pixel_values"], rtol=0, atol=2e-6)


def test_two_frames_fill_the_temporal_patch_in_their_order() -> None:
    first, second = noise(56, 84, 1), noise(56, 84, 2)
    pair = patchify(CONFIG, [first, second], (4, 6)).view(24, 3, 2, 14 * 14)
    for i, picture in enumerate((first, second)):
        alone = patchify(CONFIG, [picture], (4, 6)).view(24, 3, 2, 14 * 14)
        assert torch.equal(pair[:, :, i], alone[:, :, 0])
        assert torch.equal(alone[:, :, 0], alone[:, :, 1])


def test_frames_of_another_size_are_resized_as_the_processor_does() -> None:
    """Its resampling is Pillow's and ours torch's, of the same filter: they may differ by a level or two."""
    ramp = np.linspace(0, 255, 720 * 1280 * 3).reshape(720, 1280, 3)
    smooth = (ramp + 60 * np.sin(np.arange(1280) / 40)[None, :, None]).clip(0, 255).astype(np.uint8)
    expected, grid = oracle(smooth, resize=True)
    assert choose_grid(CONFIG, 720, 1280) == grid
    patches = patchify(CONFIG, [smooth], grid)
    level = 1 / (255 * min(STD))
    assert (patches - expected).abs().max() <= 2 * level + 1e-6


@given(sides, sides, st.sampled_from([1, 16, 64, 256, 1024]))
def test_grid_fits_the_tokens(height: int, width: int, tokens: int) -> None:
    rows, columns = choose_grid(replace(CONFIG, tokens_per_frame=tokens), height, width)
    assert rows % 2 == 0 and columns % 2 == 0
    assert 1 <= (rows // 2) * (columns // 2) <= tokens


@given(st.integers(28, 4000), st.integers(28, 4000), st.sampled_from([64, 256]))
def test_grid_is_smart_resizes(height: int, width: int, tokens: int) -> None:
    """Except at two edges: slivers beyond the tokens, and squares, where its floats floor 16.0 to 15."""
    rows, columns = math.sqrt(height * tokens / width), math.sqrt(width * tokens / height)
    assume(min(rows, columns) > 1 and not (rows.is_integer() or columns.is_integer()))
    expected = smart_resize(height, width, 28, 28 * 28, tokens * 28 * 28)
    found = choose_grid(replace(CONFIG, tokens_per_frame=tokens), height, width)
    assert found == (expected[0] // 14, expected[1] // 14)


def test_a_square_picture_gets_all_its_tokens() -> None:
    assert choose_grid(CONFIG, 2115, 2115) == (32, 32)


def test_square_grid_takes_any_picture_by_stretching() -> None:
    nano = PRESETS["nano"]
    assert choose_grid(nano, 720, 1280) == choose_grid(nano, 1280, 720) == (16, 16)
    tall = np.zeros((280, 140, 3), np.uint8)
    tall[140:] = 255
    fitted = fit(nano, tall, (16, 16))
    assert fitted.shape == (3, 224, 224)
    assert fitted[:, :100].max() == 0 and fitted[:, -100:].min() == 255


@pytest.mark.parametrize(("height", "width"), [(360, 640), (640, 360), (10, 500)])
def test_a_picture_of_another_shape_is_letterboxed(height: int, width: int) -> None:
    grid = (16, 16)
    fitted = fit(CONFIG, np.full((height, width, 3), 255, np.uint8), grid)
    assert fitted.shape == (3, 224, 224)
    inner = (fitted[0] == 255).nonzero()
    top, left = inner.min(0).values.tolist()
    bottom, right = (223 - inner.max(0).values).tolist()
    scale = 224 / max(height, width)
    assert abs(top - bottom) <= 1 and abs(left - right) <= 1
    assert (224 - top - bottom, 224 - left - right) == (max(1, round(height * scale)), max(1, round(width * scale)))
    assert set(fitted.unique().tolist()) == {GREY, 255}


def test_resizing_antialiases() -> None:
    """A fine chequerboard shrinks to grey, not to moiré."""
    board = np.repeat((np.indices((1120, 1120)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    fitted = fit(PRESETS["nano"], board, (16, 16)).float()
    assert (fitted - 127.5).abs().max() <= 2


def test_values_are_normalised() -> None:
    patches = patchify(CONFIG, [np.full((28, 28, 3), 255, np.uint8)], (2, 2)).view(4, 3, -1)
    for channel in range(3):
        expected = (1 - MEAN[channel]) / STD[channel]
        assert patches[:, channel].sub(expected).abs().max() < 1e-6


@pytest.mark.parametrize("size", [(448, 448), (252, 448), (720, 600), (900, 1400)])
def test_resizing_by_products_is_pytorchs_antialiased_bicubic(size: tuple[int, int]) -> None:
    """What a GPU does, an axis at a time, against PyTorch's own kernel in float64: on the way down, up and where a side stays."""
    shown = torch.randint(0, 256, (1, 3, 720, 1280), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    down, across = (bicubic(*sides, torch.device("cpu")) for sides in zip((720, 1280), size, strict=True))
    wanted = F.interpolate(shown.double(), size, mode="bicubic", antialias=True)
    torch.testing.assert_close((down @ shown.float() @ across.T).double(), wanted, atol=5e-3, rtol=0)


def test_pictures_of_several_sizes_are_fitted_as_each_alone() -> None:
    """In their own order, whatever sizes they share: some need no resizing, some another shape's letterbox."""
    sizes = [(448, 448), (300, 500), (448, 448), (720, 720), (300, 500)]
    pictures = [noise(*size, seed=i) for i, size in enumerate(sizes)]
    together = fit_all(CONFIG, pictures, (32, 32), "cpu")
    assert torch.equal(together, torch.stack([fit(CONFIG, picture, (32, 32)) for picture in pictures]))
    alike = fit_all(CONFIG, pictures[1::3], (32, 32), "cpu")
    assert torch.equal(alike, together[1::3])
