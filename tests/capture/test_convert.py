"""Videos as cameras and programs write them, against what they show: turns, tracks, HDR, ranges, fields, what is clear."""

from __future__ import annotations

import gc
import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.sidedata.sidedata import SideDataContainer
from av.stream import Disposition
from av.video.frame import VideoFrame

from capture import State
from capture.colour import Mapping
from capture.convert import Pictures
from capture.image import decode_image
from tests.capture.lab import drawn, render, watching
from tests.capture.test_image import corners, encoded

pytestmark = pytest.mark.beside


def seen(path: Path, frames: int = 1) -> np.ndarray:
    """The first pictures of a file, as a source hands them over."""
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert len(watcher.frames()) >= frames, watcher.source.status
    return np.stack([frame.pixels for frame in watcher.frames()[:frames]])


def near(pixels: np.ndarray, wanted: object, by: float = 4) -> None:
    assert np.abs(pixels.astype(int) - np.asarray(wanted, int)).mean() < by


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MP4 of red, green, blue and white quarters."""
    return render(
        tmp_path_factory.mktemp("turns") / "a.mp4", 2, size=(96, 64), picture=lambda n: corners()
    ).read_bytes()


def test_the_container_may_say_how_wide_pixels_are(upright: bytes, tmp_path: Path) -> None:
    data = bytearray(upright)
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 4] = struct.pack(">i", 3 << 15)
    (tmp_path / "wide.mp4").write_bytes(data)
    assert seen(tmp_path / "wide.mp4").shape == (1, 64, 144, 3)


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (-1, 0, 0, 1),
        (-1, 0, 0, -1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, 1, -1, 0),
        (0, -1, -1, 0),
        (0, -1, 1, 0),
    ],
)
def test_display_matrices_turn_and_mirror(matrix: tuple[int, int, int, int], upright: bytes, tmp_path: Path) -> None:
    a, b, c, d = matrix
    data = bytearray(upright)
    at = data.index(b"tkhd") + 4 + 40
    moved = (96 << 16 if a + c < 0 else 0, 64 << 16 if b + d < 0 else 0)
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, *moved, 1 << 30)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    # ISO 14496-12, 6.2.2: the pixel at (x, y) is shown at (ax + cy, bx + dy), moved to where the picture begins.
    rows, columns = np.mgrid[:64, :96]
    x, y = a * columns + c * rows, b * columns + d * rows
    x, y = x - x.min(), y - y.min()
    wanted = np.zeros((y.max() + 1, x.max() + 1, 3), np.uint8)
    wanted[y, x] = corners()
    (pixels,) = seen(path)
    assert pixels.shape == wanted.shape and pixels.flags["C_CONTIGUOUS"]
    near(pixels, wanted, 6)


def colour(size: tuple[int, int], value: tuple[int, int, int], count: int = 5) -> list[av.VideoFrame]:
    return [
        av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), value, np.uint8), format="rgb24")
        for _ in range(count)
    ]


def tracks(path: Path, *kinds: tuple[tuple[int, int], tuple[int, int, int], Disposition]) -> Path:
    """A file of several videos, each of one colour."""
    with av.open(str(path), "w") as container:
        streams = []
        for (width, height), _, disposition in kinds:
            attached = bool(disposition & Disposition.attached_pic)
            stream = container.add_stream("png" if attached else "mpeg4", rate=5)
            stream.width, stream.height, stream.pix_fmt = width, height, "rgb24" if attached else "yuv420p"
            stream.disposition = disposition
            streams.append(stream)
        for stream, (size, value, disposition) in zip(streams, kinds, strict=True):
            frames = colour(size, value, 1 if disposition & Disposition.attached_pic else 5)
            for n, frame in enumerate(frames):
                frame.pts, frame.time_base = n, Fraction(1, 5)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


NOTHING, DEFAULT, COVER = Disposition(0), Disposition.default, Disposition.attached_pic
RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)


@pytest.mark.parametrize(
    ("kinds", "shown"),
    [
        ((((160, 90), RED, NOTHING), ((1280, 720), BLUE, NOTHING), ((640, 360), GREEN, NOTHING)), GREEN),
        ((((160, 90), RED, NOTHING), ((320, 180), GREEN, NOTHING)), GREEN),
        ((((640, 360), RED, NOTHING), ((320, 180), GREEN, DEFAULT)), GREEN),
    ],
    ids=["the smallest that suffices", "else the largest", "the default"],
)
def test_the_best_of_several_videos_is_watched(tmp_path: Path, kinds: tuple, shown: tuple[int, int, int]) -> None:  # type: ignore[type-arg]
    (pixels,) = seen(tracks(tmp_path / "tracks.mkv", *kinds))
    near(pixels[10:-10, 10:-10], shown, 8)


def test_a_video_of_enormous_pictures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capture.sources.tracks.MOST_PIXELS", 320 * 180)
    with watching(str(render(tmp_path / "large.mp4", 2, size=(640, 360)))) as watcher:
        watcher.until(State.ENDED)
    assert "640×360 pixels: scale it down" in watcher.source.status.reason
    small = render(tmp_path / "small.ts", 25)
    large = render(tmp_path / "large.ts", 25, size=(640, 480), times=lambda n: n + 25)
    (tmp_path / "grows.ts").write_bytes(small.read_bytes() + large.read_bytes())
    with watching(str(tmp_path / "grows.ts"), realtime=False) as watcher:
        watcher.until(State.ENDED)
    assert {frame.pixels.shape for frame in watcher.frames()} == {(180, 320, 3)}


def cover_first(data: bytes) -> bytes:
    """An MP4 with its cover art before its tracks, as some taggers write it; `moov` stands last in `data`."""

    def boxes(at: int, end: int) -> list[tuple[bytes, bytes]]:
        found = []
        while at < end:
            length = int.from_bytes(data[at : at + 4])
            found.append((data[at + 4 : at + 8], data[at : at + length]))
            at += length
        return found

    out = b""
    for kind, box in boxes(0, len(data)):
        if kind == b"moov":
            at = len(out)
            inner = sorted(boxes(at + 8, at + len(box)), key=lambda part: {b"mvhd": 0, b"udta": 1}.get(part[0], 2))
            box = box[:8] + b"".join(part for _, part in inner)
        out += box
    return out


def test_cover_art_is_no_picture(tmp_path: Path) -> None:
    path = tracks(tmp_path / "cover.mp4", ((64, 64), RED, COVER), ((320, 180), GREEN, DEFAULT))
    path.write_bytes(cover_first(path.read_bytes()))
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    (pixels,) = seen(path)
    near(pixels, GREEN, 8)


def test_a_video_of_an_unknown_codec_is_told(tmp_path: Path) -> None:
    path = render(tmp_path / "known.mp4", 5, codec="mpeg4", size=(64, 48))
    path.write_bytes(path.read_bytes().replace(b"mp4v", b"zzzz").replace(b"esds", b"free"))
    with watching(str(path), realtime=False) as watcher:
        watcher.until(State.ENDED)
        assert "it holds no video that can be decoded" in watcher.source.status.reason


def test_sound_with_a_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "rgb24", COVER
        sound = container.add_stream("aac", rate=8000)
        silence(container, sound, 1.0)
        container.mux(cover.encode(colour((64, 64), RED, 1)[0]))
        container.mux(cover.encode())
    with watching(str(path)) as watcher:
        watcher.until(State.ENDED)
    assert "only sound" in watcher.source.status.reason and not watcher.frames()


def silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, round(8000 * seconds)), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 8000, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


SWATCHES = np.array(
    [
        (200, 60, 30),
        (30, 160, 60),
        (40, 60, 190),
        (230, 200, 40),
        (255, 0, 0),
        (16, 16, 16),
        (128, 128, 128),
        (235, 235, 235),
    ]
)
TO_2020 = np.array(
    [[0.6274039, 0.3292830, 0.0433131], [0.0690973, 0.9195404, 0.0113623], [0.0163914, 0.0880133, 0.8955953]]
)
"""From BT.709's primaries (ITU-R BT.2087, 4)."""
PEAK = 1000.0


def linear(levels: np.ndarray) -> np.ndarray:
    signal = levels / 255
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def pq(nits: np.ndarray) -> np.ndarray:
    """BT.2100, table 4: the inverse EOTF."""
    power = (np.asarray(nits) / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def nits(signal: np.ndarray) -> np.ndarray:
    power = np.asarray(signal) ** (1 / 78.84375)
    return 10000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)


def hlg(light: np.ndarray) -> np.ndarray:
    """The signal that a display of 1,000 cd/m² shows as `light` in cd/m² (BT.2100, table 5: inverse OOTF, then OETF)."""
    shown = light / 1000
    scene = shown * (np.maximum(shown @ [0.2627, 0.6780, 0.0593], 1e-12) ** (1 / 1.2 - 1))[..., None]
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )


def tone_mapped(light: np.ndarray, peak: float) -> np.ndarray:
    """What SDR shows of `light`, cd/m² in BT.2020's primaries [..., 3]: BT.2390-11, 5.4.1, on the brightest channel."""
    out = np.zeros(light.shape)
    for at in np.ndindex(light.shape[:-1]):
        brightest = light[at].max()
        e1, most = pq(brightest) / pq(peak), pq(203) / pq(peak)
        ks = 1.5 * most - 0.5
        if peak > 203 and e1 >= ks:
            t = (e1 - ks) / (1 - ks)
            e1 = (2 * t**3 - 3 * t**2 + 1) * ks + (t**3 - 2 * t**2 + t) * (1 - ks) + (-2 * t**3 + 3 * t**2) * most
        toned = light[at] / max(brightest, 1e-9) * (nits(e1 * pq(peak)) if peak > 203 else brightest)
        out[at] = encoded(np.linalg.inv(TO_2020) @ toned / 203)
    return out


def hdr(path: Path, signal: np.ndarray, transfer: int, *, primaries: int = 9, width: int = 32) -> Path:
    """A file of patches in a row, whose RGB signals (0 to 1) are coded as ten-bit YCbCr of BT.2020 in the limited range."""
    luma = signal @ [0.2627, 0.6780, 0.0593]
    planes = np.stack(
        [64 + 876 * luma, 512 + 896 * (signal[:, 2] - luma) / 1.8814, 512 + 896 * (signal[:, 0] - luma) / 1.4746]
    )
    wide = np.repeat(np.round(planes).astype(np.uint16)[:, None], 64, 1).repeat(width, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = wide.shape[2], 64, "yuv444p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, primaries, 9, 1
        frame = av.VideoFrame(wide.shape[2], 64, "yuv444p10le")
        for plane, values in zip(frame.planes, wide, strict=True):
            rows = np.zeros((64, plane.line_size // 2), np.uint16)
            rows[:, : values.shape[1]] = values
            plane.update(rows.tobytes())
        frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range = transfer, primaries, 9, 1
        for n in range(2):
            frame.pts, frame.time_base = n, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def patches(pixels: np.ndarray, count: int) -> np.ndarray:
    side = pixels.shape[1] // count
    return np.stack([pixels[20:40, n * side + 8 : (n + 1) * side - 8].mean(axis=(0, 1)) for n in range(count)])


@pytest.mark.parametrize("coded", [(pq, 16), (hlg, 18)], ids=["PQ", "HLG"])
@pytest.mark.parametrize("highlight", [None, PEAK, 400.0])
def test_hdr_is_mapped_to_what_sdr_shows(
    coded: tuple[Callable[[np.ndarray], np.ndarray], int], highlight: float | None, tmp_path: Path
) -> None:
    light = 203 * linear(SWATCHES) @ TO_2020.T
    if highlight is not None:
        light = np.concatenate([light, [[highlight] * 3, [highlight * 0.9, highlight * 0.3, highlight * 0.2]]])
    code, transfer = coded
    (pixels,) = seen(hdr(tmp_path / "hdr.mkv", np.clip(code(light), 0, 1), transfer))
    got, wanted = patches(pixels, len(light)), tone_mapped(light, max(float(light.max()), 203))
    assert np.abs(got - wanted).max() < 12, np.abs(got - wanted).max(axis=1)
    red = got[4]
    assert red[0] > 180 and red[1] < 12 and red[2] < 12
    if highlight is None:
        assert np.abs(got - SWATCHES).max() < 12


@pytest.mark.parametrize(("primaries", "transfer"), [(9, 1), (12, 13)])
def test_wide_colours_of_sdr_become_srgbs(primaries: int, transfer: int, tmp_path: Path) -> None:
    p3 = np.array([[0.8224620, 0.1775380, 0.0], [0.0331942, 0.9668058, 0.0], [0.0170826, 0.0723974, 0.9105199]])
    signal = encoded(linear(SWATCHES) @ (TO_2020 if primaries == 9 else p3).T) / 255
    (pixels,) = seen(hdr(tmp_path / "wide.mkv", signal, transfer, primaries=primaries))
    assert np.abs(patches(pixels, len(SWATCHES)) - SWATCHES).max() < 12


@pytest.mark.parametrize(("transfer", "primaries"), [(13, 12), (16, 9), (13, 1)], ids=["P3", "PQ", "sRGB"])
def test_an_avif_that_names_its_colours_without_a_profile(transfer: int, primaries: int) -> None:
    p3 = np.array([[0.8224620, 0.1775380, 0.0], [0.0331942, 0.9668058, 0.0], [0.0170826, 0.0723974, 0.9105199]])
    wanted, rows = np.array([200, 60, 30]), {12: p3, 9: TO_2020, 1: np.eye(3)}[primaries]
    light = rows @ linear(wanted)
    coded = np.round(255 * pq(light * 203) if transfer == 16 else encoded(light)).astype(np.uint8)
    out = io.BytesIO()
    with av.open(out, "w", format="avif") as container:
        stream = container.add_stream("libsvtav1", rate=1, options={"preset": "8", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), coded), format="rgb24")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace=9 if primaries == 9 else 1, dst_color_range=1)
        for tagged in (stream.codec_context, frame):
            tagged.color_trc, tagged.color_primaries, tagged.color_range = transfer, primaries, 1
            tagged.colorspace = 9 if primaries == 9 else 1
        frame.pts, frame.time_base = 0, Fraction(1, 1)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    near(decode_image(out.getvalue())[30:34, 30:34], np.broadcast_to(wanted, (4, 4, 3)), 6)


def test_tones_follow_a_highlight_at_once_and_let_it_go_slowly() -> None:
    mapping = Mapping(16, 9)
    gray, bright = (np.full((2, 2, 3), pq(value) * 65535, np.uint16) for value in (160, 1000))
    before = mapping.apply(gray)[0, 0, 0]
    both = mapping.apply(np.concatenate([gray, bright]))
    assert both[0, 0, 0] < before - 5 and both[2, 0, 0] >= 254
    after = [int(mapping.apply(gray)[0, 0, 0]) for _ in range(60)]
    assert after == sorted(after) and after[0] < before - 5 and after[-1] == before


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "gray", "gray10le"])
@pytest.mark.parametrize("full", [False, True])
def test_levels_of_either_range(pixel_format: str, full: bool, tmp_path: Path) -> None:
    path = tmp_path / "range.mkv"
    wanted = np.repeat(np.linspace(0, 255, 8).round().astype(np.uint8), 16)[None].repeat(64, 0)
    deep = 4 if "10" in pixel_format else 1
    luma = wanted.astype(float) if full else 16 + wanted * (219 / 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 128, 64, pixel_format
        stream.codec_context.color_range = 2 if full else 1
        frame = av.VideoFrame(128, 64, pixel_format)
        frame.color_range = 2 if full else 1
        for number, plane in enumerate(frame.planes):
            kind = np.uint16 if deep > 1 else np.uint8
            rows = np.full((plane.height, plane.line_size // np.dtype(kind).itemsize), 128 * deep, kind)
            if number == 0:
                rows[:, :128] = np.round(luma * deep)
            plane.update(rows.tobytes())
        frame.pts, frame.time_base = 0, Fraction(1, 5)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (pixels,) = seen(path)
    near(pixels[..., 1], wanted, 3)


@pytest.mark.parametrize("codec", ["mpeg2video", "ffv1"])
@pytest.mark.parametrize("top", [True, False])
def test_fields_of_either_order_leave_no_comb(codec: str, top: bool, tmp_path: Path) -> None:
    """The two fields show a square at different places; FFV1 leaves it to its container to say that there are two."""
    pixels = drawn(0, 640, 360)
    pixels[top::2] = drawn(10, 640, 360)[top::2]
    options = (
        {"flags": "+ildct+ilme", "top": str(int(top))}
        if codec == "mpeg2video"
        else {"field_order": "tt" if top else "bb"}
    )
    path = tmp_path / ("fields.ts" if codec == "mpeg2video" else "fields.mkv")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 640, 360, "yuv420p", 4_000_000
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    (shown,) = seen(path)
    combs = np.abs(np.diff(shown[50:70, :, 1].astype(int), axis=0)).max(axis=0)
    assert (combs > 60).sum() < 4


def alpha_frame(width: int = 64, height: int = 48) -> np.ndarray:
    """Red above, the same red but clear below, and half clear at the left of the upper half."""
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., 0], pixels[: height // 2, :, 3] = 240, 255
    pixels[: height // 2, : width // 2, 3] = 128
    return pixels


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("b.webm", "libvpx", "yuva420p"),
        ("c.mov", "qtrle", "argb"),
        ("d.mkv", "ffv1", "bgra"),
        ("e.mov", "png", "rgba"),
        ("f.mov", "prores_ks", "yuva444p10le"),
    ],
)
def test_what_is_clear_in_a_video_is_black(name: str, codec: str, pixel_format: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"auto-alt-ref": "0"} if codec == "libvpx" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        if "webm" in name:
            stream.metadata["alpha_mode"] = "1"
        for n in range(3):
            frame = av.VideoFrame.from_ndarray(alpha_frame(), format="rgba").reformat(format=pixel_format)
            frame.pts, frame.time_base = n, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for pixels in seen(path, 3):
        near(pixels[4:18, 40:60], (240, 0, 0), 6)
        near(pixels[4:18, 4:24], (120, 0, 0), 6)
        near(pixels[30:44], (0, 0, 0), 6)


def test_no_frame_waits_for_the_garbage_collector() -> None:
    """A raw camera's frames are the driver's own buffers, which are gone once the camera is closed."""
    frame = VideoFrame.from_ndarray(np.zeros((36, 64, 3), np.uint8), format="rgb24")
    gc.collect()
    gc.disable()
    try:
        Pictures(64).make(frame)
        assert not [each for each in gc.get_referrers(frame) if isinstance(each, SideDataContainer)]
    finally:
        gc.enable()


@pytest.mark.parametrize("narrow", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("space", [1, 5, 9], ids=["709", "601", "2020"])
@pytest.mark.parametrize("size, largest", [((322, 242), 4096), ((1280, 720), 4096), ((1280, 720), 300)], ids=str)
def test_chroma_side_by_side_becomes_what_it_does_in_planes(
    size: tuple[int, int], largest: int, space: int, narrow: int
) -> None:
    """NV12, which CUDA and cameras hand over, of noise, whose chroma is another at each pixel."""
    width, height = size
    planes = np.random.default_rng(0).integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
    beside = planes.copy()
    beside[height:] = np.moveaxis(planes[height:].reshape(2, height // 2, width // 2), 0, -1).reshape(-1, width)
    made = []
    for pixels, form in ((planes, "yuv420p"), (beside, "nv12")):
        frame = VideoFrame.from_ndarray(pixels, format=form)
        frame.colorspace, frame.color_range = space, narrow
        made.append(Pictures(largest).make(frame))
    assert np.array_equal(*made)
