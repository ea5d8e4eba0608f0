"""One camera's life: its source, the mailbox that its frames come through, and what became of them."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from capture import Frame, IceServer, Mailbox, Patience, Recorder, Source, SourceOptions, SourceStatus, open_source
from streamer.config import USUAL_RATE, StreamConfig, WebRtcConfig
from streamer.engine.queue import MOST_BYTES, Terms

MOST_WAITING = 8
"""Frames that a source may bring beside a step, or more where they are small."""
FRESH_FRAMES = 4
"""Frame periods for which a frame is fresh where the model's own rate is low."""
RATE_WINDOW = 5.0
"""Seconds over which `fps_seen` is counted."""


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """What a stream is doing. Times in seconds; rates in frames a second; None where nothing is known yet.

    `state` is the source's: connecting, live, stalled, waiting, ended; `frozen` if its picture does not change. `frames_in`
    counts what was decoded, all of which was seen, waits, or is counted here: `drops` are frames that the model never saw,
    by reason; apart from them, `frames_thinned` are those that `fps` left out and `frames_unchanged` those that showed
    nothing new. `frames_damaged` counts what could not be decoded. `lag_s` is what the newest step took from the capture of
    its oldest frame to the state; `newest_frame_age_s` is how old the newest frame in the state is now. `share` is the part
    of its frame rate that the device has room for. `generation` counts how often the stream's memory was begun, `reconnects`
    how often its source was opened again, and `gap_s` is the source's last interruption. `fps_limit` is the rate above which
    frames are thinned: as configured, or else what the model was trained with; None is none. `resumes` counts how often the
    memory outlasted its process, `saved_age_s` is how old the newest snapshot is and `save_interval_s` what lies between two.
    """

    name: str
    source: str
    state: str
    reason: str
    frozen: bool
    fps_in: float
    fps_seen: float
    frames_in: int
    frames_seen: int
    frames_thinned: int
    frames_unchanged: int
    frames_damaged: int
    drops: dict[str, int]
    lag_s: float | None
    newest_frame_age_s: float | None
    uptime_s: float
    width: int | None
    height: int | None
    share: float
    generation: int
    reconnects: int
    gap_s: float
    fps_limit: float | None = None
    resumes: int = 0
    saved_age_s: float | None = None
    save_interval_s: float | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a memory goes on: its newest frame's seconds of stream time and its capture in Unix seconds, and its counts."""

    time: float
    wall: float
    generation: int
    resumes: int


class StreamRecorder(Recorder, Protocol):
    """Who records a stream: what its source brings, and what becomes of it."""

    def ingested(self, generation: int, frames: Iterable[tuple[int, float]]) -> None:
        """The model has seen these frames together, each a sequence and its seconds of stream time. Never waits."""

    def rest(self) -> None:
        """The source has ended: nothing more comes from it."""

    def close(self) -> None:
        """The stream has ended."""


class Stream:
    """`config` belongs to whoever attached the stream, all else to the engine's thread; any thread may read.

    What its source has gone through the source itself tells, in its status.
    """

    def __init__(
        self,
        config: StreamConfig,
        source: Source,
        wake: Callable[[], None],
        trained_rate: float | None = None,
        lasts: Callable[[], bool] = lambda: True,
    ) -> None:
        """`lasts` says whether its frames may be seen now."""
        self.name, self.config, self.source, self.trained_rate = config.name, config, source, trained_rate
        self.terms = self.promised()
        self.mailbox = Mailbox(MOST_WAITING, policy=config.policy, most_bytes=MOST_BYTES, on_put=wake)
        self.slot = -1
        self.opened = False
        self.generation = 0
        self.taken = self.frames_seen = 0
        self.share = 1.0
        self.drops: Counter[str] = Counter()
        self.newest: Frame | None = None
        self.lasts = lasts
        self.recorder: StreamRecorder | None = None
        """Who is handed all of it from `start` on; None where it is not recorded."""
        self.lag: float | None = None
        """Seconds that the oldest frame of the newest step took from capture to state."""
        self.ages: deque[float] = deque(maxlen=4096)
        """The same of every frame."""
        self._began = time.monotonic()
        self._steps: deque[tuple[float, int]] = deque(maxlen=1024)
        self._missed = 0
        self.resumes = 0
        self.saved_wall: float | None = None
        """Capture of the newest frame that a snapshot has seen, Unix seconds."""
        self.saved_frames = 0
        """Frames of this process that it has seen."""
        self.save_interval: float | None = None
        self._resumed: Resumed | None = None
        self._ahead = 0.0
        self._after = float("-inf")
        """Frames that were taken before this moment, Unix seconds, another process has seen."""

    def promised(self) -> Terms:
        """The terms that the configuration names."""
        config = suited(self.config, self.trained_rate)
        return Terms(config.deadline, config.priority, config.policy == "every")

    @property
    def expected_rate(self) -> float:
        """Frames a second, before the first has come."""
        return min(USUAL_RATE, suited(self.config, self.trained_rate).fps or USUAL_RATE)

    def start(self, changed: Callable[[Stream, SourceStatus], None]) -> None:
        recorder = self.recorder

        def told(status: SourceStatus) -> None:
            if recorder is not None and status.state == "ended":
                recorder.rest()
            changed(self, status)

        if recorder is not None:
            self.source.record(recorder)
        self.source.start(self.mailbox, told)

    def stop(self, timeout: float = 1.0) -> None:
        self.mailbox.close()
        self.source.stop(timeout)
        if self.recorder is not None:
            self.recorder.close()

    def take(self, room: int) -> list[Frame]:
        """Waiting frames, oldest first: all of a live stream's, of one that waits at most `room`."""
        missed = self.mailbox.dropped
        if missed > self._missed:
            self.drops["overload"] += missed - self._missed
            self._missed = missed
        if not self.lasts():
            return []
        waiting = len(self.mailbox)
        taken = self.mailbox.take(min(waiting, room) if self.terms.every else waiting) if waiting else []
        self.taken += len(taken)
        if taken and self._after > captured_wall(taken[0]):
            fresh = [frame for frame in taken if captured_wall(frame) > self._after]
            self.drops["seen elsewhere"] += len(taken) - len(fresh)
            return fresh
        return taken

    @property
    def held(self) -> int:
        """Frames taken that are neither in the state nor dropped: they wait for a step, or are in one."""
        return self.taken - self.frames_seen - (self.drops.total() - self._missed)

    def begin_again(self) -> None:
        """The model that held this stream's memory is gone, and with it the frames that waited for a step."""
        self.opened = False
        if lost := self.held:
            self.drops["failed"] += lost

    def resume(self, resumed: Resumed) -> None:
        """The stream goes on with what it saw before."""
        self.generation, self.resumes = resumed.generation, resumed.resumes
        self.saved_wall, self._resumed = resumed.wall, resumed

    def comes(self, lasts: Callable[[], bool]) -> None:
        """A stream whose source was opened before it came is seen from now on, as long as `lasts`, after what it resumed."""
        self._after = self._resumed.wall if self._resumed is not None else time.time()
        self.lasts = lasts

    def began_anew(self) -> None:
        """The stream's memory is empty."""
        self._resumed, self._ahead = None, 0.0

    def moment(self, frame: Frame) -> float:
        """A frame's seconds of stream time: its source's, after what went before a restart and the gap since then."""
        if self._resumed is not None:
            gap = max(captured_wall(frame) - self._resumed.wall, 0.0)
            self._ahead, self._resumed = self._resumed.time + gap - frame.time, None
        return frame.time + self._ahead

    @property
    def seen_until(self) -> float | None:
        """Seconds of stream time of the newest frame in the state; any thread may ask."""
        newest, resumed = self.newest, self._resumed
        if newest is None:
            return None if resumed is None else resumed.time
        if resumed is not None:
            return resumed.time + max(captured_wall(newest) - resumed.wall, 0.0)
        return newest.time + self._ahead

    def saw(self, frames: tuple[Frame, ...], now: float) -> None:
        """These frames are in the state now."""
        self.frames_seen += len(frames)
        self.newest, self.lag = frames[-1], now - min(frame.captured for frame in frames)
        self.ages.extend(now - frame.captured for frame in frames)
        self._steps.append((now, len(frames)))
        if self.recorder is not None:
            self.recorder.ingested(self.generation, [(frame.sequence, self.moment(frame)) for frame in frames])

    def status(self, now: float) -> StreamStatus:
        source, newest = self.source.status, self.newest
        counted = [n for when, n in tuple(self._steps) if now - when <= RATE_WINDOW]
        return StreamStatus(
            name=self.name,
            source=self.source.name,
            state=source.state,
            reason=source.reason,
            frozen=source.frozen,
            fps_in=source.frames_per_second,
            fps_seen=sum(counted) / min(RATE_WINDOW, max(now - self._began, 0.1)),
            frames_in=source.frames,
            frames_seen=self.frames_seen,
            frames_thinned=source.thinned,
            frames_unchanged=source.unchanged,
            frames_damaged=source.damaged,
            drops=dict(self.drops),
            lag_s=self.lag,
            newest_frame_age_s=None if newest is None else now - newest.captured,
            uptime_s=now - self._began,
            width=source.width,
            height=source.height,
            share=self.share,
            generation=self.generation,
            reconnects=source.reconnects,
            gap_s=source.gap,
            fps_limit=suited(self.config, self.trained_rate).fps,
            resumes=self.resumes,
            saved_age_s=None if self.saved_wall is None else max(time.time() - self.saved_wall, 0.0),
            save_interval_s=self.save_interval,
        )


def captured_wall(frame: Frame) -> float:
    """When a frame was taken, in Unix seconds of this host's clock."""
    return time.time() - time.monotonic() + frame.captured


def suited(config: StreamConfig, trained_rate: float | None) -> StreamConfig:
    """`config` with what it leaves open as it suits a model that was trained with so many frames a second (None: with any).

    Its steps hold two frames that lie far apart: they are fresh for two steps' time.
    """
    if trained_rate is None:
        return config
    usual = {"fps": config.fps or trained_rate}
    if "deadline" not in config.model_fields_set:
        usual["deadline"] = max(config.deadline, FRESH_FRAMES / usual["fps"])
    return config.model_copy(update=usual)


def configured_source(config: StreamConfig, webrtc: WebRtcConfig, readers: int = 0) -> Source:
    """Where a configured stream's frames will come from; see `SourceOptions.readers`. Raises SourceError for what can never work."""
    return open_source(config.source, replace(source_options(config, webrtc), readers=readers))


def source_options(config: StreamConfig, webrtc: WebRtcConfig) -> SourceOptions:
    """What a stream's configuration says of its source: every option under its own name, the patience under two."""
    names = SourceOptions.__dataclass_fields__.keys() & StreamConfig.model_fields.keys()
    return SourceOptions(
        **{name: getattr(config, name) for name in names},
        ice_servers=tuple(IceServer(**each.model_dump()) for each in webrtc.ice_servers),
        patience=Patience(open=config.open_timeout, stall=config.stall_after),
    )


def check(frames: Iterable[Frame]) -> None:
    """What no source should hand over. Raises ValueError."""
    for frame in frames:
        pixels = frame.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise ValueError(f"a frame of {pixels.dtype} {pixels.shape} came; frames are uint8 height×width×3")
