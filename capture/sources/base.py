"""The shell around a lifecycle: its threads, its clock and what it tells."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import random

import numpy as np

from capture.frame import Frame
from capture.gate import Selection, difference, thumbnail
from capture.lifecycle import Action, Lifecycle, State
from capture.mailbox import Mailbox
from capture.recorder import Recorder
from capture.redaction import redact
from capture.source import SourceOptions, SourceStatus
from capture.timeline import Timeline

log = logging.getLogger(__name__)

TICK = 0.1
"""Seconds between looks of the watch at the sources."""
RATE_WINDOW = 2.0
"""Seconds over which the frame rate is measured."""
MOST_THREADS = 4
"""Connections of one source that may still be dying when the next one is opened."""
STILL = 0.5
"""The largest `difference` of pictures that show nothing new; a frozen picture encoded afresh stays below."""


class Over(Exception):  # noqa: N818 — it is no error
    """A source is over for good; its text says why, in one line."""


class Watch:
    """One thread that ticks every running source's lifecycle: a blocked decoder can't tell that it is blocked."""

    def __init__(self) -> None:
        self.sources: weakref.WeakSet[SourceShell] = weakref.WeakSet()
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None

    def add(self, source: SourceShell) -> None:
        """Begins to watch a source, until it has ended."""
        with self.lock:
            self.sources.add(source)
            if self.thread is None:
                self.thread = threading.Thread(target=self.run, name="source-watch", daemon=True)
                self.thread.start()

    def run(self) -> None:
        while True:
            time.sleep(TICK)
            with self.lock:
                alive = [source for source in self.sources if source.lifecycle.state is not State.ENDED]
                self.sources = weakref.WeakSet(alive)
                if not alive:
                    self.thread = None
                    return
            for source in alive:
                try:
                    source.tick()
                except Exception:  # one listener's fault must not blind the watch over all other sources
                    log.exception("source %s: a listener failed", source.name)


WATCH = Watch()


class SourceShell:
    """A source whose connections each run in a thread of their own, by `connect`.

    `endless` sources reconnect after an end; of the others an error is the end as well, unless `retries`.
    """

    def __init__(
        self, url: str, options: SourceOptions, *, endless: bool, live: bool, retries: bool | None = None
    ) -> None:
        self.url, self.name, self.options, self.endless = url, redact(url), options, endless
        self.retries = endless if retries is None else retries
        self.lock = threading.RLock()
        self.telling = threading.RLock()
        self.timeline = Timeline(live=live)
        phase = random() if options.realtime else 0.0  # a recording that is read shows the same each time
        self.selection = Selection(options.fps, options.change, options.change_floor, phase=phase)
        self.lifecycle = Lifecycle(options.patience, time.monotonic(), endless=endless)
        self.mailbox = Mailbox()
        self.notify: Callable[[SourceStatus], None] = lambda status: None
        self.told: tuple[State, bool, str] | None = None
        self.came_into, self.changes = "", Counter[str]()
        self.frames = self.damaged = self.jumps = 0
        self.size = (0, 0)
        self.rate, self.counted, self.counted_at = 0.0, 0, time.monotonic()
        self.last_at: float | None = None
        self.gap = 0.0
        self.jumped = False
        self.still: np.ndarray | None = None
        self.recorder: Recorder | None = None
        self.threads: list[threading.Thread] = []
        self.ended = threading.Event()

    def connect(self, generation: int) -> None:
        """Opens the source and hands over its frames by `deliver` until that returns False; returns at its end.

        Raises SourceError or an error of its library's where it can't, whose `describe` is told.
        """
        raise NotImplementedError

    def describe(self, error: Exception) -> str:
        """An error as one clear line."""
        return redact(str(error)) or type(error).__name__

    def record(self, recorder: Recorder) -> None:
        """See `Source.record`."""
        self.recorder = recorder

    def start(self, mailbox: Mailbox, notify: Callable[[SourceStatus], None]) -> None:
        """See `Source.start`."""
        self.mailbox, self.notify = mailbox, notify
        self.counted_at = time.monotonic()  # a model may have been loaded since the source was made
        self.lifecycle = Lifecycle(self.options.patience, self.counted_at, endless=self.endless)
        self.tell()
        self.act(Action.OPEN)
        WATCH.add(self)

    def stop(self, timeout: float = 2.0) -> None:
        """See `Source.stop`."""
        with self.lock:
            self.lifecycle.stop(time.monotonic())
            self.ended.set()
        self.mailbox.close()
        self.leave()
        self.tell()
        deadline = time.monotonic() + timeout
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def leave(self) -> None:
        """Wakes what a connection's thread waits in, where `ended` alone does not."""

    def tick(self) -> None:
        """Lets time pass for the lifecycle."""
        with self.lock:
            now = time.monotonic()
            action = self.lifecycle.tick(now)
            if now - self.counted_at >= RATE_WINDOW:
                self.rate = (self.frames - self.counted) / (now - self.counted_at)
                self.counted, self.counted_at = self.frames, now
        self.act(action)

    def act(self, action: Action | None) -> None:
        """Does what the lifecycle asks for and tells of what changed."""
        if action is Action.OPEN:
            self.open(self.lifecycle.generation)
        self.tell()

    def open(self, generation: int) -> None:
        """Begins a connection, in a thread of its own."""
        with self.lock:
            self.threads = [thread for thread in self.threads if thread.is_alive()]
            if len(self.threads) >= MOST_THREADS:
                reason = (
                    f"{self.name}: {MOST_THREADS} earlier connections still hang; a new one waits for them to time out"
                )
                self.lifecycle.failed(generation, time.monotonic(), reason)
                return
            thread = threading.Thread(target=self.run, args=(generation,), name=f"source {self.name}", daemon=True)
            self.threads.append(thread)
        thread.start()

    def run(self, generation: int) -> None:
        """One connection's thread."""
        try:
            self.connect(generation)
        except Over as over:
            with self.lock:
                action = self.lifecycle.finished(generation, time.monotonic(), str(over))
        except Exception as error:  # whatever a camera or a file can do: told in one line, never a crash
            reason = self.describe(error)
            with self.lock:
                now = time.monotonic()
                if self.retries:
                    action = self.lifecycle.failed(generation, now, reason)
                else:
                    action = self.lifecycle.stop(now, reason) if generation == self.lifecycle.generation else None
        else:
            with self.lock:
                action = self.lifecycle.finished(generation, time.monotonic())
        self.act(action)

    def wanted(self, generation: int) -> bool:
        """Whether a connection's frames are still asked for."""
        state = self.lifecycle.state
        return generation == self.lifecycle.generation and state not in (State.ENDED, State.WAITING)

    @contextmanager
    def held(self, generation: int) -> Iterator[None]:
        """While frames of a connection are kept back on purpose."""
        with self.lock:
            self.lifecycle.hold(generation)
        try:
            yield
        finally:
            with self.lock:
                self.lifecycle.release(generation, time.monotonic())

    def deliver(
        self,
        generation: int,
        picture: Callable[[], np.ndarray],
        timestamp: float | None,
        captured: float,
        wall: float | None = None,
        *,
        waits: bool = True,
        number: int | None = None,
    ) -> bool:
        """Hands over one frame of a connection; False where the connection is no longer wanted.

        Where the mailbox has no room under policy "every" it waits for that, or with `waits` False drops the frame.

        `picture` makes its pixels, uint8 [H, W, 3] RGB, and is only called if they are wanted. `timestamp` is in seconds of
        the source's clock, `captured` (seconds, monotonic) when it arrived or, where that is known, was taken. `number` is that
        of the packet that it was decoded from, where packets are recorded.
        """
        with self.lock:
            if not self.wanted(generation):
                return False
            sequence, self.frames = self.frames, self.frames + 1
            connected = self.timeline.last is not None and self.timeline.last[0] == generation
            stamp = self.timeline.stamp(generation, timestamp, captured)
            self.jumps += stamp.jumped and connected and not self.options.loop
            if self.lifecycle.state is not State.LIVE and self.last_at is not None:
                self.gap = captured - self.last_at
            self.last_at = captured
            self.jumped = self.jumped or stamp.jumped
            timely = self.selection.timely(stamp.time)
        changed = None
        telling = False
        if timely:
            pixels = picture()
            self.size = (pixels.shape[1], pixels.shape[0])
            seen = thumbnail(pixels)
            changed = self.still is None or difference(self.still, seen) > STILL
            if changed:
                self.still = seen
            telling = self.selection.telling(stamp.time, seen)
        with self.lock:
            self.lifecycle.frame(generation, time.monotonic(), changed)
        self.tell()
        if telling:
            frame = Frame(pixels, stamp.captured, stamp.time, sequence, self.name, wall, self.jumped)
            self.jumped = False
            if self.recorder is not None:
                self.recorder.frame(frame, number)
            if self.mailbox.offer(frame):
                return True
            if waits:
                with self.held(generation):
                    self.mailbox.put(frame)
            else:
                self.mailbox.lose()
        return True

    def undue(self, timestamp: float | None) -> bool:
        """Whether a picture that follows those handed over will be left out by `fps`, by its timestamp in seconds of the source's clock."""
        before = None if self.timeline.last is None else self.timeline.last[1]
        if timestamp is None or before is None or timestamp <= before:
            return False
        return self.selection.early(self.timeline.time + timestamp - before)

    @property
    def status(self) -> SourceStatus:
        """See `Source.status`."""
        with self.lock:
            life = self.lifecycle
            return SourceStatus(
                state=life.state,
                since=life.since,
                reason=life.reason,
                frozen=life.frozen,
                frames=self.frames,
                frames_per_second=self.rate if life.state is State.LIVE else 0.0,
                reconnects=life.reconnects,
                width=self.size[0],
                height=self.size[1],
                thinned=self.selection.thinned,
                unchanged=self.selection.unchanged,
                damaged=self.damaged,
                gap=self.gap,
                changes=dict(self.changes),
                jumps=self.jumps,
            )

    def tell(self) -> None:
        """Notifies of a change of state, once each and in order."""
        with self.telling:
            with self.lock:
                life = self.lifecycle
                present = (life.state, life.frozen, life.reason)
                if present == self.told:
                    return
                self.told = present
                state = "frozen" if life.frozen else str(life.state)
                self.changes[state] += state != self.came_into
                self.came_into = state
                status = self.status
            self.notify(status)
