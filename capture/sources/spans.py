"""The pictures of a well-formed file at so many a second, decoded at several places of it at once."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from multiprocessing import get_context
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
AHEAD = 2
"""Parts more than there are processes that may be ready or under way."""
MISSING = 1.0
"""Seconds that may be missing at the end of a file before it counts as truncated."""
PATIENCE = 0.5
"""Seconds between two looks at whether the process that wants the pictures is still there."""

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
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if packet.pts is None or packet.is_discard or packet.is_corrupt:
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
    return spans


def decode(path: Path, spans: Sequence[Span], largest_side: int, processes: int) -> Iterator[Picture]:
    """The pictures of `plan`, in order, by so many processes; what is damaged is missing. Raises av.error.FFmpegError, OSError.

    Threads would each want the interpreter's lock for every picture, and whoever computes beside them would wait for it.
    """
    tasks = iter(spans)
    # Nothing of this process may be forked: it may have a device, and threads that hold locks.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), end_with, (os.getpid(),))
    try:
        waiting = deque(pool.submit(decoded, path, span, largest_side) for span in islice(tasks, processes + AHEAD))
        while waiting:
            yield from waiting.popleft().result()
            waiting += [pool.submit(decoded, path, span, largest_side) for span in islice(tasks, 1)]
    finally:
        pool.shutdown(cancel_futures=True)


def end_with(parent: int) -> None:
    """Ends this process where its parent has, however that came about."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def decoded(path: Path, span: Span, largest_side: int) -> list[Picture]:
    """The pictures of one part of a file; the file is left open for the next."""
    return list(span_pictures(*opened(path, largest_side), span))


@lru_cache(1)
def opened(path: Path, largest_side: int) -> tuple[InputContainer, VideoStream, VideoCodecContext, Pictures]:
    """A file, its video, and what decodes it and makes pictures of it."""
    container = av.open(f"file:{path}")
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
