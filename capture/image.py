"""JPEG pictures from strangers: the size is read before anything is decoded."""

from __future__ import annotations

import av
import numpy as np
from av.packet import Packet

from capture.convert import Pictures
from capture.source import SourceError

MOST_BYTES = 16 * 2**20
MOST_PIXELS = 4096 * 4096
SIZES = frozenset({0xC0, 0xC1, 0xC2})
"""Frame headers (ITU-T T.81, table B.1) of the processes that are decoded: baseline, extended and progressive."""
BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length: TEM, RSTn and SOI."""


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height that a JPEG's frame header states (T.81, B.2.2). Raises SourceError for what is no such JPEG."""
    if data[:2] != b"\xff\xd8":
        raise SourceError("a pushed picture must be a JPEG: its first bytes are not FF D8")
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in BARE:
            at += 2
        elif marker in SIZES:
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        elif marker in (0xD9, 0xDA):
            break
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    raise SourceError(
        "a pushed JPEG holds no frame header of a kind that is decoded: send a baseline or progressive one"
    )


def decode_jpeg(data: bytes, largest_side: int = 640) -> np.ndarray:
    """uint8 [H, W, 3] RGB of one JPEG, scaled down to `largest_side`. Raises SourceError for what is too large or damaged."""
    if len(data) > MOST_BYTES:
        raise SourceError(f"a pushed JPEG of {len(data)} bytes is too large: send at most {MOST_BYTES}")
    width, height = jpeg_size(data)
    if not 0 < width * height <= MOST_PIXELS:
        raise SourceError(
            f"a pushed JPEG of {width}×{height} pixels is refused: send between 1 and {MOST_PIXELS} pixels"
        )
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.thread_count = 1
    try:
        frames = decoder.decode(Packet(data))
    except av.error.FFmpegError:
        frames = []
    if not frames or (frames[0].width, frames[0].height) != (width, height):
        raise SourceError("a pushed JPEG is damaged: it can't be decoded")
    return Pictures(largest_side).make(frames[0])
