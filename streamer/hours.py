"""Hours of the day in which a watch tells nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, tzinfo


@dataclass(frozen=True, slots=True)
class Hours:
    """From `begin` up to `end`, minutes since midnight; past midnight where `end` is the smaller."""

    begin: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Hours:
        """Reads "22:00-06:30". Raises ValueError."""
        written = re.fullmatch(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)\s*", text)
        begin, end = (int(written[i]) * 60 + int(written[i + 1]) for i in (1, 3)) if written else (0, 0)
        if written is None or not (int(written[2]) < 60 > int(written[4]) and begin < 1440 >= end and begin != end):
            raise ValueError("is no span of hours: write it as 22:00-06:00")
        return cls(begin, end)

    def has(self, time: float, zone: tzinfo | None = None) -> bool:
        """Whether a Unix time lies within them, in `zone`, or where this host is."""
        there = datetime.fromtimestamp(time, zone)
        minute = there.hour * 60 + there.minute
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end
