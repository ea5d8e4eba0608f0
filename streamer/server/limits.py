"""What one visitor may take: connections, open answers, questions a minute, messages. Pure; the clock is handed in."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter

from streamer.server.errors import RequestError

REQUESTS_PER_SECOND = 200.0
"""Of one visitor, over HTTP."""
REQUESTS_AT_ONCE = 1_000.0
MESSAGES_PER_SECOND = 200.0
"""Over one websocket; whoever sends faster is read more slowly."""
MESSAGES_AT_ONCE = 500.0


SOCKETS_AT_ONCE = 4
"""As many websockets of one visitor as may send as fast as one."""
MESSAGE_BYTES = 64 * 1024
"""A message of so many bytes costs as much as two of none."""
FRAMES_PER_SECOND = 1_000.0
"""Of one websocket, with all that is no message: fragments, pings and pongs."""
FRAMES_AT_ONCE = 2_000.0
MOST_BUCKETS = 10_000
"""Visitors that are remembered at once, however many come in a moment."""


class Bucket:
    """What may still be taken: `most` at once, and `rate` a second in the long run."""

    def __init__(self, most: float, rate: float, now: float) -> None:
        self.most, self.rate = most, rate
        self.level, self.at = most, now

    def fill(self, now: float) -> None:
        self.level = min(self.most, self.level + (now - self.at) * self.rate)
        self.at = now

    def take(self, now: float, cost: float = 1.0) -> float:
        """Takes `cost`; returns the seconds to wait for it. Whoever does not wait is ever deeper in debt."""
        self.fill(now)
        self.level -= cost
        return max(0.0, -self.level / self.rate)


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
        self._questions: dict[str, Bucket] = {}
        self._requests: dict[str, Bucket] = {}
        self._knocks: dict[str, Bucket] = {}
        self._messages: dict[str, Bucket] = {}

    def renew(self, connections: int, answers: int, questions_per_minute: int) -> None:
        """Takes other limits from now on; what is open stays."""
        if questions_per_minute != self.questions_per_minute:
            self._questions.clear()
        self.connections, self.answers, self.questions_per_minute = connections, answers, questions_per_minute

    def connect(self, visitor: str) -> None:
        """A websocket is opened. Raises RequestError: too_many_connections."""
        if self._connected[visitor] >= self.connections:
            raise RequestError(
                "too_many_connections", f"{self.connections} connections are open already: close one first.", 5.0
            )
        self._connected[visitor] += 1

    def disconnect(self, visitor: str) -> None:
        _less(self._connected, visitor)

    def ask(self, visitor: str, now: float) -> dict[str, float | int | str]:
        """A question is asked; returns its rate limit as `rate_limits.updated` shows it.

        Raises RequestError: too_many_answers, or rate_limit_exceeded with the seconds to wait.
        """
        if self._answering[visitor] >= self.answers:
            raise RequestError(
                "too_many_answers", f"{self.answers} answers are open already: wait for one to end.", 1.0
            )
        most = self.questions_per_minute
        bucket = _bucket(self._questions, visitor, most, most / 60, now)
        bucket.fill(now)
        if bucket.level < 1:
            wait = (1 - bucket.level) / bucket.rate
            raise RequestError(
                "rate_limit_exceeded", f"{most} questions a minute are allowed: wait {math.ceil(wait)} s.", wait
            )
        bucket.level -= 1
        self._answering[visitor] += 1
        return {
            "name": "requests",
            "limit": most,
            "remaining": int(bucket.level),
            "reset_seconds": round((most - bucket.level) / bucket.rate, 3),
        }

    def answered(self, visitor: str) -> None:
        """An answer is over."""
        _less(self._answering, visitor)

    def request(self, visitor: str, now: float) -> None:
        """A request of a visitor has come. Raises RequestError: rate_limit_exceeded."""
        _charge(self._requests, visitor, now)

    def message(self, visitor: str, now: float, cost: float) -> float:
        """A message has come over one of a visitor's websockets; the seconds to wait before the next is read."""
        most, rate = SOCKETS_AT_ONCE * MESSAGES_AT_ONCE, SOCKETS_AT_ONCE * MESSAGES_PER_SECOND
        return _bucket(self._messages, visitor, most, rate, now).take(now, cost)

    def knock(self, address: str, now: float) -> None:
        """Anybody's request has come, whose token is not looked at yet. Raises RequestError: rate_limit_exceeded."""
        _charge(self._knocks, address, now)


def network_of(address: str) -> str:
    """By what an address is counted: itself, or of IPv6 the network of 64 bits, all of which one machine may use."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found) if found.version == 4 else str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def message_bucket(now: float) -> Bucket:
    """For the messages of one websocket."""
    return Bucket(MESSAGES_AT_ONCE, MESSAGES_PER_SECOND, now)


def message_cost(size: int) -> float:
    """What a message of so many bytes takes of its websocket's bucket."""
    return 1 + size / MESSAGE_BYTES


def frame_bucket(now: float) -> Bucket:
    """For the frames of one websocket."""
    return Bucket(FRAMES_AT_ONCE, FRAMES_PER_SECOND, now)


def _bucket(buckets: dict[str, Bucket], visitor: str, most: float, rate: float, now: float) -> Bucket:
    """A visitor's bucket, the latest in order. One that is full again need not be kept; of too many, the stillest goes."""
    bucket = buckets.pop(visitor, None)
    while buckets:
        stillest = next(iter(buckets))
        if now - buckets[stillest].at <= most / rate and len(buckets) < MOST_BUCKETS:
            break
        del buckets[stillest]
    buckets[visitor] = bucket or Bucket(most, rate, now)
    return buckets[visitor]


def _charge(buckets: dict[str, Bucket], name: str, now: float) -> None:
    bucket = _bucket(buckets, name, REQUESTS_AT_ONCE, REQUESTS_PER_SECOND, now)
    bucket.fill(now)
    if bucket.level < 1:
        raise RequestError("rate_limit_exceeded", "Too many requests at once: slow down.", 1 / bucket.rate)
    bucket.level -= 1


def _less(counter: Counter[str], visitor: str) -> None:
    counter[visitor] -= 1
    if counter[visitor] <= 0:
        del counter[visitor]
