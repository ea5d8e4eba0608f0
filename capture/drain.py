"""Every frame of a source that ends, such as a file that is read as fast as it goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from capture.frame import Frame
from capture.lifecycle import State
from capture.mailbox import Mailbox
from capture.source import Source


def drained(source: Source, most: int) -> Iterator[Frame]:
    """A source's frames in order, up to `most` of them decoded before they are taken. It is started, and stopped at the end."""
    ready = threading.Event()
    mailbox = Mailbox(most, policy="every", on_put=ready.set)
    source.start(mailbox, lambda status: ready.set())
    try:
        while True:
            ready.clear()
            ended = source.status.state is State.ENDED  # asked first: until it has, more may come at any moment
            if taken := mailbox.take(1):
                yield taken[0]
            elif ended:
                return
            else:
                ready.wait(1.0)
    finally:
        mailbox.close()
        source.stop()
