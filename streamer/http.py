"""The ASGI app: every door of the daemon on one port."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from protocols.realtime import RealtimeSession
from streamer.assistant import Assistant
from streamer.config import Config
from streamer.facts import health_facts, stream_facts
from streamer.page import page_routes
from streamer.websocket import RealtimeConnection, WebSocketProtocol


def create_app(assistant: Assistant, config: Config) -> Starlette:
    """The daemon's doors. Serve it with `server_options(config)`; call `close_connections(app)` before stopping."""
    doors = Doors(assistant, config)
    app = Starlette(
        routes=[
            WebSocketRoute("/v1/realtime", doors.realtime),
            Route("/v1/streams", doors.streams),
            Route("/healthz", doors.health),
            *page_routes(),
        ],
    )
    app.state.doors = doors
    return app


def server_options(config: Config) -> dict[str, Any]:
    """What uvicorn must be told for this app, beside the host and the port."""
    return {
        "ws": WebSocketProtocol,
        "ws_max_size": config.server.max_message_bytes,
        "ws_per_message_deflate": False,
        "access_log": False,
        "log_level": "critical",
        "server_header": False,
        "timeout_graceful_shutdown": 1,
    }


async def close_connections(app: Starlette) -> None:
    """Ends every answer (`response.done` cancelled) and closes every websocket with 1001, within about a second."""
    await app.state.doors.close()


class Doors:
    """The endpoints, and the connections that are open."""

    def __init__(self, assistant: Assistant, config: Config) -> None:
        self._assistant, self._config = assistant, config
        self._connections: set[RealtimeConnection] = set()

    async def close(self) -> None:
        await asyncio.gather(*(connection.shut_down() for connection in self._connections))

    async def realtime(self, websocket: WebSocket) -> None:
        session = RealtimeSession(
            websocket.query_params.get("model") or self._config.model.name,
            stream=websocket.query_params.get("stream") or None,
        )
        connection = RealtimeConnection(websocket, self._assistant, session)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def streams(self, request: Request) -> JSONResponse:
        return JSONResponse({"streams": [stream_facts(status) for status in self._assistant.streams()]})

    async def health(self, request: Request) -> JSONResponse:
        return JSONResponse(health_facts(self._assistant))
