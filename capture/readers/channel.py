"""Messages between the two ends of a socket pair, of any size, and file descriptors with them."""

from __future__ import annotations

import pickle
import socket
import threading
from contextlib import suppress
from typing import Any

PIECE = 32 * 1024
"""Bytes of one piece of a message: the kernel takes it whole, or waits until there is room."""
MORE, LAST = b"\0", b"\1"


class Channel:
    """Any thread may send; one receives."""

    def __init__(self, link: socket.socket) -> None:
        """`link` is one end of a pair of SOCK_SEQPACKET, which keeps pieces apart."""
        self.link = link
        self.sending = threading.Lock()

    def send(self, message: object, *files: int) -> None:
        """Sends what can be pickled, and file descriptors. Raises OSError where the other end is gone."""
        data = memoryview(pickle.dumps(message))
        with self.sending:
            for at in range(0, len(data), PIECE):
                last = at + PIECE >= len(data)
                socket.send_fds(self.link, [LAST if last else MORE, data[at : at + PIECE]], files if last else ())

    def receive(self) -> tuple[Any, list[int]]:
        """The next message, and the descriptors that came with it. Raises EOFError where the other end is gone, or OSError."""
        pieces: list[bytes] = []
        while True:
            piece, files, _, _ = socket.recv_fds(self.link, PIECE + 1, 1)
            if not piece:
                raise EOFError
            pieces.append(piece[1:])
            if piece[:1] == LAST:
                return pickle.loads(b"".join(pieces)), files

    def close(self) -> None:
        """Ends it for both ends, also for a thread that waits in `receive`."""
        with suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        self.link.close()
