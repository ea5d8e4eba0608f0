"""One watch at its post before one stream: what its looks find goes to its decision, and what that tells is an event.

Looks come from the engine's thread; all else is on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from capture import Frame
from model.serving.yes_no import YesNo
from streamer.engine.standing import Seen
from streamer.hours import Hours
from streamer.watch_config import WatchConfig
from streamer.watches.watch import Event, Terms, Value, Watch

SURE = 0.1
"""The least probability of yes and no together of a question that is answered with one of them."""
GAP = 5.0
"""Seconds between two looked-at frames, or three times `every` if that is longer, that are a gap in what is known."""
RATE_SECONDS = 10.0
"""Seconds over which looks are counted."""
Found = Callable[["Post", Event, Frame], None]


class Post:
    """Decides for one watch and stream. `found` is told of each event with the frame that decided, `knows` when it believes otherwise."""

    def __init__(
        self,
        config: WatchConfig,
        stream: str,
        found: Found,
        knows: Callable[[Post], None],
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        """`kept` is what `keep` gave before a restart; of what it knew, nothing holds where another thing is asked by now."""
        self.config, self.stream, self.trouble = config, stream, ""
        known = dict(kept or {})
        self.paused, asked = bool(known.pop("paused", False)), known.pop("asked", None)
        if asked != asked_of(config):
            known = {"snoozed_until": known.get("snoozed_until", 0.0), "silenced": {}}
        self.watch = Watch(terms_of(config), known)
        self._found, self._knows = found, knows
        self._generation: int | None = None
        self._looks: deque[float] = deque()
        self._loop = asyncio.get_running_loop()
        self._known = self._belief()

    def keep(self) -> dict[str, Any]:
        """What outlasts the process."""
        return {**self.watch.keep(), "paused": self.paused, "asked": asked_of(self.config)}

    def looks_per_s(self, now: float) -> float:
        """Looks a second lately, those included that found the picture unchanged; `now` on the monotonic clock."""
        return sum(now - each <= RATE_SECONDS for each in self._looks) / RATE_SECONDS

    def see(self, value: Value, captured: float, frame: Frame, generation: int) -> None:
        """A look at a frame captured then has seen this; on the event loop."""
        self._count()
        state = self.watch.state
        if state.seen_at is not None:
            apart = captured - state.seen_at
            if apart < -GAP:  # or nothing would last any time until the clock is there again
                self.watch.shift(apart)
                self.watch.interrupt()
            if generation != (self._generation or generation) or apart > max(GAP, 3 * self.config.every):
                self.watch.interrupt()
            captured = max(captured, state.seen_at)
        self._generation, self.trouble = generation, ""
        event = self.watch.look(value, captured)
        if event is not None:
            self._found(self, event, frame)
        if event is None and self._known != self._belief():
            self._knows(self)
        self._known = self._belief()

    def snooze(self, until: float) -> None:
        """Tells nothing up to this Unix time."""
        self.watch.snooze(until)
        self._knows(self)

    def view(self) -> dict[str, Any]:
        """What is known of this stream, as plain data."""
        state = self.watch.state
        now = time.time()
        return {
            "stream": self.stream,
            "state": state.belief,
            "since": state.since if state.belief is not None else None,
            "told": state.told,
            "seen": state.seen,
            "seen_at": state.seen_at,
            "looks_per_s": round(self.looks_per_s(time.monotonic()), 2),
            "slowed": not self.paused and self._slowed(),
            "silent": self.watch.silence(now),
            "snoozed_until": state.snoozed_until if state.snoozed_until > now else None,
            "silenced": dict(state.silenced),
            "trouble": self.trouble or None,
        }

    def _count(self) -> None:
        now = time.monotonic()
        self._looks.append(now)
        while now - self._looks[0] > RATE_SECONDS:
            self._looks.popleft()

    def _slowed(self) -> bool:
        """Whether there was no time for all looks lately."""
        now = time.monotonic()
        lately = [each for each in self._looks if now - each <= RATE_SECONDS]
        return len(lately) > 1 and (lately[-1] - lately[0]) / (len(lately) - 1) > 1.25 * self.config.every

    def _belief(self) -> tuple[object, ...]:
        state = self.watch.state
        return state.belief, state.told, state.sent, state.rival, sum(state.silenced.values())

    # From the engine's thread

    def looked(self, seen: Seen, answer: YesNo) -> None:
        """See `streamer.engine.standing.Onlooker`."""
        self._post(lambda: self._take(seen, answer))

    def unchanged(self, seen: Seen) -> None:
        """See `streamer.engine.standing.Onlooker`."""
        self._post(lambda: self._again(seen))

    def failed(self, error: str) -> None:
        """See `streamer.engine.standing.Onlooker`."""
        self._post(lambda: setattr(self, "trouble", f"the last look failed: {error}"))

    def _post(self, do: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(do)

    def _take(self, seen: Seen, answer: YesNo) -> None:
        if not answer.sure >= SURE:  # NaN is none either
            self._count()
            self.trouble = (
                f"the model answers this question with neither yes nor no (they are {max(answer.sure, 0.0):.1%} likely): ask "
                "otherwise, or set when to changes"
            )
            return
        self.see(answer.probability, seen.captured, seen.frame, seen.generation)

    def _again(self, seen: Seen) -> None:
        last = self.watch.state.seen
        if last is not None and not self.trouble:
            self.see(last, seen.captured, seen.frame, seen.generation)


def asked_of(config: WatchConfig) -> str:
    """What a watch is to find out, which its answers are worth nothing without."""
    return json.dumps([config.question, config.when == "changes", config.format, config.only], sort_keys=True)


def terms_of(config: WatchConfig) -> Terms:
    """What the decision is held to."""
    return Terms(
        when=config.when,
        rise=config.rise,
        fall=config.fall,
        hold=config.hold,
        release=config.release,
        cooldown=config.cooldown,
        exact=config.format is not None,
        quiet=tuple(Hours.parse(each) for each in config.quiet),
    )
