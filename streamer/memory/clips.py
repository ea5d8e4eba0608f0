"""Clips and stills of recordings, for whoever asks: made once, kept a while, and bounded."""

from __future__ import annotations

import errno
import logging
import os
import queue
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import av

from capture.image import encode_jpeg
from streamer.errors import AssistantError
from streamer.memory.folder import PRIVATE
from streamer.memory.footage import Clip, find_clip, lasting, playable, still, write_copy, write_encoded
from streamer.memory.moments import written
from streamer.memory.recording import Recordings

log = logging.getLogger("streamer")
PLACE = "clips"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
WHOLE_BYTES = 128 * 2**20
"""A clip of more is handed over as it is made, and can't be sought in before it is there."""
KEPT_BYTES, KEPT_CLIPS = 512 * 2**20, 16
"""Clips that are kept for those who seek in them."""
ENCODED_SECONDS = 120.0
"""The longest clip that is encoded anew."""
LONGEST_SECONDS = 86_400.0
STILL_SIDE = 1_920
"""Pixels of a still's longer side at most."""
WHOLE_SIDE = 8_192
"""The same of one that is as large as it was recorded."""
GROWING = 5.0
"""Seconds after its last frame in which a segment may still be written to."""
CHUNKS = 16
"""Pieces of a clip that wait for who takes it."""
STOOD = 30.0
"""Seconds that a recording's last picture is taken to have stood for, where no later one tells."""
PATIENCE = 60.0
"""Seconds that whoever takes a clip may pause."""


@dataclass(frozen=True, slots=True)
class Made:
    """A clip: a file that is whole, or None where it comes as it is made. `begins` is its key frame's capture, Unix seconds."""

    clip: Clip
    path: Path | None


class Clips:
    """Makes clips one at a time. Every method waits for the disk, and may be called from any thread."""

    def __init__(self, recordings: Recordings) -> None:
        self.recordings = recordings
        self.place = recordings.folder.path / PLACE
        shutil.rmtree(self.place, ignore_errors=True)
        self._kept: OrderedDict[tuple[object, ...], tuple[Made, int]] = OrderedDict()
        self._lock = threading.Lock()

    def clip(self, stream: str, since: float, until: float, *, encoded: bool) -> Made:
        """The clip of a span (Unix seconds); `encoded` makes it one that any browser plays.

        Raises AssistantError: bad_span, no_recording.
        """
        if not since < until:
            raise AssistantError("bad_span", "The clip's end must come after its beginning: give from before to.")
        if until - since > LONGEST_SECONDS + 1:  # both count from now, which goes on
            raise AssistantError(
                "bad_span",
                f"A clip may have {LONGEST_SECONDS / 3600:.0f} hours at most, not {(until - since) / 3600:.1f}.",
            )
        segments = self.recordings.of(stream, since, until)
        clip = find_clip(segments, since, until)
        if clip is None:
            raise AssistantError("no_recording", self._lack(stream))
        encoded = clip.encoded or (encoded and not playable(clip))
        if encoded and clip.ends - clip.begins > ENCODED_SECONDS + 30:
            raise AssistantError(
                "bad_span",
                f"The clip has to be encoded anew, which is done of {ENCODED_SECONDS:.0f} seconds at most: ask for less.",
            )
        if clip.size > WHOLE_BYTES and not encoded:
            return Made(clip, None)
        growing = clip.size if clip.run[-1].segment.ends > time.time() - GROWING else 0
        key = (stream, clip.run[0].segment.path, clip.first, clip.ends, growing, encoded)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            try:
                made = self._make(clip, encoded=encoded)
            except (OSError, av.error.FFmpegError) as error:
                if error.errno in NO_ROOM:
                    why = os.strerror(error.errno or 0)
                    log.error("a clip can't be made in %s (%s): make room there", self.place, why)
                    raise AssistantError("no_storage", "There is no room here to make a clip.") from None
                raise AssistantError("no_recording", f"The recording can't be read: {error}.") from None
            assert made.path is not None
            self._kept[key] = (made, made.path.stat().st_size)
            while len(self._kept) > 1 and (
                len(self._kept) > KEPT_CLIPS or sum(size for _, size in self._kept.values()) > KEPT_BYTES
            ):
                self._remove(self._kept.popitem(last=False)[1][0])
            return made

    def still(self, stream: str, at: float, side: int = STILL_SIDE) -> tuple[bytes, float]:
        """The picture that stood at a moment as JPEG, and its capture, both Unix seconds. Raises AssistantError: no_recording."""
        near, every = self.recordings.of(stream, at - STOOD, at), self.recordings.of(stream)
        stood = [] if near else lasting(every, at)
        found = still(near or stood, at, side)
        if found is None or (found[1] < at - STOOD and not (stood or lasting(every, at))):
            raise AssistantError("no_recording", self._lack(stream))
        return encode_jpeg(found[0], side), found[1]

    def save(self, stream: str, since: float, until: float, path: Path, *, encoded: bool) -> Path:
        """As `clip`, written to `path`. Raises AssistantError, OSError."""
        made = self.clip(stream, since, until, encoded=encoded)
        if made.path is not None:
            shutil.copyfile(made.path, path)
        else:
            write_copy(made.clip, str(path), streamed=False)
        return path

    def forget(self, stream: str) -> None:
        """Removes the clips of a stream that are kept."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == stream]:
                self._remove(self._kept.pop(key)[0])

    def _make(self, clip: Clip, *, encoded: bool) -> Made:
        self.place.mkdir(mode=PRIVATE, exist_ok=True)
        path = self.place / f"{uuid4().hex}.mp4"
        try:
            if encoded:
                write_encoded(clip, str(path))
            else:
                write_copy(clip, str(path), streamed=False)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Made(clip, path)

    def _remove(self, made: Made) -> None:
        if made.path is not None:
            with suppress(OSError):
                made.path.unlink()

    def _lack(self, stream: str) -> str:
        kept = self.recordings.of(stream)
        if not kept:
            return f"Nothing is recorded of stream {stream!r}: set record to true for it."
        begins, ends = kept[0].begins, kept[-1].ends
        return f"Nothing of stream {stream!r} is recorded there: what is kept is from {written(begins)} to {written(ends)}."


class _Pipe:
    """A file that a clip is written into, and read from piece by piece by somebody else."""

    def __init__(self) -> None:
        self.pieces: queue.Queue[bytes | None] = queue.Queue(CHUNKS)
        self.over = False

    def write(self, data: bytes) -> int:
        """Raises OSError where nobody reads any more."""
        try:
            if self.over:
                raise OSError("nobody takes the clip any more")
            self.pieces.put(bytes(data), timeout=PATIENCE)
        except queue.Full:
            self.over = True
            raise OSError("nobody takes the clip any more") from None
        return len(data)


def streamed(clip: Clip) -> Iterator[bytes]:
    """A clip's bytes as they are made, by a thread of its own, which waits for whoever takes them."""
    pipe = _Pipe()

    def write() -> None:
        with suppress(OSError, ValueError, av.error.FFmpegError):
            write_copy(clip, pipe, streamed=True)  # type: ignore[arg-type]
        with suppress(queue.Full):
            pipe.pieces.put(None, timeout=PATIENCE)

    threading.Thread(target=write, name="clip", daemon=True).start()
    try:
        while (piece := pipe.pieces.get(timeout=PATIENCE)) is not None:
            yield piece
    except queue.Empty:
        return
    finally:
        pipe.over = True
        with suppress(queue.Empty):
            while True:
                pipe.pieces.get_nowait()
