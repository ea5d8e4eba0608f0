"""A source's own time axis from whatever timestamps it brings."""

from __future__ import annotations

from typing import NamedTuple

TOLERANCE = 1.0
"""Seconds by which a live source's timestamps may run ahead of their arrival from one frame to the next."""
LONGEST_STEP = 10.0
"""The longest step, in seconds, of a recording's timestamps, and the longest that a live frame may come late, without a jump."""
CLOCK_DRIFT = 1e-3
"""The share by which a source's clock may run slower than this host's."""


class Stamp(NamedTuple):
    """A frame's place in time."""

    time: float
    """Seconds on the source's own axis."""
    captured: float
    """Seconds, monotonic: when the picture was taken, as far as the fastest of its neighbours tell."""
    jumped: bool
    """A gap, a jump or a lack of timestamps lies before this frame."""


class Timeline:
    """Gives each frame its time in seconds: 0 at the first, never decreasing, going on across reconnects and jumps.

    A `live` source's timestamps are held against their arrival; a recording's, which may be read at any speed, only
    against sense. Where they say nothing of use the axis goes on by what has passed since the frame before.
    """

    def __init__(self, *, live: bool) -> None:
        self.live = live
        self.time = 0.0
        self.period = 0.04
        self.last: tuple[int, float | None, float] | None = None
        self.known = False
        """Whether this connection has brought timestamps; a lack of them before that is no jump."""
        self.delay: float | None = None
        """Seconds from a timestamp to its arrival where nothing held the frame up."""

    def stamp(self, generation: int, timestamp: float | None, arrival: float) -> Stamp:
        """Places a frame of a connection that bears `timestamp` (seconds) and arrived at `arrival` (seconds, monotonic)."""
        before, self.last = self.last, (generation, timestamp, arrival)
        if before is None:
            self.known = timestamp is not None
            return Stamp(0.0, self.captured(timestamp, arrival, 0.0), False)
        then, stamped, arrived = before
        if generation != then:
            self.known = False
        waited = max(arrival - arrived, 0.0)
        passed = waited if self.live or generation != then else self.period
        jumped = generation != then or (self.known and (timestamp is None) != (stamped is None))
        self.known = self.known or timestamp is not None
        if not jumped and timestamp is not None and stamped is not None:
            step = timestamp - stamped
            jumped = not (0 < step <= LONGEST_STEP)
            if self.live:
                jumped = not (step > 0 and -LONGEST_STEP <= step - waited <= TOLERANCE)
            if not jumped:
                self.period = passed = step
        self.time += passed
        if jumped:
            self.delay = None
        return Stamp(self.time, self.captured(timestamp, arrival, waited), jumped)

    def captured(self, timestamp: float | None, arrival: float, waited: float) -> float:
        """When a frame was taken: its timestamp plus the smallest delay seen of late, at most its arrival."""
        if timestamp is None or not self.live:
            return arrival
        delay = arrival - timestamp
        self.delay = delay if self.delay is None else min(self.delay + CLOCK_DRIFT * waited, delay)
        return timestamp + self.delay
