"""Addresses at which nothing is, methods and keys that are not taken: told with the right ones. And the prefix of a reverse proxy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from streamer.server.errors import RequestError

REALTIME = "/v1/realtime"


class RootPath:
    """ASGI middleware: the app is reached below `root_path`, whether or not the proxy in front takes that off."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope["root_path"] = self._root_path
        await self._app(scope, receive, send)


def misplaced(scope: Scope, routes: Iterable[BaseRoute]) -> HTTPException:
    """What to say of a request that no route takes: 405 with the methods of its address, 426 of a websocket's, else 404."""
    path, method = get_route_path(scope), scope["method"]
    doors = [route for route in routes if isinstance(route, Route)]
    if methods := _methods(doors, path):
        return HTTPException(405, f"use {' or '.join(methods)}", {"Allow": ", ".join(methods)})
    if path == REALTIME:
        return HTTPException(426, "a websocket is here: connect with ws:// or wss://", {"Upgrade": "websocket"})
    for other in _others(path):
        if methods := _methods(doors, other):
            meant = method if method in methods else " or ".join(methods)
            return HTTPException(404, f"use {meant} {scope.get('root_path', '')}{other}")
    known = dict.fromkeys(door.path for door in doors if "{" not in door.path)
    return HTTPException(404, f"nothing is here; there are {', '.join([*known, REALTIME])}")


def named(scope: Scope, name: str, known: Iterable[str]) -> None:
    """Whether a model of this name is `known`. Raises HTTPException where a slash too many left it empty, and RequestError."""
    if not name:
        raise HTTPException(404, f"use GET {scope.get('root_path', '')}/v1/models")
    if name not in known:
        raise RequestError("model_not_found", f"The model {name!r} does not exist.")


def only(query: Iterable[str], *known: str) -> None:
    """Refuses what a query holds beside these keys: it would mean more than was asked. Raises RequestError: bad_option."""
    for key in query:
        if key not in known:
            raise RequestError("bad_option", f"There is no {key[:40]!r} here: give {', '.join(known)}.")


def _methods(doors: Iterable[Route], path: str) -> list[str]:
    found = {method for door in doors if door.path_regex.match(path) for method in door.methods or ()}
    return sorted(found)


def _others(path: str) -> Iterator[str]:
    """What `path` may have been meant as: without slashes too many, without `/v1` or with it once."""
    plain = "/" + "/".join(filter(None, path.split("/")))
    bare = re.sub(r"^(/v1)+(?=/|$)", "", plain)
    yield plain
    yield bare
    yield f"/v1{bare}"
