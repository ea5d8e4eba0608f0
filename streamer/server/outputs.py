"""Events over HTTP: the feed as server-sent events, and the outputs that they go to besides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from capture import SourceError
from capture.network.policy import looked_up, public_addresses
from protocols.fields import ProtocolError, read_object
from streamer.config import ConfigError, parse_config
from streamer.errors import AssistantError
from streamer.outputs.feed import Reader
from streamer.outputs.outputs import Outputs
from streamer.server.auth import Visitor
from streamer.server.bodies import Attended, read_body, viewing
from streamer.server.limits import Limits

QUIET_SECONDS = 15.0
"""Seconds after which a comment is sent, by which proxies and clients see that the feed is alive."""
AGAIN_MS = 2_000
"""Milliseconds after which a reader that was cut off comes back (`retry`)."""


class OutputRoutes:
    """`/v1/events` and `/v1/outputs`.

    Args:
        admit: who a request's visitor is, if that may do what the scopes name.
        stays: whether what a visitor looks at goes on.
        private_sources: visitors on other machines may add webhooks at private addresses.
    """

    def __init__(
        self,
        outputs: Outputs,
        limits: Limits,
        admit: Callable[..., Visitor],
        stays: Callable[[Visitor], bool],
        private_sources: bool,
    ) -> None:
        self._outputs, self._limits, self._admit, self._stays = outputs, limits, admit, stays
        self._private_sources = private_sources
        self.routes = [
            Route("/v1/events", self.events),
            Route("/v1/outputs", self.list, methods=["GET"]),
            Route("/v1/outputs", self.add, methods=["POST"]),
            Route("/v1/outputs/{output}", self.remove, methods=["DELETE"]),
        ]

    def renew(self, *, private_sources: bool) -> None:
        """Takes what a changed configuration says of addresses."""
        self._private_sources = private_sources

    async def events(self, request: Request) -> Response | Attended:
        """Events of watches as they come (`?watch=…`, `?stream=…`), after the one that `Last-Event-ID` names."""
        visitor = self._admit(request, "view")
        asked = {key: request.query_params[key] for key in ("watch", "stream") if key in request.query_params}
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        self._limits.connect(visitor.name)
        reader = Reader(self._outputs.feed, request.headers.get("last-event-id"))
        return viewing(
            self._told(reader, asked),
            "text/event-stream",
            lambda: self._stays(visitor),
            lambda: self._limits.disconnect(visitor.name),
        )

    async def _told(self, reader: Reader, asked: dict[str, str]) -> AsyncIterator[bytes]:
        yield f"retry: {AGAIN_MS}\n\n".encode()
        spoken = time.monotonic()
        while True:
            found = reader.read()
            if reader.missed:
                reader.missed = False
                yield b'event: events.missed\ndata: {"type":"events.missed"}\n\n'
            for event in found:
                if all(getattr(event, key) == value for key, value in asked.items()):
                    yield b"id: %b\nevent: %b\ndata: %b\n\n" % (event.id.encode(), event.type.encode(), event.body)
                    spoken = time.monotonic()
            if not found:
                if time.monotonic() - spoken > QUIET_SECONDS:
                    yield b": nothing new\n\n"
                    spoken = time.monotonic()
                await self._outputs.feed.wait(QUIET_SECONDS)

    async def list(self, request: Request) -> Response:
        """Every output with its figures and its address."""
        self._admit(request, "admin")
        return JSONResponse({"outputs": [self._view(asdict(status)) for status in self._outputs.status()]})

    async def add(self, request: Request) -> Response:
        """A webhook: its keys as in the configuration. One that a client on another machine adds reaches public addresses alone."""
        visitor = self._admit(request, "admin")
        fields = await asyncio.to_thread(read_object, await read_body(request))
        if fields.pop("kind", "webhook") != "webhook":
            raise ProtocolError(
                "bad_option",
                "Only webhooks can be added here: brokers and commands stand in the configuration.",
                "kind",
            )
        if visitor.remote and not self._private_sources:
            fields["public_only"] = True
        try:
            config = parse_config({"outputs": {"webhooks": [fields]}}, "output").outputs.webhooks[0]
        except ConfigError as error:
            problems = "; ".join(problem.removeprefix("outputs.webhooks[0].") for problem in error.problems)
            raise AssistantError("bad_option", f"The output is refused: {problems.rstrip('?.')}.") from None
        if config.public_only:
            try:
                await looked_up(public_addresses, urlsplit(config.url).hostname or "")
            except (SourceError, OSError) as error:
                raise AssistantError("bad_option", f"The output is refused: {error}.", "url") from None
        return JSONResponse(self._view(asdict(await self._outputs.add(config))), 201)

    async def remove(self, request: Request) -> Response:
        """An output that was added while the daemon runs."""
        self._admit(request, "admin")
        await self._outputs.remove(request.path_params["output"])
        return Response(status_code=204)

    def _view(self, facts: dict[str, Any]) -> dict[str, Any]:
        return {**facts, "address": self._outputs.address(facts["name"])}
