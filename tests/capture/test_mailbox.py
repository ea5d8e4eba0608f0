"""The hand-over of frames."""

import threading

import numpy as np

from capture.frame import Frame
from capture.mailbox import Mailbox


def frame(sequence: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), 0.0, 0.0, sequence, "test")


def test_the_newest_wins_and_drops_are_counted() -> None:
    mailbox = Mailbox(2)
    for n in range(5):
        mailbox.put(frame(n))
    assert (mailbox.received, mailbox.dropped, len(mailbox)) == (5, 3, 2)
    assert mailbox.newest is not None and mailbox.newest.sequence == 4
    assert mailbox.take(3) == []
    assert [taken.sequence for taken in mailbox.take(2)] == [3, 4]
    assert mailbox.newest is None


def test_a_burst_is_held_as_far_as_its_bytes_allow() -> None:
    size = frame(0).nbytes
    mailbox = Mailbox(2, most_bytes=5 * size)
    for n in range(7):
        mailbox.put(frame(n))
    assert (mailbox.received, mailbox.dropped, mailbox.bytes) == (7, 2, 5 * size)
    assert [taken.sequence for taken in mailbox.take(5)] == [2, 3, 4, 5, 6]
    assert mailbox.bytes == 0


def test_every_frame_waits_for_room() -> None:
    mailbox = Mailbox(1, policy="every")
    mailbox.put(frame(0))
    assert not mailbox.offer(frame(1))
    thread = threading.Thread(target=mailbox.put, args=(frame(1),))
    thread.start()
    assert mailbox.take(1)[0].sequence == 0
    thread.join(5)
    assert mailbox.take(1)[0].sequence == 1
    assert (mailbox.received, mailbox.dropped) == (2, 0)


def test_closing_frees_whoever_waits_and_takes_nothing_more() -> None:
    mailbox = Mailbox(1, policy="every")
    mailbox.put(frame(0))
    thread = threading.Thread(target=mailbox.put, args=(frame(1),))
    thread.start()
    mailbox.close()
    thread.join(5)
    assert not thread.is_alive()
    mailbox.put(frame(2))
    assert (len(mailbox), mailbox.received) == (0, 1)


def test_the_taker_is_told_of_each_frame_and_may_take_at_once() -> None:
    taken: list[Frame] = []
    mailbox = Mailbox(1, on_put=lambda: taken.extend(mailbox.take(1)))
    for n in range(3):
        mailbox.put(frame(n))
    assert [one.sequence for one in taken] == [0, 1, 2]
    assert mailbox.dropped == 0
