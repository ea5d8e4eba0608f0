"""The shell around a lifecycle: its threads, its clock and what it tells."""

from __future__ import annotations

import threading
import time
import weakref
import zlib
from collections.abc import Callable

import numpy as np

from capture.frame import Frame
from capture.lifecycle import Action, Lifecycle, State
from capture.mailbox import Mailbox
from capture.source import SourceOptions, SourceStatus, redact
from capture.timeline import Timeline

TICK = 0.1
"""Seconds between looks of the watch at the sources."""
RATE_WINDOW = 2.0
"""Seconds over which the frame rate is measured."""


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
                ended = [source for source in self.sources if source.lifecycle.state is State.ENDED]
                for source in ended:
                    self.sources.discard(source)
                if not self.sources:
                    self.thread = None
                    return
                alive = list(self.sources)
            for source in alive:
                source.tick()


WATCH = Watch()


class SourceShell:
    """A source whose connections each run in a thread of their own, by `connect`."""

    def __init__(self, url: str, options: SourceOptions, *, endless: bool, live: bool) -> None:
        self.url, self.name, self.options, self.endless = url, redact(url), options, endless
        self.lock = threading.RLock()
        self.timeline = Timeline(live=live)
        self.lifecycle = Lifecycle(options.patience, time.monotonic(), endless=endless)
        self.mailbox = Mailbox()
        self.notify: Callable[[SourceStatus], None] = lambda status: None
        self.told: tuple[State, bool, str] | None = None
        self.frames = 0
        self.size = (0, 0)
        self.rate, self.counted, self.counted_at = 0.0, 0, time.monotonic()
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

    def start(self, mailbox: Mailbox, notify: Callable[[SourceStatus], None]) -> None:
        """See `Source.start`."""
        self.mailbox, self.notify = mailbox, notify
        self.lifecycle = Lifecycle(self.options.patience, time.monotonic(), endless=self.endless)
        self.act(Action.OPEN)
        WATCH.add(self)

    def stop(self, timeout: float = 2.0) -> None:
        """See `Source.stop`."""
        with self.lock:
            self.lifecycle.stop(time.monotonic())
            self.ended.set()
        self.mailbox.close()
        self.tell()
        deadline = time.monotonic() + timeout
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

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
            with self.lock:
                generation = self.lifecycle.generation
                self.threads = [thread for thread in self.threads if thread.is_alive()]
                thread = threading.Thread(target=self.run, args=(generation,), name=f"source {self.name}", daemon=True)
                self.threads.append(thread)
            thread.start()
        self.tell()

    def run(self, generation: int) -> None:
        """One connection's thread."""
        try:
            self.connect(generation)
        except Exception as error:  # whatever a camera or a file can do: told in one line, never a crash
            reason = self.describe(error)
            with self.lock:
                now = time.monotonic()
                fatal = not self.endless
                action = self.lifecycle.stop(now, reason) if fatal and generation == self.lifecycle.generation else None
                if not fatal:
                    action = self.lifecycle.failed(generation, now, reason)
        else:
            with self.lock:
                action = self.lifecycle.finished(generation, time.monotonic())
        self.act(action)

    def wanted(self, generation: int) -> bool:
        """Whether a connection's frames are still asked for."""
        state = self.lifecycle.state
        return generation == self.lifecycle.generation and state not in (State.ENDED, State.WAITING)

    def deliver(
        self, generation: int, pixels: np.ndarray, timestamp: float | None, captured: float, wall: float | None = None
    ) -> bool:
        """Hands over one picture of a connection; False where the connection is no longer wanted."""
        with self.lock:
            if not self.wanted(generation):
                return False
            now = time.monotonic()
            moment, jumped = self.timeline.stamp(generation, timestamp, captured)
            height, width = pixels.shape[:2]
            self.lifecycle.frame(generation, now, zlib.adler32(pixels[::16, ::16].tobytes()))
            frame = Frame(pixels, captured, moment, self.frames, self.name, wall, jumped)
            self.frames += 1
            self.size = (width, height)
        self.tell()
        self.mailbox.put(frame)
        return True

    @property
    def status(self) -> SourceStatus:
        """See `Source.status`."""
        with self.lock:
            life = self.lifecycle
            rate = self.rate if life.state is State.LIVE else 0.0
            return SourceStatus(
                life.state, life.since, life.reason, life.frozen, self.frames, rate, life.reconnects, *self.size
            )

    def tell(self) -> None:
        """Notifies of a change of state, once each."""
        with self.lock:
            life = self.lifecycle
            present = (life.state, life.frozen, life.reason)
            if present == self.told:
                return
            self.told = present
            status = self.status
        self.notify(status)
