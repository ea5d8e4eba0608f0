"""Everything FFmpeg opens, through PyAV: files and RTSP."""

from __future__ import annotations

import time
from collections.abc import Iterator

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from capture.shell import SourceShell
from capture.source import SourceError, SourceOptions

LATE = 0.5
"""Seconds by which a file's playing may fall behind its pace before the pace begins anew (the machine slept, say)."""
SAID = (
    (av.error.ConnectionRefusedError, "the connection was refused: is the server running, and on this port?"),
    (
        av.error.HTTPUnauthorizedError,
        "the server asks for a user and password: put them into the URL (scheme://user:password@host/…)",
    ),
    (av.error.HTTPNotFoundError, "the server knows no such stream (404): check the path of the URL"),
    (av.error.HTTPForbiddenError, "the server refuses this user (403)"),
    (av.error.TimeoutError, "the server fell silent"),
    (av.error.ExitError, "the server fell silent"),
    (av.error.InvalidDataError, "it is no video that can be decoded"),
    (av.error.FileNotFoundError, "there is no such file"),
)


class ContainerSource(SourceShell):
    """A file, which plays at its own pace, or a network stream."""

    def __init__(self, url: str, options: SourceOptions, *, live: bool) -> None:
        super().__init__(url, options, endless=live, live=live)
        self.live = live

    def describe(self, error: Exception) -> str:
        """See `SourceShell.describe`."""
        for kind, said in SAID:
            if isinstance(error, kind):
                return f"{self.name}: {said}"
        return f"{self.name}: {super().describe(error)}"

    def connect(self, generation: int) -> None:
        """See `SourceShell.connect`."""
        patience = self.options.patience
        choices = {"fflags": "nobuffer", "flags": "low_delay"} if self.live else {}
        if self.url.startswith(("rtsp:", "rtsps:")):
            choices |= {
                "rtsp_transport": self.options.transport,
                "timeout": str(int((patience.stall + patience.give_up) * 1e6)),
            }
        limits = (patience.open, patience.stall + patience.give_up) if self.live else None
        first = True
        while first or (self.options.loop and not self.live and self.wanted(generation)):
            with av.open(self.url, options=choices, timeout=limits) as container:
                self.play(container, generation, first)
            first = False

    def play(self, container: InputContainer, generation: int, first: bool) -> None:
        """Hands over one pass through the container."""
        if not container.streams.video:
            raise SourceError("it holds no video, only sound: name another")
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", self.options.threads
        if first and self.options.start and not self.live:
            container.seek(int(self.options.start * av.time_base))
        began: tuple[float, float] | None = None
        seen = False
        for frame in self.decoded(container, stream):
            timestamp = frame.time
            now = time.monotonic()
            captured = now
            if not self.live and self.options.realtime and timestamp is not None:
                if began is None or now - (began[0] + timestamp - began[1]) > LATE:
                    began = (now, timestamp)
                captured = began[0] + timestamp - began[1]
                if self.ended.wait(max(0.0, captured - now)):
                    return
            seen = True
            if not self.deliver(generation, self.picture(frame), timestamp, captured):
                return
        if not seen:
            raise SourceError("it holds no picture that can be decoded")

    def decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """The stream's frames; a packet that can't be decoded is passed over, as a damaged picture must not end a watch."""
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            yield from frames

    def picture(self, frame: VideoFrame) -> np.ndarray:
        """A decoded frame as uint8 [H, W, 3] RGB, scaled down to `largest_side`."""
        share = min(1.0, self.options.largest_side / max(frame.width, frame.height))
        width, height = max(2, round(frame.width * share)), max(2, round(frame.height * share))
        return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
