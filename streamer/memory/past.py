"""Asking the past: which snapshot answers for a moment and how far before it that was taken, and what a span shows again."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from model.state import Snapshot
from protocols.question import Question
from streamer.engine.answer import Answer
from streamer.engine.engine import Engine
from streamer.engine.executor import Request
from streamer.errors import AssistantError
from streamer.memory.moments import read_moment, written
from streamer.memory.recording import Recordings
from streamer.memory.replay import Replay, ReplayStep, find_replay
from streamer.memory.snapshot import Taken
from streamer.memory.snapshots import Kept, Snapshots
from streamer.memory.span import Span, find_span, lack, missing, read_span
from streamer.memory.timeline import Entry, Timeline, Wanted

EXACT = 0.04
"""Seconds before a moment at which a state is still that moment's: one frame of 25 a second."""
PREPARING = 10.0
"""Seconds that the first pictures of a recording may take, which begin with the key frame before them."""
CITED_SECONDS = 10.0
"""Seconds before and after a moment from which entries of the timeline are cited."""
MOST_CITED = 8
AT_ONCE = 2
"""Answers about the past whose states are in memory at once; the others wait on the disk."""


@dataclass(slots=True)
class Moment:
    """A moment that was asked about, and the one that the answer speaks of: Unix seconds of the newest frame in its state."""

    asked: float
    reached: float
    replayed: bool = False
    """Whether all that the model saw from a snapshot on up to the moment was shown to it again."""
    cited: list[Entry] = field(default_factory=list)
    """What the timeline has of the moment, in order."""

    def facts(self) -> dict[str, Any]:
        """As every wire shows it."""
        before = max(self.asked - self.reached, 0.0)
        return {
            "asked": written(self.asked),
            "reached": written(self.reached),
            "how": "exact" if self.replayed or before <= EXACT else "nearest snapshot",
            "before_s": round(before, 3),
            "entries": [each.view() for each in self.cited],
        }


class Past:
    """The moments that snapshots can answer for. Lives on the assistant's event loop."""

    def __init__(
        self,
        snapshots: Snapshots,
        engine: Engine,
        recordings: Recordings,
        timeline: Timeline,
        longest: float,
        longest_span: float,
    ) -> None:
        """What was recorded after a snapshot is shown to its state again, of `longest` seconds at most; a span likewise."""
        self._snapshots, self._engine, self._recordings, self._longest = snapshots, engine, recordings, longest
        self._timeline, self._longest_span = timeline, longest_span
        self._places = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By answer, what brings its moment back."""

    def find(self, stream: str, question: Question) -> Recall:
        """What is needed to answer for the moment or the span that is asked about.

        Raises AssistantError: bad_moment for what is none or is to come, not_remembered for one before the memory begins;
        bad_span, and no_recording for a span of which nothing is recorded.
        """
        now, at = time.time(), question.at
        if question.since is not None or question.until is not None:
            if at is not None:
                raise AssistantError(
                    "bad_span", "at asks about a moment, from and to about a span: leave one of them out."
                )
            since, until = read_span(question.since, question.until, now, self._longest_span)
            segments = self._recordings.of(stream, since, until)
            if not segments:
                raise lack(self._recordings, stream, since, until)
            return Recall(self, Span(since, until, since, missing=missing(segments, since, until)), [])
        assert at is not None
        try:
            moment = read_moment(at, now) if isinstance(at, str) else at
        except ValueError as error:
            raise AssistantError("bad_moment", f"The moment {error}.") from None
        if not moment <= now:
            raise AssistantError(
                "bad_moment", f"The moment {written(moment)} is in the future: ask about one that was."
            )
        kept = self._snapshots.of(stream)
        before = sorted(
            (each for each in reversed(kept) if each.wall <= moment), key=lambda each: each.wall, reverse=True
        )
        if not before:
            begins = f"it begins at {written(min(each.wall for each in kept))}" if kept else "it has not begun"
            raise AssistantError(
                "not_remembered",
                f"Stream {stream!r} has no memory of {written(moment)}: {begins}; ask about a later moment.",
            )
        return Recall(self, Moment(moment, before[0].wall), before)

    def begin(self, recall: Recall, answer: Answer, request: Request) -> None:
        """Has a request answered in the state of a moment; whatever happens, its answer comes to an end."""
        answer.moment = recall.moment
        task = self._tasks[answer.id] = asyncio.create_task(self._carry_out(recall, answer, request))

        def done(task: asyncio.Task[None]) -> None:
            del self._tasks[answer.id]
            if task.cancelled():  # perhaps before it began
                answer.finished("cancelled", None)

        task.add_done_callback(done)

    def cancel(self, answer: str) -> None:
        """The answer isn't wanted any more."""
        if answer in self._tasks:
            self._tasks[answer].cancel()

    async def _carry_out(self, recall: Recall, answer: Answer, request: Request) -> None:
        try:
            async with self._places:
                state, shown = await self._bring_back(recall, answer)
                self._engine.ask(replace(request, state=state, replay=shown))
                await answer.over.wait()
        except AssistantError as error:
            answer.finished("failed", error.message)
        except Exception as error:
            answer.finished("failed", f"the moment could not be brought back: {error}")

    async def _bring_back(self, recall: Recall, answer: Answer) -> tuple[Snapshot | None, Replay | None]:
        """The state that answers, None for one that has seen nothing, and what is to be shown to it. Raises AssistantError."""
        moment = recall.moment
        if isinstance(moment, Span):
            moment.cited = await asyncio.to_thread(self._near, answer.stream, moment.since, moment.until)
            return None, await asyncio.to_thread(self._replay_span, moment, answer)
        found = await self._load(recall.kept)
        if found is None:
            raise AssistantError("failed", "no snapshot before that moment can be read by this model")
        moment.reached = found[0].wall
        near = (moment.asked - CITED_SECONDS, moment.asked + CITED_SECONDS)
        moment.cited = await asyncio.to_thread(self._near, answer.stream, *near)
        return found[1], await asyncio.to_thread(self._replay, moment, found[2], answer)

    def _near(self, stream: str, since: float, until: float) -> list[Entry]:
        """What the timeline has of a span, in order; none of the questions, which are not everybody's. Waits for the disk."""
        wanted = Wanted(stream, since, until, without="question")
        try:
            return self._timeline.entries(wanted, MOST_CITED)[::-1]
        except sqlite3.Error:  # a citation is no condition of an answer, and who reads the timeline is told
            return []

    def _replay(self, moment: Moment, taken: Taken, answer: Answer) -> Replay | None:
        """What was recorded between a snapshot and the moment, where that is not too long; waits for its first pictures."""
        if not EXACT < moment.asked - taken.wall <= self._longest:
            return None
        made = find_replay(self._recordings, taken.stream, taken, moment.asked)
        if made is None:
            return None

        def told(step: ReplayStep, count: int) -> None:
            moment.reached, moment.replayed = step.wall, made.complete and count == len(made.steps)
            answer.showed(count, len(made.steps), step.wall)

        return _prepared(Replay(made, told))

    def _replay_span(self, span: Span, answer: Answer) -> Replay:
        """What was recorded of a span; waits for its first pictures. Raises AssistantError: no_recording."""
        made = find_span(self._recordings, answer.stream, span.since, span.until)
        if not made.steps:
            raise lack(self._recordings, answer.stream, span.since, span.until)
        span.begins, span.ends = made.steps[0][0][0].wall, made.steps[-1][-1][0].wall

        def told(step: ReplayStep, count: int) -> None:
            span.reached = step.wall
            span.shown += len(step.pixels)
            answer.showed(count, len(made.steps), step.wall)

        return _prepared(Replay(made, told))

    async def _load(self, kept: Sequence[Kept]) -> tuple[Kept, Snapshot, Taken] | None:
        """The first of these snapshots that can be read and is of this model, on its device."""
        runner = self._engine.runner
        for each in kept:
            found = await asyncio.to_thread(self._snapshots.load, each)
            if found is not None and found[0].fingerprint == runner.fingerprint:
                return each, await asyncio.to_thread(runner.stage, found[1]), found[0]
        return None


def _prepared(replay: Replay) -> Replay:
    replay.prepare(PREPARING)
    return replay


@dataclass(frozen=True, slots=True)
class Recall:
    """A moment or a span that is to be brought back, and the snapshots before the moment, the nearest first."""

    past: Past
    moment: Moment | Span
    kept: list[Kept]

    def begin(self, answer: Answer, request: Request) -> None:
        """See `Past.begin`."""
        self.past.begin(self, answer, request)
