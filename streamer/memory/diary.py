"""What happens to streams, as entries of their timelines: their sources' states, gaps, frames that were dropped, questions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from protocols.question import Question
from streamer.engine.answer import Answer
from streamer.engine.stream import Stream
from streamer.events import StreamEvent
from streamer.memory.timeline import LONGEST_TEXT, Place, Timeline

SUMMED_SECONDS = 60.0
"""Seconds over which dropped frames are summed into one entry."""


@dataclass(slots=True)
class _Begun:
    """Something that is written down once it is over, at the place where it began; `at` is the stream's time."""

    stream: str
    place: Place
    at: float | None
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Drops(_Begun):
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Asked(_Begun):
    question: str = ""
    visitor: str | None = None


class Diary:
    """Writes into the timeline. Lives on the assistant's event loop."""

    def __init__(self, timeline: Timeline, streams: Mapping[str, Stream]) -> None:
        """`streams` come and go."""
        self._timeline, self._streams = timeline, streams
        self._states: dict[str, str] = {}
        self._away: dict[str, set[str]] = {}
        """By stream that shows nothing, the reasons for it that are written down: it is tried again for as long as it lasts."""
        self._gaps: dict[str, _Begun] = {}
        self._drops: dict[str, _Drops] = {}
        self._asked: dict[Answer, _Asked] = {}
        self._jumps: dict[str, tuple[int, float]] = {}
        """By stream, the jumps that are written down, and when that was."""

    def heard(self, event: StreamEvent) -> None:
        """News of a stream."""
        facts, name = event.facts, event.stream
        match event.type:
            case "stream.status":
                self._state(name, "frozen" if facts["frozen"] else facts["state"], facts["reason"])
            case "stream.dropped":
                if name not in self._drops:
                    self._drops[name] = _Drops(*self._now(name))
                self._drops[name].reasons.update(facts["dropped"])
            case "stream.reset":
                self._timeline.add("reset", name, f"the memory was lost: {facts['reason']}", facts)
            case "stream.resumed":
                text = f"goes on with its memory, which is {facts['age_s']:.0f} s old"
                self._timeline.add("resumed", name, text, facts, time=facts["time"])

    def asked(self, answer: Answer, question: Question, visitor: str | None) -> None:
        """A question was asked, of a stream whose questions are to be kept or of another."""
        stream = self._streams.get(answer.stream)
        if stream is not None and stream.config.keep_questions:
            answer.transcript = []
            self._asked[answer] = _Asked(*self._now(answer.stream), question=question.text, visitor=visitor)

    def answered(self, answer: Answer) -> None:
        """The answer is over."""
        asked = self._asked.pop(answer, None)
        if asked is None:
            return
        said = "".join(answer.transcript or ())
        moment = {} if answer.moment is None else {"moment": answer.moment.facts()}
        facts = {
            "question": asked.question[:LONGEST_TEXT],
            "answer": said[:LONGEST_TEXT],
            "finish_reason": answer.finish_reason or "cancelled",
            **moment,
        }
        text = f"{asked.question}\n{said}"
        self._timeline.add(
            "question", asked.stream, text, facts, place=asked.place, time=asked.at, visitor=asked.visitor
        )

    def sum_up(self, now: float) -> None:
        """Writes the sums of dropped frames that are complete at `now`, on the monotonic clock."""
        for name, drops in list(self._drops.items()):
            if now - drops.since >= SUMMED_SECONDS:
                self._write_drops(self._drops.pop(name))

    def look(self, now: float) -> None:
        """Writes down that sources' clocks jumped, once in SUMMED_SECONDS at most; `now` is on the monotonic clock."""
        for name, stream in self._streams.items():
            jumps = stream.source.status.jumps
            known, since = self._jumps.get(name, (0, float("-inf")))
            if jumps > known and now - since >= SUMMED_SECONDS:
                self._jumps[name] = (jumps, now)
                times = "" if jumps - known == 1 else f" {jumps - known} times"
                text = f"the source's clock jumped{times}"
                self._timeline.add("jump", name, text, {"jumps": jumps - known}, time=stream.seen_until)

    def left(self, name: str) -> None:
        """A stream is gone, as is what was begun of it."""
        self._states.pop(name, None)
        self._away.pop(name, None)
        self._jumps.pop(name, None)
        self._gaps.pop(name, None)
        if name in self._drops:
            self._write_drops(self._drops.pop(name))

    def forget(self, stream: str, since: float, until: float) -> None:
        """What was begun within a span is not written down."""

        def meant(each: _Begun) -> bool:
            return each.stream == stream and since <= each.place.wall <= until

        self._gaps = {key: each for key, each in self._gaps.items() if not meant(each)}
        self._drops = {key: each for key, each in self._drops.items() if not meant(each)}
        self._asked = {key: each for key, each in self._asked.items() if not meant(each)}

    def end(self) -> None:
        """Writes down what is not over, as there is no more time."""
        for drops in self._drops.values():
            self._write_drops(drops)
        self._drops.clear()
        for answer in list(self._asked):
            self.answered(answer)

    def _state(self, name: str, state: str, reason: str) -> None:
        before = self._states.get(name)
        if state == before:
            return
        self._states[name] = state
        stream, place, at = self._now(name)
        if before in ("live", "frozen") and state not in ("live", "frozen"):
            self._gaps[name] = _Begun(stream, place, at)
            stream, place, at = self._now(name)
        elif state == "live" and name in self._gaps:
            gap = self._gaps.pop(name)
            seconds = time.monotonic() - gap.since
            self._timeline.add(
                "gap", name, f"nothing was seen for {seconds:.1f} s", {"gap_s": seconds}, place=gap.place, time=gap.at
            )
        if state in ("live", "frozen", "ended"):
            self._away.pop(name, None)
        elif reason in self._away.setdefault(name, set()):
            return
        else:
            self._away[name].add(reason)
        text = f"{state}: {reason}" if reason else state
        self._timeline.add("state", name, text, {"state": state, "reason": reason}, place=place, time=at)

    def _write_drops(self, drops: _Drops) -> None:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(drops.reasons.items()))
        facts = {"dropped": dict(drops.reasons), "seconds": time.monotonic() - drops.since}
        text = f"{drops.reasons.total()} frames were not seen: {told}"
        self._timeline.add("drops", drops.stream, text, facts, place=drops.place, time=drops.at)

    def _now(self, name: str) -> tuple[str, Place, float | None]:
        stream = self._streams.get(name)
        return name, self._timeline.place(), None if stream is None else stream.seen_until
