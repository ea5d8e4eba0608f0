"""Moments as people write them: "10 minutes ago", "14:03", "2026-11-29T14:03:00Z", "1795960980". Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

KNOWN = (
    "write it as '10 minutes ago' (seconds, minutes, hours, days), '14:03', 'yesterday 14:03', 'now', 2026-11-29T14:03:00Z "
    "or in Unix seconds (1795960980)"
)
UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3_600),
    **dict.fromkeys(("d", "day", "days"), 86_400),
}
AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?|an?)\s*([a-z]+)\s+ago")
SECONDS = re.compile(r"\d{9,10}(?:\.\d{1,9})?")
CLOCK = re.compile(r"(yesterday\s+|today\s+)?(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d+)?))?")


def read_moment(text: str, now: float, zone: tzinfo | None = None) -> float:
    """A moment in Unix seconds; a time of day is today's, or yesterday's where today's is still to come.

    `zone` is where times without one are meant, by default this machine's. Raises ValueError, in one line with what is known,
    for what is no moment and for one that is still to come.
    """
    words = " ".join(text.lower().split())
    here = datetime.fromtimestamp(now, UTC).astimezone(zone)
    if found := AGO.fullmatch(words):
        if found[2] not in UNITS:
            raise ValueError(f"{text[:60]!r} has no unit of time that is known: {KNOWN}")
        amount = 1.0 if found[1].startswith("a") else float(found[1])
        moment = now - amount * UNITS[found[2]]
    elif words == "now":
        moment = now
    elif SECONDS.fullmatch(words):
        moment = float(words)
    elif found := CLOCK.fullmatch(words):
        try:
            then = here.replace(hour=int(found[2]), minute=int(found[3]), second=0, microsecond=0, fold=0)
        except ValueError:
            raise ValueError(f"{text[:60]!r} is no time of day: {KNOWN}") from None
        then += timedelta(seconds=float(found[4] or 0))
        day = (found[1] or "").strip()
        if day == "yesterday" or (not day and then > here):
            then -= timedelta(days=1)
        moment = _local(then, zone).timestamp()
    else:
        try:
            then = datetime.fromisoformat(text.strip())
            moment = (then if then.tzinfo else _local(then, zone)).timestamp()
        except (ValueError, OverflowError):
            raise ValueError(f"{text[:60]!r} is no moment that is understood: {KNOWN}") from None
    if moment > now:
        raise ValueError(f"{text[:60]!r} is {moment - now:.0f} s in the future: {KNOWN}")
    return moment


def written(moment: float) -> str:
    """A moment in UTC as ISO 8601 writes it, to the millisecond."""
    try:
        return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        return str(moment)


def _local(then: datetime, zone: tzinfo | None) -> datetime:
    """The same clock reading at its own date's offset, which summer time may change."""
    bare = then.replace(tzinfo=None)
    return bare.astimezone() if zone is None else bare.replace(tzinfo=zone)
