"""The engine with a real model: questions never touch streams, failures stay where they happen, slots come back."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from capture import Frame
from model import Sampling
from model.serving.backends import Finite
from model.serving.sampling import draw
from model.serving.traced import TRACEABLE, TracedInfiniteVL
from streamer.engine.pace import Turn
from tests.adding_up import FOUND

from .fed import Bench, picture


def state(bench: Bench, name: str) -> dict[str, torch.Tensor]:
    return bench.engine.runner.snapshot(bench.streams[name].slot)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


STEPS = 12


def watch(seed: int | None, *, deferred: bool = False) -> Bench:
    """Two streams over some steps; with a seed, questions are asked and cancelled at random between and during them."""
    bench = Bench(deferred=deferred)
    bench.add("left"), bench.add("right")
    chance = random.Random(seed)
    ears = {}
    for step in range(STEPS):
        bench.show(step, "left", "right")
        if seed is None:
            continue
        for _ in range(chance.randrange(3)):
            id = f"q{len(ears)}"
            ears[id] = bench.ask(id, chance.choice(["left", "right"]), length=chance.randrange(1, 12), seed=len(ears))
        for _ in range(chance.randrange(6)):
            bench.engine.turn()
        going = [id for id, ear in ears.items() if ear.reason is None]
        if going and chance.random() < 0.6:
            bench.engine.cancel(chance.choice(going))
    if seed is not None:  # of the others each may have been cancelled, or have ended before its turn came
        ears["whole"] = bench.ask("whole", "left", length=25)
        bench.until(lambda: ears["whole"].reason is not None)
        ears["last"] = bench.ask("last", "left", length=50)
        bench.until(lambda: ears["last"].tokens > 0)
        bench.engine.cancel("last")
    bench.until(lambda: all(ear.reason for ear in ears.values()))
    if seed is not None:
        assert {"length", "cancelled"} <= {ear.reason for ear in ears.values()} <= {"length", "cancelled", "stop"}
        assert sum(ear.tokens for ear in ears.values()) > 20
    return bench


def test_questions_leave_the_stream_bit_identical() -> None:
    quiet = watch(None)
    for seed, deferred in ((1, False), (2, False), (1, True), (2, True), (None, True)):
        asked = watch(seed, deferred=deferred)
        for name in ("left", "right"):
            assert asked.streams[name].frames_seen == quiet.streams[name].frames_seen == 2 * STEPS
            assert same(state(asked, name), state(quiet, name))
    assert not same(state(quiet, "left"), state(quiet, "right"))


def test_the_comparison_would_notice_a_touch() -> None:
    bench = Bench()
    bench.add("left")
    bench.show(0, "left")
    before = state(bench, "left")
    bench.engine.runner.prefill(bench.streams["left"].slot, [1, 2, 3], Sampling())
    assert not same(before, state(bench, "left"))


def test_of_the_likeliest_token_alone_nothing_is_left_to_chance() -> None:
    bench = Bench()
    bench.add("left")
    bench.show(0, "left")
    ears = [
        bench.ask(f"q{top_k}", "left", temperature=temperature, top_k=top_k) for temperature, top_k in ((2, 1), (0, 9))
    ]
    bench.until(lambda: all(ear.reason for ear in ears))
    assert ears[0].text and ears[0].text == ears[1].text


def test_an_answer_is_what_the_model_says_alone() -> None:
    bench = Bench()
    bench.add("left")
    bench.show(0, "left")
    ears = [bench.ask(f"q{i}", "left", length=6, words="What is it?", seed=7) for i in range(3)]
    bench.until(lambda: all(ear.reason for ear in ears))
    runner, how = bench.engine.runner, Sampling(1.0, 0.9, 7)
    runner.fork(bench.streams["left"].slot, 4)
    token = runner.prefill(4, runner.tokenizer.encode_question("What is it?"), how)
    spoken = []
    while token not in runner.tokenizer.stops and len(spoken) < 6:
        spoken.append(token)
        token = runner.decode([4], [token], [how])[0]
    voice = runner.tokenizer.detokenizer()
    alone = "".join(voice.push(token) for token in spoken) + voice.flush()
    assert [ear.text for ear in ears] == [alone] * 3
    assert all(ear.tokens == len(spoken) for ear in ears)


@pytest.mark.skipif(not TRACEABLE, reason="PyTorch traces up to Python 3.13")
def test_what_is_served_was_traced_in_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace made between two frames would hold these up for a fifth of a second."""
    monkeypatch.setattr("model.serving.traced.TRACES", {})
    bench = Bench()
    steps = bench.engine.runner.backend.steps
    assert isinstance(steps, TracedInfiniteVL)
    made = set(steps.traces)
    bench.add("left")
    bench.show(0, "left")
    for words in ("What?", "What is it? " * 10, "What is it? " * 60):
        ears = [bench.ask(f"{words} {i}", "left", words=words, length=4 + 4 * i) for i in range(3)]
        bench.until(lambda ears=ears: all(ear.reason for ear in ears))  # type: ignore[misc]
        bench.show(1, "left")
    assert made == set(steps.traces)
    assert {"encode", "ingest", "decode", "read"} <= {key[0] for key in made}


def test_what_draws_tokens_is_used_before_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it is loaded then; afterwards answers that are not drawn are the likeliest tokens again."""
    drawn: list[Sampling] = []

    def noting(logits: torch.Tensor, how: Sampling, *more: Any) -> int:
        drawn.append(how)
        return draw(logits, how, *more)

    monkeypatch.setattr("model.serving.runner.draw", noting)
    bench = Bench(answers=2)
    every = [how for how in drawn if how.temperature and how.top_k and how.top_p < 1 and how.presence_penalty]
    assert len(every) == 2, "a first token, and one that what was said counts for"
    assert set(bench.engine.runner.generators.values()) == {None}


def held(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """From now on pictures are looked at once the event is set."""
    encode, go = bench.engine.runner.encode, threading.Event()
    monkeypatch.setattr(bench.engine.runner, "encode", lambda *pictures: (go.wait(20), encode(*pictures))[1])
    return go


def feed(bench: Bench, seed: int, *names: str) -> None:
    for name in names:
        for i in range(bench.engine.runner.frames_per_step):
            bench.sources[name].feed(picture(1000 * seed + 10 * i + ord(name[0])))


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, whatever the machine has."""
    monkeypatch.setattr("streamer.engine.engine.os.sched_getaffinity", lambda pid: {0, 1})


def test_looking_ahead_changes_no_bit(ahead: None, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = watch(None)
    monkeypatch.setattr("streamer.engine.engine.os.sched_getaffinity", lambda pid: {0})
    alone = watch(None)
    assert beside.engine._looker is not None and alone.engine._looker is None
    for name in ("left", "right"):
        assert same(state(beside, name), state(alone, name))


def test_a_model_that_has_every_core_looks_at_its_pictures_itself(ahead: None) -> None:
    before = torch.get_num_threads()
    try:
        bench = Bench(threads=2)
        assert bench.engine._looker is None and torch.get_num_threads() == bench.engine.threads == 2
        bench.add("left")
        bench.show(0, "left")
        assert bench.streams["left"].frames_seen == bench.engine.runner.frames_per_step
    finally:
        torch.set_num_threads(before)


def test_answers_go_on_while_pictures_are_looked_at(ahead: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.add("left", policy="newest")
    bench.show(0, "left")
    ear = bench.ask("a", "left", length=6)
    bench.until(lambda: ear.tokens > 0)
    go = held(bench, monkeypatch)
    feed(bench, 1, "left")
    bench.until(lambda: bench.engine._looking is not None)
    bench.until(lambda: ear.tokens > 2)
    assert bench.streams["left"].frames_seen == 2 and bench.engine.scheduler._begun < float("inf")
    go.set()
    bench.until(lambda: bench.streams["left"].frames_seen == 4)
    bench.until(lambda: ear.reason is not None)


def test_a_question_waits_for_no_picture(ahead: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while nothing is to be done but wait for pictures to be looked at: it is read and answered meanwhile."""
    bench = Bench()
    bench.add("left")
    bench.show(0, "left")
    go = held(bench, monkeypatch)
    feed(bench, 1, "left")
    bench.engine.turn()
    looking = bench.engine._looking
    assert looking is not None and bench.engine.turn() is None, "the engine blocks"
    assert bench.engine.stuck_for(looking.submitted + 3) == pytest.approx(3)
    ear = bench.ask("a", "left", length=3)
    bench.until(lambda: ear.reason is not None)
    assert bench.streams["left"].frames_seen == 2 and ear.tokens > 0
    bench.engine._wake.clear()
    go.set()
    assert bench.engine._wake.wait(20), "nobody says that the pictures have been looked at"
    bench.until(lambda: bench.streams["left"].frames_seen == 4)


def test_what_is_asked_of_the_engine_finds_every_step_taken(ahead: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.add("left"), bench.add("right")
    bench.show(0, "left", "right")
    go = held(bench, monkeypatch)
    feed(bench, 1, "left", "right")
    bench.engine.turn()
    assert bench.engine._looking is not None
    told = bench.engine.call(lambda: bench.streams["left"].frames_seen)
    bench.engine.remove("left")
    go.set()
    bench.until(told.done)
    assert told.result() == 4


def test_a_step_that_could_not_be_looked_at_is_tried_stream_by_stream(
    ahead: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.add("left"), bench.add("right")
    bench.show(0, "left", "right")
    encode, bad = bench.engine.runner.encode, bench.streams["left"].slot

    def failing(slots: Sequence[int], frames: Sequence[Sequence[np.ndarray]]) -> object:
        if bad in slots:
            raise RuntimeError("out of memory")
        return encode(slots, frames)

    monkeypatch.setattr(bench.engine.runner, "encode", failing)
    bench.show(1, "left", "right")
    assert bench.resets == [("left", "RuntimeError: out of memory")]
    assert bench.streams["right"].frames_seen == 4 and bench.streams["left"].drops["failed"] == 2


def test_what_came_before_a_bad_frame_is_taken_before_the_reset(ahead: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.add("left")
    bench.show(0, "left")
    go = held(bench, monkeypatch)
    feed(bench, 1, "left")
    bench.engine.turn()
    assert bench.engine._looking is not None
    for _ in range(bench.engine.runner.frames_per_step):
        bench.sources["left"].feed(np.zeros((4, 4), np.uint8))
    threading.Timer(0.05, go.set).start()
    bench.until(lambda: bool(bench.resets))
    left = bench.streams["left"]
    assert left.frames_seen == 4 and left.generation == 1 and not left.opened


def test_a_stream_that_is_reset_while_its_pictures_are_looked_at_begins_with_them(
    ahead: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.add("left")
    bench.show(0, "left")
    go = held(bench, monkeypatch)
    for seed in (1, 2):
        feed(bench, seed, "left")
        bench.engine.runner.state.delta[:, bench.streams["left"].slot] = float("nan")
        if seed == 1:
            bench.engine.turn()
    first = bench.engine._looking
    assert first is not None
    threading.Timer(0.05, go.set).start()
    bench.until(lambda: bench.engine._looking is not first)
    assert bench.resets and "NaN" in bench.resets[0][1]
    bench.until(lambda: bench.streams["left"].frames_seen == 4)
    assert bench.streams["left"].generation == 2 and len(bench.resets) == 1
    assert all(torch.isfinite(value).all() for value in state(bench, "left").values() if value.is_floating_point())


def test_the_lag_is_that_of_the_oldest_frame_of_a_step() -> None:
    stream = Bench().add("left")
    stream.saw((Frame(picture(0), 10.0, 0.0, 0, "fed:"), Frame(picture(1), 15.0, 5.0, 1, "fed:")), 15.2)
    status = stream.status(16.0)
    assert status.lag_s == pytest.approx(5.2) and status.newest_frame_age_s == pytest.approx(1.0)
    assert list(stream.ages) == pytest.approx([5.2, 0.2])
    stream.taken = 2


def test_slots_come_back() -> None:
    bench = Bench(streams=1, answers=2)
    bench.add("left")
    bench.show(0, "left")
    for round in range(3):
        ears = [bench.ask(f"q{round}{i}", "left", length=3) for i in range(5)]
        bench.until(lambda ears=ears: all(ear.reason for ear in ears))  # type: ignore[misc]
    assert sorted(bench.engine.executor.free_answers) == [1, 2]
    bench.engine.remove("left")
    bench.engine.turn()
    assert bench.engine.executor.free_streams == [0]


def test_a_bad_frame_resets_its_stream_alone() -> None:
    bench = Bench()
    bench.add("left"), bench.add("right")
    bench.show(0, "left", "right")
    for i in range(2):
        bench.sources["left"].feed(np.zeros((4, 4), np.uint8))
        bench.sources["right"].feed(picture(i))
    bench.until(lambda: bool(bench.resets) and bench.streams["right"].frames_seen == 4)
    assert [name for name, _ in bench.resets] == ["left"] and "uint8 (4, 4)" in bench.resets[0][1]
    assert bench.streams["left"].generation == 1 and not bench.streams["left"].opened
    bench.show(2, "left", "right")
    assert bench.streams["left"].generation == 2 and bench.streams["left"].opened
    assert bench.streams["right"].generation == 1 and bench.streams["right"].frames_seen == 6


def test_nan_in_one_state_resets_that_stream_alone() -> None:
    bench = Bench()
    bench.add("left"), bench.add("right")
    bench.show(0, "left", "right")
    bench.engine.runner.state.delta[:, bench.streams["left"].slot] = float("nan")
    bench.show(1, "left", "right")
    assert [name for name, _ in bench.resets] == ["left"] and "NaN" in bench.resets[0][1]
    bench.show(2, "left", "right")
    assert len(bench.resets) == 1
    assert bench.streams["right"].frames_seen == 6
    assert all(torch.isfinite(value).all() for value in state(bench, "left").values() if value.is_floating_point())


def test_a_failing_step_is_tried_stream_by_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.add("left"), bench.add("right")
    bench.show(0, "left", "right")
    see, bad = bench.engine.runner.launch, bench.streams["left"].slot

    def failing(slots: Sequence[int], *step: object) -> Finite:
        if bad in slots:
            raise RuntimeError("out of memory")
        return see(slots, *step)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.engine.runner, "launch", failing)
    bench.show(1, "left", "right")
    assert bench.resets == [("left", "RuntimeError: out of memory")]
    assert bench.streams["right"].frames_seen == 4 and bench.streams["left"].drops["failed"] == 2


def test_a_question_to_a_stream_that_is_gone_fails_clearly() -> None:
    bench = Bench(streams=1, answers=1)
    bench.add("left")
    bench.show(0, "left")
    first, second = bench.ask("a", "left", length=5), bench.ask("b", "left")
    bench.until(lambda: first.tokens > 0)
    bench.engine.remove("left")
    bench.until(lambda: second.reason is not None)
    assert first.reason in ("length", "stop"), "an answer that is open goes on"
    assert second.reason == "failed" and second.error == "stream 'left' was removed"


def test_a_failing_answer_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.add("left")
    bench.show(0, "left")
    prefill = bench.engine.runner.prefill
    bad = bench.engine.runner.tokenizer.encode_question("bad")

    def failing(slot: int, tokens: list[int], *how: Any) -> int:
        if tokens == bad:
            raise ValueError("no")
        return prefill(slot, tokens, *how)

    monkeypatch.setattr(bench.engine.runner, "prefill", failing)
    worse, fine = bench.ask("a", "left", words="bad"), bench.ask("b", "left", length=2)
    bench.until(lambda: worse.reason is not None and fine.reason is not None)
    assert (worse.reason, worse.error) == ("failed", "ValueError: no")
    assert fine.reason in ("length", "stop")
    assert sorted(bench.engine.executor.free_answers) == [2, 3, 4]


def test_a_long_question_read_in_pieces_is_the_same_question() -> None:
    bench = Bench(streams=1, answers=2)
    bench.add("left")
    bench.show(0, "left")
    words = "What is it? " * 200
    pieces = bench.ask("a", "left", words=words, length=4, seed=3)
    bench.until(lambda: pieces.reason is not None)
    assert bench.engine.steps["prefill"] > 1
    runner, how = bench.engine.runner, Sampling(1.0, 0.9, 3)
    runner.fork(bench.streams["left"].slot, 1)
    first = runner.prefill(1, runner.tokenizer.encode_question(words), how)
    voice = runner.tokenizer.detokenizer()
    assert pieces.text.startswith(voice.push(first))


@pytest.mark.parametrize("where", ["frames", "decode"])
def test_a_dead_context_restarts_the_engine_and_says_so(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the runner fails, as after an illegal access; a fresh runner goes on with empty memories."""
    bench = Bench()
    bench.add("left"), bench.add("right")
    bench.show(0, "left", "right")
    engine, before = bench.engine, bench.engine.runner
    ear = bench.ask("a", "left", length=500)
    bench.until(lambda: ear.tokens > 0)

    def dead(*_: object) -> list[bool]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for name in ("launch", "prefill", "decode", "fork", "reset"):
        monkeypatch.setattr(before, name, dead)
    with pytest.raises(RuntimeError, match="illegal"):
        if where == "frames":
            bench.show(1, "left", "right")
        else:
            bench.until(lambda: False)
    engine._restart("RuntimeError: CUDA error")
    bench.check()
    lost = 2 if where == "frames" else 0
    assert all(stream.drops["failed"] == lost for stream in bench.streams.values()), "what waited is counted"
    assert engine.runner is not before and engine.failure is None and not engine.restarting
    assert ear.reason == "failed" and ear.error is not None and "CUDA error" in ear.error
    told = [name for name, reason in bench.resets if "began again: RuntimeError: CUDA error" in reason]
    assert sorted(told) == ["left", "right"]
    seen = {name: stream.frames_seen for name, stream in bench.streams.items()}
    bench.show(2, "left", "right")
    assert all(stream.frames_seen > seen[name] for name, stream in bench.streams.items())
    engine._restart("RuntimeError: CUDA error")
    assert engine.failure == "the engine failed: RuntimeError: CUDA error", "twice within a minute is the end"


@pytest.mark.parametrize("kind", ["slots", "frames", "answers"])
def test_what_does_not_add_up_is_counted_and_warned_of_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    stream = bench.add("left")
    bench.show(0, "left")
    engine = bench.engine
    assert engine.turn() is None and not engine.integrity_faults
    if kind == "slots":
        engine.executor.free_answers.append(2)
    elif kind == "frames":
        stream.frames_seen -= 1
    else:
        engine.scheduler._answers.turns["ghost"] = Turn(0, 0.0, float("inf"), opened=True)
    engine.turn(), engine.turn()
    assert engine.integrity_faults == {kind: 2} and len(FOUND) == 2
    FOUND.clear()
    assert len([line for line in caplog.messages if f"the engine's {kind} do not add up" in line]) == 1
