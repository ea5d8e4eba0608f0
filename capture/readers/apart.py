"""A source that another process reads, as it is seen from here."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from capture.frame import Frame
from capture.lifecycle import State
from capture.mailbox import Mailbox
from capture.readers.messages import Counted, Open, Packets, Shown, Told
from capture.readers.slots import Slots
from capture.recorder import Coded, Recorder
from capture.source import SourceOptions, SourceStatus

UNWATCHED = "it is watched no more"


class Place(NamedTuple):
    """Of a source's last frame, what those after it are placed by."""

    sequence: int
    time: float
    captured: float


class Reads(Protocol):
    """Whoever has a process that reads."""

    def stop(self, source: ApartSource, timeout: float) -> None:
        """A source is not wanted any more; `gone` is set once it is read no more."""


class ApartSource:
    """See `Source`. What its process tells comes to `shown`, `told`, `counted` and `packets`, on one thread.

    Where that process ends, another one begins anew: frames, time and counts go on after those before.
    """

    def __init__(
        self, name: str, url: str, options: SourceOptions, *, endless: bool, assign: Callable[[ApartSource], object]
    ) -> None:
        """`assign` finds whoever reads it, which is then in `reads`."""
        self.name, self.url, self.options, self.endless, self.assign = name, url, options, endless, assign
        self.lock = threading.Lock()
        self.mailbox = Mailbox()
        self.notify: Callable[[SourceStatus], None] = lambda status: None
        self.recorder: Recorder | None = None
        self.reads: Reads | None = None
        self.number = -1
        """What it goes by in its process."""
        self.present = SourceStatus(since=time.monotonic())
        self.before: SourceStatus | None = None
        """How it was when the process that read it ended."""
        self.sequence, self.time = 0, 0.0
        """What is added to those of its present process's frames."""
        self.last: Place | None = None
        self.begun = True
        """Whether a frame of the present process has come."""
        self.dropped = 0
        self.gone = threading.Event()

    def record(self, recorder: Recorder) -> None:
        """See `Source.record`."""
        self.recorder = recorder

    def start(self, mailbox: Mailbox, notify: Callable[[SourceStatus], None]) -> None:
        """See `Source.start`."""
        self.mailbox, self.notify = mailbox, notify
        self.assign(self)

    def stop(self, timeout: float = 2.0) -> None:
        """See `Source.stop`."""
        self.mailbox.close()
        self.end(UNWATCHED)
        if self.reads is not None:
            self.reads.stop(self, timeout)
            self.gone.wait(timeout)

    @property
    def status(self) -> SourceStatus:
        """See `Source.status`."""
        with self.lock:
            present, last = self.present, self.last
        if last is None or present.frames > last.sequence:
            return present
        return replace(present, frames=last.sequence + 1)  # counts are told less often than frames are shown

    @property
    def over(self) -> bool:
        """Whether nothing will come of it any more."""
        return self.present.state is State.ENDED

    def opening(self) -> Open:
        """What its process is told."""
        mailbox, options, url = self.mailbox, self.options, self.url
        if self.last is not None and not self.endless and not options.loop:
            options = replace(options, start=options.start + self.last.time)
        recorded = self.recorder is not None
        return Open(
            self.number, self.name, url, options, mailbox.capacity, mailbox.policy, mailbox.most_bytes, recorded
        )

    def shown(self, message: Shown, slots: Slots, free: Callable[[], None]) -> None:
        """A frame has come: copied out of its slot, which is free then; under policy "every" once there was room for it."""
        pixels = slots.read(message.slot, message.shape)
        if not self.begun and self.last is not None:
            self.time = self.last.time + max(message.captured - self.last.captured, 0.0) - message.time
        frame = Frame(
            pixels,
            message.captured,
            message.time + self.time,
            message.sequence + self.sequence,
            self.name,
            message.wall,
            message.discontinuity or not self.begun,
        )
        self.begun, self.last = True, Place(frame.sequence, frame.time, frame.captured)
        if self.recorder is not None:
            self.recorder.frame(frame, message.number)
        if self.mailbox.offer(frame):
            free()
        else:
            threading.Thread(target=self.wait, args=(frame, free), name="source waits", daemon=True).start()

    def wait(self, frame: Frame, free: Callable[[], None]) -> None:
        """Hands a frame over once there is room for it; no other is on its way meanwhile."""
        self.mailbox.put(frame)
        free()

    def told(self, message: Told) -> None:
        """Its state has changed."""
        self.tell(lambda now: after(self.before, message.status))

    def counted(self, message: Counted) -> None:
        """How it is now."""
        for _ in range(message.dropped - self.dropped):
            self.mailbox.lose()
        self.dropped = message.dropped
        with self.lock:
            if self.present.state is not State.ENDED:
                self.present = after(self.before, message.status)

    def packets(self, message: Packets) -> None:
        """What a recorder is to have."""
        if self.recorder is None:
            return
        for each in message.came:
            if isinstance(each, Coded):
                self.recorder.packet(each)
            else:
                self.recorder.connected(each)

    def lost(self, reason: str) -> None:
        """The process that read it has ended, and another one will begin."""
        self.tell(lambda now: moved(now, State.WAITING, f"{self.name}: {reason}"))
        self.before = now = self.status
        self.sequence = now.frames
        self.begun, self.dropped = False, 0

    def end(self, reason: str) -> None:
        """Nothing will come of it any more."""
        self.tell(lambda now: moved(now, State.ENDED, reason))

    def tell(self, change: Callable[[SourceStatus], SourceStatus]) -> None:
        """Notifies of a change of state; of none once it has ended."""
        with self.lock:
            if self.present.state is State.ENDED:
                return
            self.present = status = change(self.present)
        self.notify(status)


def moved(status: SourceStatus, state: State, reason: str) -> SourceStatus:
    """A status in another state, of which its process knows nothing."""
    changes = Counter(status.changes) + Counter({str(state): 1})
    return replace(
        status,
        state=state,
        since=time.monotonic(),
        reason=reason,
        frozen=False,
        frames_per_second=0.0,
        changes=dict(changes),
    )


def after(before: SourceStatus | None, status: SourceStatus) -> SourceStatus:
    """A status whose counts go on after those `before` the process that tells it."""
    if before is None:
        return status
    changes: Mapping[str, int] = Counter(before.changes) + Counter(status.changes)
    return replace(
        status,
        frames=before.frames + status.frames,
        reconnects=before.reconnects + 1 + status.reconnects,
        thinned=before.thinned + status.thinned,
        unchanged=before.unchanged + status.unchanged,
        damaged=before.damaged + status.damaged,
        jumps=before.jumps + status.jumps,
        changes=dict(changes),
        gap=status.gap or before.gap,
        width=status.width or before.width,
        height=status.height or before.height,
    )
