"""What is kept as it ages, who may take how much, and when the next snapshot is due: pure, on a clock of numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as some

from streamer.memory.retention import DAY, HOUR, LEAST, Pace, shares, too_large, too_many


@dataclass(frozen=True)
class File:
    wall: float
    size: int = 1


def test_a_week_of_snapshots_is_thinned_as_it_ages() -> None:
    kept: list[File] = []
    now = 1_000_000.0
    for _ in range(int(7 * DAY / 300)):
        for _ in range(60):
            now += 5
            kept.append(File(now))
        gone = {each.wall for each in too_many(kept, now)}
        kept = [each for each in kept if each.wall not in gone]
    ages = Counter(
        "minute"
        if now - each.wall <= 60
        else "2 hours"
        if now - each.wall <= 2 * HOUR
        else "day"
        if now - each.wall <= DAY
        else "older"
        for each in kept
    )
    assert ages["minute"] == 13 and 118 <= ages["2 hours"] <= 121
    assert 131 <= ages["day"] <= 133 and 143 <= ages["older"] <= 145
    walls = [each.wall for each in kept]
    assert walls == sorted(walls)
    for before, after in pairwise(kept):
        age = now - before.wall
        assert after.wall - before.wall <= (5 if age <= 60 else 65 if age <= 2 * HOUR else 665 if age <= DAY else 3_660)


def test_a_clock_that_jumps_back_loses_nothing_new() -> None:
    kept = [File(5_000.0 + 5 * n) for n in range(100)] + [File(1_000.0 + 5 * n) for n in range(10)]
    gone = too_many(kept, 1_050.0)
    assert not set(kept[-10:]) & set(gone)


@given(some.lists(some.integers(1, 1_000), max_size=30), some.integers(0, 5_000))
def test_the_oldest_go_until_the_rest_fits(sizes: list[int], budget: int) -> None:
    kept = [File(n, size) for n, size in enumerate(sizes)]
    gone = too_large(kept, budget)
    assert gone == kept[: len(gone)]
    rest = kept[len(gone) :]
    assert sum(each.size for each in rest) <= budget or len(rest) <= LEAST
    if gone:
        assert sum(each.size for each in rest) + gone[-1].size > budget, "no more went than needed"


@given(some.dictionaries(some.text(max_size=3), some.integers(0, 10_000), max_size=8), some.integers(0, 20_000))
def test_shares_are_fair(wanted: dict[str, int], budget: int) -> None:
    got = shares(wanted, budget)
    assert got.keys() == wanted.keys() and sum(got.values()) <= budget
    for name, share in got.items():
        assert 0 <= share <= wanted[name]
        if share < wanted[name]:
            assert all(other <= share + 1 for other in got.values()), "who lacks has as much as anyone"
            assert sum(got.values()) >= budget - len(wanted)


@pytest.mark.parametrize(
    ("streams", "size", "apart"), [(1, 2_000_000, 5.0), (8, 80_000_000, 32.0), (4, 2_000_000, 5.0)]
)
def test_the_write_rate_holds_and_all_streams_take_turns(streams: int, size: int, apart: float) -> None:
    pace, names = Pace(5.0, 20e6), [f"s{n}" for n in range(streams)]
    taken: list[tuple[float, str]] = []
    now = 100.0
    while now < 1_000:
        due = pace.next(names, now)
        assert due is not None
        name, when = due
        now = max(now, when)
        pace.took(name, size, now)
        taken.append((now, name))
    assert pace.interval(names) == pytest.approx(apart)
    steady = [each for each in taken if each[0] > 300]
    assert len(steady) * size / 700 <= 20e6 * 1.02
    for name in names:
        times = [when for when, each in steady if each == name]
        assert max(b - a for a, b in pairwise(times)) <= apart + 0.5


def test_new_streams_wait_an_interval_and_gone_ones_are_forgotten() -> None:
    pace = Pace(5.0, 1e6)
    assert pace.next([], 0.0) is None
    assert pace.next(["a"], 1.0) == ("a", 6.0)
    pace.took("a", 0, 6.0)
    assert pace.next(["a"], 6.0) == ("a", 11.0)
    assert pace.next(["b"], 20.0) == ("b", 25.0) and pace.next(["a"], 30.0) == ("a", 35.0)


def test_what_failed_is_tried_again_soon_and_within_the_rate() -> None:
    pace = Pace(5.0, 1e6)
    assert pace.next(["a", "b"], 0.0) == ("a", 5.0)
    pace.took("a", 1_000_000, 5.0)
    pace.failed("b", 6.0, 2.0)
    assert pace.next(["a", "b"], 6.0) == ("b", 8.0)
    pace.failed("b", 8.0, 2.0)
    assert pace.next(["b", "a"], 8.0) == ("b", 10.0)
    pace.took("b", 3_000_000, 10.0)
    assert pace.next(["a", "b"], 10.0) == ("a", 13.0), "the rate comes first"
    pace.took("a", 0, 13.0)
    pace.failed("b", 15.0, 2.0)
    assert pace.next(["a", "b"], 15.0) == ("b", 18.0), "for what failed as well"
