"""What a watch has to tell, as everybody is told it: one shape for websockets, HTTP, outputs and the state folder."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

EventType = Literal["watch.started", "watch.ended", "watch.changed", "watch.evidence", "watch.described"]
Severity = Literal["info", "warning", "critical"]
Value = bool | str | float | dict[str, Any] | None
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RANDOM_BITS = 80


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of one watch on one stream. Its `id` sorts by when it was told, and is never given twice.

    Args:
        captured_at: capture of the frame that decided, Unix seconds.
        began_at: capture of the first frame that showed it, Unix seconds.
        probability: of yes; None where the answer is words.
        before: what was told last, None where nothing was.
        after: what is so now.
        gap: seconds since the event before for which the stream showed nothing.
        still: path of the picture that decided, as JPEG; None where none is kept. Whoever is told gets it as a signed link.
        frame: path of the whole frame that decided, as large as it was recorded; None where nothing is. It and the next are signed too.
        clip: path and query of the recording around it; None where nothing is recorded.
        about: id of the event that a `watch.evidence` or `watch.described` belongs to, whose other values it repeats.
        description: what a `watch.described` says of it.
    """

    id: str
    type: EventType
    watch: str
    stream: str
    severity: Severity
    question: str
    captured_at: float
    began_at: float
    probability: float | None
    before: Value
    after: Value
    gap: float = 0.0
    still: str | None = None
    frame: str | None = None
    clip: str | None = None
    about: str | None = None
    description: str | None = None

    def facts(self) -> dict[str, Any]:
        """The event as plain JSON data."""
        return asdict(self)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> WatchEvent:
        """The event that `facts` gave."""
        return cls(**facts)


class EventIds:
    """Makes ids as ULIDs are: 48 bits of milliseconds, 80 that are random or one more than the last, in Crockford's base32."""

    def __init__(self, last: str | None = None) -> None:
        """`last` is the newest id that was ever given: those that come sort after it, whatever the clock says."""
        self._last = 0
        if last is not None:
            for character in last.removeprefix("event_"):
                self._last = self._last * 32 + CROCKFORD.index(character)

    def next(self, now: float) -> str:
        """An id that sorts after all before; `now` in Unix seconds."""
        fresh = int(now * 1000) << RANDOM_BITS | secrets.randbits(RANDOM_BITS - 1)
        self._last = max(fresh, self._last + 1)
        return "event_" + "".join(CROCKFORD[self._last >> 5 * i & 31] for i in reversed(range(26)))
