"""Pictures from strangers, whatever their kind, to upright sRGB pixels and back: the one decoder of every door.

The size is read from the header before a pixel is decoded, and no more is decoded than the size asked for needs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageCms, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from capture.colour import Mapping, is_other
from capture.source import SourceError

Pixels = NDArray[np.uint8]

LARGEST_SIDE = 640
BLANK = b" \t\r\n"
"""What cameras write before a picture by mistake; no picture begins with it."""
MOST_BYTES = 32 * 2**20
MOST_PIXELS = 4096 * 4096
"""A picture with more is refused, unless it can be decoded at less than its size."""
MOST_STREAMED = 2**28
"""Pixels of a JPEG that is decoded, row by row, at a half, a quarter or an eighth of its size."""
MOST_SCANS = 500
"""Scans of one JPEG: each goes over the whole picture again, and may be a few bytes long."""
SHORTEST_SHOWN, USUALLY_SHOWN = 0.011, 0.1
"""Seconds: what an animation would show for less than the first is shown for the second, as browsers do."""
PROCESSES = frozenset({0xC0, 0xC1, 0xC2})
"""Frame headers (ITU-T T.81, table B.1) of the processes that are decoded: baseline, extended and progressive."""
BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length: TEM, RSTn and SOI."""
KINDS = "JPEG, PNG, WebP, GIF, AVIF or TIFF"
NAMES = {"WEBP": "WebP"}
HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by EXIF's orientation (CIPA DC-008, 4.6.5)."""
COLOURS = "colours"
"""Where a picture's `info` has what it says of its colours without a profile."""
TILE = (322, 323)
"""TIFF's tags of a tile's width and length."""
SRGB = ImageCms.createProfile("sRGB")
PROFILED = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""The mode of the pixels that a profile of a colour space (ICC.1, 7.2.6) describes."""
MOVES, CLEAR = 0x02, 0x10
"""Flags of a WebP's header (RFC 9649, 2.7)."""
BITS, PHOTOMETRIC, SAMPLES = 258, 262, 339
"""TIFF's tags of the bits of a sample, of what they mean, and of their format."""
SIXTEEN = np.round(np.arange(2**16) / 257).astype(np.uint8)


class PictureError(SourceError):
    """A picture that can't be read; one clear line with the mend."""


class ImageHeader(NamedTuple):
    """What a picture's file says of itself; the size is in pixels as they are coded, before they are turned upright.

    `reducible` pictures can be decoded at an eighth of their size without being held at their whole size.
    """

    format: str
    width: int
    height: int
    reducible: bool = False


def image_format(data: bytes) -> str | None:
    """The kind of picture that `data`, of which 64 bytes suffice, begins: JPEG, PNG, GIF, WEBP, TIFF, AVIF; None for others.

    Empty lines before it are passed over.
    """
    data = data[:64].lstrip(BLANK)
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    return "AVIF" if brands(data) & {b"avif", b"avis"} else None


def brands(data: bytes) -> set[bytes]:
    """The brands that an ISO base media file states (ISO 14496-12, 4.3); none of any other file."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4]), 64)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def image_header(data: bytes) -> ImageHeader:
    """Reads a picture's kind and size, and no pixel. Raises PictureError for what is no picture that can be decoded."""
    data = data.lstrip(BLANK)
    kind = image_format(data)
    if kind == "JPEG":
        return jpeg_header(data)
    if kind == "PNG" and data[12:16] == b"IHDR":
        return ImageHeader(kind, int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
    if kind == "WEBP" and (size := webp_size(data)) is not None:
        return ImageHeader(kind, *size)
    if kind in ("GIF", "TIFF", "AVIF"):
        try:
            with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                return ImageHeader(kind, image.width, image.height)
        except Exception as error:  # see `decode_image`
            raise damaged(error) from None
    if kind is not None:
        raise PictureError(f"The picture is damaged: this {NAMES.get(kind, kind)} file has no header that can be read.")
    if brands(data) & HEIC:
        raise PictureError("The picture is HEIC, which can't be decoded here: send it as a JPEG.")
    raise PictureError(f"The picture is of no kind that can be decoded: send {KINDS}.")


def jpeg_header(data: bytes) -> ImageHeader:
    """What a JPEG's frame header states (T.81, B.2.2 and B.2.3)."""
    at = 2
    frame: tuple[int, int, int] | None = None
    progressive = False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in BARE:
            at += 2
            continue
        if marker in PROCESSES and at + 10 <= len(data):
            frame = (int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7]), data[at + 9])
            progressive = marker == 0xC2
        elif marker == 0xDA and frame is not None:
            # For several scans the coefficients of the whole picture are held, whatever the size it is decoded at.
            return ImageHeader("JPEG", *frame[:2], not progressive and data[at + 4] == frame[2])
        elif marker in (0xD9, 0xDA):
            break
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    if frame is None:
        raise PictureError(
            "The JPEG holds no frame header of a kind that is decoded: send a baseline or progressive one."
        )
    return ImageHeader("JPEG", *frame[:2])


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP file (RFC 9649, 2.5 to 2.7)."""
    match data[12:16]:
        case b"VP8X" if len(data) >= 30:
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L" if len(data) >= 25:
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 " if len(data) >= 30:
            return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def decode_image(data: bytes, longest_side: int = LARGEST_SIDE) -> Pixels:
    """uint8 [h, w, 3] sRGB, contiguous, of a JPEG, PNG, WebP, GIF, AVIF or TIFF file: upright, and what is clear on white.

    It is scaled down until its longer side is at most `longest_side` pixels. Of an animation it is the first frame.
    Raises PictureError for what is too large, damaged or no picture.
    """
    data = data.lstrip(BLANK)
    header = checked(data, longest_side)
    try:
        with opened(data, header) as image:
            if isinstance(image, JpegImageFile):
                image.draft(None, fitted(header.width, header.height, longest_side))
            image.load()
            return shown(image, longest_side)
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, OSError and more on broken files
        raise damaged(error) from None


def decode_animation(data: bytes, longest_side: int = LARGEST_SIDE) -> Iterator[tuple[Pixels, float]]:
    """The frames of a GIF, WebP, AVIF or PNG as `decode_image` gives them, each with the seconds that it is shown for.

    A picture that does not move is one frame, of 0 seconds. Raises PictureError as `decode_image` does.
    """
    data = data.lstrip(BLANK)
    header = checked(data, longest_side)
    if header.format in ("JPEG", "TIFF"):
        yield decode_image(data, longest_side), 0.0
        return
    try:
        with opened(data, header) as image:
            frames: int = getattr(image, "n_frames", 1)
            for number in range(frames):
                image.seek(number)
                measured(image, header)
                image.load()
                seconds = float(image.info.get("duration") or 0) / 1000
                if frames == 1:
                    seconds = 0.0
                elif seconds < SHORTEST_SHOWN:
                    seconds = USUALLY_SHOWN
                yield shown(image, longest_side), seconds
    except PictureError:
        raise
    except Exception as error:  # as above
        raise damaged(error) from None


def moves(data: bytes) -> bool:
    """Whether a picture's file holds several pictures to be shown one after the other; False for what can't be decoded."""
    if image_format(data) not in ("GIF", "WEBP", "AVIF", "PNG"):
        return False
    try:
        with opened(data, checked(data, LARGEST_SIDE)) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # as above; whoever decodes it is told
        return False


def damaged(error: Exception) -> PictureError:
    if isinstance(error, Image.DecompressionBombError):
        return PictureError(f"The picture has too many pixels: scale it down to {MOST_PIXELS} in all (4096×4096).")
    if isinstance(error, UnidentifiedImageError):
        return PictureError("The picture is damaged, or of a variety that is not read: send a whole JPEG or PNG.")
    said = " ".join(str(error).split())[:100] or type(error).__name__
    return PictureError(f"The picture can't be decoded ({said}): send a whole file.")


def checked(data: bytes, longest_side: int) -> ImageHeader:
    """The header of a picture that may be decoded. Raises PictureError for one that would take too much memory or time."""
    if len(data) > MOST_BYTES:
        raise PictureError(f"A picture of {len(data)} bytes is too large: send at most {MOST_BYTES}.")
    header = image_header(data)
    _, width, height, reducible = header
    if not width or not height:
        raise PictureError(f"The picture is damaged: it says that it has {width}×{height} pixels.")
    held = width * height
    if reducible and held <= MOST_STREAMED:
        small = fitted(width, height, longest_side)
        share = min(width // small[0], height // small[1])
        held //= max(part for part in (1, 2, 4, 8) if part <= share) ** 2
    if held > MOST_PIXELS:
        raise PictureError(
            f"The picture has {width}×{height} pixels: scale it down to {MOST_PIXELS} in all (4096×4096), "
            "or send a baseline JPEG."
        )
    if header.format == "JPEG" and data.count(b"\xff\xda") > MOST_SCANS:
        raise PictureError(f"The picture comes in more than {MOST_SCANS} scans: send a baseline JPEG.")
    return header


def opened(data: bytes, header: ImageHeader) -> Image.Image:
    """The picture, of which no pixel is decoded yet."""
    if header.format == "WEBP" and data[12:16] == b"VP8X" and data[20] & MOVES:
        # Where no frame covers the canvas it is clear, whatever the header says, and Pillow would make it black.
        data = data[:20] + bytes([data[20] | CLEAR]) + data[21:]
    if header.format == "JPEG":
        # Not by `Image.open`, which refuses by a size that a JPEG is never held at.
        return JpegImageFile(io.BytesIO(data))
    colours = coded_colours(data, header) if header.format == "AVIF" else None
    image = Image.open(io.BytesIO(data), formats=(header.format,))
    measured(image, header)
    if header.format == "PNG":
        colours = png_colours(data)
        if colours is not None and is_other(*colours):
            image.info.pop("icc_profile", None)  # what stands behind (PNG, third edition, 4.3)
        image.info.update(eight_bit_key(image, data[24]))
    image.info[COLOURS] = colours
    return image


def png_colours(data: bytes) -> tuple[int, int] | None:
    """A PNG's transfer characteristics and primaries (third edition, 11.3.2.6: cICP); None where it does not name them."""
    at = 8
    while at + 12 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IDAT":
        if kind == b"cICP":
            return data[at + 9], data[at + 8]
        at += 12 + int.from_bytes(data[at : at + 4])
    return None


def eight_bit_key(image: Image.Image, bits: int) -> dict[str, int | tuple[int, ...]]:
    """The value that is clear in a PNG, as Pillow's eight bits of its samples show it: Pillow gives it as it was written."""
    clear = image.info.get("transparency")
    if image.mode == "L" and isinstance(clear, int) and bits < 8:
        return {"transparency": clear * 255 // (2**bits - 1)}
    if image.mode == "RGB" and isinstance(clear, tuple) and bits == 16:
        return {"transparency": tuple(sample >> 8 for sample in clear)}
    return {}


def measured(image: Image.Image, header: ImageHeader) -> None:
    """Raises PictureError for pixels that are more than the header said."""
    tile = [getattr(image, "tag_v2", {}).get(tag, 0) for tag in TILE]
    if image.width * image.height > MOST_PIXELS or tile[0] * tile[1] > MOST_PIXELS:
        raise hidden(header)


def coded_colours(data: bytes, header: ImageHeader) -> tuple[int, int] | None:
    """An AVIF's transfer characteristics and primaries (ITU-T H.273), of which Pillow does not tell.

    Raises PictureError where its coded pictures are larger than its header says, which Pillow would decode: FFmpeg decodes
    the first of each of its parts within the limit, for which it takes as long as Pillow.
    """
    colours = None
    limit = {"max_pixels": str(MOST_PIXELS)}
    try:
        # Nothing is probed, as that decodes as well.
        with av.open(io.BytesIO(data), "r", options=limit | {"probesize": "32", "analyzeduration": "0"}) as container:
            parts = list(container.streams.video)
            for part in parts:
                part.codec_context.options, part.codec_context.thread_count = limit, 1
            for packet in container.demux(parts):
                if packet.stream in parts and packet.size:
                    packet.decode()
                    parts.remove(packet.stream)
                if not parts:
                    break
            if container.streams.video:
                first = container.streams.video[0].codec_context
                colours = (first.color_trc, first.color_primaries)
    except av.error.FFmpegError as error:
        if isinstance(error, OverflowError):
            raise hidden(header) from None
        raise damaged(error) from None
    return colours


def hidden(header: ImageHeader) -> PictureError:
    return PictureError(f"The picture is damaged: it holds more pixels than {header.width}×{header.height}.")


def fitted(width: int, height: int, longest_side: int) -> tuple[int, int]:
    """The size of a picture whose longer side is at most `longest_side` pixels."""
    share = min(1.0, longest_side / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))


def shown(image: Image.Image, longest_side: int) -> Pixels:
    """A decoded picture as people see it: scaled down, in sRGB, on white and upright."""
    profile, colours = image.info.get("icc_profile"), image.info.get(COLOURS)
    turn, gray = TRANSPOSES.get(orientation(image)), image.mode in ("LA", "La")
    image = plain(image)
    size = fitted(*image.size, longest_side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.HAMMING, reducing_gap=2.0)
    if image.mode == "RGBA":
        white = Image.new("RGB", size, (255, 255, 255))
        white.paste(srgb(image.convert("L" if gray else "RGB"), profile, colours), mask=image.getchannel("A"))
        image = white
    else:
        image = srgb(image, profile, colours)
    if turn is not None:
        image = image.transpose(turn)
    return np.array(image)


def orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where there is none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF, of which cameras write much, harms no pixel
        return 1


def plain(image: Image.Image) -> Image.Image:
    """A picture of any mode as L, RGB, RGBA or CMYK."""
    if image.mode == "F" or image.mode.startswith("I"):
        return eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Gray of more than eight bits, as L, or as RGBA where one value is clear.

    16 bits and floats of 0 to 1 keep their range; others name none, and go from their lowest value to their highest.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        twelve = tags.get(BITS) in (12, (12,))
        gray = Image.fromarray(SIXTEEN[values << 4 | values >> 8 if twelve else values])
    else:
        if image.mode == "I" and tags.get(BITS) in (32, (32,)) and tags.get(SAMPLES, 1) in (1, (1,)):
            values = values.view(np.uint32)
        values = values.astype(np.float32)
        known = np.isfinite(values)
        low, high = float(values.min(initial=np.inf, where=known)), float(values.max(initial=-np.inf, where=known))
        if image.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        share = (np.where(known, values, low) - low) / max(high - low, 1e-30)
        gray = Image.fromarray(np.round(share * 255).astype(np.uint8))
    if tags.get(PHOTOMETRIC) == 0:
        gray = ImageChops.invert(gray)  # white is zero
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray = gray.convert("RGBA")
        gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return gray


def srgb(image: Image.Image, profile: bytes | None, colours: tuple[int, int] | None) -> Image.Image:
    """RGB in sRGB's colours of a picture that has a profile, or names its colours; what can't be used is left out of account."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if PROFILED.get(source.profile.xcolor_space) == image.mode:
                made = ImageCms.profileToProfile(
                    image,
                    source,
                    SRGB,
                    renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                    outputMode="RGB",
                    flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
                )
                if made is not None:
                    return made
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    elif colours and image.mode in ("L", "RGB") and is_other(*colours):
        return Image.fromarray(Mapping(*colours).apply(np.asarray(image.convert("RGB")).astype(np.uint16) * 257))
    return image if image.mode == "RGB" else image.convert("RGB")


def encode_jpeg(pixels: Pixels, side: int, quality: int = 80) -> bytes:
    """A JPEG file of uint8 [h, w, 3] RGB pixels, scaled down to fit `side`×`side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()
