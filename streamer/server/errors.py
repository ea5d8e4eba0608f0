"""What is refused over HTTP: the error that the routes raise, and every error as the wire shows it."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protocols.chat import error_body, error_status
from protocols.fields import ProtocolError
from streamer.errors import AssistantError

log = logging.getLogger("streamer.http")
SUMMED_SECONDS = 60.0
MOST_ADDRESSES = 1_000
"""Of which refusals are summed up at once."""


class RequestError(Exception):
    """A request that is refused at the door.

    Attributes:
        code: machine-readable reason.
        retry_after: seconds after which it may be tried again, or None.
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        self.code, self.message, self.retry_after = code, message, retry_after
        super().__init__(message)


def error_response(error: RequestError | AssistantError | ProtocolError) -> Response:
    status = error_status(error.code)
    param = None if isinstance(error, RequestError) else error.param
    wait = error.retry_after if isinstance(error, RequestError) else None
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers["Retry-After"] = str(math.ceil(wait or 1))
    return JSONResponse(error_body(error.code, error.message, param), status, headers)


async def refuse(request: Request, error: Any) -> Response:
    response = error_response(error)
    if response.status_code in (401, 403, 429):
        address = request.client.host if request.client else "unknown"
        request.app.state.refusals.log(request.method, request.url.path, address, error.code)
    return response


class Refusals:
    """Which refusals are told: the first of an address and reason in a minute, and then how many there were."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], tuple[float, int]] = {}

    def told(self, address: str, code: str, now: float) -> int | None:
        """How many were not told since the last that was, or None where this one isn't either."""
        key = address, code
        began, untold = self._since.get(key, (-math.inf, 0))
        if now - began < SUMMED_SECONDS:
            self._since[key] = began, untold + 1
            return None
        if key not in self._since and len(self._since) >= MOST_ADDRESSES:
            del self._since[next(iter(self._since))]
        self._since[key] = now, 0
        return untold

    def log(self, method: str, path: str, address: str, code: str) -> None:
        """Logs that somebody was refused, if that is told: whoever knocks a thousand times fills no disk."""
        before = self.told(address, code, time.monotonic())
        if before is not None:
            more = f" (and {before} times before)" if before else ""
            log.info("refused %s %s to %s: %s%s", method, path[:200], address, code, more)


async def gone(request: Request, error: Any) -> Response:
    """A client that left in the middle of its request: nobody reads this."""
    return Response(status_code=400)


async def refuse_address(request: Request, error: Any) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    body = error_body(code, f"{request.method} {request.url.path[:200]}: {error.detail}.")
    return JSONResponse(body, error.status_code, error.headers)


async def refuse_unforeseen(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(error_body("server_error", "Something broke inside; the daemon's log says what."), 500)
