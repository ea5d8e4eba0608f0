"""Pictures that CUDA decodes are those that the CPU decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capture import State
from capture.sources.tracks import cuda_lack
from tests.capture.lab import Watcher, render

pytestmark = pytest.mark.skipif(bool(cuda_lack()), reason="needs CUDA that decodes video")
FRAMES = 60


def pictures(path: Path, hwaccel: str, largest: int) -> list[np.ndarray]:
    """Every picture of the file, as the model gets it."""
    watcher = Watcher(str(path), policy="every", hwaccel=hwaccel, largest_side=largest)
    watcher.until(State.ENDED)
    seen = [frame.pixels for frame in watcher.frames()]
    watcher.source.stop()
    return seen


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("size", [(640, 360), (1280, 720), (1918, 1078)])
def test_cuda_shows_what_the_cpu_shows(
    codec: str, size: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To the bit at their own size; smaller, as near as rounding lets them be."""
    path = render(tmp_path / "clip.mp4", FRAMES, size=size, codec=codec)
    for largest in (max(size), 320, 213):
        ours, theirs = pictures(path, "cuda", largest), pictures(path, "none", largest)
        assert "the CPU decodes instead" not in caplog.text
        assert len(ours) == len(theirs) == FRAMES
        for one, other in zip(ours, theirs, strict=True):
            apart = np.abs(one.astype(int) - other.astype(int))
            assert one.shape == other.shape
            assert apart.max() == 0 if largest == max(size) else apart.mean() < 1.5 and np.quantile(apart, 0.999) <= 4
