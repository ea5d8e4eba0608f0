"""A fleet's recordings: each is on the engine that reads it, and is listed, asked and removed through the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import PurePath
from typing import Any
from urllib.parse import urlencode

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from protocols.chat import RECORDING
from protocols.fields import ProtocolError, read_object
from streamer.cluster.directory import Directory, Known
from streamer.cluster.forward import Forwarder, silent
from streamer.errors import AssistantError
from streamer.server.admission import LET_GO
from streamer.server.auth import Visitor
from streamer.server.bodies import JSON, chunks_of, read_body
from streamer.server.errors import RequestError

KNOWN_SECONDS = 0.3
"""How old what engines told of their recordings may be: pages ask each second."""


def named_recording(asked: Any) -> str | None:
    """The recording that a request's body names as the address of a video (`video_url`), where one does."""
    if isinstance(asked, dict):
        video = asked.get("video_url")
        url = video.get("url") if isinstance(video, dict) else video
        if isinstance(url, str) and url.startswith(RECORDING):
            return url.removeprefix(RECORDING)
    parts = asked.values() if isinstance(asked, dict) else asked if isinstance(asked, list) else ()
    return next((found for part in parts if (found := named_recording(part)) is not None), None)


class Recordings:
    """The endpoints, and who has which recording. `admit` lets in with a scope; `empty` says why no engine is there."""

    def __init__(
        self,
        head: Directory,
        forward: Forwarder,
        admit: Callable[..., Visitor],
        empty: Callable[[], RequestError],
    ) -> None:
        self._head, self._forward, self._admit, self._empty = head, forward, admit, empty
        self._asked = asyncio.Lock()
        self._told: tuple[float, dict[str, tuple[Known, dict[str, Any]]]] = (float("-inf"), {})
        self._coming: dict[str, Known] = {}
        """Where files of a name are on their way to."""

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/v1/recordings", self.listed, methods=["GET"]),
            Route("/v1/recordings", self.add, methods=["POST"]),
            Route("/v1/recordings/{recording}", self.one, methods=["GET"]),
            Route("/v1/recordings/{recording}", self.remove, methods=["DELETE"]),
            Route("/v1/recordings/{recording}/clip", self.one),
        ]

    async def all(self) -> dict[str, tuple[Known, dict[str, Any]]]:
        """By name, the engine that has a recording and what it tells of it; the first engine's where two have one of a name."""
        async with self._asked:
            when, found = self._told
            if time.monotonic() - when > KNOWN_SECONDS:
                engines, found = self._head.ready(), {}
                replies = await asyncio.gather(*(self._forward.get(known, "/v1/recordings") for known in engines))
                for known, reply in zip(engines, replies, strict=True):
                    for each in (reply or {}).get("recordings", ()):
                        found.setdefault(each["name"], (known, {**each, "engine": known.name}))
                self._told = time.monotonic(), found
            return found

    async def owner(self, name: str) -> Known:
        """Raises AssistantError: unknown_recording."""
        found = await self.all()
        if name not in found:
            there = ", ".join(list(found)[:10]) or "none"
            raise AssistantError("unknown_recording", f"There is no recording {name[:80]!r}; there are: {there}.")
        return found[name][0]

    async def ask(self, name: str, request: Request, visitor: Visitor, body: bytes) -> Response:
        """A question about one, answered by the engine that has it. Raises AssistantError: unknown_recording, not_ready."""
        return await self._to(await self.owner(name), request, visitor, body)

    async def listed(self, request: Request) -> Response:
        """Those of all engines, each with its engine's name."""
        self._admit(request, "view", "ask")
        return JSONResponse({"recordings": [told for _, told in (await self.all()).values()]})

    async def one(self, request: Request) -> Response:
        """What the engine tells of one, or a clip of it."""
        visitor = self._admit(request, "view", "ask")
        return await self._to(await self.owner(request.path_params["recording"]), request, visitor, b"")

    async def remove(self, request: Request) -> Response:
        """Its index goes, and the file with it where that was brought."""
        visitor = self._admit(request, "admin")
        reply = await self._to(await self.owner(request.path_params["recording"]), request, visitor, b"")
        self._told = (float("-inf"), {})
        return reply

    async def add(self, request: Request) -> Response:
        """A file's bytes to the engine with the least to do; a stream's span to the engine that has the stream."""
        visitor = self._admit(request, "admin")
        if not self._head.ready():
            raise self._empty()
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON:
            body = await read_body(request)
            stream = (await asyncio.to_thread(read_object, body)).get("stream")
            if not isinstance(stream, str):
                raise ProtocolError(
                    "missing_required_parameter",
                    "Send a video file, or name a 'stream' with 'from' and 'to': a fleet's machines are not asked for a 'path'.",
                    "stream",
                )
            reply = await self._forward.to_owner(request, visitor, stream, body)
        else:
            reply = await self._bring(request, visitor)
        self._told = (float("-inf"), {})
        return reply

    async def _bring(self, request: Request, visitor: Visitor) -> Response:
        """Passes a file on as it comes. One of a name that an engine has goes to that engine, which then calls it otherwise."""
        name = PurePath(request.query_params.get("name", "recording")[:128]).stem or "recording"
        found = await self.all()
        known = self._coming.get(name) or (found[name][0] if name in found else self._least_busy())
        self._coming[name] = known

        async def passed() -> Any:
            async for chunk in chunks_of(request):
                yield chunk
                request.scope[LET_GO](len(chunk))

        query = urlencode({**request.query_params, "name": name})
        try:
            return await self._to(known, request, visitor, passed(), query=query)
        finally:
            self._coming.pop(name, None)

    def _least_busy(self) -> Known:
        rooms = self._head.placement.room.engines
        return min(self._head.ready(), key=lambda known: (rooms[known.name].draining, rooms[known.name].load))

    async def _to(self, known: Known, request: Request, visitor: Visitor, body: Any, *, query: str = "") -> Response:
        """Raises AssistantError: not_ready."""
        try:
            return await self._forward.to(known, request, visitor, body, query=query)
        except httpx.TransportError as error:
            raise silent(known, error) from None
