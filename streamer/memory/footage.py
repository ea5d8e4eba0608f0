"""What is recorded, read again: the pictures of a span, one of them, and clips of the packets themselves."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import IO, Any

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from capture.convert import Pictures
from capture.sources.tracks import decoder
from streamer.memory.recording import Segment
from streamer.memory.segment import Notes, read_notes, video

THREADS = 1
CLIP_SIDE = 1_280
"""Pixels of the longer side of what is encoded anew."""
BROWSERS = frozenset({"h264", "av1", "vp9"})
"""Codecs that any browser plays in MP4."""
NEAR = 1.0
"""Seconds that may lie between segments that one picture follows another in."""


@dataclass(frozen=True)
class Piece:
    """A segment with its notes."""

    segment: Segment
    notes: Notes

    @property
    def unit(self) -> Fraction:
        """Seconds that its times count in."""
        return Fraction(*self.notes.facts.time_base)

    def wall(self, pts: int) -> float:
        """When what is shown at `pts` was captured, in Unix seconds, as far as the frames nearby tell."""
        known = self.known
        if not known:
            return self.notes.facts.begins + float(pts * self.unit)
        place = max(bisect_right(known, (pts, float("inf"))) - 1, 0)
        near, wall = known[place]
        return wall + float((pts - near) * self.unit)

    @cached_property
    def known(self) -> list[tuple[int, float]]:
        """Times in the file with their captures, in order: every packet asks, so that they are sorted once."""
        return sorted((each.pts, each.wall) for each in self.notes.frames if each.segment == self.segment.number)


def pieces(segments: Iterable[Segment]) -> list[Piece]:
    """Segments with their notes, as far as they can be read."""
    found = ((each, read_notes(each.path)) for each in segments)
    return [Piece(each, notes) for each, notes in found if notes is not None]


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded frame, and which one it is."""

    piece: Piece
    pts: int
    frame: VideoFrame


def packets(piece: Piece, *, sound: bool = False) -> Iterator[tuple[Packet[Any], int]]:
    """A segment's packets with their presentation times, up to where it was torn; with its `sound`'s among them where that is wanted.

    Raises OSError and av.error.FFmpegError.
    """
    with av.open(f"file:{piece.segment.path}") as container:
        stream = video(container)
        heard = container.streams.audio[:1] if sound else ()
        for packet in container.demux(stream, *heard):
            if packet.size and packet.pts is not None and packet.time_base is not None:
                yield packet, round(packet.pts * packet.time_base / piece.unit)


def decoded(run: Sequence[Piece]) -> Iterator[Decoded]:
    """The frames of segments that follow one another, in the order in which they are shown."""
    for group in connections(run):
        with av.open(f"file:{group[0].segment.path}") as template:
            context = decoder(video(template), THREADS)
            context.copy_opaque = True
            for piece in group:
                for packet, pts in packets(piece):
                    packet.opaque = (piece, pts)
                    yield from _frames(context, packet)
            yield from _frames(context, None)


def _frames(context: Any, packet: Packet[Any] | None) -> Iterator[Decoded]:
    try:
        frames = context.decode(packet)
    except (av.error.InvalidDataError, av.error.PatchWelcomeError, av.error.EOFError):
        return
    for frame in frames:
        if isinstance(frame.opaque, tuple):
            piece, pts = frame.opaque
            yield Decoded(piece, pts, frame)


def connections(run: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Segments that one decoder may read on: of one connection, or of pictures of one size encoded here."""
    group: list[Piece] = []
    for piece in run:
        facts = piece.notes.facts
        if group:
            before = group[-1].notes.facts
            if not facts.copied or (facts.run, facts.connection) != (before.run, before.connection):
                yield group
                group = []
        group.append(piece)
    if group:
        yield group


def pictures(run: Sequence[Piece], side: int | None = None) -> Iterator[tuple[Decoded, np.ndarray]]:
    """The pictures of segments, uint8 [H, W, 3] RGB, as the model was shown them; `side` makes them of another size."""
    makers: dict[int, Pictures] = {}
    for each in decoded(run):
        yield each, picture(each, makers, side)


def picture(each: Decoded, makers: dict[int, Pictures], side: int | None = None) -> np.ndarray:
    """The picture of one frame; `makers` keeps what is used again for the next."""
    facts = each.piece.notes.facts
    size = side or facts.side
    aspect = Fraction(*facts.aspect) if facts.aspect else None
    return makers.setdefault(size, Pictures(size)).make(each.frame, aspect, interlaced=facts.combed)


def still(segments: Sequence[Segment], at: float, side: int) -> tuple[np.ndarray, float] | None:
    """The picture that stood at a moment, uint8 [H, W, 3] RGB, and its capture (both Unix seconds); None where there is none."""
    last = None
    for piece in reversed(pieces(segments)):
        if piece.segment.begins > at:
            continue
        for each in decoded([piece]):
            if last is not None and piece.wall(each.pts) > at:
                break
            last = each
        if last is not None:
            return picture(last, {}, side), piece.wall(last.pts)
    return None


def lasting(segments: Sequence[Segment], at: float) -> list[Segment]:
    """The segment with the picture that stood at a moment for as long as the next one took to come; none where that is not known."""
    place = next((number for number, each in enumerate(segments) if each.begins > at), len(segments))
    near = pieces(segments[max(place - 1, 0) : place + 1])
    if near and near[0].segment.begins <= at <= near[0].segment.ends:
        return [near[0].segment]
    if len(near) < 2 or near[0].segment.number + 1 != near[1].segment.number:
        return []
    runs = {(each.notes.facts.run, each.notes.facts.connection) for each in near}
    return [near[0].segment] if len(runs) == 1 else []


@dataclass(frozen=True, slots=True)
class Clip:
    """What of a recording makes a clip: segments, the key frame that it begins with, and its span in Unix seconds."""

    run: list[Piece]
    first: int
    begins: float
    ends: float
    codecs: frozenset[str]
    size: int

    @property
    def encoded(self) -> bool:
        """Whether its packets can't stand in one file, so that its pictures are encoded anew."""
        return len(self.codecs) > 1


def find_clip(segments: Sequence[Segment], since: float, until: float) -> Clip | None:
    """The clip of a span, from the key frame before it on; None where nothing is recorded of it."""
    run = [piece for piece in pieces(segments) if piece.segment.begins <= until]
    codecs, first, start = set(), None, 0
    for number, piece in enumerate(run):
        try:
            with av.open(f"file:{piece.segment.path}") as container:
                context = video(container).codec_context
                codecs.add(f"{context.name} {context.width}x{context.height} {context.extradata!r}")
            for packet, pts in packets(piece) if first is None or piece.segment.begins <= since else ():
                wall = piece.wall(pts)
                if packet.is_keyframe and (first is None or wall <= since):
                    first, start, begins = pts, number, wall
        except (OSError, av.error.FFmpegError):
            continue
    if first is None:
        return None
    run = run[start:]
    ends = max(min(max(piece.segment.ends for piece in run), until), begins)  # its first picture at least
    return Clip(run, first, begins, ends, frozenset(codecs), sum(piece.segment.size for piece in run))


def write_copy(clip: Clip, target: str | IO[bytes], *, streamed: bool) -> None:
    """Writes a clip of the recorded packets as MP4: times count from its beginning, and gaps stay.

    A `streamed` one is written front to back; of a whole one the index stands in front. Raises OSError, av.error.FFmpegError.
    """
    flags = "frag_keyframe+empty_moov+default_base_moof" if streamed else "faststart"
    with (
        av.open(target, "w", format="mp4", options={"movflags": flags}) as output,
        av.open(f"file:{clip.run[0].segment.path}") as template,
    ):
        stream = output.add_stream_from_template(video(template), opaque=True)
        stream.time_base = video(template).time_base
        _copy_into(output, stream, _sound_of(output, clip), clip)


def _sound_of(output: Any, clip: Clip) -> Any:
    """The track for a clip's sound; None where it has none."""
    with av.open(f"file:{clip.run[0].segment.path}") as template:
        if not template.streams.audio:
            return None
        stream = output.add_stream_from_template(template.streams.audio[0])
        stream.time_base = template.streams.audio[0].time_base
        return stream


def _copy_into(output: Any, stream: Any, sound: Any, clip: Clip) -> None:
    unit = stream.time_base
    shift = ends = Fraction(0)
    heard = -1
    last: Piece | None = None
    for piece in clip.run:
        begun = False
        for packet, pts in packets(piece, sound=sound is not None):
            if packet.stream.type == "audio":
                at = round(((packet.pts or 0) * packet.time_base + shift) / sound.time_base)
                if begun and at > heard and piece.wall(pts) <= clip.ends:
                    output.mux_one(_copied(packet, sound, at, at))
                    heard = at
                continue
            if piece is clip.run[0] and not begun and pts != clip.first:
                continue
            time = pts * piece.unit
            decode = packet.dts * packet.time_base if packet.dts is not None else time
            if not begun:
                shift = (ends if _follows(last, piece) else max(Fraction(piece.wall(pts) - clip.begins), ends)) - decode
                begun = True
            if piece.wall(pts) > clip.ends:
                return
            ends = decode + shift + (packet.duration or 1) * packet.time_base
            output.mux_one(_copied(packet, stream, round((decode + shift) / unit), round((time + shift) / unit)))
        last = piece


def _copied(packet: Packet[Any], stream: Any, dts: int, pts: int) -> Packet[Any]:
    """A packet as it goes into another file, at times in that stream's time base."""
    copy: Packet[Any] = Packet(bytes(packet))
    copy.time_base, copy.stream, copy.dts, copy.pts = stream.time_base, stream, dts, pts
    copy.duration = packet.duration and round(packet.duration * packet.time_base / stream.time_base)
    copy.is_keyframe = packet.is_keyframe
    return copy


def _follows(last: Piece | None, piece: Piece) -> bool:
    """Whether a segment goes on where the one before it ended."""
    if last is None:
        return True
    before, facts = last.notes.facts, piece.notes.facts
    same = (before.run, before.connection) == (facts.run, facts.connection)
    return same and piece.segment.number == last.segment.number + 1 and facts.begins - last.segment.ends < NEAR


def write_encoded(clip: Clip, target: str | IO[bytes]) -> None:
    """Writes a clip as H.264 that any browser plays, its pictures upright. Raises OSError, av.error.FFmpegError."""
    with av.open(target, "w", format="mp4", options={"movflags": "faststart"}) as output:
        stream, heard, unit, last = None, None, Fraction(1, 90_000), -1
        for each, pixels in pictures(clip.run, CLIP_SIDE):
            if each.piece is clip.run[0] and each.pts < clip.first:
                continue
            wall = each.piece.wall(each.pts)
            if wall > clip.ends:
                break
            height, width = pixels.shape[0] & ~1, pixels.shape[1] & ~1
            if stream is None:
                stream = output.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23", "g": "50"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base, stream.codec_context.thread_count = unit, 1
                heard = _sound_of(output, clip)
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            last = max(round((wall - clip.begins) / unit), last + 1)
            frame.pts, frame.time_base = last, unit
            output.mux(stream.encode(frame))
        if stream is not None:
            output.mux(stream.encode())
            _copy_sound(output, heard, clip)


def _copy_sound(output: Any, stream: Any, clip: Clip) -> None:
    """Adds the sound of a clip whose pictures stand at their captures."""
    if stream is None:
        return
    last = -1
    for piece in clip.run:
        begins: float | None = None
        for packet, pts in packets(piece, sound=True):
            if packet.stream.type == "video":
                begins = piece.wall(pts) - float(pts * piece.unit) if begins is None else begins
                continue
            at = begins and begins + float((packet.pts or 0) * packet.time_base) - clip.begins
            if at is not None and last < round(at / stream.time_base) and 0 <= at <= clip.ends - clip.begins:
                last = round(at / stream.time_base)
                output.mux(_copied(packet, stream, last, last))


def playable(clip: Clip) -> bool:
    """Whether any browser plays the recorded packets as they are."""
    return not clip.encoded and all(each.split()[0] in BROWSERS for each in clip.codecs)
