"""What is tried before the first frame, and how often, on a virtual clock; and that a slow model's warm-up asks for little."""

from __future__ import annotations

import pytest

from capture import Frame
from model import load_runner
from streamer.engine.decisions import Decision, Decode, FrameStep, Look, Prefill
from streamer.engine.pace import Pace
from streamer.engine.scheduler import Scheduler
from streamer.engine.warmup import Trial, cost, shortly, twice, warm_up
from tests.tiny import TINY


class Machine:
    """Steps that take so many seconds, and the first of a size `making` more where something is made for it; counts tries."""

    def __init__(self, seconds: dict[int, float], making: float = 0.0) -> None:
        self.seconds, self.making = seconds, making
        self.made, self.tried = 0, list[int]()
        self.told: dict[int, float] = {}
        self.clock = 0.0

    def run(self, size: int) -> tuple[float, float]:
        took = self.seconds[size]
        if self.making and size not in self.tried:
            took, self.made = took + self.making, self.made + 1
        self.tried.append(size)
        self.clock += took
        return took, took

    def trials(self) -> list[Trial]:
        """The largest first, as the runner names them."""
        sizes = sorted(self.seconds, reverse=True)
        return [Trial(Prefill("", size), size, lambda size=size: self.run(size)) for size in sizes]  # type: ignore[misc]

    def tell(self, step: Decision[Frame], seconds: float, took: float) -> None:
        assert isinstance(step, Prefill)
        self.told[step.tokens] = seconds

    def shortly(self) -> int:
        """Tries them, and says how many sizes."""
        return sum(1 for _ in shortly(self.trials(), self.tell, lambda: self.made))


def test_the_second_try_is_told_where_something_was_made_in_the_first() -> None:
    machine = Machine({1: 0.5, 2: 0.9}, making=1.0)
    assert machine.shortly() == 2
    assert machine.tried == [1, 1, 2, 2] and machine.told == {1: 0.5, 2: 0.9}


def test_a_long_step_for_which_nothing_was_made_is_tried_once() -> None:
    machine = Machine({1: 0.5, 2: 0.9})
    assert machine.shortly() == 2
    assert machine.tried == [1, 1, 2] and machine.told == {1: 0.5, 2: 0.9}  # the smallest stands for all the rest


def test_short_steps_are_all_tried_twice() -> None:
    machine = Machine({1: 0.01, 2: 0.02, 4: 0.04, 8: 0.07})
    assert machine.shortly() == 4
    assert machine.tried == [1, 1, 2, 2, 4, 4, 8, 8]


def test_what_would_take_too_long_is_known_in_proportion() -> None:
    """As a model of a step in 0.9 s would have it: eight streams are as eight of one, and the whole warm-up is a few seconds."""
    machine = Machine({1: 0.9, 2: 1.7, 4: 3.5, 8: 7.0})
    assert machine.shortly() == 2
    assert machine.tried == [1, 1, 2] and machine.clock < 4
    scheduler: Scheduler[Frame] = Scheduler(frames_per_step=2, largest_batch=8, answer_slots=1, pace=Pace())
    for size, seconds in machine.told.items():
        scheduler.measured(FrameStep((("", ()),) * size), seconds)
    assert scheduler.frame_costs.estimate(8) == pytest.approx(4 * 1.7)
    scheduler.measured(FrameStep((("", ()),) * 8), 7.0)  # the first of them says more
    assert scheduler.frame_costs.estimate(8) == 7.0


def test_the_smallest_size_is_tried_however_long_it_takes() -> None:
    machine = Machine({1: 60.0, 2: 120.0})
    assert machine.shortly() == 1 and machine.told == {1: 60.0}


def test_elsewhere_every_size_is_tried_twice_the_largest_first() -> None:
    machine = Machine({1: 0.9, 2: 1.7, 8: 7.0})
    assert sum(1 for _ in twice(machine.trials(), machine.tell)) == 3
    assert machine.tried == [8, 8, 2, 2, 1, 1]


def test_progress_counts_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model whose every step would take a minute: one of each kind, but all sizes of decoding, whose cost is the weights'."""
    runner = load_runner(TINY["name"], slots=5, random_weights=True)
    scheduler: Scheduler[Frame] = Scheduler(frames_per_step=2, largest_batch=2, answer_slots=3, pace=Pace())
    monkeypatch.setattr("streamer.engine.warmup.cost", lambda do, look=None: (do(), (60.0, 60.0))[1])
    told: list[tuple[int, int]] = []
    measured: list[Decision[Frame]] = []
    monkeypatch.setattr(scheduler, "measured", lambda step, *seconds: measured.append(step))
    warm_up(runner, scheduler, 2, 3, ahead=False, progress=lambda done, of: told.append((done, of)))
    kinds = [type(step) for step in measured]
    assert kinds == [FrameStep, Prefill, Decode, Decode, Decode, Look]
    assert [done for done, _ in told] == sorted(done for done, _ in told) and {of for _, of in told} == {12}
    assert told[0][0] == 0 and told[-1] == (12, 12)


def test_a_step_on_two_threads_costs_what_the_slower_takes_and_takes_both(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1.0, 4.0, 6.0, 1.0, 4.0, 9.0))
    monkeypatch.setattr("streamer.engine.warmup.time.monotonic", lambda: next(times))
    costs = [cost(lambda _: None, lambda: None) for _ in range(2)]  # type: ignore[arg-type, return-value]
    monkeypatch.undo()
    assert costs == [(3.0, 5.0), (5.0, 8.0)]
