"""Moments as people write them: "10 minutes ago", 14:03, 2026-11-29T14:03:00Z, Unix seconds."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

KNOWN = '"10 minutes ago", 14:03, 14:03:20, 2026-11-29T14:03:00Z or Unix seconds'
UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86_400,
    "day": 86_400,
}
AGO = re.compile(r"(\d+(?:\.\d+)?|an?)\s*([a-z]+?)s?\s+ago", re.IGNORECASE)
CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?")


def parse_moment(text: str, now: float) -> float:
    """Unix seconds of a moment; `now` is Unix seconds too. Times of day are this host's, the last such time before now.

    A date without an offset is this host's time as well. Raises ValueError, which says which forms are known.
    """
    text = text.strip()
    moment = _moment(text, now)
    if moment is None or not math.isfinite(moment):
        raise ValueError(f"the moment {text[:40]!r} is of no known form: write {KNOWN}")
    return moment


def _moment(text: str, now: float) -> float | None:
    if text.lower() == "now":
        return now
    if found := AGO.fullmatch(text):
        count = 1.0 if found[1].lower().startswith("a") else float(found[1])
        unit = UNITS.get(found[2].lower())
        return None if unit is None else now - count * unit
    try:
        if found := CLOCK.fullmatch(text):
            seconds = float(found[3] or 0)
            day = datetime.fromtimestamp(now)
            at = day.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0) + timedelta(
                seconds=seconds
            )
            return at.timestamp() if at.timestamp() <= now else (at - timedelta(days=1)).timestamp()
        if re.fullmatch(r"\d{4}-.*", text):
            return datetime.fromisoformat(text).timestamp()
        if re.fullmatch(r"\d{1,11}(\.\d+)?", text):
            return float(text)
    except (ValueError, OverflowError, OSError):
        return None
    return None
