"""Bodies: a request's, read within bounds, and a response's that goes on for as long as somebody takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive
from starlette.types import Scope as ASGIScope
from starlette.types import Send as ASGISend

from streamer.server.errors import RequestError

JSON = "application/json"
CHUNK_SECONDS = 30.0
"""Within which more of a file must come."""

BODY_BYTES = 32 * 2**20
"""The largest body of a request: pictures and short videos come in it."""
BODY_SECONDS = 60.0
"""Within which a body must have come."""
LOOK_SECONDS = 1.0
"""Within which a response ends whose visitor may no longer be here."""
CUT = "streamer.cut"
"""In the state of an HTTP request's scope: ends its connection at once, whatever waits to be sent."""
PICTURE_HEADERS = {"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"}


async def read_body(request: Request) -> bytes:
    """A request's whole body. Raises RequestError: payload_too_large, request_timeout, unsupported_media_type."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("unsupported_media_type", "A body is read as it comes: send it without Content-Encoding.")
    out = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                out += chunk
                if len(out) > BODY_BYTES:
                    raise RequestError("payload_too_large", f"A body may hold {BODY_BYTES // 2**20} MiB at most.")
    except TimeoutError:
        raise RequestError("request_timeout", f"The body has not come within {BODY_SECONDS:g} s.") from None
    return bytes(out)


class Attended:
    """A response that goes on for as long as its visitor `stays`, and then breaks off; `over` is called at its end, however it comes."""

    def __init__(self, response: Response, stays: Callable[[], bool], over: Callable[[], None]) -> None:
        self._response, self._stays, self._over = response, stays, over

    async def __call__(self, scope: ASGIScope, receive: Receive, send: ASGISend) -> None:
        """As an ASGI app."""
        sending = asyncio.ensure_future(self._response(scope, receive, send))
        try:
            while not sending.done() and self._stays():
                await asyncio.wait([sending], timeout=LOOK_SECONDS)
            if not sending.done():
                await asyncio.wait([sending], timeout=LOOK_SECONDS)
            if sending.done():
                await sending
            else:
                # Whoever does not read would have what was sent last for ever.
                scope["state"][CUT]()
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            self._over()


def viewing(pictures: AsyncIterator[bytes], kind: str, stays: Callable[[], bool], over: Callable[[], None]) -> Attended:
    """Pictures or events for one who watches."""

    async def wanted() -> AsyncIterator[bytes]:
        async for picture in pictures:
            if not stays():
                break
            yield picture

    return Attended(StreamingResponse(wanted(), media_type=kind, headers=PICTURE_HEADERS), stays, over)


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """What comes of a body that is not empty. Raises RequestError: request_timeout."""
    stream = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream, None), CHUNK_SECONDS)
        except TimeoutError:
            raise RequestError("request_timeout", f"Nothing more has come for {CHUNK_SECONDS:g} s.") from None
        if chunk is None:
            return
        if chunk:
            yield chunk
