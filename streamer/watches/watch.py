"""When what a watch sees is an event. Pure: what was seen and a clock in, events out.

Two things are kept apart: what is believed, which follows what is seen with hysteresis, and what has been told. Where they
differ and nothing forbids it, an event makes them the same. So an event that falls into quiet hours, a snooze or a cooldown
and is over before their end is never told, one that lasts longer is told then, and nothing is told twice.

Times are Unix seconds of frames' capture, from a clock that does not jump while the process runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import tzinfo
from typing import Any, Literal

from streamer.hours import Hours

When = Literal["becomes_true", "becomes_false", "both", "changes"]
Kind = Literal["watch.started", "watch.ended", "watch.changed"]
Value = float | str
"""What one look saw: the probability of yes; or, of a watch for changes, the answer's words."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a watch tells and when; times in seconds.

    It is true from a probability of `rise` on, until it falls to `fall`; so for `hold`, or not so for `release`, before it is
    believed. `cooldown` counts from the last event that was sent; the end of what was told does not wait for it. Answers in
    words are compared without their case and what stands around them, unless `exact`.
    """

    when: When = "becomes_true"
    rise: float = 0.6
    fall: float = 0.4
    hold: float = 0.0
    release: float = 0.0
    cooldown: float = 0.0
    exact: bool = False
    quiet: tuple[Hours, ...] = ()
    zone: tzinfo | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What is told. `decided` is the capture time of the frame that decided, `began` that of the first that showed it.

    `probability` is that of yes, None of words; `before` and `after` are what was told last and what is so now. `gap` are the
    seconds since the last event for which the stream showed nothing.
    """

    kind: Kind
    decided: float
    began: float
    probability: float | None
    before: bool | str | None
    after: bool | str
    gap: float


@dataclass
class State:
    """All that a watch knows of one stream, plain data that outlasts the process.

    `belief` since `since`; `rival` is what has been seen since `rival_since` and is not believed yet. `told` is what the last
    event said, `sent` when the last one was sent that a cooldown follows. `silenced` counts what was not told at its time,
    by reason.
    """

    belief: bool | str | None = None
    since: float = 0.0
    rival: bool | str | None = None
    rival_since: float = 0.0
    told: bool | str | None = None
    sent: float | None = None
    seen: Value | None = None
    seen_at: float | None = None
    interrupted: bool = False
    gap: float = 0.0
    snoozed_until: float = 0.0
    silenced: Counter[str] = field(default_factory=Counter)
    silenced_since: float | None = None


class Watch:
    """One watch on one stream."""

    def __init__(self, terms: Terms, kept: Mapping[str, Any] | None = None) -> None:
        """`kept` is what `keep` gave before a restart, during which the stream may have shown anything."""
        self.terms = terms
        self.state = State() if kept is None else State(**{**kept, "silenced": Counter(kept["silenced"])})
        if kept is not None:
            self.interrupt()

    def keep(self) -> dict[str, Any]:
        """What outlasts the process, as plain data."""
        return {**asdict(self.state), "silenced": dict(self.state.silenced)}  # of a Counter asdict makes no plain one

    def look(self, seen: Value, at: float) -> Event | None:
        """A look at the frame captured `at`, no earlier than the last, has `seen` this; returns what is to be told of it."""
        state = self.state
        if state.interrupted:
            state.interrupted = False
            state.gap += 0.0 if state.seen_at is None else max(at - state.seen_at, 0.0)
            state.rival = None  # what it was meanwhile nobody knows, so that nothing has been so for long
        state.seen, state.seen_at = seen, at
        self._believe(self._read(seen), at)
        return self._tell(at)

    def unchanged(self, at: float) -> Event | None:
        """The frame captured `at` shows what the last look saw."""
        return None if self.state.seen is None else self.look(self.state.seen, at)

    def interrupt(self) -> None:
        """The stream shows nothing, or has lost its memory, until the next look."""
        self.state.interrupted = self.state.seen_at is not None

    def shift(self, seconds: float) -> None:
        """The clock was set by so many seconds, back where they are negative: all that was before was then by as many."""
        state = self.state
        state.since, state.rival_since = state.since + seconds, state.rival_since + seconds
        state.snoozed_until += seconds
        for name in ("sent", "seen_at", "silenced_since"):
            if (at := getattr(state, name)) is not None:
                setattr(state, name, at + seconds)

    def snooze(self, until: float) -> None:
        """Tells nothing up to this time; one that is over ends the snooze."""
        self.state.snoozed_until = until

    def silence(self, at: float) -> str | None:
        """Why nothing that begins can be told now: "snooze", "quiet" or "cooldown"."""
        state, terms = self.state, self.terms
        if at < state.snoozed_until:
            return "snooze"
        if any(hours.has(at, terms.zone) for hours in terms.quiet):
            return "quiet"
        if state.sent is not None and at - state.sent < terms.cooldown:
            return "cooldown"
        return None

    def _read(self, seen: Value) -> bool | str | None:
        """What is seen, None where it may be either."""
        if isinstance(seen, str):
            if self.terms.exact:
                return seen
            return " ".join(seen.split()).strip(" .!").casefold()
        return True if seen >= self.terms.rise else False if seen <= self.terms.fall else None

    def _believe(self, read: bool | str | None, at: float) -> None:
        state, terms = self.state, self.terms
        if read is not None and read == state.belief:
            state.rival = None
        elif read is not None and read != state.rival:
            state.rival, state.rival_since = read, at
        if state.rival is None:
            return
        # What is not so at the first look needs no proof, as nobody waits to be told of it; what is, does.
        takes = terms.hold if state.rival is True else terms.release if state.belief is True else 0.0
        if isinstance(state.rival, str) and state.belief is not None:
            takes = terms.hold
        if at - state.rival_since >= takes:
            state.belief, state.since, state.rival = state.rival, state.rival_since, None

    def _tell(self, at: float) -> Event | None:
        state, when = self.state, self.terms.when
        belief = state.belief
        if belief is None or belief == state.told:
            return None
        kind: Kind = "watch.changed" if when == "changes" else "watch.started" if belief else "watch.ended"
        unheard = state.told is None and kind != "watch.started"
        if unheard or (when, belief) in (("becomes_true", False), ("becomes_false", True)):
            state.told = belief
            return None
        silence = self.silence(at)
        if silence == "cooldown" and when == "both" and belief is False:
            silence = None  # the end of what was told
        if silence is not None:
            if state.silenced_since != state.since:
                state.silenced[silence] += 1
                state.silenced_since = state.since
            return None
        probability = None if isinstance(state.seen, str) else state.seen
        event = Event(kind, at, state.since, probability, state.told, belief, state.gap)
        state.told, state.gap = belief, 0.0
        if not (when == "both" and belief is False):
            state.sent = at
        return event
