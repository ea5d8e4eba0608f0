"""When a watch tells: the sequences that operators of cameras report, on a virtual clock."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamer.hours import Hours
from streamer.watches.watch import Event, Terms, Value, Watch

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()


def watched(watch: Watch, seen: Iterable[Value], begin: float = NOON, every: float = 0.5) -> list[Event]:
    """What is told of looks that see this, one after another."""
    told = [watch.look(value, begin + i * every) for i, value in enumerate(seen)]
    return [event for event in told if event is not None]


def terms(**given: object) -> Terms:
    return Terms(**{"zone": UTC, **given})  # type: ignore[arg-type]


def spell(*parts: tuple[float, float]) -> list[float]:
    """Looks twice a second: (probability, seconds) one after another."""
    return [p for p, seconds in parts for _ in range(round(seconds * 2))]


def test_an_event_is_told_once_with_the_frame_that_decided_and_its_beginning() -> None:
    events = watched(Watch(terms(hold=1.0)), spell((0.1, 5), (0.9, 20), (0.1, 5)))
    assert events == [Event("watch.started", NOON + 6, NOON + 5, 0.9, False, True, 0.0)]


@pytest.mark.parametrize(
    ("when", "kinds"),
    [
        ("becomes_true", ["watch.started"] * 2),
        ("becomes_false", ["watch.ended"] * 2),
        ("both", ["watch.started", "watch.ended"] * 2),
    ],
)
def test_what_is_told_is_what_was_asked_for(when: str, kinds: list[str]) -> None:
    events = watched(Watch(terms(when=when)), spell((0.1, 5), (0.9, 5), (0.1, 5), (0.9, 5), (0.1, 5)))
    assert [event.kind for event in events] == kinds


def test_what_is_so_from_the_first_look_on_is_told_and_what_never_was_so_is_not() -> None:
    assert [e.kind for e in watched(Watch(terms(when="both")), spell((0.9, 3)))] == ["watch.started"]
    assert not watched(Watch(terms(when="both")), spell((0.1, 3)))
    assert not watched(Watch(terms(when="becomes_false")), spell((0.1, 3)))


def test_hold_and_release_are_how_long_it_must_be_so() -> None:
    watch = Watch(terms(when="both", hold=2, release=3))
    short = spell((0.1, 5), (0.9, 1.5), (0.1, 5))
    assert not watched(watch, short)
    events = watched(watch, spell((0.9, 5), (0.1, 2.5), (0.9, 5), (0.1, 5)), NOON + 60)
    assert [(e.kind, e.began - NOON - 60, e.decided - NOON - 60) for e in events] == [
        ("watch.started", 0, 2),
        ("watch.ended", 12.5, 15.5),
    ]


def test_flicker_at_the_threshold_is_one_event() -> None:
    seen = spell((0.1, 2)) + [0.62, 0.58, 0.45, 0.61, 0.55, 0.41] * 50 + spell((0.1, 2))
    assert [e.kind for e in watched(Watch(terms(when="both")), seen)] == ["watch.started", "watch.ended"]


def test_daylight_that_changes_slowly_is_none() -> None:
    slow = [0.05 + 0.5 * min(i, 7200 - i) / 3600 for i in range(7200)]
    assert not watched(Watch(terms(when="both")), slow)


def test_an_event_outside_quiet_hours_right_after_one_inside_is_told() -> None:
    quiet = (Hours.parse("22:00-06:00"),)
    six = datetime(2026, 11, 29, 6, tzinfo=UTC).timestamp()
    watch = Watch(terms(quiet=quiet, cooldown=600))
    events = watched(watch, spell((0.1, 10), (0.9, 10), (0.1, 15), (0.9, 10)), six - 30)
    assert [event.began for event in events] == [six + 5]
    assert watch.state.silenced == {"quiet": 1}


def test_what_still_is_so_when_quiet_hours_end_is_told_then() -> None:
    six = datetime(2026, 11, 29, 6, tzinfo=UTC).timestamp()
    events = watched(Watch(terms(quiet=(Hours.parse("22:00-06:00"),))), spell((0.1, 10), (0.9, 60)), six - 30)
    assert [(event.began, event.decided) for event in events] == [(six - 20, six)]


def test_a_second_event_in_the_cooldown_of_one_that_was_never_sent_is_told() -> None:
    watch = Watch(terms(cooldown=600))
    watch.snooze(NOON + 10)
    events = watched(watch, spell((0.1, 1), (0.9, 5), (0.1, 10), (0.9, 5), (0.1, 5), (0.9, 5), (0.1, 5)))
    assert [event.began - NOON for event in events] == [16]
    assert watch.state.silenced == {"snooze": 1, "cooldown": 1}
    assert Watch(watch.terms, json.loads(json.dumps(watch.keep()))).state.silenced == watch.state.silenced


def test_a_cooldown_swallows_nothing_that_lasts() -> None:
    events = watched(Watch(terms(cooldown=60)), spell((0.1, 1), (0.9, 5), (0.1, 10), (0.9, 100)))
    assert [(event.began - NOON, event.decided - NOON) for event in events] == [(1, 1), (16, 61)]


def test_the_end_of_what_was_told_is_told_in_its_cooldown() -> None:
    events = watched(Watch(terms(when="both", cooldown=60)), spell((0.1, 1), (0.9, 5), (0.1, 5), (0.9, 5), (0.1, 5)))
    assert [event.kind for event in events] == ["watch.started", "watch.ended"]


def test_a_true_event_during_a_snooze_of_another_is_told() -> None:
    gate, yard = Watch(terms()), Watch(terms())
    gate.snooze(NOON + 3600)
    seen = spell((0.1, 5), (0.9, 5))
    assert not watched(gate, seen)
    assert len(watched(yard, seen)) == 1


@pytest.mark.parametrize("restart", [False, True])
def test_a_stream_or_a_daemon_that_breaks_off_in_mid_event_makes_one_event_with_its_gap(restart: bool) -> None:
    watch = Watch(terms(when="both", hold=1))
    assert len(watched(watch, spell((0.1, 5), (0.9, 5)))) == 1
    if restart:
        watch = Watch(watch.terms, json.loads(json.dumps(watch.keep())))
    else:
        watch.interrupt()
    assert not watched(watch, spell((0.9, 5)), NOON + 29.5)
    (ended,) = watched(watch, spell((0.1, 5)), NOON + 40)
    assert (ended.kind, ended.began, ended.gap) == ("watch.ended", NOON + 40, 20.0)
    (again,) = watched(watch, spell((0.9, 5)), NOON + 45)
    assert again.gap == 0.0


def test_nothing_is_held_through_a_gap() -> None:
    watch = Watch(terms(hold=5))
    assert not watched(watch, spell((0.1, 5), (0.9, 2)))
    watch.interrupt()
    (event,) = watched(watch, spell((0.9, 10)), NOON + 60)
    assert (event.began, event.decided) == (NOON + 60, NOON + 65)


def test_a_picture_that_does_not_change_is_held_too() -> None:
    watch = Watch(terms(hold=1))
    assert watch.unchanged(NOON - 1) is None
    assert watch.look(0.9, NOON) is None
    assert watch.unchanged(NOON + 0.5) is None
    event = watch.unchanged(NOON + 1)
    assert event is not None and event.began == NOON


def test_words_tell_what_they_were_and_are() -> None:
    watch = Watch(terms(when="changes", hold=0.5))
    seen = ["42", "42.", "42", "47", "42", "43", "43", " 43 ", "It says Stop!", "it says stop", "it says stop"]
    assert [(e.kind, e.before, e.after) for e in watched(watch, seen)] == [
        ("watch.changed", "42", "43"),
        ("watch.changed", "43", "it says stop"),
    ]


@settings(deadline=None)
@example([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], "becomes_true", 0.0, 0.0, 3.0000000001)
@given(
    st.lists(st.floats(0, 1), max_size=60),
    st.sampled_from(["becomes_true", "becomes_false", "both"]),
    st.floats(0, 3),
    st.floats(0, 3),
    st.floats(0, 20),
)
def test_events_take_turns_and_keep_their_distance(
    seen: list[float], when: str, hold: float, release: float, cooldown: float
) -> None:
    events = watched(Watch(terms(when=when, hold=hold, release=release, cooldown=cooldown)), seen)
    assert all(NOON <= e.began <= e.decided for e in events)
    if when == "both":
        assert all(e.after is (i % 2 == 0) for i, e in enumerate(events))
    opened = [e.decided for e in events if when != "both" or e.after]
    assert all(b - a >= cooldown for a, b in pairwise(opened))


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [("22:00-06:00", (22, 23, 0, 5), (6, 12, 21)), ("9:30-17:00", (10, 16), (9, 17)), ("00:00-24:00", (0, 23), ())],
)
def test_quiet_hours(hours: str, inside: tuple[int, ...], outside: tuple[int, ...]) -> None:
    quiet = Hours.parse(hours)
    assert all(quiet.has(datetime(2026, 11, 29, hour, tzinfo=UTC).timestamp(), UTC) for hour in inside)
    assert not any(quiet.has(datetime(2026, 11, 29, hour, tzinfo=UTC).timestamp(), UTC) for hour in outside)


@pytest.mark.parametrize("night", ["2026-03-28T21:59", "2026-10-24T21:59"])
def test_a_night_in_which_the_clock_is_set_is_quiet_as_a_whole(night: str) -> None:
    zone = ZoneInfo("Europe/Berlin")
    begin = datetime.fromisoformat(night).replace(tzinfo=zone).timestamp()
    quiet = [Hours.parse("22:00-06:00").has(begin + 60 * minute, zone) for minute in range(10 * 60)]
    hours = 7 if "-03-" in night else 9
    assert quiet == [False] + [True] * 60 * hours + [False] * (600 - 60 * hours - 1)


@pytest.mark.parametrize("hours", ["", "night", "22-06", "25:00-06:00", "22:00-06:61", "22:00-22:00", "6:00"])
def test_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(ValueError, match="22:00-06:00"):
        Hours.parse(hours)
