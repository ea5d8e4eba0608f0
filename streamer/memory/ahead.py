"""What takes long to make is made ahead of whoever takes it, in a thread of its own: decoding, beside a model's steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Over(Exception):  # noqa: N818 — it is no error
    """Nobody takes what is made any more."""


def ahead(making: Iterator[T], most: int) -> Iterator[T]:
    """What `making` yields, up to `most` of it made before it is taken. Raises what `making` raises, in its place."""
    made: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(most)
    over = threading.Event()

    def put(each: tuple[T] | BaseException | None) -> None:
        while not over.is_set():
            try:
                return made.put(each, timeout=0.1)
            except queue.Full:
                continue
        raise Over

    def make() -> None:
        try:
            for each in making:
                put((each,))
            put(None)
        except Over:
            return
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while (each := made.get()) is not None:
            if isinstance(each, BaseException):
                raise each
            yield each[0]
    finally:
        over.set()
        thread.join()
