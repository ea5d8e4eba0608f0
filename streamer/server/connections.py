"""The connections beneath every door: how many there may be, how long a request's head may take, how many frames are read."""

from __future__ import annotations

import asyncio
import json
import resource
import secrets
import ssl
import time
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request

from protocols.realtime.server_events import Error, ErrorView
from streamer.server.admission import Held
from streamer.server.bodies import CUT
from streamer.server.errors import RequestError
from streamer.server.limits import frame_bucket, network_of

HEAD_SECONDS = 10.0
"""Within which a request's head must have come, from the connection's beginning or from the head's first byte."""
SEND_SECONDS = 60.0
"""How long a peer may take nothing of what is sent to it over HTTP before its connection is cut, as nginx has it."""
CLOSE_SECONDS = 1.0
"""How long a closing handshake may take before the connection is cut."""
MOST_CONNECTIONS = 1_000
SPARE_FILES = 48
"""Descriptors that are left for sources, weights and what else is opened."""
SHARE_OF_ONE = 0.75
"""Of all connections those that one address may hold: it may be a proxy in front of many."""
SLICE_BYTES = 4_096
"""So much is parsed at once, so that a flood of empty frames leaves the loop to others between."""
FRAGMENTS = 4_096
"""Of one message."""
MESSAGE_TOO_BIG, TRY_AGAIN_LATER = 1009, 1013
LINGER_SECONDS, MOST_LINGER_SECONDS = 5.0, 60.0
"""After a message that is too large, the connection is kept until its sender has been quiet for so long, and for how long at
most: to a connection that is closed while its peer still sends, TCP answers with a reset, and what was said is lost."""
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def most_connections() -> int:
    """As many as the process may open files for, with room for its own; at most `MOST_CONNECTIONS`."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(MOST_CONNECTIONS, (files - SPARE_FILES) // 2 if files < 2 * SPARE_FILES else files - SPARE_FILES))


class Crowd:
    """Which connections are open, of each address."""

    def __init__(self, most: int) -> None:
        self.most, self.most_of_one = most, max(1, int(most * SHARE_OF_ONE))
        self._open: dict[object, str] = {}
        self._of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: object, address: str) -> bool:
        """Whether there is room for a connection; one that is in already stays so."""
        if connection in self._open:
            return True
        if len(self._open) >= self.most or self._of[address] >= self.most_of_one:
            return False
        self._open[connection] = address
        self._of[address] += 1
        return True

    def become(self, connection: object, other: object) -> None:
        """A connection is another object from now on, as it is once TLS lies over it."""
        if connection in self._open:
            self._open[other] = self._open.pop(connection)

    def leave(self, connection: object) -> None:
        address = self._open.pop(connection, None)
        if address is not None:
            self._of[address] -= 1
            if not self._of[address]:
                del self._of[address]


class HttpProtocol(H11Protocol):
    """uvicorn's HTTP with a limit to connections, and to the time that a TLS handshake and a request's head may take.

    TLS is begun here rather than by the listener, which shows a connection only once its handshake is done.
    """

    head_timer: asyncio.TimerHandle | None = None
    shaking: asyncio.Task[None] | None = None
    """The TLS handshake while it lasts."""
    early = b""
    """What came along with its end."""
    send_timer: asyncio.TimerHandle | None = None
    unsent = 0
    """Bytes that count as held, as the peer does not read them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, CUT: self._cut}
        tls: ssl.SSLContext | None = self.config.app.state.tls  # type: ignore[union-attr]
        if not self._crowd().enter(transport, self._network()):
            if tls is None:
                transport.write(BUSY)
            transport.close()
        elif tls is None:
            self._time_head()
        else:
            self.shaking = self.loop.create_task(self._shake_hands(transport, tls))

    async def _shake_hands(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        try:
            secured = await self.loop.start_tls(
                transport,
                self,
                tls,
                server_side=True,
                ssl_handshake_timeout=HEAD_SECONDS,
                ssl_shutdown_timeout=CLOSE_SECONDS,
            )
        except OSError:
            secured = None
        self.shaking = None
        if secured is None or secured.is_closing():
            self.connection_lost(None)
            return
        self._crowd().become(transport, secured)
        super().connection_made(secured)
        self._time_head()
        if self.early:
            self.data_received(self.early)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd().leave(self.transport)
        self._end_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More waits to be sent than the peer reads: it counts as bodies do, and has to get less within a while."""
        super().pause_writing()
        self.unsent = self.transport.get_write_buffer_size()
        try:
            self._held().take(self._network(), self.unsent)
        except RequestError:
            self.unsent = 0
            self._cut()
        else:
            self._time_sending(self.unsent)

    def resume_writing(self) -> None:
        """The peer has read."""
        super().resume_writing()
        if self.send_timer is not None:
            self.send_timer.cancel()
            self.send_timer = None
        if self.unsent:
            self._held().give_back(self._network(), self.unsent)
            self.unsent = 0

    def _time_sending(self, left: int) -> None:
        self.send_timer = self.loop.call_later(SEND_SECONDS, self._look_at_sending, left)

    def _look_at_sending(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < before:
            self._time_sending(left)
        else:
            self._cut()

    def _cut(self) -> None:
        self.transport.abort()

    def _network(self) -> str:
        return network_of(self.client[0] if self.client else "")

    def _held(self) -> Held:
        held: Held = self.config.app.state.held  # type: ignore[union-attr]
        return held

    def data_received(self, data: bytes) -> None:
        if self.shaking is not None:
            self.early += data
            return
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.transport.get_protocol() is not self or self.conn.their_state is not h11.IDLE:
            self._end_timer()
        elif self.head_timer is None:
            self._time_head()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self.resume_writing()  # from now on that is the other protocol's
        super().handle_websocket_upgrade(event)
        early, _ = self.conn.trailing_data
        if early:
            self.transport.get_protocol().data_received(early)  # type: ignore[attr-defined]

    def _crowd(self) -> Crowd:
        crowd: Crowd = self.config.app.state.crowd  # type: ignore[union-attr]
        return crowd

    def _time_head(self) -> None:
        self.head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _end_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _head_is_late(self) -> None:
        self.head_timer = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(LATE)
            self.transport.close()
            self.loop.call_later(CLOSE_SECONDS, self.transport.abort)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's websocket with an end for peers that do not read: a close frame behind what waits, then a cut.

    Frames of every kind, empty ones and pings among them, are counted: whoever sends more than is fair is read more slowly.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unparsed = bytearray()
        self._resting = False
        self._bucket = frame_bucket(time.monotonic())
        self._leaving: float | None = None
        """Until when, at most, what still comes behind a message that is too large is thrown away."""
        self._linger: asyncio.TimerHandle | None = None
        self._held = self._begun = 0
        """Bytes that count as held, and those of them that belong to a message which has not come whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._network = network_of(self.client[0] if self.client else "")

    def connection_lost(self, exc: Exception | None) -> None:
        crowd: Crowd = self.config.app.state.crowd  # type: ignore[union-attr]
        crowd.leave(self.transport)
        self._give_back(self._held)
        self._unparsed.clear()
        if self._linger is not None:
            self._linger.cancel()
        super().connection_lost(exc)

    def handle_parser_exception(self) -> None:
        """A message that is too large is told of by its limit before the close frame; all else ends at once."""
        assert self.conn.close_sent is not None
        if self.conn.close_sent.code != MESSAGE_TOO_BIG:
            super().handle_parser_exception()
            return
        most = self.config.ws_max_size
        refused = ErrorView(
            type="invalid_request_error",
            code="message_too_large",
            message=f"A message may hold {most} bytes: send less, a smaller picture for one, or raise server.max_message_bytes.",
            param=None,
            event_id=None,
        )
        text = json.dumps(Error(event_id=f"event_{secrets.token_hex(12)}", error=refused).wire()).encode()
        self.transport.write(Frame(Opcode.TEXT, text).serialize(mask=False) + b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._leaving = self.loop.time() + MOST_LINGER_SECONDS
        self._unparsed.clear()
        self.transport.resume_reading()
        self._stay()
        # Until the connection is lost, the app's end is not to end it (see `run_asgi`).
        self.close_timer = self.loop.call_later(MOST_LINGER_SECONDS, self.transport.abort)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": MESSAGE_TOO_BIG, "reason": "message too large"})

    def _stay(self) -> None:
        """The sender is not quiet yet."""
        assert self._leaving is not None
        if self._linger is not None:
            self._linger.cancel()
        wait = min(LINGER_SECONDS, max(0.0, self._leaving - self.loop.time()))
        self._linger = self.loop.call_later(wait, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if self._leaving is not None:
            self._stay()
            return
        self._unparsed += data
        if self._resting:
            self.transport.pause_reading()
        else:
            self._parse()

    def _parse(self) -> None:
        while self._unparsed and not self._resting:
            # The request's head comes whole and alone, from uvicorn.
            size = SLICE_BYTES if self.handshake_initiated else len(self._unparsed)
            part = bytes(self._unparsed[:size])
            del self._unparsed[:size]
            if self.handshake_complete and not self._hold(len(part)):
                return
            super().data_received(part)
            if self._leaving is not None:
                self._give_back(self._held)
                return
            wait = self._bucket.take(time.monotonic(), 0)
            if self._unparsed and not wait:
                wait = 1e-6  # others are let in between one slice and the next
            if wait and not self.transport.is_closing():
                self._resting = True
                self.transport.pause_reading()
                self.loop.call_later(wait, self._go_on)

    def _go_on(self) -> None:
        self._resting = False
        if self.transport.is_closing():
            self._unparsed.clear()
            return
        self._parse()
        if not self._resting and not self.read_paused:
            self.transport.resume_reading()

    def _hold(self, size: int) -> bool:
        """Whether there is room for so many bytes more; where there is none, the connection is closed."""
        held: Held = self.config.app.state.held  # type: ignore[union-attr]
        try:
            held.take(self._network, size)
        except RequestError as error:
            self._unparsed.clear()
            self.cut(TRY_AGAIN_LATER, error.message)
            return False
        self._held += size
        self._begun += size
        return True

    def _give_back(self, size: int) -> None:
        if size:
            held: Held = self.config.app.state.held  # type: ignore[union-attr]
            held.give_back(self._network, size)
            self._held -= size

    def send_receive_event_to_app(self) -> None:
        self._begun = 0
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        # Who asks for a message is done with those before.
        self._give_back(self._held - self._begun)
        return await super().receive()

    def _count(self) -> None:
        self._bucket.level -= 1

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        # Some send before they are let in: it is kept, and read as soon as they are.
        self._resting = not self.handshake_complete
        if hasattr(self, "scope"):
            self.scope["extensions"]["streamer.socket"] = {"cut": self.cut, "writable": self.writable}

    async def send(self, message: Any) -> None:
        waiting = not self.handshake_complete
        await super().send(message)
        if waiting and self.handshake_complete:
            self._go_on()

    def handle_text(self, event: Frame) -> None:
        self._count()
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        self._count()
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        self._count()
        if len(self.frames) >= FRAGMENTS:
            self.cut(MESSAGE_TOO_BIG, f"a message may come in {FRAGMENTS} fragments")
        if not self.close_sent:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        self._count()
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_pong(self, event: Frame) -> None:
        self._count()
        super().handle_pong(event)

    def cut(self, code: int, reason: str) -> None:
        """Closes without waiting until the peer has read what was sent before."""
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.close_timer = self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)
