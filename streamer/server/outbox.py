"""What waits for one client of a websocket, counted, so that it is bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

PAUSE_BYTES = 64 * 1024
"""What may wait, replies included, before no further message of this client is read."""


class Outbox:
    """Messages that wait for one client, counted in bytes.

    Replies to the client's own messages are bounded by `room`, since it is not read further meanwhile; what comes unasked
    (words, news) is counted in `unasked_bytes`, for its owner to bound.
    """

    def __init__(self) -> None:
        self.bytes = self.unasked_bytes = 0
        self._waiting: deque[tuple[str, bool]] = deque()
        self._closing: tuple[int, str] | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, text: str, unasked: bool) -> None:
        self._waiting.append((text, unasked))
        self.bytes += len(text)
        self.unasked_bytes += len(text) * unasked
        if self.bytes > PAUSE_BYTES:
            self._room.clear()
        self._news.set()

    def close(self, code: int, reason: str) -> None:
        """Nothing comes after what waits now."""
        self._closing = self._closing or (code, reason)
        self._news.set()

    async def room(self) -> None:
        """Returns once little waits."""
        await self._room.wait()

    @contextmanager
    def _last_words(self) -> Iterator[None]:
        """Whoever waits for room is let go when nothing is sent any more."""
        try:
            yield
        finally:
            self._room.set()

    async def send_all(self, websocket: WebSocket) -> None:
        """Sends what waits, as it comes, until `close` or until the client is gone."""
        with suppress(WebSocketDisconnect), self._last_words():
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    text, unasked = self._waiting[0]
                    await websocket.send_text(text)
                    self._waiting.popleft()
                    self.bytes -= len(text)
                    self.unasked_bytes -= len(text) * unasked
                    if self.bytes <= PAUSE_BYTES:
                        self._room.set()
                if self._closing is not None:
                    await websocket.close(*self._closing)
                    return
