"""A source's own time axis from whatever timestamps it brings."""

from __future__ import annotations

from typing import NamedTuple

TOLERANCE = 1.0
"""Seconds by which a live source's timestamps may run ahead of their arrival from one frame to the next."""
LONGEST_STEP = 10.0
"""The longest step of timestamps, in seconds, and the longest that a live frame may come late, without a jump."""
LONGEST_STILL, LONGEST_BREAK = 600.0, 60.0
"""The longest step of a recording, whose slides may stand for minutes; and of one whose format lets timestamps jump."""
LATE = 0.5
"""Seconds by which a file's playing may fall behind its pace before the pace begins anew (the machine slept, say)."""
RECOVERED = 10.0
"""Seconds after which a recording that fell behind its pace, and did not again, keeps it."""
MOST_AHEAD = 0.5
"""Seconds by which a live source's axis may run ahead of this host's clock, as it would by what each connection first pours out."""
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
        self.longest_step = LONGEST_STEP
        self.time = self.origin = 0.0
        self.period = 0.04
        self.last: tuple[int, float | None, float, float] | None = None
        """Of the frame before: its connection, timestamp, arrival and capture."""
        self.known = False
        """Whether this connection has brought timestamps; a lack of them before that is no jump."""
        self.delay: float | None = None
        """Seconds from a timestamp to its arrival where nothing held the frame up."""

    def stamp(self, generation: int, timestamp: float | None, arrival: float) -> Stamp:
        """Places a frame of a connection that bears `timestamp` (seconds) and arrived at `arrival` (seconds, monotonic)."""
        then, stamped, arrived, taken = self.last or (generation, None, arrival, arrival)
        waited = max(arrival - arrived, 0.0)
        self.known = self.known and generation == then
        jumped = generation != then or (self.known and (timestamp is None) != (stamped is None))
        self.known = self.known or timestamp is not None
        step = None
        if not jumped and timestamp is not None and stamped is not None:
            step = timestamp - stamped
            longest = waited + TOLERANCE if self.live else self.longest_step
            jumped = not 0 < step <= longest or (self.live and waited - step > LONGEST_STEP)
        if jumped:
            self.delay = None
        captured = self.captured(timestamp, arrival, waited)
        if step is not None and not jumped:
            self.period = passed = step
        elif self.live or generation != then:
            passed = max(captured - taken, 0.0)
        else:
            passed = self.period
        if self.last is not None:
            limit = captured - self.origin + MOST_AHEAD if self.live else self.time + passed
            self.time = max(self.time, min(self.time + passed, limit))
        else:
            self.origin = captured
        self.last = (generation, timestamp, arrival, captured)
        return Stamp(self.time, captured, jumped)

    def captured(self, timestamp: float | None, arrival: float, waited: float) -> float:
        """When a frame was taken: its timestamp plus the smallest delay seen of late, at most its arrival."""
        if timestamp is None or not self.live:
            return arrival
        delay = arrival - timestamp
        self.delay = delay if self.delay is None else min(self.delay + CLOCK_DRIFT * waited, delay)
        return timestamp + self.delay


class Pace:
    """When each frame of a recording is due, in seconds of this host's monotonic clock.

    `share` is the part of its own rate at which it has been shown of late; None while it keeps its pace.
    """

    def __init__(self, longest_step: float = LONGEST_STEP) -> None:
        self.longest_step = longest_step
        self.began: tuple[float, float] | None = None
        self.fell: float | None = None
        self.share: float | None = None

    def moment(self, timestamp: float, now: float) -> float:
        """When the frame of `timestamp` is due; the pace begins anew after a jump, and where playing fell too far behind."""
        if self.began is not None:
            at, first = self.began
            due = at + timestamp - first
            recovered = self.fell is None or now - self.fell > RECOVERED
            if recovered:
                self.share = None
            if now - LATE <= due <= now + self.longest_step:
                return due
            if due < now and timestamp > first:
                # A machine that slept falls behind once; one that is too slow does so again and again.
                self.share = None if recovered else (timestamp - first) / (now - at)
                self.fell = now
        self.began = (now, timestamp)
        return now
