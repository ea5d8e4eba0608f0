"""Which of a container's videos is watched, and how it is decoded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import av
from av.codec.context import CodecContext
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Discard, Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from capture.redaction import redact
from capture.source import SourceError

log = logging.getLogger(__name__)
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
MOST_PIXELS = 8192 * 4608
"""A video of more is refused: each of some twenty pictures that a decoder holds would take 100 MB and more."""
ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that know of the second picture in which WebM keeps what is clear; FFmpeg's own do not."""
MARKED = frozenset(
    {
        "h264",
        "hevc",
        "vvc",
        "av1",
        "vp8",
        "vp9",
        "mpeg1video",
        "mpeg2video",
        "mpeg4",
        "vc1",
        "dvvideo",
        "prores",
        "dnxhd",
    }
)
"""Codecs whose pictures say themselves whether they are interlaced; of others the container does."""
TIMED = frozenset({"mov", "matroska"})
"""Formats whose packets always say when their picture is shown."""
INTERLACED = frozenset({2, 3, 4, 5})
"""FFmpeg's field orders other than unknown and progressive."""


def best_video(container: InputContainer, largest_side: int) -> VideoStream:
    """The video to watch: no cover art, marked as the default if one is, and of the size nearest to what is needed.

    That is the smallest one whose longer side has `largest_side` pixels or more, else the largest. Raises SourceError.
    """
    videos = [
        stream
        for stream in container.streams.video
        # One that there is no decoder for has no context, whatever PyAV's types say.
        if not stream.disposition & NO_VIDEO and getattr(stream, "codec_context", None) is not None
    ]
    if not videos and any(not stream.disposition & NO_VIDEO for stream in container.streams.video):
        raise SourceError("it holds no video that can be decoded: this build of FFmpeg does not know its codec")
    if not videos:
        cover = " and pictures that go with it" if container.streams.video else ""
        raise SourceError(f"it holds no video, only sound{cover}: name another")
    best = nearest([video for video in videos if video.disposition & Disposition.default] or videos, largest_side)
    if best.codec_context.width * best.codec_context.height > MOST_PIXELS:
        size = f"{best.codec_context.width}×{best.codec_context.height}"
        raise SourceError(f"its pictures have {size} pixels: scale it down to {MOST_PIXELS} in all")
    return best


def nearest(videos: Sequence[VideoStream], largest_side: int) -> VideoStream:
    def side(video: VideoStream) -> int:
        return max(video.codec_context.width, video.codec_context.height)

    enough = [video for video in videos if side(video) >= largest_side]
    return min(enough, key=side) if enough else max(videos, key=side)


def discard_others(container: InputContainer, *chosen: Stream | None) -> None:
    """Lets a container that arrives in segments fetch none of the other streams."""
    for stream in container.streams:
        if all(stream is not each for each in chosen):
            stream.discard = Discard.all


def decoder(stream: VideoStream, threads: int) -> VideoCodecContext:
    """What decodes a stream: its own context, or one that knows what is clear in it."""
    own = stream.codec_context
    stream.thread_type, own.thread_count = "AUTO", threads
    own.options = {**own.options, "max_pixels": str(MOST_PIXELS)}
    if own.name not in ALPHA or stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1":
        return own
    other = CodecContext.create(ALPHA[own.name], "r")
    assert isinstance(other, VideoCodecContext)
    other.thread_count, other.extradata = threads, own.extradata
    return other


def spares(container: InputContainer, stream: VideoStream) -> bool:
    """Whether the decoder can leave out pictures that aren't wanted by the times of their packets: those of which no others are made.

    H.265 does not tell these apart: pictures of a higher layer of time may be made of them.
    """
    context, timed = stream.codec_context, TIMED & set(container.format.name.split(","))
    return bool(timed) and context.name == "h264" and int(context.field_order or 0) not in INTERLACED


def interlaced(stream: VideoStream) -> bool:
    """Whether the container alone says that the stream's pictures are interlaced."""
    context = stream.codec_context
    return context.name not in MARKED and int(context.field_order or 0) in INTERLACED


@cache
def cuda_lack() -> str:
    """Why CUDA can't decode on this machine; empty where it can."""
    try:
        av.CodecContext.create("h264", "r", hwaccel=HWAccel("cuda"))
    except (av.error.FFmpegError, NotImplementedError, ValueError) as error:
        return f"no CUDA device answers ({redact(str(error)) or type(error).__name__})"
    return ""


@cache
def card_lack() -> str:
    """Why pictures can't be made on the card that decodes; empty where they can, with all that is needed for it compiled."""
    if not (find_spec("torch") and find_spec("triton")):
        return "PyTorch or Triton is missing"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch sees no card"
    try:
        from capture.card import prepare

        prepare()
    except Exception as error:  # whatever a compiler or a card has to say
        lack = redact(str(error)).partition("\n")[0] or type(error).__name__
        log.warning("hwaccel: the CPU makes pictures of what CUDA decodes (%s)", lack)
        return lack
    return ""


def on_card() -> HWAccel:
    """What decodes on a CUDA device, for the thread that calls; where pictures can be made there, frames stay in PyTorch's context."""
    if card_lack():
        return HWAccel("cuda", allow_software_fallback=True)
    import torch

    torch.cuda.mem_get_info()  # from now on this thread has the context
    options: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
    return HWAccel("cuda", allow_software_fallback=True, is_hw_owned=True, options=options)
