"""What the device does next. Pure: events and a clock in, decisions out; no threads, no time of its own.

Frames come first, in time for their deadlines, and open answers fill what is left, at no more than their ceiling, with the
looks of watches after them, but for a floor (see `looks.py`).
When the device is short, answers first slow to their floor; then frame rates are lowered, the fastest first, until all
are even, weighed by priority. Newest frame wins: a stream's waiting frames are few, and each one given up is counted with its
reason.

Times are seconds on one monotonic clock.
"""

from __future__ import annotations

from collections import Counter
from typing import Generic

from streamer.engine.costs import Costs
from streamer.engine.decisions import Decision, Decode, F, FrameStep, Idle, Look, Prefill, Replay
from streamer.engine.looks import Looks
from streamer.engine.pace import Answers, Pace, Turn, rounded
from streamer.engine.queue import MOST_BYTES, Queue, Terms

LONE_PERIODS = 1.5
"""Periods of a stream's rhythm after which a frame whose partner does not come is seen alone, where its deadline leaves so long."""
FULL = 0.97
"""The share of the device's time that frame rates are planned to fill."""
KEPT = 0.5
"""The share of the device's time that frames keep where the floor of answers, which it is too slow for, would take more."""
REPLAN = 0.25
"""Seconds between two looks at whether all frame rates fit."""
SLACK = 1.1
"""Times the soonest end of all that wait by which smaller batches may end, where the device has the time."""
MARGIN = 1.25
"""Times its mean that a frame step is left at least, where it must end in time."""
MOST_PERIODS = 8
"""Periods of a stream, within its deadline, that the device may be busy with something else than its frames."""
ROUNDING = 1e-9
"""Seconds by which sums of times may differ."""
SILENT = 2.0
"""Seconds without a frame (three periods, if that is longer) after which a stream asks for no share of the device."""


class Scheduler(Generic[F]):
    def __init__(
        self, *, frames_per_step: int = 1, largest_batch: int = 8, answer_slots: int = 8, pace: Pace | None = None
    ) -> None:
        """`answer_slots` answers may be open at once; the others wait in order of asking."""
        self.frames_per_step, self.largest_batch, self.answer_slots = frames_per_step, largest_batch, answer_slots
        self.frame_costs, self.whole_costs = Costs(), Costs()
        self.looks = Looks()
        self._streams: dict[str, Queue[F]] = {}
        self._answers = Answers(pace or Pace())
        self.prefill_costs, self.decode_costs = self._answers.prefill_costs, self._answers.decode_costs
        self._drops: Counter[tuple[str, str]] = Counter()
        self._planned = float("-inf")
        self._short = self._crowded = False
        self._slack = SLACK
        self._begun = float("inf")
        self._free = float("-inf")
        self._answered_last = False

    @property
    def pace(self) -> Pace:
        """The pace of answers; it may be set."""
        return self._answers.pace

    @pace.setter
    def pace(self, pace: Pace) -> None:
        self._answers.pace = pace

    # Events

    def add_stream(self, name: str, terms: Terms, *, frames_per_second: float = 25.0) -> None:
        """`frames_per_second` is the first guess; the stream's own frames correct it."""
        self._streams[name] = Queue(terms, 1 / frames_per_second)

    def set_terms(self, name: str, terms: Terms) -> None:
        """What a stream is promised has changed."""
        self._streams[name].terms = terms

    def remove_stream(self, name: str) -> None:
        self._streams.pop(name, None)
        self.looks.forget(name)
        for key in [key for key in self._drops if key[0] == name]:
            del self._drops[key]

    def room(self, name: str) -> int:
        """How many frames of a stream that waits may be offered now."""
        return 2 * self.frames_per_step - len(self._streams[name].waiting)

    def offer(self, name: str, frame: F, now: float) -> None:
        """A frame has come. A live stream keeps what could still be seen in time if the device were its own, the newest first."""
        stream = self._streams[name]
        stream.add(frame, now)
        while len(stream.waiting) > self.frames_per_step and not stream.terms.every and self._excess(stream, now):
            self._drops[name, "stale" if stream.late < now else "overload"] += 1
            stream.waiting.popleft()

    def ask(self, answer: str, tokens: int, now: float, shown: int = 0) -> None:
        """A question of `tokens` tokens waits for its answer, which is `shown` so many steps of the past before."""
        self._answers.turns[answer] = Turn(tokens, now, now, shown)

    def shows(self, answer: str, left: int, due: float) -> None:
        """An answer is shown `left` more steps of the past, the next one no sooner than `due`."""
        self._answers.turns[answer].shown, self._answers.turns[answer].due = left, due

    def end_answer(self, answer: str) -> None:
        """An answer is complete, cancelled or failed."""
        self._answers.turns.pop(answer, None)

    def begun(self, step: FrameStep[F]) -> None:
        """A step is prepared beside other decisions, until it is `measured`: they leave it time to end within its deadlines."""
        streams = [(self._streams[name], frames) for name, frames in step.frames if name in self._streams]
        ends = [frames[0].captured + s.terms.deadline for s, frames in streams if frames and not s.terms.every]
        self._begun = min(ends, default=float("inf"))

    def measured(self, decision: Decision[F], seconds: float, took: float | None = None) -> None:
        """What a decision cost, and how long it `took` from its making on where that is longer, for it went on beside others."""
        if isinstance(decision, FrameStep):
            self.frame_costs.learn(len(decision.frames), seconds)
            self.whole_costs.learn(len(decision.frames), seconds if took is None else took)
            self._begun = float("inf")
        elif isinstance(decision, Look):
            self.looks.costs.learn(len(decision.watches), seconds)
        elif isinstance(decision, Decode):
            self.decode_costs.learn(len(decision.answers), seconds)
        elif isinstance(decision, Prefill):
            self.prefill_costs.learn(rounded(decision.tokens), seconds)

    # What can be asked of it

    def take_drops(self) -> dict[tuple[str, str], int]:
        """Frames given up since the last call, by (stream, reason).

        Reasons: `overload` (pushed out by newer ones), `stale` (past the deadline), `rate` (the stream's rate is lowered).
        """
        drops = dict(self._drops)
        self._drops.clear()
        return drops

    def waiting(self, name: str) -> int:
        return len(self._streams[name].waiting)

    def answers(self) -> dict[str, bool]:
        """Every answer that is open or waits, and whether its question has begun to be read, for which it has a slot."""
        return {name: turn.opened for name, turn in self._answers.turns.items()}

    def share(self, name: str) -> float:
        """The part of the stream's frame rate that it may use now, 1 unless the device is short."""
        return self._streams[name].share

    def capacity(self) -> float:
        """Frames a second, of all streams together, that the device surely has time for; inf unknown.

        What steps take beyond their cost counts as well: a second thread's processor may have other things to do.
        """
        each = self.whole_costs.cheapest_each(self.largest_batch) / self.frames_per_step
        return FULL / each if each else float("inf")

    def demand(self) -> float:
        """Frames a second that live streams bring in all; what has not shown its rate yet counts with the first guess."""
        return sum(1 / stream.period for stream in self._streams.values() if not stream.terms.every)

    # Decisions

    def decide(self, now: float, *, frames: bool = True) -> Decision[F]:
        """The next step, taken as begun: the caller carries it out, or ends the answers that it concerns.

        Without `frames` it is a step for answers or none: the caller has a step of frames still before it.
        """
        self._plan(now)
        ready = [name for name, stream in self._streams.items() if frames and self._ready_at(stream) <= now]
        live = [name for name in ready if not self._streams[name].terms.every]
        batch = self._batch(ready, now) if ready else 0
        step = None
        if not (ready and self._answered_last):
            busy = self.frame_costs.estimate(batch) if live else 0.0
            step = self._beside(now, 0.0 if self._short else self.spare(now), now + busy / 2)
        self._answered_last = step is not None
        if step is not None:
            return step
        return self._see(live, ready, batch, now) if ready else Idle(self._wake(now, frames))

    def _beside(self, now: float, spare: float, by: float) -> Prefill | Decode | Replay | Look | None:
        """What is done beside frames: looks that are owed, answers, and the looks that are due."""
        most = self.answer_slots - self._answers.opened if self.looks else 0
        owed = self.looks.next(now, spare, most, owed_by=by) if most else None
        return (
            owed
            or self._answers.next(now, spare, by, self._answer_slots, 2 * self.frame_costs.worst(1))
            or (self.looks.next(now, spare, most) if most else None)
        )

    @property
    def _answer_slots(self) -> int:
        """Those that answers may take: one of several is left to looks where there are watches."""
        return self.answer_slots - (self.answer_slots > 1 and bool(self.looks))

    def _excess(self, stream: Queue[F], now: float) -> bool:
        """Whether more waits than can be in time, or held."""
        takes, begin = self.frame_costs.estimate(1), max(now, self._free)
        slack = stream.slack(begin, takes, self._beyond(1), self.frames_per_step)
        return slack < -ROUNDING or stream.nbytes > MOST_BYTES

    def _ready_at(self, stream: Queue[F]) -> float:
        """When the stream's next step may begin with what waits now."""
        if not stream.waiting:
            return float("inf")
        due = stream.due if stream.share < 1 else float("-inf")
        complete = len(stream.waiting) >= self.frames_per_step or len(stream.waiting) >= self._usual(stream)
        return due if complete else max(due, self._hopes(stream))

    def _hopes(self, stream: Queue[F]) -> float:
        """Until when what waits of a stream waits for another frame to share its step.

        Not at all where what waits is news: it came after a silence, such as the first that a change gate lets through. Never
        longer than the deadline leaves.
        """
        alone = LONE_PERIODS * stream.rhythm
        if stream.terms.every:
            return stream.arrived + min(alone, stream.terms.deadline)
        if stream.sudden:
            return float("-inf")
        takes = self._reserve(1) + self._beyond(1)
        return min(stream.arrived + alone, stream.late - takes)

    def _usual(self, stream: Queue[F]) -> int:
        """Frames that a step usually takes of a stream: one where they come too far apart for two to be in time together.

        Unless the device has no time for that: then two share a step that is late for the older of them.
        """
        takes = MARGIN * self.frame_costs.estimate(1) + self._beyond(1)
        apart = not stream.terms.every and stream.rhythm > stream.terms.deadline - takes
        return 1 if apart and not self._crowded else self.frames_per_step

    def _see(self, live: list[str], ready: list[str], batch: int, now: float) -> FrameStep[F]:
        def latest(name: str) -> float:
            return self._streams[name].late

        patient = [name for name in ready if name not in live]
        chosen = (sorted(live, key=latest) + patient)[:batch]
        cost = self.whole_costs.estimate(len(chosen))
        for name in chosen:
            self._streams[name] = self._streams.pop(name)
        self._free = now + self.frame_costs.estimate(len(chosen))
        return FrameStep(tuple((name, self._take(name, now, now + cost)) for name in chosen))

    def _batch(self, ready: list[str], now: float) -> int:
        """How many streams one step serves: as few as are done with all that wait hardly later, so that none waits in vain.

        Where the device has no time to spare it is the batch that is soonest done with all, as large as leaves the newest frames
        in time where rates are lowered. While answers are open, a step also leaves them time for their floor.
        """
        most = self.frame_costs.thrifty(min(len(ready), self.largest_batch), self._slack)
        longest = 0.8 / self.pace.floor if self._answers else float("inf")
        if self._short:
            alone = self.frame_costs.estimate(1)
            lefts = (self._left(self._streams[name], now) for name in ready)
            longest = min([longest, *(left / MARGIN for left in lefts if left >= alone)])
        while most > 1 and self.frame_costs.estimate(most) > longest:
            most -= 1
        return most

    def _left(self, stream: Queue[F], now: float) -> float:
        """Seconds within which the frame that a stream of lowered rate shows next must be in its state."""
        if stream.terms.every:
            return float("inf")
        shown = stream.waiting[-min(len(stream.waiting), self._usual(stream))]
        return shown.captured + stream.terms.deadline - self._beyond(1) - now

    def _take(self, name: str, now: float, end: float) -> tuple[F, ...]:
        """The frames that a step from `now` to `end` sees of a stream; what is too old or over its share is dropped.

        A stream of lowered rate that had to wait is due again so much the sooner, by a step at most: else its share would
        shrink by what others take.
        """
        stream, n = self._streams[name], self.frames_per_step
        lowered, usual = stream.share < 1, self._usual(stream)
        while len(stream.waiting) > usual and not stream.terms.every:
            if not lowered and end <= stream.late:
                break
            stream.waiting.popleft()
            self._drops[name, "rate" if lowered else "stale"] += 1
        taken = tuple(stream.waiting.popleft() for _ in range(min(n, len(stream.waiting))))
        if lowered:
            stream.due = max(stream.due + usual * stream.period / stream.share, now)
        return taken

    def _live(self, now: float) -> list[Queue[F]]:
        """Streams that drop rather than wait and from which frames are expected."""
        streams = (stream for stream in self._streams.values() if not stream.terms.every)
        return [stream for stream in streams if now - stream.arrived < max(SILENT, 3 * stream.period)]

    def _beyond(self, batch: int) -> float:
        """Seconds that a step takes beyond its cost."""
        return self.whole_costs.estimate(batch) - self.frame_costs.estimate(batch)

    def _reserve(self, batch: int) -> float:
        """Seconds of cost that are left to a step, where it must end in time."""
        return max(MARGIN * self.frame_costs.estimate(batch), self.frame_costs.worst(batch))

    def spare(self, now: float) -> float:
        """Seconds until the device must turn to frames for them to be in time."""
        live = self._live(now)
        batch = min(len(live), self.largest_batch)
        cost = self._reserve(batch)
        spare = self._begun - cost - now
        cost += self._beyond(batch)
        for stream in live:
            last = now if stream.captured is None else stream.captured
            captured = stream.waiting[0].captured if stream.waiting else max(last + stream.period, now)
            periods = min(MOST_PERIODS, int(stream.terms.deadline / stream.period))
            room = max(2 * self.frames_per_step, periods) - len(stream.waiting)
            overflow = max(last + (room + 0.5) * stream.period - now, 0.5 * stream.period) if room > 0 else 0.0
            spare = min(spare, captured + stream.terms.deadline - cost - now, overflow)
        return spare

    def _wake(self, now: float, frames: bool) -> float | None:
        """When time alone makes something ready."""
        times = [self._ready_at(stream) for stream in self._streams.values() if frames]
        times.append(self._answers.wake(now, self._answer_slots))
        if self.looks and self._answers.opened < self.answer_slots:
            times.append(self.looks.wake(now))
        soonest = min(times, default=float("inf"))
        return None if soonest == float("inf") else soonest

    def _plan(self, now: float) -> None:
        """Lowers the frame rates of live streams where they do not fit the device: to one rate, times priority.

        A stream whose own rate is below that keeps it.
        """
        if now < self._planned + REPLAN:
            return
        self._planned, self._short, self._crowded, self._slack = now, False, False, SLACK
        for stream in self._streams.values():
            stream.share = 1.0
        live = self._live(now)
        if not live:
            return
        each = self.frame_costs.cheapest_each(min(len(live), self.largest_batch)) / self.frames_per_step
        speaking, load = len(self._answers.speaking()), sum(each / stream.period for stream in live)
        token = self.decode_costs.estimate(speaking) if speaking else 0.0
        self._slack = min(SLACK, max(1.0, (FULL - token * self.pace.ceiling) / load)) if load else SLACK
        room = max(FULL - token * self.pace.floor, KEPT)
        steps = (1 / self._usual(stream) / max(stream.period, stream.rhythm) for stream in live)
        self._crowded = each * self.frames_per_step * sum(steps) > room
        if load <= room:
            return
        self._short = True
        frames, weights = room / each, float(sum(stream.terms.priority for stream in live))
        for stream in sorted(live, key=lambda stream: 1 / (stream.period * stream.terms.priority)):
            rate = min(1 / stream.period, frames * stream.terms.priority / weights)
            stream.share = rate * stream.period
            frames -= rate
            weights -= stream.terms.priority
