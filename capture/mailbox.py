"""The hand-over of frames from a source's thread to whoever looks: the newest frame wins, what is dropped is counted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

from capture.frame import Frame


class Mailbox:
    """A bounded, thread-safe queue of frames.

    Under "newest" a full mailbox drops its oldest frames (counted in `dropped`): beyond `capacity` frames it holds what comes
    in a burst as far as all together take no more than `most_bytes`. Under "every" `put` waits for room, so that a recording
    is decoded no faster than it is seen.
    """

    def __init__(
        self,
        capacity: int = 1,
        *,
        policy: Literal["newest", "every"] = "newest",
        most_bytes: int = 0,
        on_put: Callable[[], None] | None = None,
    ) -> None:
        self.capacity, self.policy, self.most_bytes, self.on_put = capacity, policy, most_bytes, on_put
        self.received = 0
        self.dropped = 0
        self.closed = False
        self.waiting: deque[Frame] = deque()
        self.bytes = 0
        self.room = threading.Condition()

    def put(self, frame: Frame) -> None:
        """Hands a frame over, from the source's thread; does nothing once closed."""
        with self.room:
            if self.policy == "every":
                self.room.wait_for(lambda: self.closed or len(self.waiting) < self.capacity)
            self.add(frame)
        self.announce()

    def offer(self, frame: Frame) -> bool:
        """Hands a frame over without ever waiting; False where `put` would have to."""
        with self.room:
            if self.policy == "every" and not self.closed and len(self.waiting) >= self.capacity:
                return False
            self.add(frame)
        self.announce()
        return True

    def lose(self) -> None:
        """Counts a frame that its source had to drop because `offer` refused it."""
        with self.room:
            self.received += 1
            self.dropped += 1

    def add(self, frame: Frame) -> None:
        """Appends a frame; the lock is held."""
        if self.closed:
            return
        self.received += 1
        self.waiting.append(frame)
        self.bytes += frame.nbytes
        while len(self.waiting) > self.capacity and self.bytes > self.most_bytes:
            self.pop()
            self.dropped += 1

    def pop(self) -> Frame:
        """The oldest frame, out of the mailbox; the lock is held."""
        frame = self.waiting.popleft()
        self.bytes -= frame.nbytes
        return frame

    def announce(self) -> None:
        """Tells the taker, outside the lock, as it may come for the frame at once."""
        if self.on_put is not None and not self.closed:
            self.on_put()

    def take(self, n: int) -> list[Frame]:
        """The `n` oldest frames waiting, oldest first; none where fewer wait."""
        with self.room:
            if len(self.waiting) < n:
                return []
            taken = [self.pop() for _ in range(n)]
            self.room.notify_all()
            return taken

    @property
    def taken(self) -> int:
        """Frames handed out so far: of those received, the ones that neither wait nor were dropped."""
        with self.room:
            return self.received - self.dropped - len(self.waiting)

    @property
    def newest(self) -> Frame | None:
        """The newest frame waiting, left where it is."""
        with self.room:
            return self.waiting[-1] if self.waiting else None

    def __len__(self) -> int:
        with self.room:
            return len(self.waiting)

    def close(self) -> None:
        """Lets waiting frames go and refuses new ones; wakes a `put` that waits."""
        with self.room:
            self.closed = True
            self.waiting.clear()
            self.bytes = 0
            self.room.notify_all()
