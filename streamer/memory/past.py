"""Asking the past: which snapshot answers for a moment, and how far before it that was taken."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from model.state import Snapshot
from streamer.engine.answer import Answer
from streamer.engine.engine import Engine
from streamer.engine.executor import Request
from streamer.errors import AssistantError
from streamer.memory.moments import read_moment, written
from streamer.memory.recording import Recordings
from streamer.memory.replay import Replay, find_replay
from streamer.memory.snapshot import Taken
from streamer.memory.snapshots import Kept, Snapshots
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
            "entries": [
                {"id": each.id, "at": written(each.wall), "kind": each.kind, "text": each.text} for each in self.cited
            ],
        }


class Past:
    """The moments that snapshots can answer for. Lives on the assistant's event loop."""

    def __init__(
        self, snapshots: Snapshots, engine: Engine, recordings: Recordings, timeline: Timeline, longest: float
    ) -> None:
        """What was recorded after a snapshot is shown to its state again, of `longest` seconds at most."""
        self._snapshots, self._engine, self._recordings, self._longest = snapshots, engine, recordings, longest
        self._timeline = timeline
        self._places = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By answer, what brings its moment back."""

    def find(self, stream: str, at: str | float) -> Recall:
        """What is needed to answer for a moment.

        Raises AssistantError: bad_moment for what is none or is to come, not_remembered for one before the memory begins.
        """
        now = time.time()
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
                found = await self._load(recall.kept)
                if found is None:
                    answer.finished("failed", "no snapshot before that moment can be read by this model")
                    return
                recall.moment.reached = found[0].wall
                recall.moment.cited = await asyncio.to_thread(self._near, answer.stream, recall.moment.asked)
                shown = await asyncio.to_thread(self._replay, recall.moment, found[2])
                self._engine.ask(replace(request, state=found[1], replay=shown))
                await answer.over.wait()
        except Exception as error:
            answer.finished("failed", f"the moment could not be brought back: {error}")

    def _near(self, stream: str, moment: float) -> list[Entry]:
        """What the timeline has of a moment, in order; none of the questions, which are not everybody's. Waits for the disk."""
        wanted = Wanted(stream, moment - CITED_SECONDS, moment + CITED_SECONDS, without="question")
        try:
            return self._timeline.entries(wanted, MOST_CITED)[::-1]
        except sqlite3.Error:  # a citation is no condition of an answer, and who reads the timeline is told
            return []

    def _replay(self, moment: Moment, taken: Taken) -> Replay | None:
        """What was recorded between a snapshot and the moment, where that is not too long; waits for its first pictures."""
        if not EXACT < moment.asked - taken.wall <= self._longest:
            return None
        made = find_replay(self._recordings, taken.stream, taken, moment.asked)
        if made is None:
            return None

        def told(wall: float, whole: bool) -> None:
            moment.reached, moment.replayed = wall, whole

        shown = Replay(made, told)
        shown.prepare(PREPARING)
        return shown

    async def _load(self, kept: Sequence[Kept]) -> tuple[Kept, Snapshot, Taken] | None:
        """The first of these snapshots that can be read and is of this model, on its device."""
        runner = self._engine.runner
        for each in kept:
            found = await asyncio.to_thread(self._snapshots.load, each)
            if found is not None and found[0].fingerprint == runner.fingerprint:
                return each, await asyncio.to_thread(runner.stage, found[1]), found[0]
        return None


@dataclass(frozen=True, slots=True)
class Recall:
    """A moment that is to be brought back, and the snapshots before it, the nearest first."""

    past: Past
    moment: Moment
    kept: list[Kept]

    def begin(self, answer: Answer, request: Request) -> None:
        """See `Past.begin`."""
        self.past.begin(self, answer, request)
