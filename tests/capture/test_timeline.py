"""A source's time axis, whatever its timestamps do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.timeline import Timeline


def stamps(
    timeline: Timeline, frames: list[tuple[float | None, float]], generation: int = 1
) -> list[tuple[float, bool]]:
    made = [timeline.stamp(generation, timestamp, arrival) for timestamp, arrival in frames]
    return [(round(stamp.time, 6), stamp.jumped) for stamp in made]


def test_sound_timestamps_are_the_axis() -> None:
    assert stamps(Timeline(live=True), [(7.0, 100.0), (7.04, 100.1), (7.08, 100.1)]) == [
        (0, False),
        (0.04, False),
        (0.08, False),
    ]


@pytest.mark.parametrize("jump", [3600.0, -3600.0, -(2**33) / 90_000, 0.0], ids=["forward", "back", "wrap", "repeat"])
def test_a_jump_is_marked_and_the_axis_goes_on_by_what_passed(jump: float) -> None:
    made = stamps(Timeline(live=True), [(10.0, 0.0), (10.04, 0.04), (10.04 + jump, 0.08), (10.08 + jump, 0.12)])
    assert made == [(0, False), (0.04, False), (0.08, True), (0.12, False)]


def test_a_recordings_jump_goes_on_at_its_own_period() -> None:
    made = stamps(Timeline(live=False), [(0.0, 0.0), (0.1, 0.001), (900.0, 0.002), (0.0, 0.003), (0.1, 0.004)])
    assert made == [(0, False), (0.1, False), (0.2, True), (0.3, True), (0.4, False)]


def test_missing_timestamps_are_marked_where_they_begin_and_end() -> None:
    frames = [(1.0, 0.0), (None, 0.5), (None, 1.0), (2.5, 1.5), (3.0, 2.0)]
    assert stamps(Timeline(live=True), frames) == [(0, False), (0.5, True), (1.0, False), (1.5, True), (2.0, False)]


def test_a_backlog_after_a_pause_is_no_jump() -> None:
    """The network held frames up for four seconds and then delivers them all: nothing is missing."""
    late = [(n * 0.04, 4.0) for n in range(1, 101)]
    made = stamps(Timeline(live=True), [(0.0, 0.0), *late])
    assert not any(jumped for _, jumped in made)
    assert made[-1][0] == 4.0


def test_a_reconnect_is_marked_and_counts_the_gap() -> None:
    timeline = Timeline(live=True)
    stamps(timeline, [(5.0, 0.0), (5.1, 0.1)])
    assert stamps(timeline, [(0.0, 60.1), (0.1, 60.2)], generation=2) == [(60.1, True), (60.2, False)]


def test_capture_is_told_from_the_frames_that_nothing_held_up() -> None:
    timeline = Timeline(live=True)
    assert timeline.stamp(1, 0.0, 50.0).captured == 50.0
    assert timeline.stamp(1, 1.0, 51.8).captured == pytest.approx(51.0, abs=0.01)
    assert timeline.stamp(1, 2.0, 51.9).captured == pytest.approx(51.9)


@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.none() | st.floats(-1e9, 1e9),
            st.floats(-1, 100),
        ),
        max_size=50,
    ),
)
def test_no_step_is_negative_or_unbounded(live: bool, frames: list[tuple[int, float | None, float]]) -> None:
    timeline, now, last = Timeline(live=live), 0.0, 0.0
    for generation, timestamp, passed in frames:
        now += passed
        stamp = timeline.stamp(generation, timestamp, now)
        assert math.isfinite(stamp.time) and 0 <= stamp.time - last <= max(passed, 0) + 10
        assert stamp.captured <= now + 1e-6
        last = stamp.time


def test_what_each_connection_pours_out_at_first_does_not_add_up() -> None:
    """Every connection begins with two seconds of backlog at once."""
    timeline, now = Timeline(live=True), 0.0
    for generation in range(50):
        now += 1.0
        for n in range(100):
            now += 0.04 if n >= 50 else 0.0
            stamp = timeline.stamp(generation, n * 0.04, now)
    assert stamp.time == pytest.approx(now - 1.0, abs=0.6)
