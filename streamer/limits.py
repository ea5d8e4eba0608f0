"""What one visitor may take: connections, open answers, questions a minute. Pure; the clock is handed in."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from streamer.auth import DoorError


@dataclass(slots=True)
class _Bucket:
    """Questions that may still be asked; fills up at the allowed rate."""

    level: float
    at: float


class Limits:
    """Counts what every visitor has open.

    Args:
        connections: websockets a visitor.
        answers: open answers a visitor.
        questions_per_minute: questions a visitor; as many may come at once after a quiet minute.
    """

    def __init__(self, connections: int, answers: int, questions_per_minute: int) -> None:
        self.connections, self.answers, self.questions_per_minute = connections, answers, questions_per_minute
        self._connected: Counter[str] = Counter()
        self._answering: Counter[str] = Counter()
        self._buckets: dict[str, _Bucket] = {}

    def connect(self, visitor: str) -> None:
        """A websocket is opened. Raises DoorError: too_many_connections."""
        if self._connected[visitor] >= self.connections:
            raise DoorError(
                "too_many_connections", f"{self.connections} connections are open already: close one first.", 5.0
            )
        self._connected[visitor] += 1

    def disconnect(self, visitor: str) -> None:
        _less(self._connected, visitor)

    def ask(self, visitor: str, now: float) -> dict[str, float | int | str]:
        """A question is asked; returns its rate limit as `rate_limits.updated` shows it.

        Raises DoorError: too_many_answers, or rate_limit_exceeded with the seconds to wait.
        """
        if self._answering[visitor] >= self.answers:
            raise DoorError("too_many_answers", f"{self.answers} answers are open already: wait for one to end.", 1.0)
        self._forget(now)
        most, rate = self.questions_per_minute, self.questions_per_minute / 60
        bucket = self._buckets.setdefault(visitor, _Bucket(most, now))
        bucket.level = min(most, bucket.level + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.level < 1:
            wait = (1 - bucket.level) / rate
            raise DoorError(
                "rate_limit_exceeded", f"{most} questions a minute are allowed: wait {math.ceil(wait)} s.", wait
            )
        bucket.level -= 1
        self._answering[visitor] += 1
        return {
            "name": "requests",
            "limit": most,
            "remaining": int(bucket.level),
            "reset_seconds": round((most - bucket.level) / rate, 3),
        }

    def answered(self, visitor: str) -> None:
        """An answer is over."""
        _less(self._answering, visitor)

    def _forget(self, now: float) -> None:
        """Visitors whose bucket is full again need no bucket."""
        if len(self._buckets) > 1_000:
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if now - bucket.at < 60}


def _less(counter: Counter[str], visitor: str) -> None:
    counter[visitor] -= 1
    if counter[visitor] <= 0:
        del counter[visitor]
