"""On a device a step of frames begins behind the one that still runs there."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from model.serving.backends import Finite
from streamer.engine.standing import Standing

from .fed import Bench
from .test_engine import feed, held, same, state


@pytest.fixture(autouse=True)
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, whatever the machine has."""
    monkeypatch.setattr("streamer.engine.engine.os.sched_getaffinity", lambda pid: {0, 1})


def most_begun(bench: Bench) -> list[int]:
    """How many steps had begun and not ended whenever one began, from now on."""
    backend, found, going = bench.engine.runner.backend, [], []
    ingest = backend.ingest

    def begin(*step: Any) -> Finite:
        end = ingest(*step)
        going.append(end)
        found.append(len(going))

        def ended() -> list[bool]:
            going.remove(end)
            return end()

        return ended

    backend.ingest = begin  # type: ignore[method-assign]
    return found


def test_a_device_goes_from_a_step_to_the_next() -> None:
    """The next step begins behind the one that runs, never a third, and memories are as if each had waited."""
    plain, bench = Bench(), Bench(deferred=True)
    for each in (plain, bench):
        each.add("left"), each.add("right")
        each.show(0, "left", "right")
    found = most_begun(bench)
    for each in (plain, bench):
        for seed in range(1, 7):
            feed(each, seed, "left", "right")
            each.engine.turn()
        each.until(lambda each=each: all(stream.frames_seen == 14 for stream in each.streams.values()))  # type: ignore[misc]
    assert max(found) == 2
    for name in ("left", "right"):
        assert same(state(bench, name), state(plain, name))


def test_a_step_behind_one_that_lost_a_memory_is_not_counted_as_seen() -> None:
    bench = Bench(deferred=True)
    bench.add("left")
    bench.show(0, "left")
    found, left = most_begun(bench), bench.streams["left"]
    bench.engine.runner.state.delta[:, left.slot] = float("nan")
    for seed in (1, 2):
        feed(bench, seed, "left")
    bench.until(lambda: left.drops["failed"] == 4)
    assert found == [1, 2], "the second step did not begin behind the first"
    assert [name for name, _ in bench.resets] == ["left"]
    assert left.frames_seen == 2 and not left.opened
    bench.show(3, "left")
    assert left.frames_seen == 4 and left.generation == 2
    assert all(torch.isfinite(value).all() for value in state(bench, "left").values() if value.is_floating_point())


def test_what_is_asked_of_the_engine_waits_for_both_steps() -> None:
    bench = Bench(deferred=True)
    bench.add("left")
    bench.show(0, "left")
    found = most_begun(bench)
    for seed in (1, 2, 3):
        feed(bench, seed, "left")
    bench.until(lambda: 2 in found)
    told = bench.engine.call(lambda: (bench.engine._running, bench.engine._looking))
    bench.until(told.done)
    assert told.result() == (None, None)
    bench.until(lambda: bench.streams["left"].frames_seen == 8)


@pytest.mark.parametrize("lost", [False, True])
def test_a_step_that_can_not_begin_behind_another_begins_after_it(lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures could not be looked at: they are again, once the step before has ended and whatever that has lost."""
    plain, bench = Bench(), Bench(deferred=True)
    for each in (plain, bench):
        each.add("left")
        each.show(0, "left")
    runner, left, going = bench.engine.runner, bench.streams["left"], []
    encode = runner.encode

    def failing(*pictures: Any) -> object:
        going.append(pictures)
        if len(going) == 2:
            raise RuntimeError("out of memory")
        return encode(*pictures)

    monkeypatch.setattr(runner, "encode", failing)
    if lost:
        runner.state.delta[:, left.slot] = float("nan")
    for seed in (1, 2):
        feed(bench, seed, "left")
    bench.until(lambda: left.held == 0 and left.taken == 6)
    for seed in (2,) if lost else (1, 2):
        if lost:
            plain.engine.executor.forget(plain.streams["left"])
        plain.show(seed, "left")
    assert (left.frames_seen, left.drops["failed"]) == ((4, 2) if lost else (6, 0))
    assert len(bench.resets) == lost and same(state(bench, "left"), state(plain, "left"))


class Late(deque[Any]):
    """An inbox that something comes to just after somebody has looked whether it is empty."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def __bool__(self) -> bool:
        if came := len(self) > 0:
            return came
        if self.call is not None:
            self.append(self.call)
            self.call = None
        return False


def test_what_is_asked_at_the_last_moment_waits_for_the_step_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.add("left")
    bench.show(0, "left")
    go, found = held(bench, monkeypatch), list[object]()
    feed(bench, 1, "left")
    bench.engine.turn()
    assert bench.engine._looking is not None
    bench.engine._inbox = Late(lambda: found.append(bench.engine._looking))
    bench.engine.turn()
    go.set()
    bench.until(lambda: bool(found))
    assert found == [None]


class Onlooker:
    def __init__(self) -> None:
        self.told: Future[str] = Future()

    def unchanged(self, seen: object) -> None:
        self.told.set_result("unchanged")

    def looked(self, seen: object, answer: object) -> None:
        self.told.set_result("looked")

    def failed(self, error: str) -> None:
        self.told.set_result(error)


def test_a_look_at_a_part_of_a_picture_waits_for_the_step_that_it_hurries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look at pictures; what it asks of the model comes behind the step's end."""
    bench = Bench(deferred=True)
    bench.add("left")
    bench.show(0, "left")
    go, onlooker = held(bench, monkeypatch), Onlooker()
    feed(bench, 1, "left")
    bench.until(lambda: bench.engine._looking is not None)
    tokens = bench.engine.runner.tokenizer.encode_question("Is it?")
    bench.engine.executor.watch(Standing("w", "left", tokens, 60.0, None, onlooker, (0.0, 0.0, 0.5, 0.5)))
    threading.Timer(0.1, go.set).start()
    bench.until(onlooker.told.done)
    assert onlooker.told.result() == "looked"


def test_a_step_that_is_looked_at_is_not_forgotten_when_the_one_before_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers leave it the time that its deadline asks for."""
    bench = Bench(deferred=True)
    bench.add("left", policy="newest")
    bench.show(0, "left")
    go = held(bench, monkeypatch)
    go.set()
    feed(bench, 1, "left")
    bench.until(lambda: bench.engine._running is not None)
    go.clear()
    feed(bench, 2, "left")
    bench.until(lambda: bench.engine._looking is not None)
    done = bench.engine.spare(lambda: (bench.engine._running, bench.engine.scheduler._begun), 0.0)
    bench.until(done.done)
    go.set()
    running, begun = done.result()
    assert running is None and begun < float("inf")
    bench.until(lambda: bench.streams["left"].frames_seen == 6)
