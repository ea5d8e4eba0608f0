"""The life of any source, as a pure state machine: events and a clock in, what to do out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from math import inf

PLAYED = "it played to its end"
"""Why a recording ends."""


class State(StrEnum):
    """Where a source is in its life."""

    CONNECTING = "connecting"
    LIVE = "live"
    STALLED = "stalled"
    WAITING = "waiting"
    ENDED = "ended"


class Action(StrEnum):
    """What the shell around a lifecycle must do next."""

    OPEN = "open"
    """Open a connection that carries the present generation; whatever an older one still holds is to be let go."""
    LET_GO = "let go"
    """Give up the present connection."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a source may take, in seconds.

    A slow camera sets its own pace: a stall is declared only after `stall` seconds or `stall_periods` of its usual
    distances between frames, whichever is longer.
    """

    open: float = 10.0
    key_frame: float = 60.0
    """A connection that brings coded pictures, but none yet that decoding can begin with, has this long instead of `open`."""
    stall: float = 5.0
    stall_periods: float = 5.0
    give_up: float = 5.0
    """A stalled connection is given up, and a new one tried, after this much more."""
    frozen: float = 10.0
    """A picture that does not change for this long is reported as frozen."""
    backoff: float = 0.5
    backoff_most: float = 30.0
    jitter: float = 0.2
    """The share of a backoff by which it varies, so that forty cameras behind one switch don't all knock at once."""
    healthy: float = 10.0
    """The backoff begins anew after this long without a fault."""


class Lifecycle:
    """One source's life.

    Every connection has a `generation`; events of an older one are ignored, so that what it still says can't touch its
    successor. Each method takes `now` (seconds, monotonic) and returns the Action that is due, or None. `due` says when
    `tick` must be called next. `endless` sources (cameras) reconnect after an end, others (files) end with it.
    """

    def __init__(self, patience: Patience, now: float, *, endless: bool, seed: int | None = None) -> None:
        self.patience = patience
        self.endless = endless
        self.random = random.Random(seed)
        self.state = State.CONNECTING
        self.since = now
        self.reason = ""
        self.generation = 1
        self.failures = 0
        self.reconnects = 0
        self.frozen = False
        self.period = 0.0
        self.last_frame: float | None = None
        self.changed: float | None = None
        self.held = False
        self.heard_at = -inf
        self.faultless_since = now
        self.retry_at = now

    def frame(self, generation: int, now: float, changed: bool | None = None) -> None:
        """A frame arrived; `changed` says whether it shows anything new, None that nobody looked."""
        if generation != self.generation or self.state in (State.ENDED, State.WAITING):
            return
        if self.last_frame is not None:
            gap = now - self.last_frame
            self.period = gap if self.period == 0 else 0.8 * self.period + 0.2 * gap
        if self.state is not State.LIVE:
            self.faultless_since = now
            self.move(State.LIVE, now, "")
        self.last_frame = now
        if changed or self.changed is None:
            self.changed, self.frozen = now, False
        elif changed is False and now - self.changed >= self.patience.frozen:
            self.frozen = True
        if now - self.faultless_since >= self.patience.healthy:
            self.failures = 0

    def renew(self, now: float, reason: str = "") -> int:
        """A connection was brought from outside and takes the place of any other; its generation."""
        self.reconnects += self.last_frame is not None
        self.generation += 1
        self.forget()
        self.move(State.CONNECTING, now, reason)
        return self.generation

    def heard(self, generation: int, now: float) -> None:
        """A connection brought coded data, though perhaps no picture yet."""
        if generation == self.generation:
            self.heard_at = now

    def hold(self, generation: int) -> None:
        """The next frame is kept back on purpose, by its pace or by a taker without room: silence is no stall meanwhile."""
        self.held = self.held or generation == self.generation

    def release(self, generation: int, now: float) -> None:
        """Nothing is kept back any more."""
        if generation == self.generation:
            self.held = False
            self.last_frame = now if self.last_frame is not None else None

    def failed(self, generation: int, now: float, reason: str) -> Action | None:
        """The connection broke or never came about."""
        if generation != self.generation or self.state in (State.ENDED, State.WAITING):
            return None
        return self.wait(now, reason)

    def finished(self, generation: int, now: float, reason: str = "") -> Action | None:
        """The source came to its end: a file is over, a camera hung up. A `reason` says that even a camera is over for good."""
        if generation != self.generation or self.state in (State.ENDED, State.WAITING):
            return None
        if self.endless and not reason:
            return self.wait(now, "the source ended its stream")
        self.move(State.ENDED, now, reason or PLAYED)
        return Action.LET_GO

    def stop(self, now: float, reason: str = "it is watched no more") -> Action | None:
        """Nobody wants the source any more, or it can never work."""
        if self.state is State.ENDED:
            return None
        self.generation += 1
        self.move(State.ENDED, now, reason)
        return Action.LET_GO

    def tick(self, now: float) -> Action | None:
        """Time has passed."""
        if self.state is State.WAITING and now >= self.retry_at:
            self.generation += 1
            self.reconnects += 1
            self.move(State.CONNECTING, now, self.reason)
            return Action.OPEN
        if self.state is State.CONNECTING and now >= self.open_until:
            return self.wait(now, f"no picture within {now - self.since:.0f} s of connecting")
        if self.held:
            return None
        if self.state is State.LIVE and now >= self.stall_at:
            self.move(State.STALLED, now, f"no frame for {now - (self.last_frame or self.since):.0f} s")
        if self.state is State.STALLED and now >= self.since + self.patience.give_up:
            return self.wait(now, self.reason)
        return None

    @property
    def open_until(self) -> float:
        """When a connection without a picture is given up."""
        patience = self.patience
        listening = min(self.heard_at + patience.stall, self.since + patience.key_frame)
        return max(self.since + patience.open, listening)

    @property
    def stall_at(self) -> float:
        """When a live source that stays silent counts as stalled."""
        quiet = max(self.patience.stall, self.patience.stall_periods * self.period)
        return (self.last_frame if self.last_frame is not None else self.since) + quiet

    @property
    def due(self) -> float:
        """When `tick` has something to do at the earliest; infinite once ended or while held."""
        if self.held and self.state in (State.LIVE, State.STALLED):
            return inf
        return {
            State.WAITING: self.retry_at,
            State.CONNECTING: self.open_until,
            State.LIVE: self.stall_at,
            State.STALLED: self.since + self.patience.give_up,
            State.ENDED: inf,
        }[self.state]

    def wait(self, now: float, reason: str) -> Action:
        """Lets the connection go and plans the next try: doubling backoff with jitter."""
        backoff = min(self.patience.backoff * 2.0 ** min(self.failures, 60), self.patience.backoff_most)
        self.failures += 1
        self.faultless_since = now
        self.retry_at = now + backoff * (1 + self.patience.jitter * self.random.uniform(-1, 1))
        self.move(State.WAITING, now, reason)
        self.forget()
        return Action.LET_GO

    def forget(self) -> None:
        """What was known of the connection before says nothing of the next."""
        self.frozen, self.held, self.changed, self.last_frame, self.heard_at = False, False, None, None, -inf

    def move(self, state: State, now: float, reason: str) -> None:
        """Enters a state."""
        self.state, self.since, self.reason = state, now, reason
