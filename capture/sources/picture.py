"""Files that are pictures, still or moving: FFmpeg turns no PNG upright and knows nothing of WebP that moves."""

from __future__ import annotations

import time
from pathlib import Path

from capture.image import HEIC, MOST_BYTES, brands, decode_animation, image_format, image_header
from capture.source import Source, SourceError, SourceOptions
from capture.sources.base import SourceShell
from capture.sources.container import ContainerSource
from capture.timeline import LONGEST_STILL, Pace

STILL_SECONDS = 1.0
"""How long a picture that does not move is shown where it is shown again and again."""
LOOKED_AT = 4 * 2**20
"""Bytes within which a file that is JPEG after JPEG shows the second."""


def file_source(path: Path, options: SourceOptions) -> Source:
    """A source for a file that is there, by what it holds. Raises PictureError for pictures that can't be decoded."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            kind = image_format(head)
            if kind == "JPEG":
                head += file.read(LOOKED_AT)
            size = path.stat().st_size
    except OSError:  # told by the container
        return ContainerSource(str(path), options, live=False)
    if brands(head) & HEIC:
        image_header(head)
    motion = kind == "JPEG" and b"\xff\xd9\xff\xd8" in head and b"MPF\0" not in head
    if kind is None or motion or size > MOST_BYTES:
        return ContainerSource(str(path), options, live=False)
    return PictureSource(str(path), options)


class PictureSource(SourceShell):
    """A picture, which is shown once, or for as long as it moves."""

    def __init__(self, path: str, options: SourceOptions) -> None:
        super().__init__(path, options, endless=False, live=False)
        self.timeline.longest_step = LONGEST_STILL

    def connect(self, generation: int) -> None:
        """See `SourceShell.connect`."""
        play(self, generation, Path(self.url).read_bytes())


def play(source: SourceShell, generation: int, data: bytes) -> None:
    """Hands over a picture's frames at their times, again and again where the source loops. Raises SourceError."""
    options, pace, at = source.options, Pace(LONGEST_STILL), -source.options.start
    shown = False
    while True:
        for pixels, seconds in decode_animation(data, options.largest_side):
            since, at = at, at + (seconds or STILL_SECONDS)
            if at <= 0 and seconds:
                continue
            captured = pace.moment(since, time.monotonic()) if options.realtime else time.monotonic()
            if not reached(source, generation, captured):
                return
            shown = True
            if not source.deliver(generation, lambda pixels=pixels: pixels, since, captured):  # type: ignore[misc]
                return
        if not shown:
            raise SourceError(f"start {options.start:g} is not within its {at + options.start:.1f} s: begin earlier")
        if not options.loop:
            break
    if seconds and options.realtime:
        reached(source, generation, pace.moment(at, time.monotonic()))


def reached(source: SourceShell, generation: int, moment: float) -> bool:
    """Waits until a moment (monotonic seconds); False where the source is ended before."""
    left = moment - time.monotonic()
    if left <= 0:
        return True
    with source.held(generation):
        return not source.ended.wait(left)
