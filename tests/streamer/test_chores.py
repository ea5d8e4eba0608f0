"""What no frame waits for: in time to spare, or after a while all the same."""

from __future__ import annotations

from streamer.engine.chores import Chores


def nothing() -> None:
    """What is done."""


def other() -> None:
    """What is done after that."""


def test_a_chore_waits_for_time_to_spare() -> None:
    chores = Chores()
    assert chores.next(0.0, 1.0) is None and chores.due == float("inf")
    for _ in range(4):
        chores.took(0.010)
    chores.add(5.0, nothing)
    chores.add(4.0, other)
    assert chores.next(0.0, 0.009) is None and chores.due == 4.0
    assert chores.next(0.0, 0.011) is nothing, "in order of coming"
    assert chores.next(3.9, 0.0) is None
    assert chores.next(4.0, 0.0) is other, "whatever else there is to do"
    assert chores.next(9.0, 9.0) is None


def test_one_that_was_long_is_remembered() -> None:
    chores = Chores()
    chores.took(0.2)
    chores.add(9.0, nothing)
    assert chores.next(0.0, 0.1) is None
    for _ in range(3):
        chores.took(0.001)
        assert chores.next(0.0, 0.1) is None
    chores.took(0.001)
    assert chores.next(0.0, 0.1) is nothing
    chores.add(9.0, other)
    assert chores.rest() == [other] and chores.rest() == []
