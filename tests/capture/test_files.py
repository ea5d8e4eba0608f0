"""Files: pace, loop, offset, shape and damage."""

import struct
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from capture import Mailbox, SourceError, SourceOptions, State, open_source
from capture.lifecycle import PLAYED
from capture.sources.tracks import cuda_lack
from tests.capture.lab import CALM, drawn, render, wait_for, watching

pytestmark = pytest.mark.beside


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("clips") / "clip.mp4")


def test_a_file_plays_at_its_own_pace(clip: Path) -> None:
    """A pace that begins anew, where a busy machine held it up, makes one step longer and no other."""
    with watching(str(clip), patience=CALM) as watcher:
        watcher.until(State.ENDED)
        frames = watcher.frames()
    assert frames[-1].captured - frames[0].captured > 1.7
    assert watcher.told[-1].since - frames[0].captured > 1.7
    assert [frame.sequence for frame in frames] == list(range(50))
    assert [frame.time for frame in frames] == pytest.approx([n / 25 for n in range(50)], abs=1e-3)
    assert np.median(np.diff([frame.captured for frame in frames])) == pytest.approx(0.04, abs=0.01)
    # Told anew in the same state is that it can't keep its pace.
    assert [state for state, _ in groupby(watcher.states)] == [State.CONNECTING, State.LIVE, State.ENDED]
    assert (frames[0].pixels.dtype, frames[0].pixels.shape, frames[0].pixels.flags["C_CONTIGUOUS"]) == (
        np.uint8,
        (180, 320, 3),
        True,
    )
    assert np.abs(frames[10].pixels.astype(int) - drawn(10)).mean() < 3


def test_the_rate_counts_from_the_start_on(clip: Path) -> None:
    source = open_source(str(clip), SourceOptions(loop=True))
    source.counted_at -= 6_000  # a model was loaded meanwhile
    source.start(Mailbox(4), lambda status: None)
    wait_for(lambda: source.status.frames_per_second > 0)
    assert source.status.frames_per_second > 0.1, "of its first seconds, however few frames a busy machine had in them"
    source.stop()


def test_a_recording_without_timestamps_plays_at_its_rate(tmp_path: Path) -> None:
    with watching(str(render(tmp_path / "raw.h264", 25, format="h264"))) as watcher:
        watcher.until(State.ENDED)
    frames = watcher.frames()
    assert [frame.time for frame in frames] == pytest.approx([n / 25 for n in range(25)], abs=1e-3)
    assert np.median(np.diff([frame.captured for frame in frames])) == pytest.approx(0.04, abs=0.015)


def test_a_recording_that_tells_no_times_at_all_is_whole(tmp_path: Path) -> None:
    """Raw H.264 whose pictures are reordered: its packets have neither times nor an end."""
    path = tmp_path / "raw.h264"
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(drawn(n, 64, 90)[:48], format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert all(packet.pts is None and packet.dts is None for packet in container.demux(video=0))
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
        assert watcher.reason(State.ENDED) == PLAYED and len(watcher.frames()) == 10


def test_as_fast_as_it_is_taken_and_every_frame(tmp_path: Path) -> None:
    """It would play for eight minutes, which nobody waits for here."""
    slow = render(tmp_path / "slow.mp4", fps=1, times=lambda n: 10 * n)
    with watching(str(slow), realtime=False, policy="every", capacity=2) as watcher:
        wait_for(lambda: len(watcher.frames()) == 50)
        watcher.until(State.ENDED)
    assert watcher.mailbox.dropped == 0


def test_a_taker_without_room_is_no_stall(clip: Path) -> None:
    with watching(str(clip), realtime=False, policy="every", capacity=1) as watcher:
        watcher.until(State.LIVE)
        wait_for(lambda: watcher.source.lifecycle.held)  # type: ignore[attr-defined]
        watcher.source.lifecycle.last_frame -= 60  # type: ignore[attr-defined]
        watcher.source.tick()  # type: ignore[attr-defined]
        assert watcher.state is State.LIVE


def test_a_loop_goes_on_and_marks_where_it_begins_again(clip: Path) -> None:
    with watching(str(clip), realtime=False, loop=True, policy="every") as watcher:
        wait_for(lambda: len(watcher.frames()) > 120)
    marks = [frame.sequence for frame in watcher.frames() if frame.discontinuity]
    assert marks[:2] == [50, 100]
    assert all(0 < later.time - earlier.time < 0.1 for earlier, later in pairwise(watcher.frames()))


def test_it_starts_where_it_is_told_to(clip: Path) -> None:
    with watching(str(clip), start=1.0) as watcher:
        watcher.until(State.ENDED)
    frames = watcher.frames()
    assert len(frames) == 25 and frames[0].time == 0
    assert np.abs(frames[0].pixels.astype(int) - drawn(25)).mean() < 3


@pytest.mark.parametrize("name", ["clip.ts", "clip.h264"])
def test_it_starts_where_no_index_tells_of_key_frames(name: str, tmp_path: Path) -> None:
    """FFmpeg seeks behind the one key frame of the first, and not at all in the second."""
    path = render(tmp_path / name, 50, key=1000)
    with watching(str(path), realtime=False, start=1.0) as watcher:
        watcher.until(State.ENDED)
    assert [int(frame.pixels[60].mean(axis=1).argmax()) // 4 for frame in watcher.frames()] == list(range(25, 50))


def test_a_file_that_has_only_its_head_yet_is_told(tmp_path: Path) -> None:
    path = render(tmp_path / "clip.mkv", 5)
    path.write_bytes(path.read_bytes().partition(b"\x1f\x43\xb6\x75")[0])
    with watching(str(path)) as watcher:
        watcher.until(State.ENDED)
        assert "it ends before its first picture: is it still being written?" in watcher.source.status.reason


def test_fps_leaves_frames_out_and_counts_them(clip: Path) -> None:
    with watching(str(clip), realtime=False, fps=5, policy="every") as watcher:
        watcher.until(State.ENDED)
    status = watcher.source.status
    assert (len(watcher.frames()), status.frames, status.thinned, status.unchanged) == (10, 50, 40, 0)


def test_the_change_gate_is_counted_apart(tmp_path: Path) -> None:
    clip = render(tmp_path / "still.mp4", 100, picture=lambda n: drawn(n if n >= 75 else 0))
    with watching(str(clip), realtime=False, change=6.0, policy="every") as watcher:
        watcher.until(State.ENDED)
    frames, status = watcher.frames(), watcher.source.status
    assert [frame.sequence for frame in frames if frame.sequence < 75] == [0, 23, 46, 69]
    assert len([frame for frame in frames if frame.sequence >= 75]) > 20
    assert status.unchanged == 100 - len(frames) and (status.thinned, watcher.mailbox.dropped) == (0, 0)


def test_large_pictures_are_scaled_down_upright_pixels(tmp_path: Path) -> None:
    wide = render(tmp_path / "wide.mkv", 3, size=(1440, 1080), aspect=Fraction(4, 3))
    with watching(str(wide), realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert watcher.frames()[0].pixels.shape == (360, 640, 3)


def test_a_turned_phone_video_stands_upright(tmp_path: Path) -> None:
    path = render(tmp_path / "turned.mp4", 3)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    # A matrix that turns by 90° clockwise (ISO 14496-12, 8.3.2): the field's left edge becomes the top.
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 180 << 16, 0, 1 << 30)
    path.write_bytes(data)
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
    seen = watcher.frames()[0].pixels
    assert seen.shape == (320, 180, 3)
    assert np.abs(seen.astype(int) - np.rot90(drawn(0), -1)).mean() < 3


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le"])
def test_ten_bits_decode(tmp_path: Path, pixel_format: str) -> None:
    path = render(tmp_path / "deep.mkv", 3, codec="ffv1", pixel_format=pixel_format)
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert np.abs(watcher.frames()[0].pixels.astype(int) - drawn(0)).mean() < 3


def test_interlaced_pictures_keep_one_field(tmp_path: Path) -> None:
    """The two fields show a square at different places: a comb if both are kept."""

    def combed(n: int) -> np.ndarray:
        pixels = drawn(n * 2, 640, 360)
        pixels[1::2] = drawn(n * 2 + 20, 640, 360)[1::2]
        return pixels

    path = tmp_path / "interlaced.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "top": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 640, 360, "yuv420p", 4_000_000
        for n in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(combed(n), format="rgb24")))
        container.mux(stream.encode())
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
    pixels = watcher.frames()[0].pixels.astype(int)
    assert pixels.shape == (360, 640, 3)
    assert np.abs(pixels[50:70] - drawn(0, 640, 360)[50:70]).mean() < 6


def test_a_change_of_resolution_in_mid_file(tmp_path: Path) -> None:
    small = render(tmp_path / "small.ts", 25)
    large = render(tmp_path / "large.ts", 25, size=(640, 480), times=lambda n: n + 25)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    with watching(str(joined), realtime=False) as watcher:
        watcher.until(State.ENDED)
    shapes = [frame.pixels.shape for frame in watcher.frames()]
    assert shapes[0] == (180, 320, 3) and shapes[-1] == (480, 640, 3)
    assert len(shapes) > 45


def test_a_change_of_pixel_format_in_mid_file(tmp_path: Path) -> None:
    joined = tmp_path / "joined.ts"
    with joined.open("wb") as file:
        for n, kind in enumerate(("yuv420p", "yuv444p")):
            part = render(tmp_path / f"{n}.ts", 25, pixel_format=kind, times=lambda at, n=n: at + 25 * n)  # type: ignore[misc]
            file.write(part.read_bytes())
    with watching(str(joined), realtime=False) as watcher:
        watcher.until(State.ENDED)
    frames = watcher.frames()
    assert len(frames) > 45 and {frame.pixels.shape for frame in frames} == {(180, 320, 3)}
    assert np.abs(frames[-1].pixels.astype(int) - drawn(24)).mean() < 3


@pytest.mark.parametrize(
    "codecs", [("libx264", "libx265"), ("libx265", "libx264"), ("libx264", "mpeg2video", "libx265")]
)
def test_a_change_of_codec_in_mid_file(tmp_path: Path, codecs: tuple[str, ...]) -> None:
    joined = tmp_path / "joined.ts"
    with joined.open("wb") as file:
        for n, codec in enumerate(codecs):
            part = render(tmp_path / f"{n}.ts", 125, codec=codec, times=lambda at, n=n: at + 125 * n)  # type: ignore[misc]
            file.write(part.read_bytes())
    with watching(str(joined), realtime=False) as watcher:
        watcher.until(State.ENDED)
    frames = watcher.frames()
    assert watcher.source.status.reason == "it played to its end" and watcher.source.status.reconnects == 0
    assert len(frames) >= 115 * len(codecs)
    assert [frame.time for frame in frames] == sorted(frame.time for frame in frames)
    assert frames[-1].time == pytest.approx(5 * len(codecs), abs=0.3)
    assert np.abs(frames[-1].pixels.astype(int) - drawn(124)).mean() < 3


@pytest.mark.parametrize(
    ("times", "marks"),
    [
        (lambda n: n if n < 25 else n + 90_000, [25]),
        (lambda n: n if n < 25 else n + 25 * 5, []),
    ],
    ids=["an hour ahead", "five seconds' pause"],
)
def test_jumps_of_timestamps(tmp_path: Path, times: object, marks: list[int]) -> None:
    path = render(tmp_path / "jump.mkv", 50, times=times)  # type: ignore[arg-type]
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
    frames = watcher.frames()
    assert [frame.sequence for frame in frames if frame.discontinuity] == marks
    assert all(0 < later.time - earlier.time <= 10 for earlier, later in pairwise(frames))


def test_an_hour_ahead_does_not_hold_up_the_pace(tmp_path: Path) -> None:
    path = render(tmp_path / "jump.mkv", 50, times=lambda n: n if n < 25 else n + 90_000)
    with watching(str(path)) as watcher:
        assert watcher.until(State.ENDED) < 60


def test_a_file_knows_when_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "dated.mkv"
    render(path, 5)
    dated = tmp_path / "dated2.mkv"
    with av.open(str(path)) as source, av.open(str(dated), "w") as target:
        target.metadata["creation_time"] = "2026-01-02T03:04:05Z"
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    with watching(str(dated), realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert watcher.frames()[1].wall == pytest.approx(1767323045.04, abs=0.01)


def truncated(folder: Path) -> Path:
    path = folder / "cut.mkv"
    whole = render(folder / "whole.mkv", 200).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def empty(folder: Path) -> Path:
    path = folder / "empty.mp4"
    path.write_bytes(b"")
    return path


def text(folder: Path) -> Path:
    path = folder / "text.mp4"
    path.write_text("this is no video at all\n" * 100)
    return path


def headless(folder: Path) -> Path:
    path = folder / "headless.mp4"
    whole = render(folder / "whole.mp4", 50).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def sound(folder: Path) -> Path:
    path = folder / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [(truncated, "breaks off"), (empty, "no video"), (text, "no video"), (headless, "no video"), (sound, "only sound")],
)
def test_a_file_that_is_no_whole_video_ends_with_one_clear_line(tmp_path: Path, make: object, said: str) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
        assert said in watcher.source.status.reason
        assert "\n" not in watcher.source.status.reason


def test_damaged_packets_are_passed_over(tmp_path: Path) -> None:
    """Bits flipped all over the coded pictures: most still come."""
    path = render(tmp_path / "clip.ts", 100, size=(640, 360))
    data = bytearray(path.read_bytes())
    for at in range(5000, len(data), 3001):
        if at % 188 > 8:
            data[at] ^= 0x55
    path.write_bytes(data)
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert watcher.source.status.frames > 50


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gopher://host/x", "unknown scheme 'gopher'"),
        ("/nowhere/clip.mp4", "there is no such file"),
        ("file:///nowhere/clip.mp4", "there is no such file"),
        (str(Path(__file__).parent), "is a folder"),
        ("v4l2:///dev/video99", "there is no such device"),
        ("camera://front", "named by its number"),
        ("rtsp://", "names no host"),
        ("rtsp://camera:99999/1", "an impossible port"),
        ("rtsp://user:pass word@camera/1", "write it as %20"),
        ("x" * 2000, "File name too long"),
        ("x" * 5000, "has 5,000 characters: 2,048 are the most"),
        (
            "admin:lovelace@192.168.1.2/1",
            r"source \*\*\*@192.168.1.2/1: there is no such file; of a camera begin with rtsp://",
        ),
    ],
)
def test_what_can_never_work_is_refused_at_once(url: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as refusal:
        open_source(url)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200 and "word" not in str(refusal.value)


@pytest.mark.parametrize("name", ["12:00.mp4", "-dash.mp4", "a b %20#?é.mp4", "line\nline.mp4"])
def test_files_may_be_called_anything(name: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    with watching(name, realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert watcher.source.status.frames == 50


def test_the_demo_plays_for_ever() -> None:
    with watching("demo:", fps=5) as watcher:
        watcher.until(State.LIVE)
        watcher.more(20)
        assert watcher.source.name == "demo:"
        assert watcher.frames()[0].pixels.shape == (360, 640, 3)


def test_hardware_that_is_not_there_is_told_once_and_the_cpu_decodes(
    clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cuda_lack.cache_clear()
    with watching(str(clip), realtime=False, loop=True, hwaccel="auto") as watcher:
        watcher.more(120)
    lines = [record.getMessage() for record in caplog.records if "hwaccel" in record.getMessage()]
    assert len(lines) == (1 if cuda_lack() else 0)
    assert all("the CPU decodes instead" in line for line in lines)


def test_a_file_that_ends_within_a_picture_is_told_where_it_tells_no_length(tmp_path: Path) -> None:
    """What is left of the file is taken for all of it, as its index is gone."""
    path = render(tmp_path / "torn.avi", 50, codec="mjpeg", pixel_format="yuvj420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with watching(str(path), realtime=False, policy="every") as watcher:
        watcher.until(State.ENDED)
        assert "it breaks off within a picture after" in watcher.source.status.reason
        assert 20 <= len(watcher.frames()) <= 26


def test_a_growing_file_is_followed(tmp_path: Path) -> None:
    """It is written to while it plays; each picture is shown once, and it is over when nothing more comes."""
    data = render(tmp_path / "whole.ts", 100).read_bytes()
    growing = tmp_path / "growing.ts"
    growing.write_bytes(data[: len(data) // 2 // 188 * 188])
    with watching(str(growing)) as watcher:
        watcher.more(5)
        with growing.open("ab") as file:
            file.write(data[growing.stat().st_size :])
        watcher.until(State.ENDED)
        assert watcher.source.status.reason == PLAYED
    frames = watcher.frames()
    assert [int(frame.pixels[60].mean(axis=1).argmax()) // 4 for frame in frames] == [
        n * 4 % 280 // 4 for n in range(100)
    ]


@pytest.mark.parametrize("form", ["file://localhost{}", "FILE://{}", "file:{}"])
def test_a_files_url(tmp_path: Path, form: str) -> None:
    clip = render(tmp_path / "a clip.mp4", 5)
    for path in (str(clip), str(clip).replace(" ", "%20")):
        with watching(form.format(path), realtime=False) as watcher:
            watcher.until(State.ENDED)
        assert len(watcher.frames()) == 5
    with pytest.raises(SourceError, match="names the machine 'nas'"):
        open_source("file://nas/clip.mp4")
