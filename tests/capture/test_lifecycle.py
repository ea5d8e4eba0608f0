"""The life of a source on a virtual clock."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.lifecycle import Action, Lifecycle, Patience, State

PATIENCE = Patience(jitter=0.0)


def life(patience: Patience = PATIENCE, *, endless: bool = True) -> Lifecycle:
    return Lifecycle(patience, 0.0, endless=endless, seed=1)


def watched(camera: Lifecycle, until: float, period: float, *, changing: bool = True, start: float = 0.0) -> set[State]:
    """Feeds a frame every `period` and ticks every 0.1 s; the states that were seen."""
    seen, due, now, n = set(), start + period, start, 0
    while now < until:
        now = round(now + 0.1, 6)
        if now >= due:
            camera.frame(camera.generation, now, changing)
            due, n = due + period, n + 1
        camera.tick(now)
        seen.add(camera.state)
    return seen


def test_open_deadline_leads_to_waiting_and_then_to_a_new_generation() -> None:
    camera = life()
    assert camera.tick(9.9) is None
    assert camera.due == 10.0
    assert camera.tick(10.0) is Action.LET_GO
    assert (camera.state, camera.reason) == (State.WAITING, "no picture within 10 s of connecting")
    assert camera.tick(10.49) is None
    assert camera.tick(10.5) is Action.OPEN
    assert (camera.state, camera.generation, camera.reconnects) == (State.CONNECTING, 2, 1)


def test_a_key_frame_that_is_far_away_is_waited_for() -> None:
    camera = life()
    for now in range(60):
        camera.heard(1, float(now))
        assert camera.tick(float(now)) is None
    camera.heard(1, 60.0)
    assert camera.tick(60.0) is Action.LET_GO


def test_what_is_heard_once_does_not_keep_a_silent_connection() -> None:
    camera = life()
    camera.heard(1, 7.0)
    assert camera.tick(11.9) is None
    assert camera.tick(12.0) is Action.LET_GO


def test_stall_recovers_with_the_next_frame() -> None:
    camera = life()
    camera.frame(1, 1.0, True)
    assert camera.tick(5.9) is None and camera.state is State.LIVE
    assert camera.tick(6.0) is None and camera.state is State.STALLED
    assert "no frame for 5 s" in camera.reason
    camera.frame(1, 7.0, True)
    assert (camera.state, camera.reason, camera.generation) == (State.LIVE, "", 1)


def test_stall_is_given_up_after_a_while() -> None:
    camera = life()
    camera.frame(1, 1.0, True)
    camera.tick(6.0)
    assert camera.tick(10.9) is None
    assert camera.tick(11.0) is Action.LET_GO
    assert camera.state is State.WAITING


@pytest.mark.parametrize("period", [0.04, 1.0, 4.0, 8.0])
def test_a_slow_camera_keeps_its_own_pace(period: float) -> None:
    """The one of a frame in 8 s may stall once, before its pace is known."""
    camera = life()
    watched(camera, 40.0, period)
    assert watched(camera, 600.0, period, start=40.0) == {State.LIVE}
    assert camera.generation == 1


def test_backoff_doubles_up_to_its_most_and_begins_anew_after_health() -> None:
    camera = life()
    waits, now = [], 0.0
    for _ in range(9):
        camera.failed(camera.generation, now, "refused")
        waits.append(camera.retry_at - now)
        now = camera.retry_at
        camera.tick(now)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    watched(camera, now + 11, 0.1, start=now)
    camera.failed(camera.generation, now + 11, "gone")
    assert camera.retry_at == now + 11.5


def test_a_source_that_breaks_after_each_first_frame_is_not_healthy() -> None:
    camera = life()
    now = 0.0
    for _ in range(8):
        camera.frame(camera.generation, now, True)
        camera.failed(camera.generation, now, "gone")
        wait, now = camera.retry_at - now, camera.retry_at
        camera.tick(now)
    assert wait == 30


def test_backoff_survives_years_of_failure() -> None:
    camera = life()
    for now in range(3000):
        camera.failed(camera.generation, now * 100.0, "refused")
        assert camera.retry_at <= now * 100.0 + 30
        camera.tick(camera.retry_at)


def test_jitter_spreads_the_retries_of_many() -> None:
    retries = set()
    for seed in range(40):
        camera = Lifecycle(Patience(), 0.0, endless=True, seed=seed)
        camera.failed(1, 0.0, "refused")
        retries.add(camera.retry_at)
        assert 0.4 <= camera.retry_at <= 0.6
    assert len(retries) == 40


def test_an_older_generation_can_touch_nothing() -> None:
    camera = life()
    camera.failed(1, 0.0, "refused")
    camera.tick(1.0)
    camera.frame(1, 2.0, True)
    assert camera.state is State.CONNECTING
    camera.frame(2, 3.0, True)
    assert camera.failed(1, 4.0, "late") is None and camera.finished(1, 4.0) is None
    camera.hold(1)
    assert (camera.state, camera.held) == (State.LIVE, False)


def test_a_file_ends_and_a_camera_comes_back() -> None:
    file, camera = life(endless=False), life()
    assert file.finished(1, 5.0) is Action.LET_GO and file.state is State.ENDED
    assert camera.finished(1, 5.0) is Action.LET_GO and camera.state is State.WAITING
    assert file.due == math.inf and file.tick(1e9) is None


def test_stop_ends_whatever_goes_on() -> None:
    camera = life()
    camera.frame(1, 1.0, True)
    assert camera.stop(2.0, "enough") is Action.LET_GO
    assert camera.stop(3.0) is None
    camera.frame(1, 3.0, True)
    assert (camera.state, camera.reason) == (State.ENDED, "enough")


def test_frozen_is_told_apart_from_stalled() -> None:
    camera = life()
    camera.frame(1, 0.0, True)
    assert watched(camera, 10.5, 0.04, changing=False) == {State.LIVE}
    assert camera.frozen
    camera.frame(1, 10.6, True)
    assert not camera.frozen


def test_pictures_that_nobody_looked_at_say_nothing_about_freezing() -> None:
    camera = life()
    for tick in range(1000):
        camera.frame(1, tick * 0.04)
    assert not camera.frozen


def test_what_is_kept_back_on_purpose_is_no_stall() -> None:
    recording = life(endless=False)
    recording.frame(1, 0.0, True)
    recording.hold(1)
    assert recording.tick(60.0) is None and recording.state is State.LIVE and recording.due == math.inf
    recording.release(1, 60.0)
    recording.tick(64.9)
    assert recording.state is State.LIVE
    recording.tick(65.0)
    assert recording.state is State.STALLED


EVENTS = st.sampled_from(["frame", "still", "failed", "finished", "tick", "hold", "release"])


@given(st.lists(st.tuples(EVENTS, st.integers(-1, 0), st.floats(0, 40)), max_size=60))
def test_any_order_of_events_keeps_its_promises(events: list[tuple[str, int, float]]) -> None:
    """The generation only grows and only by OPEN, a wait is never longer than the most, and `due` is never missed."""
    camera, now = Lifecycle(Patience(), 0.0, endless=True, seed=0), 0.0
    for event, age, passed in events:
        now += passed
        before = camera.generation
        action = None
        match event:
            case "frame" | "still":
                camera.frame(before + age, now, event == "frame")
            case "failed":
                action = camera.failed(before + age, now, "broke")
            case "finished":
                action = camera.finished(before + age, now)
            case "hold":
                camera.hold(before + age)
            case "release":
                camera.release(before + age, now)
            case "tick":
                due = camera.due
                state = camera.state
                action = camera.tick(now)
                assert action is None or due <= now
                assert due > now or camera.state is not state
        assert camera.generation == before + (action is Action.OPEN)
        assert camera.state is not State.WAITING or camera.retry_at - camera.since <= 36
