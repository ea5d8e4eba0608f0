"""JPEG and PNG files to pixels and back."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_PIXELS = 64_000_000
"""A picture with more is refused before it is decoded: a file of a few kilobytes may unpack to gigabytes."""


class PictureError(ValueError):
    """A picture that can't be read; one clear line."""


def decode_picture(data: bytes) -> NDArray[np.uint8]:
    """The pixels of a JPEG or PNG file: uint8, H×W×3, RGB. Raises PictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise PictureError(f"The picture has {image.width}×{image.height} pixels: scale it down.")
                return np.ascontiguousarray(np.asarray(image.convert("RGB")))
    except PictureError:
        raise
    except Exception as error:
        # Pillow's decoders raise SyntaxError, struct.error, OSError and more on broken files.
        raise PictureError(f"The picture can't be decoded ({error}): send a whole JPEG or PNG file.") from None


def encode_jpeg(pixels: NDArray[np.uint8], side: int, quality: int = 80) -> bytes:
    """A JPEG file of uint8 H×W×3 RGB pixels, scaled down to fit `side`×`side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()
