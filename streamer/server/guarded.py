"""What stands before every endpoint of the daemon and of a fleet's gateway: origins, prefixes, admission, and how errors are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.websockets import WebSocket

from protocols.fields import ProtocolError
from streamer.config import ServerConfig
from streamer.errors import AssistantError
from streamer.server.addresses import REALTIME, RootPath
from streamer.server.admission import Admission, Held
from streamer.server.auth import Gate
from streamer.server.connections import Crowd, most_connections
from streamer.server.errors import (
    Refusals,
    RequestError,
    error_response,
    gone,
    refuse,
    refuse_address,
    refuse_unforeseen,
)
from streamer.server.limits import Limits
from streamer.server.tokens import tls_context


def guarded(
    endpoints: Any,
    routes: Sequence[BaseRoute],
    server: ServerConfig,
    gate: Gate,
    limits: Limits,
    linked: Callable[[str, str], bool],
) -> Starlette:
    """An app of `routes`, to be served with `server_options`; its state has the `endpoints` as `routes`.

    `linked` is `Admission`'s.
    """
    held = Held()
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=server.origins,
                allow_methods=["GET", "POST", "PATCH", "DELETE"],
                # Whichever they are: the SDKs send a dozen of their own, and only these origins' pages are let in.
                allow_headers=["*"],
                expose_headers=["Location", "ETag", "Retry-After"],
            ),
            Middleware(RootPath, root_path=server.root_path),
            Middleware(Admission, gate=gate, limits=limits, held=held, linked=linked),
        ],
        exception_handlers={
            RequestError: refuse,
            AssistantError: refuse,
            ProtocolError: refuse,
            HTTPException: refuse_address,
            ClientDisconnect: gone,
            Exception: refuse_unforeseen,
        },
    )
    app.state.routes = endpoints
    app.state.refusals = Refusals()
    app.state.held = held
    app.state.crowd = Crowd(most_connections())
    app.state.tls = tls_context(server)
    return app


async def nowhere(websocket: WebSocket) -> None:
    """Answers whoever connects where there is no websocket."""
    message = f"There is no websocket at {websocket.url.path}: use {websocket.scope.get('root_path', '')}{REALTIME}."
    await websocket.send_denial_response(error_response(RequestError("not_found", message)))
