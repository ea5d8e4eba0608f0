"""Recordings: what cameras send is kept as it came, in segments that begin at key frames, by a thread of its own."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import merge
from pathlib import Path

import av

from capture import Coded, Coding, Frame, SourceOptions
from streamer.memory.folder import Folder
from streamer.memory.segment import NOTES, Facts, SegmentWriter, add_note, has_packets, last_wall, remove

log = logging.getLogger("streamer")
KIND = "recordings"
FILE = re.compile(r"^(\d{10})-(\d+)\.mp4$")
SEGMENT_SECONDS = 10.0
"""A segment ends with the first key frame after so many seconds."""
FLUSH_SECONDS = 1.0
RETRY_SECONDS = 2.0
"""Seconds after a fault before writing is tried again, at the next key frame."""
MOST_WAITING = 32 * 2**20
"""Bytes of each stream that may wait for a slow disk; beyond them all up to the next key frame is lost, and counted."""
KNOWN_PACKETS = 1_024
"""Packets whose frames may still be on their way."""


@dataclass(slots=True)
class Segment:
    """A segment's file. `begins` and `ends` are captures in Unix seconds; `number` counts the stream's segments."""

    number: int
    begins: float
    ends: float
    size: int
    path: Path


class StreamRecorder:
    """Takes one stream's packets and frames; what any thread may call only adds to a bounded queue."""

    def __init__(self, recordings: Recordings, stream: str, side: int) -> None:
        self.recordings, self.stream, self.side = recordings, stream, side
        self.run = uuid.uuid4().hex[:12]
        self.lost = 0
        """Packets and pictures that could not be recorded."""
        self.seconds = 0.0
        """What has been recorded in all."""
        self.closed = False
        self._waiting: deque[tuple[Callable[..., None], tuple[object, ...], int]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._broken = False
        # The writer's alone
        self._writer: SegmentWriter | None = None
        self._segment: Segment | None = None
        self._coding: Coding | None = None
        self._connection = 0
        self._began = self._flushed = self._retry_at = float("-inf")
        self._rests_at = float("inf")
        self._places: dict[int, tuple[int, int]] = {}

    # From any thread

    def connected(self, coding: Coding | None) -> None:
        """See `capture.recorder.Recorder`."""
        self._put(self._connect, (coding,), 0)

    def packet(self, packet: Coded) -> None:
        """See `capture.recorder.Recorder`."""
        if packet.sound:
            if not self._broken:
                self._put(self._hear, (packet,), len(packet.data))
            return
        if packet.key:
            self._broken = False
        if self._broken or not self._put(self._copy, (packet,), len(packet.data)):
            self._broken = True
            self.lost += 1

    def frame(self, frame: Frame, number: int | None) -> None:
        """See `capture.recorder.Recorder`."""
        wall = time.time() - time.monotonic() + frame.captured
        if number is not None:
            self._put(self._show, (frame.sequence, wall, number), 64)
        elif not self._put(self._encode, (frame, wall), frame.pixels.nbytes):
            self.lost += 1

    def ingested(self, generation: int, frames: Iterable[tuple[int, float]]) -> None:
        """The model has seen these frames together, each a sequence and the stream time it was told."""
        self._put(self._see, (["step", generation, [list(each) for each in frames]],), 64)

    def rest(self) -> None:
        """The source has ended: what it has sent is to be whole on the disk, and what the model sees later is noted there."""
        self._rests_at = time.monotonic() + FLUSH_SECONDS

    def close(self) -> None:
        """Ends the recording, once all that waits is written."""
        self.closed = True
        self.recordings.wake()

    def _put(self, do: Callable[..., None], what: tuple[object, ...], size: int) -> bool:
        with self._lock:
            if self.closed or self._bytes + size > MOST_WAITING:
                return False
            self._waiting.append((do, what, size))
            self._bytes += size
        self.recordings.wake()
        return True

    # On the writer's thread

    def work(self) -> None:
        """Writes what waits. A fault is told, and what can't be written lost."""
        while True:
            with self._lock:
                if not self._waiting:
                    break
                do, what, size = self._waiting.popleft()
                self._bytes -= size
            try:
                do(*what)
            except OSError as error:
                self._fail(error)
            except (ValueError, av.error.FFmpegError) as error:
                log.debug("stream %s: a packet can't be recorded: %s", self.stream, error)
                self.lost += 1
                self.end()
        if self._writer is not None and time.monotonic() - self._flushed >= FLUSH_SECONDS:
            try:
                self._flush()
            except OSError as error:
                self._fail(error)
        if self.closed or time.monotonic() >= self._rests_at:
            self._rests_at = float("inf")
            self.end()

    def end(self) -> None:
        """Ends the segment, if there is one."""
        writer, self._writer, segment = self._writer, None, self._segment
        if writer is None or segment is None:
            return
        if not self.recordings.has(self.stream, segment):
            return writer.abandon()
        try:
            writer.close()
            segment.size = writer.bytes
            self.seconds += max(segment.ends - segment.begins, 0.0)
        except (OSError, ValueError) as error:
            self._fail(error)
        self.recordings.thin(time.time())

    def _fail(self, error: Exception) -> None:
        self.lost += 1
        self._retry_at = time.monotonic() + RETRY_SECONDS
        writer, self._writer, self._segment = self._writer, None, None
        if writer is not None:
            writer.abandon()
        name = getattr(error, "filename", None) or self.recordings.folder.path
        self.recordings.fails(f"{name}: {getattr(error, 'strerror', None) or error}")

    def _connect(self, coding: Coding | None) -> None:
        self.end()
        self._coding = coding
        self._connection += 1
        self._places.clear()

    def _copy(self, packet: Coded) -> None:
        assert self._coding is not None
        wall = time.time() - time.monotonic() + packet.arrived
        if packet.key and packet.arrived - self._began >= SEGMENT_SECONDS:
            self.end()
        if self._writer is None and not (packet.key and self._begin(packet.arrived, wall, self._coding)):
            self.lost += 1
            return
        assert self._writer is not None and self._segment is not None
        self._places[packet.number] = (self._segment.number, self._writer.write(packet))
        if len(self._places) > KNOWN_PACKETS:
            del self._places[next(iter(self._places))]
        self._segment.ends = max(self._segment.ends, wall)

    def _hear(self, packet: Coded) -> None:
        if self._writer is not None:
            self._writer.hear(packet)

    def _encode(self, frame: Frame, wall: float) -> None:
        if self._coding is not None:
            return  # which packet it is of is not known, but it is recorded
        size = (frame.pixels.shape[1], frame.pixels.shape[0])
        if self._writer is not None and (frame.captured - self._began >= SEGMENT_SECONDS or self._writer.size != size):
            self.end()
        if self._writer is None and not self._begin(frame.captured, wall, None, size):
            self.lost += 1
            return
        assert self._writer is not None and self._segment is not None
        pts = self._writer.encode(frame.pixels, frame.captured - self._began)
        self._segment.ends = max(self._segment.ends, wall)
        self._note(["frame", frame.sequence, self._segment.number, pts, wall])

    def _show(self, sequence: int, wall: float, number: int) -> None:
        place = self._places.get(number)
        if place is not None and self._segment is not None:
            self._segment.ends = max(self._segment.ends, wall)
            self._note(["frame", sequence, *place, wall])

    def _note(self, line: list[object]) -> None:
        if self._writer is not None:
            self._writer.note(line)

    def _see(self, line: list[object]) -> None:
        """Noted beside the segment that has ended where none has begun since: the model may see the last of it at any time."""
        if self._writer is None and self._segment is not None:
            add_note(self._segment.path, line)
        self._note(line)

    def _begin(self, now: float, wall: float, coding: Coding | None, size: tuple[int, int] = (0, 0)) -> bool:
        """Begins a segment; False where it is too soon after a fault."""
        if time.monotonic() < self._retry_at:
            return False
        place = self.recordings.folder.place(KIND, self.stream)
        number = self.recordings.next_number(self.stream)
        facts = Facts(
            run=self.run,
            connection=self._connection,
            begins=wall,
            time_base=(1, 1000) if coding is None else coding.time_base.as_integer_ratio(),
            aspect=coding.aspect.as_integer_ratio() if coding is not None and coding.aspect else None,
            combed=coding is not None and coding.combed,
            side=self.side,
            copied=coding is not None,
        )
        path = place / f"{number:010d}-{max(round(wall * 1000), 0)}.mp4"
        try:
            self._writer = SegmentWriter(path, coding, facts, size)
        except OSError:
            remove(path)
            raise
        self._began = now
        self._segment = Segment(number, wall, wall, 0, path)
        self.recordings.add(self.stream, self._segment)
        return True

    def _flush(self) -> None:
        assert self._writer is not None and self._segment is not None
        self._flushed = time.monotonic()
        if not self.recordings.has(self.stream, self._segment):
            return self.end()  # forgotten while it was written
        self._writer.flush()
        self._segment.size = self._writer.bytes  # raises where the folder was removed
        self.recordings.mended()


class Recordings:
    """All recordings of a state folder, and the thread that writes them."""

    def __init__(self, folder: Folder, budget: int, hours: float) -> None:
        """Looks through the folder; they may take `budget` bytes and become so many hours old. Raises OSError."""
        self.folder, self.budget, self.hours = folder, budget, hours
        self.fault: str | None = None
        """Why nothing can be recorded now, in one line."""
        self.faults = 0
        self._lock = threading.Lock()
        self._kept = self._found()
        for stream, kept in self._kept.items():
            # Before anything was in it a process died, or what was did not reach the disk.
            doubted = [each for each in kept if each is kept[-1] or each.path.stat().st_size < 4_096]
            self._drop(stream, [each for each in doubted if not has_packets(each.path)])
        self._recorders: list[StreamRecorder] = []
        self._lost = 0
        self._change = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    def recorder(self, stream: str) -> StreamRecorder:
        """What a stream's source is given."""
        made = StreamRecorder(self, stream, SourceOptions().largest_side)
        with self._lock:
            self._recorders.append(made)
        return made

    def of(self, stream: str, since: float = float("-inf"), until: float = float("inf")) -> list[Segment]:
        """A stream's segments that hold anything of a span (Unix seconds), in the order of their making."""
        with self._lock:
            return [each for each in self._kept.get(stream, ()) if each.ends >= since and each.begins <= until]

    @property
    def streams(self) -> list[str]:
        """Of which there are recordings."""
        with self._lock:
            return [stream for stream, kept in self._kept.items() if kept]

    def spans(self, stream: str, since: float, until: float) -> list[tuple[float, float]]:
        """What is recorded of a span, in Unix seconds; what lies apart by less than a segment's seconds counts as one."""
        out: list[tuple[float, float]] = []
        for each in sorted(self.of(stream, since, until), key=lambda each: each.begins):
            if out and each.begins - out[-1][1] < SEGMENT_SECONDS:
                out[-1] = out[-1][0], max(out[-1][1], each.ends)
            else:
                out.append((each.begins, each.ends))
        return out

    @property
    def size(self) -> int:
        """Bytes of all recordings."""
        with self._lock:
            return sum(each.size for kept in self._kept.values() for each in kept)

    @property
    def lost(self) -> int:
        """Packets and pictures that could not be recorded."""
        with self._lock:
            return self._lost + sum(each.lost for each in self._recorders)

    def forget(self, stream: str, since: float = float("-inf"), until: float = float("inf")) -> tuple[int, float]:
        """Removes a stream's segments that hold anything of a span; returns how many, and the seconds they held."""
        gone = self.of(stream, since, until)
        self._drop(stream, gone)
        return len(gone), sum(each.ends - each.begins for each in gone)

    def begin_anew(self) -> None:
        """The folder was removed, or is another; segments that were begun in it meanwhile stay. Raises OSError."""
        found = self._found()
        with self._lock:
            for stream, kept in self._kept.items():
                there = found.setdefault(stream, [])
                paths, last = {each.path for each in there}, max((each.number for each in there), default=0)
                mine = {each.path: each for each in kept if each.path in paths or each.number > last}
                found[stream] = [mine.pop(each.path, each) for each in there]
                found[stream] += [each for each in mine.values() if each.path.exists()]
            self._kept = found

    def _found(self) -> dict[str, list[Segment]]:
        places = {stream: self.folder.place(KIND, stream) for stream in self.folder.streams(KIND)}
        return {stream: find_segments(place) for stream, place in places.items()}

    def rename(self, old: str, new: str) -> None:
        """What is recorded of a stream is another's, of which nothing is. Raises OSError."""
        with self._lock:
            if self._kept.get(new) or not self._kept.get(old):
                return
            place = self.folder.place(KIND, new)
            self.folder.place(KIND, old).replace(place)
            self._kept[new] = self._kept.pop(old)
            for each in self._kept[new]:
                each.path = place / each.path.name

    def close(self, timeout: float = 2.0) -> None:
        """Ends all recordings; waits for the disk, for so many seconds at most."""
        with self._lock:
            recorders = list(self._recorders)
        for each in recorders:
            each.close()
        self._stopping = True
        self._change.set()
        self._thread.join(timeout)

    # For the recorders

    def wake(self) -> None:
        self._change.set()

    def next_number(self, stream: str) -> int:
        with self._lock:
            return max((each.number for each in self._kept.get(stream, ())), default=0) + 1

    def add(self, stream: str, segment: Segment) -> None:
        with self._lock:
            self._kept.setdefault(stream, []).append(segment)

    def has(self, stream: str, segment: Segment) -> bool:
        with self._lock:
            return any(each is segment for each in self._kept.get(stream, ()))

    def fails(self, trouble: str) -> None:
        """Tells once that nothing can be recorded."""
        if self.fault is None:
            self.faults += 1
            log.error("nothing can be recorded now, watching and answering go on: %s", trouble)
        self.fault = trouble

    def mended(self) -> None:
        if self.fault is not None:
            log.warning("what cameras send is recorded again in %s", self.folder.path)
        self.fault = None

    def thin(self, now: float) -> None:
        """Removes what is too old or too much, the oldest of all streams first; `now` is Unix seconds."""
        with self._lock:
            all_kept = [[(each, stream) for each in kept] for stream, kept in self._kept.items()]
        size = sum(each.size for kept in all_kept for each, _ in kept)
        for each, stream in merge(*all_kept, key=lambda pair: pair[0].begins):  # of which the few oldest are looked at
            if size <= self.budget and now - each.ends <= self.hours * 3600:
                break
            self._drop(stream, [each])
            size -= each.size

    def _drop(self, stream: str, gone: Iterable[Segment]) -> None:
        for each in gone:
            remove(each.path)
            with self._lock:
                self._kept[stream] = [other for other in self._kept.get(stream, ()) if other is not each]

    def _run(self) -> None:
        while not self._stopping:
            self._change.wait(FLUSH_SECONDS)
            self._change.clear()
            self._work()
            time.sleep(0.05)  # packets come one by one, and are written some at a time
        self._work()

    def _work(self) -> None:
        with self._lock:
            recorders = list(self._recorders)
        for each in recorders:
            closed = each.closed
            each.work()
            if closed:
                with self._lock:
                    self._recorders.remove(each)
                    self._lost += each.lost


def find_segments(place: Path) -> list[Segment]:
    """The segments whose files are in a stream's place, in order. Raises OSError.

    One whose file was last written as the next one began ended then; of others alone the notes are read, as a week has 60,000.
    """
    with os.scandir(place) as entries:
        stats = {each.name: each.stat() for each in entries}
    found: list[tuple[Segment, float]] = []
    for file, stat in stats.items():
        if name := FILE.match(file):
            notes, begins = stats.get(file.removesuffix(".mp4") + NOTES), int(name[2]) / 1000
            size = stat.st_size + (notes.st_size if notes else 0)
            found.append((Segment(int(name[1]), begins, begins, size, place / file), stat.st_mtime))
    found.sort(key=lambda each: each[0].number)
    for (each, wrote), begins in zip(found, [*(each.begins for each, _ in found[1:]), float("inf")], strict=False):
        follows = each.begins < begins < each.begins + 2 * SEGMENT_SECONDS and abs(begins - wrote) < FLUSH_SECONDS
        each.ends = begins if follows else max(each.begins, last_wall(each.path) or wrote)
    return [each for each, _ in found]
