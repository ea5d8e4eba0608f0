"""What need not be decoded of a file, and that what is handed over of it is the same."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import capture.sources.container as container
from capture.gate import Selection
from capture.lifecycle import State
from capture.sources.tracks import spares
from tests.capture.lab import drawn, watching

RATE, FRAMES = 20, 120


def film(path: Path, x264: str) -> Path:
    """A clip with pictures of which no others are made."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"x264-params": x264})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for n in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(drawn(n, 160, 96), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def read(path: Path, fps: float, threads: int = 1) -> tuple[list[tuple[float, bytes]], int]:
    """The frames that are handed over, by their times, and how many were decoded."""
    with watching(str(path), realtime=False, fps=fps, threads=threads, policy="every") as watcher:
        watcher.until(State.ENDED)
    frames = [(round(frame.time, 6), frame.pixels.tobytes()) for frame in watcher.frames()]
    return frames, watcher.source.status.frames


@pytest.mark.parametrize("fps", [0.5, 2.0, 7.3, 12.0])
@pytest.mark.parametrize(
    ("name", "x264", "spared"),
    [
        ("pyramid.mp4", "bframes=3:keyint=50", True),
        ("flat.mkv", "bframes=5:b-adapt=0:b-pyramid=none:keyint=30", True),
        ("open.mov", "bframes=3:open-gop=1:keyint=30", True),
        ("plain.mp4", "bframes=0", False),
        ("fields.mp4", "bframes=3:interlaced=1", False),
        ("broadcast.ts", "bframes=3", False),
        ("old.avi", "bframes=3", False),
    ],
)
def test_what_is_handed_over_is_the_same(
    name: str, x264: str, spared: bool, fps: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left undecoded, at 20 frames a second, some of which fall on the very moment from which they are due."""
    path = film(tmp_path / name, x264)
    read_now = [read(path, fps, threads) for threads in (1, 3)]
    monkeypatch.setattr(container, "spares", lambda *given: False)
    whole, decoded = read(path, fps)
    assert decoded == FRAMES and [frames for frames, _ in read_now] == [whole, whole]
    if fps < 5 or not spared:  # else most are due before it is known which
        assert [few < FRAMES for _, few in read_now] == [spared, spared]


def test_a_camera_and_what_is_watched_at_its_pace_are_decoded_whole(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", "bframes=3")
    with watching(str(path), fps=5.0, policy="every") as watcher:
        watcher.until(State.ENDED)
    assert watcher.source.status.frames == FRAMES
    with av.open(str(path)) as opened:
        assert spares(opened, opened.streams.video[0])


def test_times_of_a_format_that_tells_no_order_are_right(tmp_path: Path) -> None:
    """FFmpeg guesses when pictures of AVI are shown; where H.264 reorders them its guesses go back and forth."""
    path = film(tmp_path / "a.avi", "bframes=3:b-adapt=0")
    with watching(str(path), realtime=False, policy="every") as watcher:
        watcher.until(State.ENDED)
    times = [frame.time for frame in watcher.frames()]
    assert np.allclose(times, np.arange(FRAMES) / RATE) and not any(f.discontinuity for f in watcher.frames()[1:])


def test_the_sum_of_steps_does_not_decide_what_is_due() -> None:
    """Nine steps of .05 s are a little less than .45."""
    for time in (0.45, sum([0.05] * 9), 0.45 - 1e-9):
        selection = Selection(fps=2.0)
        assert selection.timely(0.0) and not selection.timely(0.4) and selection.timely(time)
