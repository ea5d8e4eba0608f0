"""What is made ahead of whoever takes it."""

import threading
from collections.abc import Iterator

import pytest

from streamer.memory.ahead import ahead
from tests.capture.lab import wait_for


def test_all_comes_in_order_and_no_more_than_so_many_ahead() -> None:
    made = list[int]()

    def making() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    taking = ahead(making(), 3)
    assert next(taking) == 0
    wait_for(lambda: len(made) == 5)  # one taken, three that wait, and one that has no room yet
    assert list(taking) == list(range(1, 20)) and len(made) == 20


def test_a_fault_comes_in_its_place() -> None:
    def making() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    taking = ahead(making(), 3)
    assert next(taking) == 1
    with pytest.raises(ValueError, match="torn"):
        next(taking)


def test_who_takes_no_more_ends_the_making() -> None:
    def making() -> Iterator[int]:
        while True:
            yield 1

    before = threading.active_count()
    taking = ahead(making(), 3)
    assert next(taking) == 1
    taking.close()  # type: ignore[attr-defined]
    wait_for(lambda: threading.active_count() == before)
