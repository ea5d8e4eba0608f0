"""A source's own time axis from whatever timestamps it brings."""

from __future__ import annotations

TOLERANCE = 1.0
"""Seconds by which a live source's timestamps may differ from their arrival before they count as a jump."""
LONGEST_STEP = 10.0
"""The longest step, in seconds, that a recording's timestamps may take without counting as a jump."""


class Timeline:
    """Gives each frame its time in seconds: 0 at the first, never decreasing, going on across reconnects and jumps.

    `live` sources' timestamps are held against their arrival; a recording's, which may be read at any speed, only against
    sense.
    """

    def __init__(self, *, live: bool) -> None:
        self.live = live
        self.time = 0.0
        self.period = 0.04
        self.last: tuple[int, float | None, float] | None = None

    def stamp(self, generation: int, timestamp: float | None, arrival: float) -> tuple[float, bool]:
        """The time of a frame that arrived at `arrival` (monotonic) bearing `timestamp`, and whether a gap or jump lies before it."""
        before, self.last = self.last, (generation, timestamp, arrival)
        if before is None:
            return 0.0, False
        then, stamped, arrived = before
        waited = max(arrival - arrived, 0.0)
        if generation == then and timestamp is not None and stamped is not None:
            step = timestamp - stamped
            sound = step > 0 and (abs(step - waited) <= TOLERANCE if self.live else step <= LONGEST_STEP)
            if sound:
                self.period = step
            else:
                step = waited if self.live else self.period
            self.time += step
            return self.time, not sound
        self.time += waited if self.live else self.period
        return self.time, generation != then and self.live
