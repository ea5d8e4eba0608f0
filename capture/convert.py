"""From a decoded FFmpeg frame, of whatever shape and format, to RGB pixels that stand upright."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

HD = 720
"""From this height on, pictures that do not name their colours are taken to use BT.709, smaller ones BT.601."""
BT709, BT601, BT2020 = 1, 5, 9


class Pictures:
    """Makes pictures for one decoder: scales, converts and turns in as few passes as FFmpeg needs.

    `largest_side` bounds the longer side in pixels. Not thread-safe.
    """

    def __init__(self, largest_side: int) -> None:
        self.largest_side = largest_side
        self.reformatter = VideoReformatter()
        self.fields: tuple[tuple[int, int, str], Graph] | None = None

    def make(self, frame: VideoFrame, aspect: Fraction | None = None) -> np.ndarray:
        """uint8 [H, W, 3] RGB, contiguous, of square pixels and turned as the frame's display matrix asks.

        `aspect` is the sample aspect ratio, None for square. Of an interlaced frame only the first field is kept, so that
        moving things have no combs.
        """
        width, height = self.size(frame.width, frame.height, aspect)
        space = frame.colorspace
        if space not in (BT709, BT601, BT2020, 6):
            space = BT709 if frame.height >= HD else BT601
        turned = frame.rotation
        if frame.interlaced_frame and frame.height > 2:
            frame = self.field(frame)
        pixels = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", src_colorspace=space, interpolation="AREA", threads=1
        ).to_ndarray()
        quarters = round(turned / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels

    def size(self, width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
        """The size of the picture that a frame becomes."""
        wide, high = float(width), float(height)
        if aspect:
            wide, high = (wide * float(aspect), high) if aspect >= 1 else (wide, high / float(aspect))
        share = min(1.0, self.largest_side / max(wide, high))
        return max(2, round(wide * share)), max(2, round(high * share))

    def field(self, frame: VideoFrame) -> VideoFrame:
        """The first field of an interlaced frame, at half its height."""
        shape = (frame.width, frame.height, frame.format.name)
        if self.fields is None or self.fields[0] != shape:
            graph = Graph()
            graph.threads = 1
            graph.link_nodes(
                graph.add_buffer(
                    width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
                ),
                graph.add("field", "top"),
                graph.add("buffersink"),
            ).configure()
            self.fields = (shape, graph)
        graph = self.fields[1]
        frame.pts, frame.time_base = 0, Fraction(1, 1000)
        graph.vpush(frame)
        return graph.vpull()
