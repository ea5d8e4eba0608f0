"""What was recorded after a snapshot, shown again, makes the state that the model had live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model.state import Snapshot
from streamer import Assistant
from streamer.engine.decisions import FrameStep, Idle, Prefill, Replay
from streamer.engine.pace import Pace
from streamer.engine.queue import Terms
from streamer.engine.scheduler import Scheduler
from streamer.memory import recording
from streamer.memory import replay as replaying
from streamer.memory.footage import Piece
from streamer.memory.replay import Plan, find_replay, plan
from streamer.memory.segment import Facts, Notes, Shown, Step
from streamer.memory.snapshot import Taken, load
from tests.capture.lab import render
from tests.memory.test_restart import config, run
from tests.streamer.serving import eventually


def taken(sequence: int, wall: float, generation: int = 1) -> Taken:
    return Taken("door", "x", wall, 0.0, 0.0, sequence, generation, 0, "tiny", "f", "v")


def piece(number: int, run: str, frames: dict[int, float], steps: list[tuple[int, ...]], generation: int = 1) -> Piece:
    facts = Facts(run, 1, 0.0, (1, 1000), None, False, 640, True)
    shown = [Shown(sequence, number, sequence * 40, wall) for sequence, wall in frames.items()]
    seen = [Step(generation, tuple((each, each * 0.04) for each in step)) for step in steps]
    return Piece(recording.Segment(number, 0, 100, 1, Path("x")), Notes(facts, shown, seen))


def sequences(made: Plan | None) -> list[tuple[int, ...]]:
    assert made is not None
    return [tuple(shown.sequence for shown, _ in step) for step in made.steps]


class Counted(list[Shown]):
    """Counts how often somebody goes through it."""

    looks = 0

    def __iter__(self) -> Iterator[Shown]:
        self.looks += 1
        return super().__iter__()


def test_a_segments_captures_are_put_in_order_once() -> None:
    """Whatever the number of its packets, each of which asks when it was captured."""
    some = piece(1, "a", {n: 100 + n / 25 for n in reversed(range(50))}, [])
    frames = Counted(some.notes.frames)
    some = Piece(some.segment, Notes(some.notes.facts, frames, []))
    assert [some.wall(40 * n + 10) for n in range(50)] == pytest.approx([100.01 + n / 25 for n in range(50)])
    assert frames.looks == 1


def test_the_plan_is_what_was_seen_from_the_snapshot_on() -> None:
    first = piece(1, "a", {n: n / 10 for n in range(6)}, [(0, 1), (2, 3)])
    second = piece(2, "a", {n: n / 10 for n in range(6, 12)}, [(4, 5), (6,), (7, 8), (9, 10)])
    before = piece(0, "z", {n: n / 10 + 70 for n in range(12)}, [(2, 3)])
    run = [before, first, second]
    made = plan(run, taken(3, 0.3), 0.85)
    assert sequences(made) == [(4, 5), (6,), (7, 8)] and made is not None and made.complete
    assert sequences(plan(run, taken(3, 0.3), 0.75)) == [(4, 5), (6,)], "a step that ends later was not seen by then"
    assert plan(run, taken(30, 0.3), 1) is None and plan(run, taken(3, 40), 50) is None
    holed = piece(2, "a", {n: n / 10 for n in (6, 8, 9)}, [(4, 5), (6,), (7, 8), (9,)])
    made = plan([first, holed], taken(3, 0.3), 2)
    assert sequences(made) == [(4, 5), (6,)] and made is not None and not made.complete
    begun = piece(3, "a", {12: 1.2, 13: 1.3}, [(12, 13)], generation=2)
    made = plan([first, second, begun], taken(3, 0.3), 2)
    assert sequences(made)[-1] == (9, 10) and made is not None and not made.complete


@dataclass(frozen=True)
class Still:
    captured: float


def test_the_past_is_shown_in_spare_time() -> None:
    scheduler: Scheduler[Still] = Scheduler(answer_slots=1, pace=Pace(floor=4, ceiling=30))
    for costs in (scheduler.frame_costs, scheduler.whole_costs):
        costs.learn(1, 0.025)
    scheduler.ask("past", 10, 0.0, shown=2)
    scheduler.ask("next", 10, 0.0)
    assert scheduler.decide(0.0) == Prefill("next", 10), "others' questions do not wait for it"
    scheduler.end_answer("next")
    assert scheduler.decide(0.0) == Replay("past") and scheduler.answers() == {"past": True}
    scheduler.shows("past", 2, 0.01)  # its pictures are not decoded yet
    assert scheduler.decide(0.0) == Idle(0.01)
    assert scheduler.decide(0.01) == Replay("past")
    scheduler.shows("past", 1, 0.01)
    scheduler.add_stream("door", Terms(0.05, 1, False), frames_per_second=25)
    shown: list[Replay] = []
    for n in range(20):  # a device that is busy: 25 of 40 ms go to frames, which leaves no room for twice that
        now = 1 + n * 0.04
        scheduler.offer("door", Still(now), now)
        decisions = [scheduler.decide(now), scheduler.decide(now + 0.026), scheduler.decide(now + 0.03)]
        assert any(isinstance(each, FrameStep) for each in decisions)
        shown += [each for each in decisions if isinstance(each, Replay)]
    assert 1 <= len(shown) <= 5, "as often as the floor promises"
    scheduler.remove_stream("door")
    scheduler.shows("past", 0, 3.0)
    assert scheduler.decide(3.0) == Prefill("past", 10)


def largest_difference(a: Snapshot, b: Snapshot) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


async def asked(assistant: Assistant, moment: float, before: float) -> None:
    """Asking says how the moment was reached; whoever goes away meanwhile takes its slot along."""
    answer = assistant.ask("What is there?", max_tokens=4, at=moment + 0.001)
    await answer.text()
    assert answer.moment is not None and answer.finish_reason == "length", answer.error
    facts = answer.moment.facts()
    assert facts["how"] == "exact" and answer.moment.reached == pytest.approx(moment, abs=0.01)
    assert assistant.engine.steps["replay"] >= 15
    gone = assistant.ask("What is there?", max_tokens=4, at=moment + 0.001)
    await asyncio.sleep(0.05)
    gone.cancel()
    await eventually(lambda: not assistant._answers and len(assistant.engine.executor.free_answers) == 2)
    assert assistant.keeper is not None
    assistant.keeper.past._longest = 0.1
    far = assistant.ask("What is there?", max_tokens=4, at=moment)
    await far.text()
    assert far.moment is not None and far.moment.reached == before and far.moment.facts()["how"] == "nearest snapshot"


@pytest.mark.parametrize("kind", ["copied", "late"])
def test_replayed_is_as_it_was_live(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "SEGMENT_SECONDS", 1.0)
    # Long enough for any pause: where it begins again, what was seen of it before can't be replayed.
    clip = render(tmp_path / "clip.mp4", 1_000, size=(160, 90), options={"bf": "2"} if kind == "late" else None)
    door: dict[str, Any] = {"name": "door", "source": str(clip), "record": True, "loop": True, "fps": 12.5}

    async def test() -> None:
        async with Assistant(config(tmp_path / "state", door, every=60)) as assistant:
            keeper, engine, stream = assistant.keeper, assistant.engine, assistant._streams["door"]
            assert keeper is not None
            await eventually(lambda: stream.frames_seen > 20)
            await keeper.take([stream])
            await eventually(lambda: bool(keeper.snapshots.of("door")))
            kept = keeper.snapshots.of("door")[-1]
            seen = stream.frames_seen
            await eventually(lambda: stream.frames_seen > seen + 30)

            def now() -> tuple[float, Snapshot]:
                assert stream.newest is not None
                return time.time() - time.monotonic() + stream.newest.captured, engine.runner.snapshot(stream.slot)

            moment, live = await asyncio.wrap_future(engine.call(now))
            facts, state = await asyncio.to_thread(load, kept.path)
            made: Plan | None = None
            async with asyncio.timeout(60):  # the notes are on their way to the disk
                while made is None or made.steps[-1][-1][0].wall < moment - 0.01:
                    await asyncio.sleep(0.1)
                    made = await asyncio.to_thread(find_replay, keeper.recordings, "door", facts, moment + 0.001)
            assert made.complete and sum(len(step) for step in made.steps) >= 30
            told: list[tuple[float, int]] = []
            replay = replaying.Replay(made, lambda step, count: told.append((step.wall, count)))
            steps = []
            while len(steps) < replay.count:
                if (step := await asyncio.to_thread(replay.take)) is None:
                    await asyncio.sleep(0.005)
                else:
                    steps.append(step)
            assert told[-1] == (pytest.approx(moment, abs=0.01), replay.count)

            def again() -> Snapshot:
                runner, slot = engine.runner, engine.executor.free_answers[-1]
                runner.restore(slot, state)
                for step in steps:
                    assert runner.see([slot], [list(step.pixels)], [runner.moment(step.times)]) == [True]
                return runner.snapshot(slot)

            replayed = await asyncio.wrap_future(engine.call(again))
            assert largest_difference(live, replayed) < 1e-4
            assert largest_difference(live, state) > 1e-2
            await asked(assistant, moment, kept.wall)

    run(test())
