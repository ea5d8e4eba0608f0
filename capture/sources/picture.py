"""Files that are pictures, still or moving: FFmpeg turns no PNG upright and knows nothing of WebP that moves."""

from __future__ import annotations

import time
from pathlib import Path

from capture.image import HEIC, MOST_BYTES, brands, decode_animation, image_format, image_header
from capture.source import Source, SourceOptions
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
        data, pace, at = Path(self.url).read_bytes(), Pace(LONGEST_STILL), -self.options.start
        while True:
            for pixels, seconds in decode_animation(data, self.options.largest_side):
                moves, shown_from, at = seconds > 0, at, at + (seconds or STILL_SECONDS)
                if at <= 0 and moves:
                    continue
                now = time.monotonic()
                captured = pace.moment(shown_from, now) if self.options.realtime else now
                if not self.due(generation, captured - now):
                    return
                if not self.deliver(generation, lambda pixels=pixels: pixels, shown_from, captured):  # type: ignore[misc]
                    return
            if not self.options.loop:
                break
        if moves and self.options.realtime:
            now = time.monotonic()
            self.due(generation, pace.moment(at, now) - now)

    def due(self, generation: int, seconds: float) -> bool:
        """Waits for a picture's time; False where the source is ended meanwhile."""
        if seconds <= 0:
            return True
        with self.held(generation):
            return not self.ended.wait(seconds)
