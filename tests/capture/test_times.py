"""When a recording's pictures are shown: long stills, sound that goes on, offsets, and machines that are too slow."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from capture import SourceError, State, open_source
from capture.convert import Pictures
from capture.lifecycle import PLAYED
from capture.sources.picture import PictureSource
from capture.timeline import Pace
from tests.capture.lab import CALM, drawn, render, serving_folder, watching
from tests.capture.test_convert import silence
from tests.capture.test_image import coded, corners, file, moving, near

pytestmark = pytest.mark.beside


def slides(path: Path, *times: float) -> Path:
    """A film whose pictures are shown at `times` in seconds, the last of them until the last time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        stream.time_base = Fraction(1, 1000)
        for n, (at, until) in enumerate(pairwise(times)):
            frame = av.VideoFrame.from_ndarray(drawn(n * 10), format="rgb24")
            frame.pts, frame.time_base = round(at * 1000), Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.duration = round((until - at) / packet.time_base)
                container.mux(packet)
    return path


@pytest.mark.parametrize("name", ["show.mp4", "show.mkv", "show.ts", "show.webm"])
def test_a_slide_show_has_its_own_times(name: str, tmp_path: Path) -> None:
    if name.endswith("webm"):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libvpx-vp9", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for at in (0, 12, 27):
                frame = av.VideoFrame.from_ndarray(drawn(at, 64, 48), format="rgb24")
                frame.pts, frame.time_base = at, Fraction(1, 1)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        path = slides(tmp_path / name, 0, 12, 27, 60)
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert [frame.time for frame in watcher.frames()] == pytest.approx([0, 12, 27], abs=0.01)
    assert not any(frame.discontinuity for frame in watcher.frames())
    assert "truncated" not in watcher.source.status.reason


@pytest.mark.parametrize("name", ["show.mp4", "show.mkv"])
def test_the_last_picture_lasts(name: str, tmp_path: Path) -> None:
    path = slides(tmp_path / name, 0, 0.3, 1.8)
    with watching(str(path)) as watcher:
        watcher.until(State.ENDED)
        ended = time.monotonic()
    first, second = watcher.frames()
    took = ended - first.captured
    # By wall clock, on a machine that may be late with any of them.
    assert 0.1 < second.captured - first.captured < 1.5
    assert 1.2 < took < 5 and "truncated" not in watcher.source.status.reason


def test_a_long_still_between_pictures_out_of_order_is_counted_once(tmp_path: Path) -> None:
    """In MP4 its length stands with a picture that is shown after it, as that is decoded before it."""
    path, options = tmp_path / "still.mp4", {"preset": "ultrafast", "bf": "3", "b_strategy": "0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for n in range(20):
            frame = av.VideoFrame.from_ndarray(drawn(n), format="rgb24")
            frame.pts, frame.time_base = n + 30 * (n >= 12), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        last = container.streams.video[0].duration * container.streams.video[0].time_base
        ends = [(each.pts + each.duration) * each.time_base for each in container.demux() if each.pts is not None]
        assert last == 5 and max(ends) > 7
    with watching(str(path)) as watcher:
        watcher.until(State.ENDED)
        ended = watcher.source.status.since
    frames = watcher.frames()
    assert frames[-1].time == pytest.approx(4.9) and ended - frames[-1].captured < 2.5


def test_a_minute_of_slides_takes_a_minute() -> None:
    """On a clock of the test's own: each picture is due when it is shown, however long the one before was."""
    pace, now, due = Pace(600), 100.0, []
    for at in (0.0, 12.0, 24.0, 59.0, 60.0):
        now = pace.moment(at, now)
        due.append(now - 100)
    assert due == [0, 12, 24, 59, 60] and pace.share is None


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_sound_longer_than_the_picture_is_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        sound = container.add_stream("aac", rate=8000)
        for n in range(5):
            frame = av.VideoFrame.from_ndarray(drawn(n), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        silence(container, sound, 8.0)
    with watching(str(path)) as watcher:
        watcher.until(State.ENDED)
        ended = time.monotonic()
        assert watcher.source.status.reason == PLAYED
    assert len(watcher.frames()) == 5
    assert ended - watcher.frames()[0].captured < 3
    with watching(str(path), loop=True, realtime=False) as watcher:
        watcher.more(12)


def test_cut_off_with_sound_is_still_told(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for n in range(100):
            frame = av.VideoFrame.from_ndarray(drawn(n), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert "truncated" in watcher.source.status.reason


def test_a_machine_too_slow_for_a_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = render(tmp_path / "clip.mp4", 36)
    make = Pictures.make

    def slow(self: Pictures, *arguments: object, **more: object) -> np.ndarray:
        time.sleep(0.08)
        return make(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Pictures, "make", slow)
    with watching(str(clip)) as watcher:
        watcher.until(State.ENDED)
    said = [status.reason for status in watcher.told if status.state is State.LIVE and status.reason]
    shares = [re.search(r"can't be shown at its own rate here: at about (\d+) % of it", each) for each in said]
    # Half of it, and less on a machine that has more to do.
    assert 10 <= max(int(share[1]) for share in shares if share) <= 50 and all(shares)


def test_falling_behind_once_is_forgiven() -> None:
    pace = Pace()
    for n in range(100):
        assert pace.moment(n / 10, 50 + n / 10) == 50 + n / 10
    assert pace.moment(10, 65) == 65 and pace.share is None
    assert pace.moment(10.1, 70) == 70 and pace.share == pytest.approx(0.02)
    assert pace.moment(20.2, 80.05) == pytest.approx(80.1) and pace.share is None


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("served") / "clip.mp4")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.ts"])
def test_offset_and_loop_over_http(name: str, tmp_path: Path) -> None:
    """Of the second the container does not tell how long it is, but the server that it is a file."""
    render(tmp_path / name)
    with (
        serving_folder(tmp_path) as server,
        watching(f"{server}/{name}", start=1.6, loop=True, patience=CALM) as watcher,
    ):
        watcher.until(State.LIVE)
        watcher.more(70)
    frames = watcher.frames()
    assert np.abs(frames[0].pixels.astype(int) - drawn(40)).mean() < 3
    assert np.abs(frames[10].pixels.astype(int) - drawn(0)).mean() < 3
    assert np.abs(frames[60].pixels.astype(int) - drawn(0)).mean() < 3
    assert watcher.source.status.reconnects == 0


def test_live_streams_are_not_begun_later_or_again(clip: Path, tmp_path: Path) -> None:
    live = tmp_path / "live.m3u8"
    render(tmp_path / "segment.ts", 50, format="mpegts")
    live.write_text("#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nsegment.ts\n")
    with serving_folder(tmp_path) as server, watching(f"{server}/live.m3u8", loop=True) as watcher:
        watcher.until(State.ENDED)
        assert "leave out loop and start" in watcher.source.status.reason
    for url in ("rtsp://127.0.0.1:9/x", "rtmp://127.0.0.1:9/x"):
        with pytest.raises(SourceError, match="leave out loop and start"):
            open_source(url, watcher.source.options.__class__(start=5.0))  # type: ignore[attr-defined]


def test_an_offset_behind_the_end_is_told(clip: Path) -> None:
    with watching(str(clip), start=30.0) as watcher:
        watcher.until(State.ENDED)
    assert "start 30 is not within its 2.0 s" in watcher.source.status.reason


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF", "PNG"])
def test_moving_pictures_play_at_their_times(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"moving.{kind.lower()}"
    path.write_bytes(moving(kind, [200, 300, 400]))
    with watching(str(path)) as watcher:
        assert isinstance(watcher.source, PictureSource)
        watcher.until(State.ENDED)
        ended = time.monotonic()
    assert 0.6 < ended - watcher.frames()[0].captured < 3
    assert [frame.time for frame in watcher.frames()] == pytest.approx([0, 0.2, 0.5], abs=0.02)
    late = [frame.captured - frame.time for frame in watcher.frames()]
    assert max(late) - min(late) < 0.3, "all at once, or 25 a second, were more than 0.4 s off"
    with watching(str(path), realtime=False, loop=True, policy="every", start=0.3) as watcher:
        watcher.more(8)
    assert all(0 < later.time - earlier.time < 0.5 for earlier, later in pairwise(watcher.frames()))


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_moving_pictures_play_over_http(kind: str, tmp_path: Path) -> None:
    (tmp_path / "moving").write_bytes(moving(kind, [200, 300, 200]))
    with serving_folder(tmp_path) as server, watching(f"{server}/moving") as watcher:
        watcher.until(State.ENDED)
    assert [frame.time for frame in watcher.frames()] == pytest.approx([0, 0.2, 0.5], abs=0.05)
    assert watcher.source.status.reconnects == 0


def test_an_offset_behind_an_animations_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "moving.gif").write_bytes(moving("GIF", [200, 300]))
    with watching(str(tmp_path / "moving.gif"), start=5.0, loop=True) as watcher:
        watcher.until(State.ENDED)
    assert "start 5 is not within its 0.5 s" in watcher.source.status.reason


def test_a_still_file_is_shown_upright_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "still.jpg"
    path.write_bytes(file(Image.fromarray(coded(corners(), 6)), "JPEG", exif=exif))
    with watching(str(path)) as watcher:
        watcher.until(State.ENDED)
    (frame,) = watcher.frames()
    near(frame.pixels, corners())


def test_jpeg_after_jpeg_is_a_video_and_heic_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "camera.mjpeg"
    path.write_bytes(file(Image.fromarray(corners()), "JPEG") * 10)
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert watcher.source.status.frames == 10
    heic = tmp_path / "photo.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(SourceError, match="HEIC"):
        open_source(str(heic))
