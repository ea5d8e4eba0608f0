"""Clips of video files: a span, encoded anew as what any browser plays."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from capture.convert import Pictures
from capture.sources.tracks import best_video
from streamer.memory.footage import CLIP_SIDE

UNIT = Fraction(1, 90_000)


def cut(source: Path, since: float, until: float, target: Path) -> bool:
    """Writes the pictures of `source` from `since` to `until` (seconds from its first picture) as an MP4; whether there are any.

    Raises OSError, av.error.FFmpegError, SourceError.
    """
    makers, last, stream = Pictures(CLIP_SIDE), -1, None
    with (
        av.open(f"file:{source}") as container,
        av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as output,
    ):
        video = best_video(container, CLIP_SIDE)
        video.thread_count = 1
        unit = video.time_base or UNIT
        begins = next((float(f.pts * unit) for f in container.decode(video) if f.pts is not None), 0.0)
        container.seek(int(max(0.0, begins + since) / unit), stream=video)
        for frame in container.decode(video):
            if frame.pts is None or (at := float(frame.pts * unit) - begins) < since:
                continue
            if at > until:
                break
            pixels = makers.make(frame)
            height, width = pixels.shape[0] & ~1, pixels.shape[1] & ~1
            if stream is None:
                stream = output.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23", "g": "50"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base, stream.codec_context.thread_count = UNIT, 1
            out = VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            last = max(round((at - since) / UNIT), last + 1)
            out.pts, out.time_base = last, UNIT
            output.mux(stream.encode(out))
        if stream is not None:
            output.mux(stream.encode())
    return stream is not None
