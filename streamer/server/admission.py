"""What is asked of every request before any route, and before its token, is looked at; and how many bytes of requests are held."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from starlette._utils import get_route_path
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from streamer.server.auth import Gate, Visitor
from streamer.server.errors import RequestError, error_response
from streamer.server.limits import Limits, network_of

LET_GO = "streamer.let_go"
"""In a request's scope: tells that so many bytes of its body are held no more, as they are on the disk."""
LINKED = "streamer.linked"
"""In a request's scope: whether it came by a signed link, which is all that is asked of who follows it."""
MOST_BYTES = 128 * 2**20
"""Of the bodies of all requests, and the messages of all websockets, that are being read or worked on; one address may hold half."""


def follower(connection: HTTPConnection) -> Visitor:
    """Whoever follows a signed link, known by the address alone."""
    address = connection.client.host if connection.client else "unknown"
    return Visitor(network_of(address), frozenset({"view"}), remote=True)


class Held:
    """Counts the bytes of requests, of all and of each address. Pure."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most, self.bytes = most, 0
        self._of: Counter[str] = Counter()

    def take(self, address: str, size: int) -> None:
        """Takes bytes along. Raises RequestError: overloaded."""
        if self.bytes + size > self.most or self._of[address] + size > self.most // 2:
            raise RequestError(
                "overloaded", "Too much is being sent to this daemon at once: try again in a moment.", 2.0
            )
        self.bytes += size
        self._of[address] += size

    def give_back(self, address: str, size: int) -> None:
        self.bytes -= size
        self._of[address] -= size
        if not self._of[address]:
            del self._of[address]


class Admission:
    """ASGI middleware: who asks too often, by which name, and from which page; then the app.

    `linked` says whether a path with this query is a signed link, which other pages may show and any name may stand in.
    """

    def __init__(
        self, app: ASGIApp, gate: Gate, limits: Limits, held: Held, linked: Callable[[str, str], bool]
    ) -> None:
        self._app, self._gate, self._limits, self._held, self._linked = app, gate, limits, held, linked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        address = connection.client.host if connection.client else "unknown"
        network = network_of(address)
        try:
            self._limits.knock(network, time.monotonic())
            scope[LINKED] = self._follows(scope)
            if not scope[LINKED]:
                self._gate.check(connection.headers)
        except RequestError as error:
            scope["app"].state.refusals.log(scope.get("method", "websocket"), scope["path"], address, error.code)
            await self._refuse(scope, receive, send, error_response(error))
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            if size:
                self._held.take(network, size)
                taken += size
            return message

        def let_go(size: int) -> None:
            nonlocal taken
            self._held.give_back(network, size)
            taken -= size

        scope[LET_GO] = let_go
        try:
            await self._app(scope, counted, send)
        finally:
            if taken:
                self._held.give_back(network, taken)

    def _follows(self, scope: Scope) -> bool:
        query = scope["query_string"].decode("latin-1")
        if scope.get("method") not in ("GET", "HEAD") or "signature" not in QueryParams(query):
            return False
        return self._linked(get_route_path(scope), query)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, response: Response) -> None:
        if scope["type"] == "websocket":
            websocket = WebSocket(scope, receive, send)
            await websocket.send_denial_response(response)
        else:
            await response(scope, receive, send)
