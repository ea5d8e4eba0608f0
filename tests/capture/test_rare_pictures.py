"""Pictures of rare varieties, each written byte by byte: print colours with a profile, and TIFFs that Pillow reads as they are stored."""

from __future__ import annotations

import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from capture.image import PictureError, decode_animation, decode_image

from .test_convert import TO_2020, linear, pq
from .test_image import SRGB, encoded, file, near, profile

D50 = np.array((0.9642, 1.0, 0.8249))
INKS = {"paper": (95.0, 0.0, 2.0), "c": (58.0, -28.0, -38.0), "m": (50.0, 66.0, -4.0), "y": (88.0, -6.0, 80.0)}
"""Lab of paper and of each ink on it."""


def ink(amounts: tuple[int, ...]) -> np.ndarray:
    """Lab of whole inks over one another, as an invented press prints them: each takes light, all together leave none."""
    if amounts[3] or sum(amounts) > 2:
        return np.zeros(3)
    labs = [np.array(INKS[name]) for name, there in zip("cmy", amounts, strict=False) if there]
    return np.mean(labs, axis=0) * (0.7 if len(labs) > 1 else 1.0) if labs else np.array(INKS["paper"])


def print_profile() -> bytes:
    """An ICC profile of a press (ICC.1:2010, 10.10: lut16Type), whose table has the whole inks alone."""
    lut = b"mft2\0\0\0\0" + bytes((4, 3, 2, 0)) + struct.pack(">9i", *(np.eye(3, dtype=int) * 65536).ravel())
    lut += struct.pack(">2H", 2, 2) + struct.pack(">8H", *((0, 65535) * 4))
    for amounts in itertools.product((0, 1), repeat=4):
        light, a, b = ink(amounts)
        lut += struct.pack(">3H", round(light * 652.8), round((a + 128) * 256), round((b + 128) * 256))
    lut += struct.pack(">6H", *((0, 65535) * 3))
    tags = {b"A2B0": lut, b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(each * 65536) for each in D50))}
    tags |= {b"desc": b"desc\0\0\0\0\0\0\0\1" + bytes(82), b"cprt": b"text\0\0\0\0\0\0\0\0"}
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


def shown(lab: np.ndarray) -> np.ndarray:
    """sRGB's levels of a colour in Lab under D50 (CIE 15, 8.2.1)."""
    y = (lab[0] + 16) / 116
    roots = np.array((y + lab[1] / 500, y, y - lab[2] / 200))
    xyz = D50 * np.where(roots > 6 / 29, roots**3, (roots - 16 / 116) * 3 * (6 / 29) ** 2)
    return encoded(xyz @ np.linalg.inv(np.array(SRGB))).round()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("cyan", [0, 128, 255])
@pytest.mark.parametrize("other", ["m", "y", "k"])
def test_print_colours_with_a_profile_become_srgb(kind: str, cyan: int, other: str) -> None:
    inks = (cyan, *(255 * (other == each) for each in "myk"))
    share = cyan / 255
    wanted = (1 - share) * ink((0, *(int(each > 0) for each in inks[1:]))) + share * ink(
        (1, *(int(each > 0) for each in inks[1:]))
    )
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = file(Image.new("CMYK", (16, 16), inks), kind, icc_profile=print_profile(), **options)
    near(decode_image(data)[8, 8], shown(wanted), 4)


def tiff(values: np.ndarray, photometric: int, bits: int = 0, sample_format: int = 1) -> bytes:
    """A TIFF of one row of gray, stored as it is (TIFF 6.0, 8 and 19)."""
    stored = values.tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        stored = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in pairs)
    tags = {
        256: values.size, 257: 1, 258: bits or values.itemsize * 8, 259: 1, 262: photometric, 273: 0,
        277: 1, 278: 1, 279: len(stored), 339: sample_format,
    }  # fmt: skip
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + stored


@pytest.mark.parametrize(
    ("values", "bits", "sample_format", "senses"),
    [
        (np.linspace(0, 255, 8).astype("u1"), 8, 1, "both"),
        (np.linspace(0, 4095, 8).round().astype("<u2"), 12, 1, "black"),
        (np.linspace(0, 65535, 8).astype("<u2"), 16, 1, "both"),
        (np.linspace(-3000, 3000, 8).round().astype("<i2"), 16, 2, "black"),
        (np.linspace(0, 2**32 - 1, 8).astype("<u4"), 32, 1, "black"),
        (np.linspace(-7000, 7000, 8).astype("<i4"), 32, 2, "black"),
        (np.linspace(0, 1, 8).astype("<f4"), 32, 3, "both"),
        (np.linspace(250, 310, 8).astype("<f4"), 32, 3, "both"),
    ],
)
def test_gray_tiffs_of_every_sample_and_sense(values: np.ndarray, bits: int, sample_format: int, senses: str) -> None:
    """Zero is black or, where Pillow reads such files, white."""
    for photometric in (1, 0) if senses == "both" else (1,):
        wanted = np.linspace(0, 255, 8) if photometric else np.linspace(255, 0, 8)
        near(decode_image(tiff(values, photometric, bits, sample_format))[0], wanted[:, None].repeat(3, 1), 1)


def png(bits: int, samples: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row of gray (one sample) or colours (three) of so many bits, with chunks before its pixels (third edition, 11)."""
    head = struct.pack(">IIBBBBB", 8 * len(row) // (bits * samples), 1, bits, {1: 0, 3: 2}[samples], 0, 0, 0)
    parts = ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_one_gray_is_clear_however_many_bits_it_has(bits: int) -> None:
    """The first half has the clear value, the second another."""
    clear, other = (1, 0) if bits == 1 else (1, 2)
    values = [clear] * 8 + [other] * 8
    number = sum(value << bits * (15 - n) for n, value in enumerate(values))
    pixels = decode_image(png(bits, 1, number.to_bytes(2 * bits), (b"tRNS", struct.pack(">H", clear))))
    near(pixels[0, :8], 255, 1)
    near(pixels[0, 8:], other * 255 // (2**bits - 1), 1)


@pytest.mark.parametrize("code", ["B", "H"])
def test_one_colour_is_clear_however_many_bits_it_has(code: str) -> None:
    bits = 8 * struct.calcsize(code)
    most = 2**bits - 1
    row = struct.pack(f">{code * 6}", most, 3 << bits - 8, 77, 0, most, 0)
    pixels = decode_image(png(bits, 3, row, (b"tRNS", struct.pack(">3H", most, 3 << bits - 8, 77))))
    near(pixels[0, 0], 255, 1)
    near(pixels[0, 1], (0, 255, 0), 1)


@pytest.mark.parametrize("profiled", [False, True])
@pytest.mark.parametrize("code", ["B", "H"])
@pytest.mark.parametrize(("primaries", "transfer"), [(9, 16), (12, 13), (1, 13)], ids=["PQ", "P3", "sRGB"])
def test_a_png_that_names_its_colours(primaries: int, transfer: int, code: str, profiled: bool) -> None:
    """As players and encoders of HDR write their stills; the name stands before an embedded profile."""
    p3 = np.array([[0.8224620, 0.1775380, 0.0], [0.0331942, 0.9668058, 0.0], [0.0170826, 0.0723974, 0.9105199]])
    wanted, most = np.array([200, 60, 30]), 2 ** (8 * struct.calcsize(code)) - 1
    light = {12: p3, 9: TO_2020, 1: np.eye(3)}[primaries] @ linear(wanted)
    signal = pq(light * 203) if transfer == 16 else encoded(light) / 255
    row = struct.pack(f">{code * 3}", *np.round(signal * most).astype(int).tolist())
    chunks = [(b"cICP", bytes((primaries, transfer, 0, 1)))]
    if profiled and primaries != 1:
        chunks.append((b"iCCP", b"linear\0\0" + zlib.compress(profile(b"RGB ", 1.0, *SRGB))))
    near(decode_image(png(8 * struct.calcsize(code), 3, row, *chunks))[0], wanted, 6)


@pytest.mark.parametrize(("said", "wanted"), [((9, 16, 0, 1), 128), ((1, 13, 0, 1), 148)])
def test_gray_of_a_png_that_names_its_colours(said: tuple[int, int, int, int], wanted: int) -> None:
    """A gray of PQ that is as bright as sRGB's 128, for either name."""
    signal = round(float(pq(linear(np.array(128.0)) * 203)) * 255) if said[1] == 16 else wanted
    near(decode_image(png(8, 1, bytes([signal]), (b"cICP", bytes(said))))[0], wanted, 3)


def test_a_variety_that_is_not_read_is_told_in_one_line() -> None:
    with pytest.raises(PictureError, match=r"of a variety that is not read: send a whole JPEG or PNG\.$"):
        decode_image(tiff(np.linspace(0, 1, 8), 1, 64, 3))


def test_a_size_that_no_memory_holds_is_told_as_others_are() -> None:
    data = bytearray(file(Image.new("P", (8, 8)), "GIF"))
    data[6:10] = b"\xff" * 4
    with pytest.raises(PictureError, match=r"too many pixels: scale it down to 16777216"):
        decode_image(bytes(data))


def test_gray_with_a_profile_and_clear_parts() -> None:
    gray = Image.merge("LA", (Image.new("L", (8, 8), 51), Image.new("L", (8, 8), 128)))
    pixels = decode_image(file(gray, "PNG", icc_profile=profile(b"GRAY", 1.0)))
    near(pixels, np.full((8, 8, 3), (encoded(np.array(0.2)) + 255) / 2), 3)


def test_the_canvas_of_an_animation_that_no_frame_covers_is_white() -> None:
    """As WebP's own encoder writes it: the header says that nothing is clear, and no frame covers what is."""
    frames = [Image.new("RGBA", (16, 16)) for _ in range(2)]
    for number, frame in enumerate(frames):
        frame.paste((255, 0, 0, 255), (number * 4, 0, number * 4 + 4, 4))
    data = file(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert not data[20] & 0x10
    for number, (pixels, _) in enumerate(decode_animation(data)):
        near(pixels[1, number * 4 + 1], (255, 0, 0), 2)
        near(pixels[12, 12], (255, 255, 255), 1)
