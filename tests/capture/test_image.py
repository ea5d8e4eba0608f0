"""Pictures of every kind that people send, against what they show; and bombs."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from capture.image import PictureError, decode_animation, decode_image, image_format, image_header

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF"]
SIDES = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}
"""Where row 0 and column 0 of the coded picture stand in the upright one (CIPA DC-008, table of the tag Orientation)."""


def file(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def corners(width: int = 96, height: int = 64) -> np.ndarray:
    """Red, green, blue and white quarters: no turn or flip of it looks like another."""
    pixels = np.zeros((height, width, 3), np.uint8)
    half = (height // 2, width // 2)
    pixels[: half[0], : half[1]], pixels[: half[0], half[1] :] = (220, 20, 20), (20, 220, 20)
    pixels[half[0] :, : half[1]], pixels[half[0] :, half[1] :] = (20, 20, 220), (240, 240, 240)
    return pixels


def coded(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The picture that a camera codes, pixel by pixel, for an upright one."""
    height, width = upright.shape[:2]
    row, column = SIDES[orientation]
    rows = {"t": np.arange(height), "b": np.arange(height)[::-1], "l": np.arange(width), "r": np.arange(width)[::-1]}
    if row in "tb":
        return upright[rows[row]][:, rows[column]]
    return upright[:, rows[row]][rows[column]].swapaxes(0, 1)


def near(pixels: np.ndarray, wanted: object, by: float = 6) -> None:
    assert np.abs(pixels.astype(int) - np.asarray(wanted, int)).mean() < by


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(Image.fromarray(coded(corners(), orientation)), kind, exif=exif)
    near(decode_image(data), corners())
    small = decode_image(data, 24)
    assert small.shape == (16, 24, 3) and small.flags["C_CONTIGUOUS"]
    near(small[4, 4], (220, 20, 20), 12)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_kind_is_named_sized_and_decoded(kind: str) -> None:
    data = file(Image.fromarray(corners()), kind)
    assert image_format(data[:64]) == kind
    assert image_header(data)[:3] == (kind, 96, 64)
    near(decode_image(data), corners())
    for damage in (data[:60], data[: len(data) // 2]):
        with pytest.raises(PictureError) as refusal:
            decode_image(damage)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 250


def test_damaged_exif_harms_no_pixel() -> None:
    data = file(Image.fromarray(corners()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    near(decode_image(data), corners())


def clear(mode: str) -> tuple[Image.Image, dict[str, object]]:
    """A black disc on black that is clear, as pictures of each mode have it."""
    image = Image.new("RGBA", (96, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((32, 16, 64, 48), fill=(0, 0, 0, 255))
    alpha = image.getchannel("A")
    if mode == "P":
        return Image.fromarray((np.asarray(alpha) // 255).astype(np.uint8)).convert("P"), {"transparency": 0}
    if mode in ("RGB", "L"):
        grey = Image.fromarray(np.where(np.asarray(alpha) > 0, 0, 7).astype(np.uint8)).convert(mode)
        return grey, {"transparency": (7, 7, 7) if mode == "RGB" else 7}
    if mode == "I;16":
        return Image.fromarray(np.where(np.asarray(alpha) > 0, 0, 700).astype(np.uint16)), {"transparency": 700}
    return image.convert(mode), {}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("RGBA", "LA", "P", "RGB", "L", "I;16")),
        *(("WEBP", "RGBA"), ("GIF", "P"), ("AVIF", "RGBA"), ("TIFF", "RGBA")),
    ],
)
@pytest.mark.parametrize("side", [96, 48])
def test_what_is_clear_stands_on_white(kind: str, mode: str, side: int) -> None:
    image, options = clear(mode)
    pixels = decode_image(file(image, kind, **options), side)
    height, width = pixels.shape[:2]
    near(pixels[height // 2, width // 2], (0, 0, 0), 10)
    near(pixels[2, 2], (255, 255, 255), 10)


def test_half_clear_edges_keep_their_colour() -> None:
    """What is clear has a colour too, which must not bleed into what is not, as the picture becomes smaller."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, ::2] = (255, 0, 0, 255)
    near(decode_image(file(Image.fromarray(pixels), "PNG"), 16), np.full((16, 16, 3), (255, 127, 127)), 6)


def test_gray_of_many_bits_keeps_its_range() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (4, 1))
    wanted = np.tile(np.arange(256)[:, None], 3)[None].repeat(4, 0)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode_image(file(Image.fromarray(ramp), kind)), wanted)
    unit = Image.fromarray((ramp / 65535).astype(np.float32))
    assert np.array_equal(decode_image(file(unit, "TIFF")), wanted)
    metres = np.where(ramp == 0, np.nan, 3 + ramp / 65535 * 7).astype(np.float32)
    near(decode_image(file(Image.fromarray(metres), "TIFF")), wanted, 1)
    near(decode_image(file(Image.fromarray(ramp.astype(np.int32) - 20_000), "TIFF")), wanted, 1)
    quarter = Image.fromarray(np.full((4, 4), 0.25, np.float32))
    near(decode_image(file(quarter, "TIFF")), np.full((4, 4, 3), 64), 1)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_print_colours(kind: str) -> None:
    near(decode_image(file(Image.fromarray(corners()).convert("CMYK"), kind)), corners())


def profile(space: bytes, gamma: float, *columns: tuple[float, float, float]) -> bytes:
    """An ICC profile (ICC.1:2010, 8.3 and 8.4) of one gamma and, for RGB, the primaries' XYZ under D50."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    white = b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)
    tags = {b"wtpt": white, b"desc": b"desc\0\0\0\0\0\0\0\1" + bytes(82), b"cprt": b"text\0\0\0\0\0\0\0\0"}
    if columns:
        for name, column in zip(b"rgb", columns, strict=True):
            tags[bytes([name]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*column)
            tags[bytes([name]) + b"TRC"] = curve
    else:
        tags[b"kTRC"] = curve
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def encoded(linear: np.ndarray) -> np.ndarray:
    """Linear light as sRGB's levels of 255 (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_embedded_profiles_become_srgb(kind: str) -> None:
    colours = [(200, 60, 30), (90, 180, 80), (60, 70, 160), (128, 128, 128)]
    icc = profile(b"RGB ", 2.19921875, *ADOBE)
    for colour in colours:
        lossless = {"quality": 100, **({"subsampling": 0} if kind == "JPEG" else {})} if kind != "PNG" else {}
        data = file(Image.new("RGB", (32, 32), colour), kind, icc_profile=icc, **({} if kind == "TIFF" else lossless))
        light = (np.array(colour) / 255) ** 2.19921875 @ np.array(ADOBE) @ np.linalg.inv(np.array(SRGB))
        near(decode_image(data)[16, 16], encoded(light).round(), 4)


def test_profiles_of_gray_and_under_clear_parts_and_damaged_ones() -> None:
    gray = file(Image.new("L", (8, 8), 51), "PNG", icc_profile=profile(b"GRAY", 1.0))
    near(decode_image(gray), np.full((8, 8, 3), encoded(np.array(0.2))), 2)
    icc = profile(b"RGB ", 1.0, *SRGB)
    half = file(Image.new("RGBA", (8, 8), (51, 51, 51, 128)), "PNG", icc_profile=icc)
    near(decode_image(half), np.full((8, 8, 3), (encoded(np.array(0.2)) + 255) / 2), 3)
    for broken in (icc[:100], b"no profile", profile(b"GRAY", 1.0)):
        near(decode_image(file(Image.fromarray(corners()), "PNG", icc_profile=broken)), corners(), 1)


def moving(kind: str, times: list[int]) -> bytes:
    pictures = [Image.new("RGB", (64, 48), (n * 60, 0, 0)) for n in range(len(times))]
    options = {"lossless": True} if kind == "WEBP" else {}
    return file(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=times, **options)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF", "PNG"])
def test_animations_have_their_frames_and_times(kind: str) -> None:
    data = moving(kind, [200, 1500, 40])
    frames = list(decode_animation(data, 32))
    assert [seconds for _, seconds in frames] == pytest.approx([0.2, 1.5, 0.04], abs=0.001)
    for n, (pixels, _) in enumerate(frames):
        near(pixels, np.full((24, 32, 3), (n * 60, 0, 0)), 6)
    near(decode_image(data, 32), np.zeros((24, 32, 3)), 6)


def test_an_animation_without_times_goes_at_ten_a_second_and_a_still_has_none() -> None:
    assert [seconds for _, seconds in decode_animation(moving("GIF", [0, 0]))] == [0.1, 0.1]
    for kind in FORMATS:
        ((pixels, seconds),) = decode_animation(file(Image.fromarray(corners()), kind))
        assert seconds == 0
        near(pixels, corners())


def png(width: int, height: int) -> bytes:
    """A black PNG of one bit a pixel, written without holding it."""
    body = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks = ((b"IHDR", body), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "progressive", "scans", "AVIF"])
def test_bombs_are_refused_by_their_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"progressive": True} if kind in ("progressive", "scans") else {}
    small = bytearray(
        file(Image.fromarray(corners()), {"progressive": "JPEG", "scans": "JPEG"}.get(kind, kind), **more)
    )
    wide, high = struct.pack("<H", 8000), struct.pack(">H", 8000)
    # All but one are small pictures that say that they are large: the size alone refuses them.
    match kind:
        case "PNG":
            small = bytearray(png(8000, 8000))
        case "scans":
            at = small.rindex(b"\xff\xda")
            small[at:-2] = small[at:-2] * 600
        case "progressive":
            at = small.index(b"\xff\xc2")
            small[at + 5 : at + 9] = high * 2
        case "GIF":
            small[6:10] = wide * 2
        case "WEBP":
            assert small[12:16] == b"VP8 "
            small[26:28] = wide
            small[28:30] = wide
        case "AVIF":
            at = small.index(b"ispe") + 8
            small[at : at + 8] = struct.pack(">II", 8000, 8000)
        case "TIFF":
            for tag in (256, 257):
                at = small.index(struct.pack("<HHI", tag, 4, 1))
                small[at + 8 : at + 12] = struct.pack("<I", 8000)
    data = bytes(small)
    assert len(data) < 2**20
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with pytest.raises(PictureError, match="scans: send" if kind == "scans" else r"8000×\d+ pixels: scale it down"):
        decode_image(data)


def test_an_avif_that_is_larger_than_it_says_is_refused() -> None:
    data = bytearray(file(Image.new("RGB", (4200, 4100)), "AVIF", speed=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 64, 48)
    assert image_header(bytes(data))[1:3] == (64, 48)
    began = time.process_time()
    with pytest.raises(PictureError, match="more pixels than 64×48"):
        decode_image(bytes(data))
    assert time.process_time() - began < 0.2


def test_a_tile_larger_than_its_picture_is_refused() -> None:
    data = file(Image.fromarray(corners()), "TIFF", compression="tiff_lzw")
    with Image.open(io.BytesIO(data)) as image:
        assert 278 in image.tag_v2
    # RowsPerStrip (278) becomes TileWidth (322), with TileLength and the tiles' places left as libtiff finds them.
    entry = data.index(struct.pack("<HHI", 277, 3, 1))
    strip = data.index(struct.pack("<HHI", 278, 3, 1)) if struct.pack("<HHI", 278, 3, 1) in data else entry
    hurt = data[:entry] + struct.pack("<HHII", 323, 4, 1, 60_000) + data[entry + 12 :]
    hurt = hurt[:strip] + struct.pack("<HHII", 322, 4, 1, 60_000) + hurt[strip + 12 :]
    with pytest.raises(PictureError):
        decode_image(hurt)


def test_large_jpegs_are_decoded_small_and_in_little_memory() -> None:
    """48 megapixels are 144 MB of pixels; that they are not held is measured in a process of its own."""
    program = """
import io, resource, sys
from PIL import Image
from capture.image import decode_image
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels = decode_image(data, 640)
print(pixels.shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    image = Image.new("RGB", (8000, 6000), (255, 255, 255))
    image.paste((255, 0, 0), (2000, 1500, 6000, 4500))
    data = file(image, "JPEG")
    assert image_header(data).reducible
    ran = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    *shape, kilobytes = ran.stdout.decode().split()
    assert " ".join(shape) == "(480, 640, 3)" and int(kilobytes) < 32_000
    pixels = decode_image(data, 640)
    near(pixels[240, 320], (254, 0, 0), 3)
    near(pixels[10, 10], (255, 255, 255), 3)


def test_refusing_costs_nothing() -> None:
    data = png(8000, 8000)
    began = time.process_time()
    for _ in range(100):
        with pytest.raises(PictureError):
            decode_image(data)
    assert time.process_time() - began < 1


@given(st.sampled_from(FORMATS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6), st.data())
def test_damage_is_decoded_or_refused_in_one_line(
    kind: str, damage: list[tuple[int, int]], more: st.DataObject
) -> None:
    data = bytearray(SMALL[kind])
    for at, value in damage:
        data[at % len(data)] = value
    try:
        pixels = decode_image(bytes(data[: len(data) - more.draw(st.integers(0, 30))]), 64)
    except PictureError as refusal:
        assert "\n" not in str(refusal)
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and max(pixels.shape) <= 64


SMALL = {kind: file(Image.fromarray(corners(16, 12)), kind) for kind in FORMATS}


def test_heic_is_refused_by_its_name() -> None:
    with pytest.raises(PictureError, match=r"HEIC.*send it as a JPEG"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))


def test_durations_never_go_backwards() -> None:
    times = np.cumsum([seconds for _, seconds in decode_animation(moving("GIF", [30, 10, 0, 100]))])
    assert all(one < other for one, other in pairwise(times))
