"""Everything FFmpeg opens, through PyAV: files, RTSP, RTMP, HTTP (HLS, MJPEG, any container) and V4L2."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime
from functools import cache, partial

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from capture.convert import Pictures
from capture.network.proxy import Relay, relay_lack
from capture.redaction import redact
from capture.source import NETWORK, SourceError, SourceOptions
from capture.sources.base import SourceShell
from capture.timeline import LONGEST_STEP

log = logging.getLogger(__name__)

LATE = 0.5
"""Seconds by which a file's playing may fall behind its pace before the pace begins anew (the machine slept, say)."""
SAID = (
    (av.error.ConnectionRefusedError, "the connection was refused: is the server running, and on this port?"),
    (
        av.error.HTTPUnauthorizedError,
        "the server asks for a user and password (401): put them into the URL (scheme://user:password@host/…)",
    ),
    (av.error.HTTPNotFoundError, "the server knows no such stream (404): check the path of the URL"),
    (av.error.HTTPForbiddenError, "the server refuses this user (403)"),
    (av.error.TimeoutError, "the server fell silent"),
    (av.error.ExitError, "the server fell silent"),
    (av.error.HTTPServerError, "the server has a fault of its own (5xx): look into its log"),
    (av.error.InvalidDataError, "it is no video that can be decoded"),
    (av.error.FileNotFoundError, "there is no such file"),
    (av.error.ConnectionResetError, "the server broke the connection"),
    (av.error.BrokenPipeError, "the server broke the connection"),
    (av.error.EOFError, "the server broke the connection"),
    (av.error.PermissionError, "it may not be read by this user: change its permissions"),
    (av.error.ProtocolNotFoundError, "this build of FFmpeg does not speak that protocol"),
    (av.error.DecoderNotFoundError, "this build of FFmpeg has no decoder for it"),
)
UNTIMED = frozenset({"mpjpeg", "mjpeg", "h264", "hevc"})
"""Formats whose timestamps FFmpeg makes up."""
USUAL_RATE = 25
"""Frames a second of a recording that does not tell."""
SEGMENTED = frozenset({"hls", "dash"})
"""Formats that arrive a segment at a time and are played at their own pace."""
MOST_FAILED, MOST_DARK = 12, 100
"""Packets in a row that can't be decoded, or that bring no picture, after there were some: damage alone does not explain that."""
BROKEN_OFF = 1.0
"""Seconds before its stated end at which a file may run out of pictures and still count as whole."""


class ContainerSource(SourceShell):
    """A file, which plays at its own pace, or a network stream or device."""

    def __init__(self, url: str, options: SourceOptions, *, live: bool) -> None:
        super().__init__(url, options, endless=live, live=live)
        self.scheme = url.partition("://")[0] if live else "file"
        self.complained = False
        self.relayed = options.public_only and self.scheme in NETWORK
        self.relay: Relay | None = None
        if self.relayed and (lack := relay_lack(self.scheme, options)):
            raise SourceError(f"source {self.name}: {lack}")

    def describe(self, error: Exception) -> str:
        """See `SourceShell.describe`."""
        if self.relay is not None and self.relay.trouble:
            return f"{self.name}: {self.relay.trouble}"
        if isinstance(error, av.error.InvalidDataError) and self.scheme != "file":
            return f"{self.name}: the server fell silent while connecting, or sends no video that can be decoded"
        number = error.errno if isinstance(error, av.error.FFmpegError) else None
        if self.scheme == "v4l2" and number in (errno.ENODEV, errno.ENOENT, errno.ENXIO, errno.EIO):
            return f"{self.name}: the camera is not there: is it still plugged in?"
        if self.scheme == "v4l2" and number == errno.EBUSY:
            return f"{self.name}: another program has the camera: close that"
        if self.scheme in NETWORK and number == errno.EIO:
            return f"{self.name}: the server broke the connection"
        for kind, said in SAID:
            if isinstance(error, kind):
                return f"{self.name}: {said}"
        said = error.strerror if isinstance(error, av.error.FFmpegError) and error.strerror else super().describe(error)
        return f"{self.name}: {said}"

    def connect(self, generation: int) -> None:
        """See `SourceShell.connect`."""
        first, at = True, 0
        while first or at or (self.options.loop and self.scheme == "file" and self.wanted(generation)):
            try:
                with Relay(self.url) if self.relayed else nullcontext() as self.relay, self.opened(at) as container:
                    self.play(container, generation, first)
                    at = 0
            except UndecodableError as fault:
                if self.lifecycle.endless or fault.at <= at:
                    raise
                at = fault.at
            first = False

    def opened(self, at: int) -> InputContainer:
        """The container from byte `at` on, which decodes on the hardware that is asked for if that can be had."""
        patience = self.options.patience
        hwaccel = None
        if self.options.hwaccel != "none" and (lack := cuda_lack()):
            if not self.complained:
                log.warning("source %s: hwaccel %s: %s; the CPU decodes instead", self.name, self.options.hwaccel, lack)
            self.complained = True
        elif self.options.hwaccel != "none":
            hwaccel = HWAccel("cuda", allow_software_fallback=True)
        relay = self.relay
        # Behind "file:" FFmpeg takes no part of a name, such as 12:00.mp4's, for a protocol.
        address = f"file:{self.url}" if self.scheme == "file" else self.url.removeprefix("v4l2://")
        return av.open(
            address if relay is None else relay.url,
            format="v4l2" if self.scheme == "v4l2" else None,
            options=choices(self.scheme, self.options)
            | ({} if relay is None else relay.options)
            | ({"skip_initial_bytes": str(at)} if at else {}),
            timeout=None if self.scheme == "file" else (patience.open, patience.stall + patience.give_up),
            hwaccel=hwaccel,
        )

    def play(self, container: InputContainer, generation: int, first: bool) -> None:
        """Hands over one pass through the container."""
        if not container.streams.video:
            raise SourceError("it holds no video, only sound: name another")
        stream = container.streams.video[0]
        context = stream.codec_context
        stream.thread_type, context.thread_count = "AUTO", self.options.threads
        formats = set(container.format.name.split(","))
        file = self.scheme == "file"
        if self.scheme in ("http", "https"):
            self.lifecycle.endless = not container.duration
        paced = self.options.realtime if file else bool(formats & SEGMENTED) or not self.lifecycle.endless
        beginning = (container.start_time or 0) / av.time_base
        start = beginning + self.options.start if first and file else beginning
        if start > beginning:
            container.seek(int(start * av.time_base))
        pictures = Pictures(self.options.largest_side)
        pace = Pace()
        reached = None
        period = 1 / float(stream.average_rate or USUAL_RATE)
        for count, frame in enumerate(self.decoded(container, stream, generation)):
            now = time.monotonic()
            timestamp = None if formats & UNTIMED or frame.pts is None else frame.time
            if file and formats & UNTIMED:
                timestamp = beginning + count * period
            if timestamp is not None and timestamp < start and start > beginning:
                continue
            captured = pace.moment(timestamp, now) if paced and timestamp is not None else now
            if captured > now:
                with self.held(generation):
                    if self.ended.wait(captured - now):
                        return
            reached = timestamp if timestamp is not None else reached or beginning
            wall = wall_clock(container, timestamp)
            picture = partial(pictures.make, frame, context.sample_aspect_ratio)
            if not self.deliver(generation, picture, timestamp, captured, wall):
                return
        if reached is None:
            raise SourceError("it holds no picture that can be decoded")
        whole = (container.duration or 0) / av.time_base
        if file and not self.options.loop and reached - beginning < whole - BROKEN_OFF:
            raise SourceError(f"it breaks off after {reached - beginning:.1f} of {whole:.1f} s: the file is truncated")

    def decoded(self, container: InputContainer, stream: VideoStream, generation: int) -> Iterator[VideoFrame]:
        """The stream's frames; a packet that can't be decoded is counted and passed over, as damage must not end a watch.

        Raises UndecodableError where it seems to be more than damage.
        """
        good: int | None = None
        dark = failed = 0
        for packet in container.demux(stream):
            self.lifecycle.heard(generation, time.monotonic())
            if not self.wanted(generation):
                return
            frames: list[VideoFrame] = []
            try:
                frames = packet.decode()
            except (av.error.InvalidDataError, av.error.PatchWelcomeError):
                self.damaged += 1
                failed += 1
            dark += 1
            if frames:
                good, dark, failed = packet.pos or 0, 0, 0
            elif good is not None and (failed >= MOST_FAILED or dark >= MOST_DARK):
                raise UndecodableError(good + 1)
            yield from frames


class UndecodableError(SourceError):
    """From byte `at` on nothing can be decoded: FFmpeg keeps the decoder that it began with, and the codec has changed."""

    def __init__(self, at: int) -> None:
        super().__init__("nothing can be decoded any more, as if its codec had changed")
        self.at = at


class Pace:
    """When each frame of a recording is due, in seconds of this host's monotonic clock."""

    def __init__(self) -> None:
        self.began: tuple[float, float] | None = None

    def moment(self, timestamp: float, now: float) -> float:
        """When the frame of `timestamp` is due; the pace begins anew after a jump, and where playing fell too far behind."""
        if self.began is not None:
            due = self.began[0] + timestamp - self.began[1]
            if now - LATE <= due <= now + LONGEST_STEP:
                return due
        self.began = (now, timestamp)
        return now


def choices(scheme: str, options: SourceOptions) -> dict[str, str]:
    """FFmpeg's options for a scheme. Silence on a socket is noticed by FFmpeg itself, as its threads must end some time."""
    patience = options.patience
    silence = str(int(max(patience.open, patience.stall + patience.give_up) * 1e6))
    # Little is probed, and what was read for it is decoded (no "nobuffer"): a camera's next key frame may be far away.
    prompt = {"probesize": "32"}
    match scheme:
        case "rtsp" | "rtsps":
            return prompt | {
                "rtsp_transport": options.transport,
                "allowed_media_types": "video",
                "timeout": silence,
            }
        case "rtmp" | "rtmps":
            return {"analyzeduration": "1000000", "rtmp_live": "live", "rw_timeout": silence}
        case "http" | "https":
            return {"rw_timeout": silence, "live_start_index": "-2"}
        case "v4l2":
            asked = {"input_format": options.pixel_format}
            if options.camera_size:
                asked["video_size"] = "{}x{}".format(*options.camera_size)
            if options.camera_rate:
                asked["framerate"] = f"{options.camera_rate:g}"
            return {key: value for key, value in asked.items() if value}
    return {}


def wall_clock(container: InputContainer, timestamp: float | None) -> float | None:
    """Unix seconds at `timestamp` where the container knows: RTCP's clock, or when a recording was made."""
    if timestamp is None:
        return None
    if container.start_time_realtime:
        return container.start_time_realtime / 1e6 + timestamp
    created = container.metadata.get("creation_time")
    if not created:
        return None
    try:
        return datetime.fromisoformat(created).timestamp() + timestamp - (container.start_time or 0) / av.time_base
    except ValueError:
        return None


@cache
def cuda_lack() -> str:
    """Why CUDA can't decode on this machine; empty where it can."""
    try:
        av.CodecContext.create("h264", "r", hwaccel=HWAccel("cuda"))
    except (av.error.FFmpegError, NotImplementedError, ValueError) as error:
        return f"no CUDA device answers ({redact(str(error)) or type(error).__name__})"
    return ""
