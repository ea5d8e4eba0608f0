"""What waits for an output, on a virtual clock."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.outputs.outbox import MOST_SECONDS, SLOW_SECONDS, SLOWEST_SECONDS, Entry, Outbox


def ids(outbox: Outbox, now: float = 0.0) -> list[str]:
    return [entry.id for entry in outbox.due(now, 1_000)]


def test_it_keeps_what_failed_and_goes_on_in_order() -> None:
    outbox = Outbox(10, 100)
    for each in "abc":
        assert outbox.put(each, b"{}", 0.0) is not None
    outbox.fail("no answer", 5.0)
    assert ids(outbox, 5.1) == [] and ids(outbox, 6.0) == ["a", "b", "c"]
    outbox.deliver(outbox.due(6.0, 1)[0])
    assert ids(outbox, 6.0) == ["b", "c"] and outbox.trouble is None and outbox.delivered == 1


def test_an_event_that_waits_already_is_not_put_twice() -> None:
    outbox = Outbox(10, 100)
    outbox.put("a", b"{}", 0.0)
    assert outbox.put("a", b"{}", 0.0) is None and len(outbox) == 1


def test_it_goes_on_with_what_waited_before_a_restart() -> None:
    outbox = Outbox(10, 100, [Entry(7, "a", 0.0, b"{}"), Entry(8, "b", 1.0, b"{}")])
    entry = outbox.put("c", b"{}", 2.0)
    assert entry is not None and entry.number == 9
    assert ids(outbox) == ["a", "b", "c"] and outbox.oldest == 0.0


def test_what_is_too_old_or_too_many_is_thrown_away_and_counted() -> None:
    outbox = Outbox(2, 100)
    for number, each in enumerate("abcd"):
        outbox.put(each, b"{}", float(number))
    assert outbox.trim(4.0) == 2 and ids(outbox) == ["c", "d"]
    assert outbox.trim(102.5) == 3 and ids(outbox) == ["d"] and outbox.trim(102.5) == 0
    assert outbox.discarded == {"count": 2, "age": 1}


@pytest.mark.parametrize(("slow", "first", "most"), [(False, 1.0, MOST_SECONDS), (True, SLOW_SECONDS, SLOWEST_SECONDS)])
def test_it_rests_longer_each_time_up_to_a_bound_and_never_twice_the_same(
    slow: bool, first: float, most: float
) -> None:
    outbox, other = (Outbox(10, 100, chance=random.Random(seed).random) for seed in (1, 2))
    rests, others, now = [], [], 0.0
    for _ in range(40):
        outbox.fail("no answer", now, slow=slow)
        other.fail("no answer", now, slow=slow)
        rests.append(outbox.retry_at - now)
        others.append(other.retry_at - now)
        now = outbox.retry_at
    assert first / 2 <= rests[0] <= first and all(most / 2 <= rest <= most for rest in rests[12:])
    assert all(first * 2**n / 2 <= rest <= first * 2**n for n, rest in enumerate(rests[:5]))
    assert not set(rests) & set(others)


def test_a_server_that_answers_500_for_an_hour_is_asked_seldom_and_gets_all_of_it_within_a_minute() -> None:
    outbox, tries, arrived, now = Outbox(10_000, 86_400), 0, [], 0.0
    for second in range(3_600 + 61):
        now = float(second)
        if second % 10 == 0 and second < 3_600:
            outbox.put(f"{second:05d}", b"{}", now)
        for entry in outbox.due(now, 1_000) if now >= outbox.retry_at else ():
            tries += 1
            if now < 3_600:
                outbox.fail("answers 500, not 2xx", now)
                break
            outbox.deliver(entry)
            arrived.append(entry.id)
        outbox.trim(now)
    assert arrived == [f"{second:05d}" for second in range(0, 3_600, 10)] and not len(outbox)
    assert 60 <= outbox.failed_tries <= 130 and outbox.trouble is None and not outbox.discarded


def test_only_another_trouble_is_news() -> None:
    outbox = Outbox(10, 100)
    assert [outbox.fail(trouble, 0.0) for trouble in ("a", "a", "b", "b")] == [True, False, True, False]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.just("put"), st.just("deliver"), st.just("fail"), st.floats(0, 40)), max_size=80),
    st.integers(1, 9),
)
def test_whatever_happens_each_event_arrives_in_order_or_is_counted(steps: list[str | float], count: int) -> None:
    outbox, arrived, put, now = Outbox(count, 60.0), [], 0, 0.0
    for step in steps:
        if isinstance(step, float):
            now += step
        elif step == "put":
            put += 1
            outbox.put(f"{put:03}", b"{}", now)
        elif step == "fail" and outbox.due(now, 1):
            outbox.fail("no answer", now)
        elif due := outbox.due(now, 3):
            arrived += [entry.id for entry in due]
            for entry in due:
                outbox.deliver(entry)
        outbox.trim(now)
        assert len(outbox) <= count
    assert arrived == sorted(set(arrived))
    assert put == len(arrived) + len(outbox) + outbox.discarded.total() and outbox.delivered == len(arrived)
