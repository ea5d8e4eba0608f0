"""Requests that go on from the gateway to engines, and what these answer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from streamer.cluster.directory import Directory, Known
from streamer.errors import AssistantError
from streamer.server.auth import Visitor

log = logging.getLogger("streamer.fleet")
WAIT_SECONDS = 8.0
"""How long a request waits for a stream that is on its way from one engine to another."""
PASSED = frozenset({"content-type", "accept", "last-event-id", "if-match", "range"})
"""Headers of requests that engines are told."""
KEPT = frozenset({"content-type", "content-disposition", "cache-control", "retry-after", "location", "etag", "link", "accept-patch",
                  "cross-origin-resource-policy", "content-range", "accept-ranges"})  # fmt: skip


def silent(known: Known, error: Exception) -> AssistantError:
    """What is told of an engine that can't be reached."""
    return AssistantError("not_ready", f"Engine {known.name!r} does not answer ({type(error).__name__}).")


class Forwarder:
    """Passes requests on, in the name of the visitor who came to the gateway."""

    def __init__(self, head: Directory) -> None:
        self.head = head

    async def to_owner(
        self, request: Request, visitor: Visitor, stream: str, body: bytes, patience: float = WAIT_SECONDS
    ) -> Response:
        """To the stream's owner; to its next one where that is gone, or has let go, before it has answered."""
        end = time.monotonic() + patience
        while True:
            known = await self.head.found(stream, max(0.0, end - time.monotonic()))
            try:
                reply = await self.to(known, request, visitor, body)
            except httpx.TransportError as error:
                if time.monotonic() > end:
                    raise silent(known, error) from None
                await asyncio.sleep(0.05)
                continue
            if (
                reply.status_code in (404, 503)
                and self.head.owner(stream) is not known
                and stream in self.head.configs
                and time.monotonic() < end
            ):
                continue
            return reply

    async def to(
        self, known: Known, request: Request, visitor: Visitor, body: bytes | AsyncIterator[bytes], query: str = ""
    ) -> Response:
        """One request to one engine, with another `query` where one is given; what it answers is passed on as it comes.

        Raises httpx.TransportError.
        """
        if known.at is None:
            raise httpx.ConnectError("the engine is gone")
        query = f"?{query or request.url.query}" if query or request.url.query else ""
        headers = {key: value for key, value in request.headers.items() if key in PASSED} | self.head.bearer(
            known, visitor
        )
        if visitor.remote:
            headers["x-forwarded-for"] = request.client.host if request.client else "unknown"
        asked = self.head.client.build_request(
            request.method, f"{known.at.url}{request.url.path}{query}", headers=headers, content=body
        )
        reply = await self.head.client.send(asked, stream=True)
        kept = {key: value for key, value in reply.headers.items() if key in KEPT}
        if not reply.headers.get("content-type", "").startswith(("text/event-stream", "multipart/", "video/")):
            return Response(await _read(reply), reply.status_code, kept)
        return StreamingResponse(_pass_on(reply), reply.status_code, kept)

    async def get(self, known: Known, path: str) -> dict[str, Any] | None:
        """What an engine tells the head; None where it does not answer."""
        text = await self.text(known, path)
        try:
            found = json.loads(text)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    async def text(self, known: Known, path: str) -> str:
        """The same as it comes; nothing where it does not answer."""
        try:
            reply = await self.head.client.get(
                f"{known.at and known.at.url}{path}", headers=self.head.bearer(known), timeout=2.0
            )
        except (httpx.HTTPError, AssertionError):
            return ""
        return reply.text if reply.is_success else ""


async def _read(reply: httpx.Response) -> bytes:
    try:
        return b"".join([chunk async for chunk in reply.aiter_raw()])
    finally:
        await reply.aclose()


async def _pass_on(reply: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in reply.aiter_raw():
            yield chunk
    except httpx.TransportError as error:
        log.warning("an engine broke off in the middle of an answer: %s", error)
    finally:
        await reply.aclose()
