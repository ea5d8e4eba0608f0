"""Bodies: a request's, read within bounds, and a response's that goes on for as long as somebody takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive
from starlette.types import Scope as ASGIScope
from starlette.types import Send as ASGISend

from streamer.server.errors import RequestError

BODY_BYTES = 32 * 2**20
"""The largest body of a request: pictures and short videos come in it."""
BODY_SECONDS = 60.0
"""Within which a body must have come."""
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


class Viewing(StreamingResponse):
    """Pictures or events for one who watches; `over` is called once nobody does any more."""

    def __init__(self, pictures: AsyncIterator[bytes], kind: str, over: Callable[[], None]) -> None:
        super().__init__(pictures, media_type=kind, headers=PICTURE_HEADERS)
        self._over = over

    async def __call__(self, scope: ASGIScope, receive: Receive, send: ASGISend) -> None:
        """See `StreamingResponse`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()
