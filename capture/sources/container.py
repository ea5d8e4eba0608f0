"""Everything FFmpeg opens, through PyAV: files, RTSP, RTMP, HTTP (HLS, MJPEG, any container) and V4L2."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import datetime
from functools import partial
from math import inf
from pathlib import Path
from urllib.parse import urlsplit

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.format import Flags
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from capture.convert import Pictures
from capture.network.proxy import Relay, relay_lack
from capture.source import NETWORK, SourceError, SourceOptions
from capture.sources.base import SourceShell
from capture.sources.packets import PacketTap
from capture.sources.reach import Reach, seconds
from capture.sources.rtsp import ASKED, challenges, refusal
from capture.sources.tracks import best_video, cuda_lack, decoder, discard_others, interlaced, on_card, spares
from capture.timeline import LONGEST_BREAK, LONGEST_STILL, Pace

log = logging.getLogger(__name__)

REFUSED = "the connection was refused: is the server running, and on this port?"
SILENT = "the server fell silent"
BROKEN = "the server broke the connection"
NO_HOST = "its host can't be found: check the name"
STATUS = {
    401: ASKED,
    403: "the server refuses this user (403)",
    404: "the server knows no such stream (404): check the path of the URL",
    5: "the server has a fault of its own (5xx): look into its log",
}
"""What an HTTP or RTSP status, or all of its hundred, means."""
SAID = (
    (av.error.ConnectionRefusedError, REFUSED),
    (av.error.HTTPUnauthorizedError, STATUS[401]),
    (av.error.HTTPNotFoundError, STATUS[404]),
    (av.error.HTTPForbiddenError, STATUS[403]),
    (av.error.TimeoutError, SILENT),
    (av.error.ExitError, SILENT),
    (av.error.HTTPServerError, STATUS[5]),
    (av.error.InvalidDataError, "it is no video that can be decoded"),
    (av.error.FileNotFoundError, "there is no such file"),
    (av.error.ConnectionResetError, BROKEN),
    (av.error.BrokenPipeError, BROKEN),
    (av.error.EOFError, BROKEN),
    (av.error.PermissionError, "it may not be read by this user: change its permissions"),
    (av.error.ProtocolNotFoundError, "this build of FFmpeg does not speak that protocol"),
    (av.error.DecoderNotFoundError, "this build of FFmpeg has no decoder for it"),
)
UNTIMED = frozenset({"mpjpeg", "mjpeg", "h264", "hevc"})
"""Formats whose timestamps FFmpeg makes up."""
IN_ORDER = frozenset({"avi"})
"""Formats that say when pictures are decoded and not when they are shown: where those are reordered FFmpeg's guess may be wrong."""
USUAL_RATE = 25
"""Frames a second of a recording that does not tell."""
SEGMENTED = frozenset({"hls", "dash"})
"""Formats that arrive a segment at a time and are played at their own pace."""
MOST_FAILED, MOST_DARK = 12, 100
"""Packets in a row that can't be decoded, or that bring no picture, after there were some: damage alone does not explain that."""
TS_DISCONT: int = Flags.ts_discont.value  # type: ignore[assignment]
"""Marks formats whose timestamps may jump, as a broadcast's do."""
SLOW = "it can't be shown at its own rate here"
KEY_WITHIN = 10.0
"""Seconds before a moment within which there is usually a key frame."""
GROWTH = 5.0
"""Seconds in which a file that is being written must have become longer, or it is over."""
BROKEN_OFF = 1.0
"""Seconds before its stated end at which a file may run out of pictures and still count as whole."""


class ContainerSource(SourceShell):
    """A file, which plays at its own pace, or a network stream or device."""

    def __init__(self, url: str, options: SourceOptions, *, live: bool) -> None:
        super().__init__(url, options, endless=live, live=live)
        self.scheme = url.partition("://")[0] if live else "file"
        if live and self.scheme not in ("http", "https") and (lack := live_lack(options)):
            raise SourceError(f"source {self.name}: {lack}")
        self.target = url
        """What FFmpeg opens."""
        self.asked: dict[str, str] = {}
        """FFmpeg's options for this connection alone."""
        self.hasty_until = -inf
        """The timestamp up to which pictures are not held to their pace, in seconds."""
        self.bytes = 0
        """What a file had when it was opened."""
        self.shown: float | None = None
        """The timestamp of the last picture."""
        self.seen: float | None = None
        """That of the last picture that was handed over before the source was opened anew."""
        self.complained = False
        self.whole = False
        """Whether a server tells that what it sends is a file."""
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
            return f"{self.name}: {BROKEN}"
        if self.scheme == "file" and isinstance(error, av.error.EOFError):
            return f"{self.name}: it ends before its first picture: is it still being written?"
        for kind, said in SAID:
            if isinstance(error, kind):
                return f"{self.name}: {said}"
        said = error.strerror if isinstance(error, av.error.FFmpegError) and error.strerror else super().describe(error)
        return f"{self.name}: {said}"

    def connect(self, generation: int) -> None:
        """See `SourceShell.connect`."""
        first, at = True, 0
        while first or at or self.again_wanted(generation):
            try:
                with Relay(self.url) if self.relayed else nullcontext() as self.relay, self.opened(at) as container:
                    self.play(container, generation, first)
                    at = 0
            except UndecodableError as fault:
                if self.lifecycle.endless or fault.at <= at:
                    raise
                at = fault.at
            first = False

    def again_wanted(self, generation: int) -> bool:
        """Whether what came to its end is opened again: it is looped, or it is a file that was written to in the meantime."""
        if self.scheme == "file" and not self.options.loop:
            return self.grown(generation)
        return self.options.loop and not self.lifecycle.endless and self.wanted(generation)

    def grown(self, generation: int) -> bool:
        """Whether a file has more than when it was opened; one that has grown before is given GROWTH seconds for that."""
        until = time.monotonic() + (GROWTH if self.seen is not None else 0.0)
        with self.held(generation):
            while Path(self.target).stat().st_size <= self.bytes:
                if time.monotonic() >= until or self.ended.wait(0.1) or not self.wanted(generation):
                    return False
        self.seen = self.shown
        return self.seen is not None and self.wanted(generation)

    def opened(self, at: int) -> InputContainer:
        """The container from byte `at` on, which decodes on the hardware that is asked for if that can be had."""
        patience = self.options.patience
        hwaccel = None
        if self.options.hwaccel != "none" and (lack := cuda_lack()):
            if not self.complained:
                log.warning("source %s: hwaccel %s: %s; the CPU decodes instead", self.name, self.options.hwaccel, lack)
            self.complained = True
        elif self.options.hwaccel != "none":
            hwaccel = on_card()
        relay = self.relay
        # Behind "file:" FFmpeg takes no part of a name, such as 12:00.mp4's, for a protocol.
        address = f"file:{self.target}" if self.scheme == "file" else self.target.removeprefix("v4l2://")
        if self.scheme == "file":
            self.bytes = Path(self.target).stat().st_size
        where = address if relay is None or relay.kind == "http" else relay.url
        try:
            return av.open(
                where,
                format="v4l2" if self.scheme == "v4l2" else None,
                options=choices(self.scheme, self.options)
                | ({} if relay is None else relay.options)
                | self.asked
                | ({"skip_initial_bytes": str(at)} if at else {}),
                timeout=None if self.scheme == "file" else (patience.open, patience.stall + patience.give_up),
                hwaccel=hwaccel,
            )
        except av.error.HTTPUnauthorizedError:
            asked = []
            if self.scheme in ("rtsp", "rtsps"):
                with suppress(OSError, ValueError):
                    asked = challenges(where, patience.open)
            raise SourceError(refusal(asked, named="@" in urlsplit(self.url).netloc)) from None

    def play(self, container: InputContainer, generation: int, first: bool) -> None:
        """Hands over one pass through the container."""
        stream = best_video(container, self.options.largest_side)
        combed, formats = interlaced(stream), set(container.format.name.split(","))
        if formats & SEGMENTED:
            discard_others(container, stream, self.heard_of(container))
        file = self.scheme == "file"
        if self.scheme in ("http", "https"):
            self.lifecycle.endless = not container.duration and not self.whole
            if self.lifecycle.endless and (lack := live_lack(self.options)):
                self.retries = False
                raise SourceError(lack)
        paced = self.options.realtime if file else bool(formats & SEGMENTED) or not self.lifecycle.endless
        if not self.lifecycle.endless:
            jumps = container.format.flags & TS_DISCONT
            self.timeline.longest_step = LONGEST_BREAK if jumps else LONGEST_STILL
        beginning = (container.start_time or 0) / av.time_base
        start = self.beginning(container, first)
        # Where there is no index of key frames FFmpeg may begin behind the last one before; what tells no times is read.
        sought = start - (KEY_WITHIN if container.format.flags & TS_DISCONT else 0.0)
        if sought > beginning and not formats & UNTIMED:
            container.seek(int(sought * av.time_base))
        pictures = Pictures(self.options.largest_side)
        pace, reach = Pace(self.timeline.longest_step), Reach()
        reached = None
        period = 1 / float(stream.average_rate or USUAL_RATE)
        aspect = stream.sample_aspect_ratio
        for count, frame in enumerate(self.decoded(container, stream, generation, reach)):
            now = time.monotonic()
            timestamp = None if formats & UNTIMED or frame.pts is None else frame.time
            if file and formats & UNTIMED:
                timestamp = beginning + count * period
            if file and formats & IN_ORDER:
                counted = beginning if reached is None else reached + period
                timestamp = (
                    counted if frame.dts is None or not stream.time_base else seconds(frame.dts, stream.time_base)
                )
            if not self.news(timestamp):
                reached = timestamp
                continue
            if timestamp is not None and timestamp < start and start > beginning:
                continue
            captured = now
            if paced and timestamp is not None and timestamp >= self.hasty_until:
                captured = pace.moment(timestamp, now)
                self.tell_pace(pace.share)
            if not self.due(generation, captured - now):
                return
            if timestamp is not None and reached is not None:
                reach.step = max(reach.step, timestamp - reached)
            reached = timestamp if timestamp is not None else reached or beginning
            wall = wall_clock(container, timestamp)
            picture = partial(pictures.make, frame, aspect, interlaced=combed)
            number = frame.opaque if isinstance(frame.opaque, int) else None
            if not self.deliver(generation, picture, timestamp, captured, wall, number=number):
                return
        whole = (container.duration or 0) / av.time_base
        if reached is None and self.seen is not None:
            return  # a file that has grown by no picture
        if reached is None and start > beginning:
            length = f"its {whole:.1f} s" if whole else "it"
            raise SourceError(f"start {self.options.start:g} is not within {length}: begin earlier")
        if reached is None:
            raise SourceError("it holds no picture that can be decoded, or none yet")
        until = max(reach.shown, reached + period)
        if reach.untold and not container.streams.audio:
            until = max(until, beginning + whole)
        if (
            file
            and not self.options.loop
            and -inf < reach.end - beginning < whole - max(BROKEN_OFF, reach.step * reach.untold)
        ):
            raise SourceError(f"it breaks off after {reached - beginning:.1f} of {whole:.1f} s: the file is truncated")
        if file and not self.options.loop and reach.torn and Path(self.target).stat().st_size <= self.bytes:
            raise SourceError(
                f"it breaks off within a picture after {reached - beginning:.1f} s: the file is truncated"
            )
        if paced and not self.lifecycle.endless:
            # The last picture lasts as any other.
            now = time.monotonic()
            self.due(generation, pace.moment(until, now) - now)

    def due(self, generation: int, seconds: float) -> bool:
        """Waits for a picture's time; False where the source is ended meanwhile."""
        if seconds <= 0:
            return True
        with self.held(generation):
            return not self.ended.wait(seconds)

    def tell_pace(self, share: float | None) -> None:
        """Says in the status that a recording can't be shown at its own rate, while that is so."""
        slow = "" if share is None else f"{SLOW}: at about {round(share * 10) * 10} % of it"
        with self.lock:
            if slow == self.lifecycle.reason or not (slow or self.lifecycle.reason.startswith(SLOW)):
                return
            self.lifecycle.reason = slow
        self.tell()

    def beginning(self, container: InputContainer, first: bool) -> float:
        """The timestamp in seconds from which a container is shown; `first` where it is opened for the first time."""
        if self.seen is not None:
            return self.seen
        begins = (container.start_time or 0) / av.time_base
        return begins + self.options.start if first and not self.lifecycle.endless else begins

    def news(self, timestamp: float | None) -> bool:
        """Whether the picture of a timestamp was not handed over already, before the source was opened anew."""
        if self.seen is not None and timestamp is not None and timestamp <= self.seen:
            return False
        self.shown = timestamp
        return True

    def heard_of(self, container: InputContainer) -> AudioStream | None:
        """The sound that goes to whoever records, where it is wanted and there is one."""
        wanted = self.options.audio and self.recorder is not None
        return next(iter(container.streams.audio), None) if wanted else None

    def decoded(
        self, container: InputContainer, stream: VideoStream, generation: int, reach: Reach
    ) -> Iterator[VideoFrame]:
        """The stream's frames; a packet that can't be decoded is counted and passed over, as damage must not end a watch.

        Raises UndecodableError where it seems to be more than damage.
        """
        good: int | None = None
        dark = failed = 0
        context = decoder(stream, self.options.threads)
        sound = self.heard_of(container)
        tap = None if self.recorder is None else PacketTap(self.recorder, stream, context, sound)
        others = [] if sound is None else [sound]
        selective = self.selection.fps is not None and self.selection.change is None and tap is None
        sparing = selective and self.scheme == "file" and not self.options.realtime and spares(container, stream)
        # How far a file goes, its other streams tell as well.
        for packet in container.demux() if self.scheme == "file" else container.demux(stream, *others):
            spoken = sound is not None and packet.stream.index == sound.index
            if spoken and tap is not None:
                tap.hear(packet)
            if not spoken or self.scheme == "file":  # a camera that is heard alone has stalled
                self.lifecycle.heard(generation, time.monotonic())
            if not self.wanted(generation):
                return
            # Not by `stream_index`, which is 0 of every packet that marks a stream's end.
            shown = packet.stream.index == stream.index
            reach.take(packet, shown=shown)
            if not shown:
                continue
            if tap is not None:
                tap.take(packet)
            spared = sparing and self.undue(None if packet.pts is None else seconds(packet.pts, packet.time_base))
            if sparing:
                context.skip_frame = "NONREF" if spared else "DEFAULT"
            frames: list[VideoFrame] = []
            try:
                frames = context.decode(packet)
            except (av.error.InvalidDataError, av.error.PatchWelcomeError):
                self.damaged += 1
                failed += 1
            dark += not spared
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


def live_lack(options: SourceOptions) -> str:
    """Why a live stream can't be shown as it is asked for; empty where it can."""
    if options.loop or options.start:
        return "it is live, which can't be looped or begun later: leave out loop and start"
    return ""


def choices(scheme: str, options: SourceOptions) -> dict[str, str]:
    """FFmpeg's options for a scheme. Silence on a socket is noticed by FFmpeg itself, as its threads must end some time."""
    patience = options.patience
    silence = str(int(max(patience.open, patience.stall + patience.give_up) * 1e6))
    # Little is probed, and what was read for it is decoded (no "nobuffer"): a camera's next key frame may be far away.
    prompt = {"probesize": "32"}
    match scheme:
        case "rtsp" | "rtsps":
            # With sound, what is probed at once may have no picture yet.
            probed = {"probesize": "1000000", "fpsprobesize": "0"} if options.audio else prompt
            return probed | {
                "rtsp_transport": options.transport,
                "allowed_media_types": "video+audio" if options.audio else "video",
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
