"""A virtual device, cameras and askers around the scheduler, on a virtual clock."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from streamer.engine.decisions import Decision, Decode, FrameStep, Idle, Look, Prefill
from streamer.engine.pace import Pace
from streamer.engine.queue import Terms
from streamer.engine.scheduler import Scheduler


@dataclass(frozen=True)
class Picture:
    captured: float
    sequence: int
    nbytes: int = 0


class World:
    """Plays events in order of time and carries out each decision at its cost, which was tried out as the engine does."""

    def __init__(
        self,
        *,
        frames: Callable[[int], float] = lambda n: 0.01 * n,
        decode: Callable[[int], float] = lambda n: 0.005 + 0.001 * n,
        prefill: Callable[[int], float] = lambda n: 0.001 * n,
        look: Callable[[int], float] = lambda n: 0.004 + 0.002 * n,
        frames_per_step: int = 1,
        answer_slots: int = 8,
        largest_batch: int = 8,
        pace: Pace | None = None,
    ) -> None:
        self.costs = {FrameStep: frames, Decode: decode, Prefill: prefill, Look: look}
        self.scheduler: Scheduler[Picture] = Scheduler(
            frames_per_step=frames_per_step, answer_slots=answer_slots, largest_batch=largest_batch, pace=pace
        )
        for n in (1, 2, 4, 8):
            self.scheduler.measured(FrameStep((("", ()),) * n), frames(n))
            self.scheduler.measured(Look("", ("",) * n), look(n))
        self.now = 0.0
        self.busy: Counter[type] = Counter()
        self.steps: list[tuple[float, Decision[Picture]]] = []
        self.offered: Counter[str] = Counter()
        self.seen: dict[str, list[tuple[float, Picture]]] = defaultdict(list)
        self.drops: Counter[tuple[str, str]] = Counter()
        self.left: dict[str, int] = {}
        self.length: dict[str, int] = {}
        self.asked: dict[str, float] = {}
        self.tokens: dict[str, list[float]] = defaultdict(list)
        self.chained: dict[str, Callable[[], None]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, do))

    def camera(
        self,
        name: str,
        rate: float,
        until: float,
        *,
        start: float = 0.0,
        deadline: float = 0.2,
        priority: int = 1,
        jitter: float = 0.0,
    ) -> None:
        """Frames of a stream; each is offered up to `jitter` seconds (less than a period) after its capture."""
        self.scheduler.add_stream(name, Terms(deadline, priority), frames_per_second=rate)
        chance = random.Random(name)
        for i in range(round((until - start) * rate)):
            captured = start + i / rate
            offer = partial(self.offer, name, i, captured)
            self.at(captured + jitter * chance.random(), offer)

    def recording(self, name: str, until: float, frames: int | None = None) -> None:
        """A stream that waits instead of dropping and is offered what it has room for, of `frames` in all."""
        self.scheduler.add_stream(name, Terms(every=True))

        def refill() -> None:
            while self.scheduler.room(name) > 0 and (frames is None or self.offered[name] < frames):
                self.offer(name, self.offered[name])

        for i in range(round(until * 100)):
            self.at(i * 0.01, refill)

    def offer(self, name: str, sequence: int, captured: float | None = None) -> None:
        self.offered[name] += 1
        self.scheduler.offer(name, Picture(self.now if captured is None else captured, sequence), self.now)

    def ask(self, answer: str, *, question: int = 20, length: int = 20) -> None:
        self.left[answer], self.length[answer], self.asked[answer] = question, length, self.now
        self.scheduler.ask(answer, question, self.now)

    def asker(self, name: str, until: float, *, question: int = 20, length: int = 20) -> None:
        """Asks again as soon as it is answered."""
        rounds = iter(range(1_000_000))

        def again() -> None:
            if self.now < until:
                answer = f"{name}-{next(rounds)}"
                self.chained[answer] = again
                self.ask(answer, question=question, length=length)

        self.at(0.0, again)

    def run(self, until: float) -> None:
        while True:
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            decision = self.scheduler.decide(self.now)
            if isinstance(decision, Idle):
                times = [self._events[0][0]] if self._events else []
                times += [decision.until] if decision.until is not None else []
                if not times or min(times) > until:
                    break
                assert min(times) > self.now, "the scheduler spins"
                self.now = min(times)
                continue
            self._carry_out(decision)
            if self.now > until:
                break
        self.drops.update(self.scheduler.take_drops())

    def _carry_out(self, decision: Decision[Picture]) -> None:
        self.steps.append((self.now, decision))
        size = (
            len(decision.frames)
            if isinstance(decision, FrameStep)
            else len(decision.answers)
            if isinstance(decision, Decode)
            else decision.tokens
            if isinstance(decision, Prefill)
            else len(decision.watches)
            if isinstance(decision, Look)
            else 0
        )
        cost = self.costs[type(decision)](size)
        begin, end = self.now, self.now + cost
        while self._events and self._events[0][0] <= end:
            when, _, do = heapq.heappop(self._events)
            self.now = when
            do()
        self.now = end
        self.busy[type(decision)] += cost  # type: ignore[assignment]
        self.scheduler.measured(decision, end - begin)
        if isinstance(decision, FrameStep):
            for name, frames in decision.frames:
                assert 1 <= len(frames) <= self.scheduler.frames_per_step
                self.seen[name] += [(end, frame) for frame in frames]
                self.scheduler.looks.seen(name)
        elif isinstance(decision, Prefill):
            self.left[decision.answer] -= decision.tokens
            assert self.left[decision.answer] >= 0
            if not self.left[decision.answer]:
                self._token(decision.answer)
        elif isinstance(decision, Decode):
            for answer in decision.answers:
                assert not self.left[answer], "spoke before its question was read"
                self._token(answer)

    def _token(self, answer: str) -> None:
        self.tokens[answer].append(self.now)
        if len(self.tokens[answer]) >= self.length[answer]:
            self.scheduler.end_answer(answer)
            if answer in self.chained:
                self.chained[answer]()

    def first_token(self, answer: str) -> float:
        return self.tokens[answer][0] - self.asked[answer]

    def lags(self, name: str) -> list[float]:
        return [end - frame.captured for end, frame in self.seen[name]]

    def dropped(self, name: str) -> int:
        return sum(n for (stream, _), n in self.drops.items() if stream == name)

    def check_accounts(self) -> None:
        """Every frame offered was seen, dropped with a reason, or waits; and order was kept."""
        for name, offered in self.offered.items():
            assert offered == len(self.seen[name]) + self.dropped(name) + self.scheduler.waiting(name)
            order = [frame.sequence for _, frame in self.seen[name]]
            assert order == sorted(set(order))
