"""One segment of a recording: an MP4 file that begins at a key frame, and beside it what became of its frames.

The notes are lines of JSON: the first says how the segment is to be read; `["frame", sequence, segment, pts, wall]` which packet a
frame was decoded from and when it was captured; `["step", generation, [[sequence, time], …]]` which frames the model saw together,
with the seconds of stream time that it was told. What is noted last may stand in the next segment's notes. A process that dies
leaves both readable up to its last second.
"""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from capture import Coded, Coding
from streamer.memory.folder import sync_folder

OPTIONS = {
    "movflags": "empty_moov+default_base_moof+frag_keyframe",
    "frag_duration": "1000000",
    "flush_packets": "1",
}
"""A fragment a second, each whole on its own."""
MILLISECONDS = Fraction(1, 1000)
LONGEST_JUMP = 60
"""Seconds of a packet's clock that are believed; beyond them the recording goes on without a gap."""
USUAL_REORDER = 4
"""Pictures that one may have to wait for where that is not told."""
NOTES = ".jsonl"


@dataclass(frozen=True, slots=True)
class Facts:
    """How a segment is read: times in its notes count in `time_base` seconds from its first packet.

    `run` names one life of the stream, within which sequences count; `connection` one of its source's. `side` bounds the
    longer side of the pictures that are made of it, `aspect` (width to height of a pixel) and `combed` say how. `copied` tells
    the camera's own packets from pictures that were encoded here.
    """

    run: str
    connection: int
    begins: float
    time_base: tuple[int, int]
    aspect: tuple[int, int] | None
    combed: bool
    side: int
    copied: bool


class SegmentWriter:
    """Writes one segment, on the writer's thread. Everything raises OSError and av.error.FFmpegError."""

    def __init__(self, path: Path, coding: Coding | None, facts: Facts, size: tuple[int, int] = (0, 0)) -> None:
        """`path` is the MP4's; `size` the pictures' width and height where there is no coding."""
        self.path, self.facts, self.size = path, facts, size
        self.reorder = (coding.reorder or USUAL_REORDER) if coding is not None else 0
        self.base: int | None = None
        self.last: tuple[int, int] | None = None
        """The last packet's time in the file, and how long it lasts."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self.notes = open(path.with_suffix(NOTES), "w", encoding="utf-8", opener=_private)  # noqa: SIM115 — closed by `close`
        self.note(asdict(facts))
        self.notes.flush()
        os.fsync(self.notes.fileno())  # without its first line nothing of the segment can be read
        sync_folder(path.parent)
        self._sound: Fraction | None = None
        self._heard_at = -1
        """The last time of the sound's, in its own time base."""
        self.template: InputContainer | None = None
        self.container: OutputContainer = av.open(f"file:{path}", "w", format="mp4", options=OPTIONS)
        if coding is None:
            self.stream = self.container.add_stream("libx264", rate=25)
            self.stream.width, self.stream.height, self.stream.pix_fmt = size[0] & ~1, size[1] & ~1, "yuv420p"
            self.stream.codec_context.time_base = MILLISECONDS
            self.stream.codec_context.thread_count = 1
            self.stream.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "26", "g": "50"}
        else:
            self.template = template = av.open(io.BytesIO(coding.header), "r")
            self.stream = self.container.add_stream_from_template(video(template), opaque=True)
            self.stream.codec_context.extradata = coding.extradata
            self.stream.time_base = coding.time_base
            self._sound = coding.sound
            if coding.sound is not None:
                self.heard = self.container.add_stream_from_template(template.streams.audio[0])
                self.heard.time_base = coding.sound
        self.container.start_encoding()

    @property
    def bytes(self) -> int:
        """What is in the two files so far."""
        return sum(each.stat().st_size for each in (self.path, self.path.with_suffix(NOTES)))

    def write(self, packet: Coded) -> int:
        """Copies a packet; returns its presentation time in the file."""
        assert self.facts.copied
        unit = Fraction(*self.facts.time_base)
        usual = packet.duration or max(round(Fraction(1, 25) / unit), 1)
        ends = 0 if self.last is None else sum(self.last)
        if packet.dts is None:
            # The first ones of a source: nobody told its demuxer how far its pictures are out of order.
            dts = ends
            if self.base is None and packet.pts is not None:
                self.base = packet.pts - ends - self.reorder * usual
        else:
            if self.base is None:
                self.base = packet.dts - ends
            dts = packet.dts - self.base
            if self.last is not None and not self.last[0] < dts < self.last[0] + LONGEST_JUMP / unit:
                self.base, dts = packet.dts - ends, ends
        shown = dts if packet.pts is None or self.base is None else max(packet.pts - self.base, dts)
        copy: Packet[Any] = Packet(packet.data)
        copy.time_base, copy.pts, copy.dts, copy.duration = unit, shown, dts, usual
        copy.is_keyframe, copy.stream = packet.key, self.stream
        self.last = (dts, usual)
        self.container.mux_one(copy)
        return shown

    def hear(self, packet: Coded) -> None:
        """Copies a packet of the sound; one from before the first picture, or out of order, is left out."""
        if self._sound is None or self.base is None or packet.pts is None:
            return
        begin = packet.pts - round(self.base * Fraction(*self.facts.time_base) / self._sound)
        if begin <= self._heard_at:
            return
        self._heard_at = begin
        copy: Packet[Any] = Packet(packet.data)
        copy.time_base, copy.pts, copy.dts, copy.duration = self._sound, begin, begin, packet.duration
        copy.is_keyframe, copy.stream = True, self.heard
        self.container.mux_one(copy)

    def encode(self, pixels: np.ndarray, seconds: float) -> int:
        """Encodes a picture, uint8 [H, W, 3] RGB, so many seconds after the first; returns its time in the file."""
        height, width = pixels.shape[:2]
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels[: height & ~1, : width & ~1]), format="rgb24")
        pts = round(seconds * 1000)
        if self.last is not None:
            pts = max(pts, self.last[0] + 1)
        self.last = (pts, 0)
        frame.pts, frame.time_base = pts, MILLISECONDS
        self.container.mux(self.stream.encode(frame))
        return pts

    def note(self, line: Any) -> None:
        """Adds a line of notes."""
        self.notes.write(_spelled(line))

    def flush(self) -> None:
        """Hands the notes to the operating system, as the packets are fragment by fragment."""
        self.notes.flush()

    def close(self) -> None:
        """Ends the files and waits until the disk has them."""
        try:
            if not self.facts.copied and self.last is not None:
                self.container.mux(self.stream.encode())
            self.container.close()
            self.notes.flush()
            os.fsync(self.notes.fileno())
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Lets the files go as they are."""
        for close in (self.container.close, self.notes.close, *([self.template.close] if self.template else [])):
            with suppress(OSError, ValueError, av.error.FFmpegError):
                close()


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame that was handed to the model: where it is recorded, and its capture in Unix seconds."""

    sequence: int
    segment: int
    pts: int
    wall: float


@dataclass(frozen=True, slots=True)
class Step:
    """Frames that the model saw together, as (sequence, seconds of stream time)."""

    generation: int
    frames: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Notes:
    """What is noted beside a segment."""

    facts: Facts
    frames: list[Shown]
    steps: list[Step]


def read_notes(path: Path) -> Notes | None:
    """What is noted beside the segment at `path`, whose last lines may be torn; None where nothing can be read of it."""
    frames: list[Shown] = []
    steps: list[Step] = []
    facts = None
    try:
        with path.with_suffix(NOTES).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    said = json.loads(line)
                    if facts is None:
                        said["time_base"] = tuple(said["time_base"])
                        said["aspect"] = said["aspect"] and tuple(said["aspect"])
                        facts = Facts(**said)
                    elif said[0] == "frame":
                        frames.append(Shown(*said[1:]))
                    elif said[0] == "step":
                        steps.append(Step(said[1], tuple((sequence, time) for sequence, time in said[2])))
                except (ValueError, TypeError, KeyError, IndexError):
                    continue
    except OSError:
        return None
    return None if facts is None else Notes(facts, frames, steps)


def last_wall(path: Path) -> float | None:
    """The capture of the last frame noted beside a segment, in Unix seconds; reads the notes' end alone."""
    try:
        with path.with_suffix(NOTES).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError, IndexError, TypeError):
            said = json.loads(line)
            if isinstance(said, list) and said[0] == "frame":
                return float(said[4])
    return None


def has_packets(path: Path) -> bool:
    """Whether anything is in the segment at `path`, as far as the system lets it be read."""
    try:
        with av.open(f"file:{path}") as container:
            return any(packet.size for packet in container.demux(video(container)))
    except (OSError, IndexError, av.error.FFmpegError) as error:
        return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def video(container: InputContainer) -> VideoStream:
    """A segment's one stream."""
    return container.streams.video[0]


def add_note(path: Path, line: Any) -> None:
    """Adds a line to the notes of a segment that has ended, unless it is gone, and waits until the disk has it."""
    with suppress(OSError), open(path.with_suffix(NOTES), "a", encoding="utf-8", opener=_there) as notes:
        notes.write(_spelled(line))
        notes.flush()
        os.fsync(notes.fileno())


def remove(path: Path) -> None:
    """Removes a segment's files, as far as the system lets them be removed."""
    for each in (path, path.with_suffix(NOTES)):
        with suppress(OSError):
            each.unlink(missing_ok=True)


def _spelled(line: Any) -> str:
    return json.dumps(line, separators=(",", ":")) + "\n"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _there(path: str, flags: int) -> int:
    return os.open(path, (flags & ~os.O_CREAT) | os.O_CLOEXEC)
