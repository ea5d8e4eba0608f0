"""Which threshold a watch should have, by what people said of its events. Pure.

Only what was told has been judged: a lower threshold than that of the time can't be weighed, and what it would cost to raise
one is told as the share of right events that would still be told ("recall"; those never told are not in it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

LEAST = 3
"""Right events, and false alarms, of which a threshold can be proposed."""
STEPS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
"""Thresholds that are weighed, beside the one that is set; for the end of something what is left of them to 1."""
Key = Literal["rise", "fall"]


@dataclass(frozen=True)
class Judged:
    """An event of which somebody said whether it was right; `probability` of yes, of the look that decided."""

    probability: float
    right: bool


@dataclass(frozen=True)
class Row:
    """What a threshold would have told of the judged events, and what share of it is right (None of nothing)."""

    threshold: float
    right: int
    false: int
    precision: float | None
    recall: float


@dataclass(frozen=True)
class Tuning:
    """Thresholds weighed for `key`, from the one that is set on, and the one that is proposed, or why none is."""

    key: Key
    now: float
    right: int
    false: int
    rows: tuple[Row, ...]
    proposed: float | None
    reason: str

    def facts(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)


def tune(key: Key, now: float, judged: Sequence[Judged]) -> Tuning:
    """Weighs thresholds for `rise` by events that began, or for `fall` by those that ended; `now` is the one that is set."""
    right, false = sum(each.right for each in judged), sum(not each.right for each in judged)

    def row(threshold: float) -> Row:
        told = [e for e in judged if (e.probability >= threshold if key == "rise" else e.probability <= threshold)]
        good = sum(each.right for each in told)
        return Row(threshold, good, len(told) - good, _share(good, len(told)), _share(good, right) or 0.0)

    steps = STEPS if key == "rise" else tuple(round(1 - each, 4) for each in STEPS)
    rows = tuple(row(each) for each in (now, *(s for s in steps if (s > now if key == "rise" else s < now))))
    proposed, reason = None, ""
    if (right < LEAST and not false) or right + false < 2 * LEAST:
        reason = (
            f"too little is known: {right} events are marked as right and {false} as false alarms; mark at least {LEAST} of each "
            "with: streamer watch mark ID right, or false_alarm"
        )
    elif not false:
        reason = f"all {right} events that are marked were right: leave it"
    elif false < LEAST or right < LEAST:
        reason = f"too little is known: of {right} right events and {false} false alarms, {LEAST} of each are wanted"
    else:
        best = max(rows, key=_worth)
        proposed = best.threshold
        if best is rows[0]:
            reason = "no other threshold would be better"
        else:
            spared = rows[0].false - best.false
            reason = (
                f"{spared} of {false} false alarms would not be told, and {best.right} of {right} right events would"
            )
    return Tuning(key, now, right, false, rows, proposed, reason)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _worth(row: Row) -> float:
    """The harmonic mean of precision and recall."""
    precision = row.precision or 0.0
    return 2 * precision * row.recall / (precision + row.recall) if precision and row.recall else 0.0
