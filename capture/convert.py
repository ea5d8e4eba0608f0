"""From a decoded FFmpeg frame, of whatever shape, format and colours, to RGB pixels that stand upright."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from capture.colour import BT2020, Mapping, is_other

HD = 720
"""From this height on, pictures that do not name their colours are taken to use BT.709, smaller ones BT.601."""
SPACES = frozenset({1, 5, 6, 7, BT2020})
"""Matrices from YUV (ITU-T H.273, table 4) that are named: BT.709, BT.601 twice, SMPTE 240M, BT.2020."""
BT709, BT601 = 1, 5
LIMITED, FULL = 1, 2
"""FFmpeg's numbers of the ranges of 16 to 235, and of 0 to 255."""
WIDENED = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)
"""By levels of the limited range, those of the full one."""


class Pictures:
    """Makes pictures for one decoder: scales, converts and turns in as few passes as FFmpeg needs.

    `largest_side` bounds the longer side in pixels. Not thread-safe.
    """

    def __init__(self, largest_side: int) -> None:
        self.largest_side = largest_side
        self.reformatter, self.parting = VideoReformatter(), VideoReformatter()
        self.fields: tuple[tuple[int, int, str], Graph] | None = None
        self.mapping: Mapping | None = None

    def make(self, frame: VideoFrame, aspect: Fraction | None = None, *, interlaced: bool = False) -> np.ndarray:
        """uint8 [H, W, 3] RGB, contiguous, of square pixels and turned as the frame's display matrix asks.

        `aspect` is the sample aspect ratio, None for square. Of an interlaced frame (one that says so, or all of them) only
        the first field is kept, so that moving things have no combs. HDR and wide colours become sRGB's, and what is clear
        is black.
        """
        width, height = self.size(frame.width, frame.height, aspect)
        space = frame.colorspace
        if space not in SPACES:
            space = BT709 if frame.height >= HD else BT601
        # Not by `frame.side_data`, which the frame would keep and which keeps the frame: nothing but the garbage collector
        # lets go of such a ring, and a camera's buffers must not outlive the container that they are of.
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]  # as PyAV calls it
        transfer, primaries = frame.color_trc, frame.color_primaries
        # Gray counts as of the full range for FFmpeg's scaler, whatever it says.
        narrow = frame.color_range == LIMITED and frame.format.name.startswith(("gray", "ya"))
        if (interlaced or frame.interlaced_frame) and frame.height > 2:
            frame = self.field(self.here(frame))
        mapped = is_other(transfer, primaries)
        usual = matrix is None and not mapped
        if usual and (made := made_there(frame, (height, width), space)) is not None:
            return made
        frame = self.here(frame)
        if frame.format.name == "nv12" and (frame.width, frame.height) == (width, height):
            # At its own size FFmpeg makes RGB of planes apart in a quarter of the time, and the same as of what the CPU decodes.
            frame = self.parting.reformat(frame, format="yuv420p", threads=1)
        clear = has_alpha(frame.format.name)
        pixels: np.ndarray = self.reformatter.reformat(
            frame,
            width=width,
            height=height,
            format=("rgba64le" if mapped else "rgba") if clear else ("rgb48le" if mapped else "rgb24"),
            src_colorspace=space,
            interpolation="AREA",
            threads=1,
        ).to_ndarray()
        if clear:
            opacity, pixels = pixels[..., 3:] / np.float32(np.iinfo(pixels.dtype).max), pixels[..., :3]
        if mapped:
            if self.mapping is None or (self.mapping.transfer, self.mapping.primaries) != (transfer, primaries):
                self.mapping = Mapping(transfer, primaries)
            pixels = self.mapping.apply(pixels)
        elif narrow:
            pixels = WIDENED[pixels]
        if clear:
            pixels = (pixels * opacity + np.float32(0.5)).astype(np.uint8)
        return pixels if matrix is None else turned(pixels, bytes(matrix))

    def here(self, frame: VideoFrame) -> VideoFrame:
        """The frame in the host's memory, where it is on a card."""
        if frame.format.name != "cuda" or frame.sw_format is None:
            return frame
        return self.parting.reformat(frame, format=frame.sw_format.name, threads=1)

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


def made_there(frame: VideoFrame, size: tuple[int, int], space: int) -> np.ndarray | None:
    """What lies on a card, made there (see `capture.card.make`); None where it can't be, and of all that lies elsewhere."""
    if frame.format.name != "cuda" or frame.sw_format is None or frame.sw_format.name != "nv12":
        return None
    if size[0] > frame.height or size[1] > frame.width or frame.width % 2 or frame.height % 2:
        return None
    from capture.card import make

    try:
        return make(frame, size, space, frame.color_range == FULL)
    except RuntimeError:  # no memory is left for it
        return None


def turned(pixels: np.ndarray, matrix: bytes) -> np.ndarray:
    """A picture as its display matrix asks (ISO 14496-12, 6.2.2): flipped, turned by the nearest quarters, or both."""
    # A pixel of column x and row y is shown in column a·x + c·y and row b·x + d·y.
    a, b, _, c, d = np.frombuffer(matrix, "=i4")[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    if d < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@cache
def has_alpha(name: str) -> bool:
    """Whether pixels of an FFmpeg format may be clear."""
    return any(component.is_alpha for component in VideoFormat(name).components)
