"""The pictures of a well-formed file at so many a second, decoded at several places of it at once."""

from __future__ import annotations

import signal
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from capture.convert import Pictures
from capture.gate import Selection
from capture.source import SourceError
from capture.sources.tracks import TIMED, best_video, decoder, interlaced, spares
from capture.timeline import LONGEST_STILL

LONGEST = 4.0
"""Seconds of video that are decoded in one go, where key frames are that near."""
MOST = 32
"""Pictures that are decoded in one go, where key frames are that near."""
MOST_HELD = 4 * MOST
"""Pictures of one go that are held at most: a file whose key frames are farther apart is read from its beginning."""
AHEAD = 2
"""Parts more than there are processes that may be ready or under way."""
MISSING = 1.0
"""Seconds that may be missing at the end of a file before it counts as truncated."""

Picture = tuple[float, np.ndarray]
"""Seconds since the file's first picture, and pixels uint8 [H, W, 3] RGB."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file that can be decoded alone: from the key frame that is shown at `key`, in units of the stream's time.

    `wanted` has the presentation times of the pictures that are, with their seconds since the file's first.
    """

    key: int
    wanted: dict[int, float]


def plan(path: Path, fps: float, largest_side: int) -> list[Span] | None:
    """The parts that the pictures of a file lie in, chosen as a source with these options chooses them; None where a file isn't
    so well formed that its packets tell. It must then be read from its beginning. Raises OSError."""
    packets: list[tuple[int, bool]] = []
    try:
        with av.open(f"file:{path}") as container:
            names, stream = set(container.format.name.split(",")), best_video(container, largest_side)
            base, whole = stream.time_base, (container.duration or 0) / av.time_base
            begins = (container.start_time or 0) / av.time_base
            if not names & TIMED or base is None:
                return None
            h264, header = stream.codec_context.name == "h264", stream.codec_context.extradata
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if packet.pts is None or packet.is_discard or packet.is_corrupt:
                    return None
                if packet.is_keyframe and h264 and not opens(bytes(packet), header):
                    return None
                packets.append((packet.pts, packet.is_keyframe))
    except (av.error.FFmpegError, SourceError):
        return None
    shown, keys = sorted(pts for pts, _ in packets), sorted(pts for pts, key in packets if key)
    if len(keys) < 2 or not packets[0][1] or not packets[0][0] == keys[0] == shown[0]:
        return None
    steps = [b - a for a, b in pairwise(shown)]
    if min(steps) <= 0 or max(steps) * base > LONGEST_STILL or (shown[-1] * base - begins) < whole - MISSING:
        return None
    selection, spans, until, last = Selection(fps), list[Span](), float("-inf"), None
    for pts in shown:
        time = float((pts - shown[0]) * base)
        if not selection.timely(time):
            continue
        key = keys[bisect_right(keys, pts) - 1]
        since = float((key - shown[0]) * base)
        if not spans or since >= until or (len(spans[-1].wanted) >= MOST and key != last):
            spans.append(Span(key, {}))
            until = since + LONGEST
        last = key
        spans[-1].wanted[pts] = time
        if len(spans[-1].wanted) > MOST_HELD:
            return None
    return spans


def opens(packet: bytes, header: bytes | None) -> bool:
    """Whether a decoder of H.264 that begins with this packet has its picture and all after it whole.

    That is so of an IDR picture, and where a recovery point says that nothing before it is needed (ISO 14496-10, D.2.8): pictures
    may as well be renewed bit by bit, in many. `header` is the stream's extradata, by which its units are told apart.
    """
    for unit in units(packet, header):
        kind, at = unit[0] & 0x1F, 1
        if kind == 5:
            return True
        if kind != 6:
            continue
        unit = unit.replace(b"\0\0\3", b"\0\0")
        while at + 2 < len(unit):
            told = [0, 0]  # the message's kind and its size
            for i in range(2):
                while at < len(unit) and unit[at] == 255:
                    told[i], at = told[i] + 255, at + 1
                told[i], at = told[i] + (unit[at] if at < len(unit) else 0), at + 1
            if told[0] == 6 and at < len(unit):
                return unit[at] >= 0x80
            at += told[1]
    return False


def units(packet: bytes, header: bytes | None) -> Iterator[bytes]:
    """The units of a packet of H.264 that aren't empty, as MP4 or as Annex B keeps them."""
    if not header or header[0] != 1 or len(header) < 5:
        yield from filter(None, packet.split(b"\0\0\1")[1:])
        return
    at, size = 0, (header[4] & 3) + 1
    while at + size < len(packet):
        length = int.from_bytes(packet[at : at + size], "big")
        if length:
            yield packet[at + size : at + size + length]
        at += size + length


@contextmanager
def decoders(path: Path, largest_side: int, count: int) -> Iterator[list[Connection]]:
    """So many processes that decode parts of a file, by the pipes to them; they begin while their parts are still looked for.

    Threads would each want the interpreter's lock for every picture, and whoever computes beside them would wait for it.
    Raises OSError.
    """
    # Nothing of this process may be forked: it may have a device, and threads that hold locks.
    context, stat = get_context("spawn"), path.stat()
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        for _ in range(count):
            here, there = context.Pipe()
            # Where only its process has it, what is received ends with that.
            with there, uninterrupted():
                worker = context.Process(
                    target=work,
                    args=(there, path, largest_side, (stat.st_dev, stat.st_ino)),
                    daemon=True,
                )
                worker.start()
                workers.append((worker, here))
        yield [pipe for _, pipe in workers]
    finally:
        for each, pipe in workers:
            each.terminate()
            pipe.close()
        for each, _ in workers:
            each.join()


def decode(pipes: Sequence[Connection], spans: Sequence[Span]) -> Iterator[Picture]:
    """The pictures of `plan`, in order, by the processes of `decoders`; what is damaged is missing.

    Raises SourceError, av.error.FFmpegError, OSError.
    """
    begun, found, busy = 0, dict[int, list[Picture]](), dict[Connection, int]()
    try:
        for number in range(len(spans)):
            while True:
                for pipe in pipes:
                    if pipe not in busy and begun < min(len(spans), number + len(pipes) + AHEAD):
                        pipe.send(spans[begun])
                        busy[pipe], begun = begun, begun + 1
                if number in found:
                    break
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    found[busy.pop(ready)] = received(ready)
            yield from found.pop(number)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise SourceError("a process that decodes it was killed, for want of memory perhaps: try it again") from None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Processes begun here never hear of a terminal's Ctrl-C, which is their parent's to heed."""
    resource_tracker.ensure_running()  # which would let it through once it has begun its own
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def received(pipe: Connection) -> list[Picture]:
    """What a process sends of a part of a file. Raises what was raised there; EOFError where it is gone."""
    try:
        told = pipe.recv()
    except OSError:  # it was killed as it sent
        raise EOFError from None
    if isinstance(told, Exception):
        raise told
    pictures: list[Picture] = told
    return pictures


def work(pipe: Connection, path: Path, largest_side: int, file: tuple[int, int]) -> None:
    """Decodes the parts of a file that come, until no more do: the pipe is closed where the other process has ended, however."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            span = pipe.recv()
            told: list[Picture] | Exception
            try:
                told = decoded(path, largest_side, file, span)
            except Exception as error:
                told = error
            pipe.send(told)


def decoded(path: Path, largest_side: int, file: tuple[int, int], span: Span) -> list[Picture]:
    """The pictures of one part of a file, by its device and number there; it is left open for the next. Raises SourceError."""
    return list(span_pictures(*opened(path, largest_side, file), span))


@lru_cache(1)
def opened(
    path: Path, largest_side: int, file: tuple[int, int]
) -> tuple[InputContainer, VideoStream, VideoCodecContext, Pictures]:
    """A file, its video, and what decodes it and makes pictures of it."""
    stat, container = path.stat(), av.open(f"file:{path}")
    if (stat.st_dev, stat.st_ino) != file:
        raise SourceError("it was replaced by another file while it was read: try it again")
    stream = best_video(container, largest_side)
    return container, stream, decoder(stream, 1), Pictures(largest_side)


def span_pictures(
    container: InputContainer, stream: VideoStream, context: VideoCodecContext, pictures: Pictures, span: Span
) -> Iterator[Picture]:
    """The pictures of one part of a container, in order."""
    combed, aspect, last = interlaced(stream), stream.sample_aspect_ratio, max(span.wanted)
    sparing = spares(container, stream)
    container.seek(span.key, stream=stream)
    context.flush_buffers()
    for packet in container.demux(stream):
        if sparing:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in span.wanted else "NONREF"
        try:
            frames = context.decode(packet)
        except (av.error.InvalidDataError, av.error.PatchWelcomeError, av.error.EOFError):
            continue
        for frame in frames:
            if frame.pts is None or frame.pts > last:
                return
            if frame.pts in span.wanted:
                yield span.wanted[frame.pts], pictures.make(frame, aspect, interlaced=combed)
            if frame.pts == last:
                return
