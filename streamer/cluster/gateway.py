"""The fleet's door: the daemon's protocols, tokens and page on one port; each request goes to the engine that has its stream."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from capture import SourceError
from capture.network.policy import looked_up, refuse_private
from capture.redaction import redact
from protocols.chat import chosen_stream, model_body, model_ids, models_body
from protocols.fields import ProtocolError, read_object
from streamer.cluster.directory import Directory
from streamer.cluster.figures import gathered
from streamer.cluster.following import Follower, Leading
from streamer.cluster.forward import WAIT_SECONDS, Forwarder
from streamer.cluster.passes import link_key
from streamer.cluster.realtime import Relay
from streamer.cluster.recordings import Recordings, named_recording
from streamer.cluster.watching import Watching
from streamer.config import Config, ConfigError, parse_config
from streamer.errors import AssistantError
from streamer.server.addresses import named
from streamer.server.admission import LINKED, follower
from streamer.server.attachments import PREFIX
from streamer.server.auth import SUBPROTOCOL, Gate, Scope, Visitor
from streamer.server.bodies import read_body
from streamer.server.connections import TRY_AGAIN_LATER
from streamer.server.errors import (
    RequestError,
    error_response,
)
from streamer.server.guarded import guarded, nowhere
from streamer.server.limits import Limits
from streamer.server.page import WEB, Page, own_names
from streamer.server.tokens import known_tokens, signed_tokens
from streamer.server.whip import ANSWER_SECONDS
from streamer.watches.links import Links

log = logging.getLogger("streamer.fleet")
LIST_SECONDS = 0.3
"""How old a list of streams may be: many pages ask for it each second."""
ANY = ["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"]


class Gateway:
    """The endpoints. Tokens and limits are looked at here; engines let in whom the gateway vouches for."""

    def __init__(self, head: Directory) -> None:
        """Raises ConfigError where tokens can't be read, or where others could reach the fleet without them."""
        self.head = head
        config = Config.model_validate({"server": head.fleet.server})
        limits = head.fleet.engine.limits
        self.gate = Gate(
            known_tokens(config),
            config.server.origins,
            names=own_names(config.server.host),
            signed=signed_tokens(config),
        )
        self.limits = Limits(limits.visitor_connections, limits.visitor_answers, limits.visitor_questions_per_minute)
        self._server = config.server
        self._forward = Forwarder(head)
        self._watching = Watching(head, self.limits, self._forward, self._admit)
        self.recordings = Recordings(head, self._forward, self._admit, self._empty)
        self._links = Links(link_key(head.secret), 0.0, 0.0)
        self._relays: set[Relay] = set()
        self._listed: tuple[float, list[dict[str, Any]]] = (0.0, [])
        self._listing = asyncio.Lock()
        self._began = int(time.time())

    def app(self) -> Starlette:
        """Serve it with `server_options`; call `close` before stopping."""
        routes = [
            WebSocketRoute("/v1/realtime", self.realtime),
            WebSocketRoute("/{path:path}", nowhere),
            Route("/v1/chat/completions", self.ask, methods=["POST"]),
            Route("/v1/responses", self.ask, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/v1/streams", self.streams, methods=["GET"]),
            Route("/v1/streams", self.attach, methods=["POST"]),
            Route("/v1/streams/{stream}", self.stream, methods=["GET"]),
            Route("/v1/streams/{stream}", self.detach, methods=["DELETE"]),
            Route("/v1/streams/{stream}/{rest:path}", self.of_stream, methods=["GET", "HEAD", "DELETE"]),
            *self.recordings.routes(),
            Route("/v1/watches", self._watching.watches, methods=["GET"]),
            Route("/v1/watches", self._watching.add_watch, methods=["POST"]),
            Route("/v1/watches/events", self._watching.watch_events, methods=["GET"]),
            Route("/v1/watches/events/{event}/{rest}", self._watching.of_event, methods=["GET", "POST"]),
            Route("/v1/watches/{watch}", self._watching.watch, methods=["GET", "PATCH", "DELETE"]),
            Route("/v1/events", self._watching.events),
            Route("/v1/fleet", self.fleet),
            Route("/v1/fleet/drain", self.drain, methods=["POST"]),
            Route("/v1/fleet/move", self.move, methods=["POST"]),
            Route("/whip/{stream}", self.whip, methods=ANY),
            Route("/whip/{stream}/{session}", self.whip, methods=ANY),
            *([] if isinstance(self.head, Follower) else Leading(self.head).routes()),
            Route("/healthz", self.health),
            Route("/readyz", self.ready),
            Route("/metrics", self.metrics),
            Mount("/", Page(directory=WEB, html=True), name="page"),
        ]
        return guarded(self, routes, self._server, self.gate, self.limits, self._linked)

    async def close(self) -> None:
        await asyncio.gather(*(each.close(1001, "the gateway is shutting down") for each in list(self._relays)))

    async def revoke(self) -> None:
        """Closes the websockets of those who may no longer be here."""
        for relay in [each for each in self._relays if not self.gate.stands(each.visitor, time.time())]:
            await relay.close(1008, "this token is no longer good")

    # Questions

    async def realtime(self, websocket: WebSocket) -> None:
        try:
            visitor = self._admit(websocket, "view", "ask", "publish")
            if not self.head.ready():
                raise self._empty()
        except RequestError as error:
            await websocket.send_denial_response(error_response(error))
            return
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)
        try:
            self.limits.connect(visitor.name)
        except RequestError as error:
            await websocket.close(TRY_AGAIN_LATER, error.message)
            return
        relay = Relay(websocket, self, visitor)
        self._relays.add(relay)
        try:
            await relay.serve()
        finally:
            self._relays.discard(relay)
            self.limits.disconnect(visitor.name)

    async def ask(self, request: Request) -> Response:
        """Goes to whoever has the stream, or the recording, that is meant; once more where a stream's engine dies before it says a word."""
        visitor = self._admit(request, "ask")
        body = await read_body(request)
        asked = await asyncio.to_thread(read_object, body)
        model = asked["model"] if isinstance(asked.get("model"), str) else ""
        recording = named_recording(asked) or await self._recording(model)
        if recording is not None:
            return await self.recordings.ask(recording, request, visitor, body)
        return await self._forward.to_owner(request, visitor, self.meant(model), body)

    async def _recording(self, model: str) -> str | None:
        """The recording that a model's id names; None where it names a stream, or nothing."""
        named = model.removeprefix(f"{self._model}/")
        known = named != model and named not in self.head.configs and named in await self.recordings.all()
        return named if known else None

    async def _names(self) -> list[str]:
        """The streams, and the recordings that no stream has the name of."""
        return list(dict.fromkeys([*self.head.configs, *await self.recordings.all()]))

    def meant(self, model: str) -> str:
        """The stream that a model's id names. Raises ProtocolError, AssistantError: unknown_stream."""
        names = list(self.head.configs)
        stream = chosen_stream(model or self._model, self._model, names)
        if stream is not None:
            return stream
        if len(names) != 1:
            raise AssistantError(
                "unknown_stream", f"Which stream is meant? Name one; there are: {', '.join(names[:10]) or 'none'}."
            )
        return names[0]

    @property
    def _model(self) -> str:
        return self.head.fleet.engine.model.name

    async def models(self, request: Request) -> Response:
        self._admit(request, "view", "ask")
        return JSONResponse(models_body(self._model, await self._names(), self._began, {}))

    async def model(self, request: Request) -> Response:
        self._admit(request, "view", "ask")
        wanted = request.path_params["model"]
        named(request.scope, wanted, model_ids(self._model, await self._names()))
        return JSONResponse(model_body(wanted, self._began, {}))

    async def all_watches(self) -> list[dict[str, Any]]:
        """See `Watching.all`."""
        return await self._watching.all()

    # Streams

    async def streams(self, request: Request) -> Response:
        return JSONResponse({"streams": await self.listed(self._admit(request, "view"))})

    async def listed(self, visitor: Visitor) -> list[dict[str, Any]]:
        """Every stream of the fleet as an engine shows it, with the engine's name; those that nobody has say why."""
        async with self._listing:
            when, found = self._listed
            if time.monotonic() - when > LIST_SECONDS:
                replies = await asyncio.gather(
                    *(self._forward.get(known, "/v1/streams") for known in self.head.ready())
                )
                by_name = {each["name"]: each for reply in replies if reply for each in reply["streams"]}
                found = [self._shown(name, by_name.get(name)) for name in self.head.configs]
                self._listed = time.monotonic(), found
            return found

    def _shown(self, name: str, view: dict[str, Any] | None) -> dict[str, Any]:
        placed = self.head.placement.streams[name]
        place = {"engine": placed.engine if placed.state != "waiting" else None, "epoch": placed.epoch}
        if view is not None:
            return {**view, **place}
        config, why = self.head.configs[name], placed.why or "it is on its way to an engine"
        return {
            "name": name, "source": redact(config.source), "state": "waiting", "reason": why, "frozen": False,
            "fps_in": 0.0, "fps_seen": 0.0,
            "frames_in": 0, "frames_seen": 0, "drops": {}, "lag_s": None, "newest_frame_age_s": None, "uptime_s": 0.0, **place,
        }  # fmt: skip

    async def stream(self, request: Request) -> Response:
        visitor, name = self._admit(request, "view"), request.path_params["stream"]
        for view in await self.listed(visitor):
            if view["name"] == name:
                return JSONResponse(view)
        raise self._unknown(name)

    async def attach(self, request: Request) -> Response:
        visitor = self._admit(request, "admin")
        fields = await asyncio.to_thread(read_object, await read_body(request))
        return JSONResponse(
            await self.attached(visitor, fields.pop("name", None), fields.pop("source", None), fields), 201
        )

    async def attached(self, visitor: Visitor, name: Any, source: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Has one more stream watched, for a visitor who from elsewhere may not name what only these machines reach."""
        visitor.need("admin")
        if not isinstance(name, str) or not isinstance(source, str):
            raise ProtocolError("missing_required_parameter", "A stream needs a 'name' and a 'source'.", "name")
        if name.startswith(PREFIX):
            raise AssistantError("bad_option", f"The stream is refused: names in {PREFIX}… are the daemon's own.")
        if visitor.remote and not self._server.private_sources:
            try:
                await looked_up(refuse_private, source)
            except (SourceError, OSError) as error:
                raise AssistantError("bad_source", f"Stream {name!r} can't be watched: {error}") from None
            options = {**options, "public_only": True}
        try:
            parse_config({"streams": [{"name": name, "source": source, **options}]}, "stream")
        except ConfigError as error:
            problems = "; ".join(problem.removeprefix("streams[0].") for problem in error.problems)
            raise AssistantError("bad_option", f"The stream is refused: {problems.rstrip('?.')}.") from None
        if not self.head.ready():
            raise self._empty()
        await self.head.do("attach", {"stream": {"name": name, "source": source, **options}})
        try:
            await self.head.found(name, WAIT_SECONDS)
        except AssistantError as error:
            if name in self.head.configs:
                await self.head.do("detach", {"stream": name})
            raise AssistantError("bad_source", error.message) from None
        self._listed = (0.0, [])
        return next(view for view in await self.listed(visitor) if view["name"] == name)

    async def detach(self, request: Request) -> Response:
        self._admit(request, "admin")
        await self.head.do("detach", {"stream": request.path_params["stream"]})
        self._listed = (0.0, [])
        return Response(status_code=204)

    async def of_stream(self, request: Request) -> Response:
        visitor = self._admit(request, "admin" if request.method == "DELETE" else "view")
        return await self._forward.to_owner(request, visitor, request.path_params["stream"], b"")

    async def whip(self, request: Request) -> Response:
        """A publisher's peer is the engine itself: WebRTC goes there, and begins anew when the stream has moved."""
        stream = request.path_params["stream"]
        visitor = Visitor("nobody", frozenset()) if request.method == "OPTIONS" else self._admit(request, "publish")
        return await self._forward.to_owner(request, visitor, stream, await read_body(request), ANSWER_SECONDS)

    # The fleet

    async def fleet(self, request: Request) -> Response:
        self._admit(request, "view")
        return JSONResponse(self.head.view())

    async def drain(self, request: Request) -> Response:
        self._admit(request, "admin")
        fields = await asyncio.to_thread(read_object, await read_body(request))
        draining = fields.get("draining", True) is True
        await self.head.do("drain", {"engine": str(fields.get("engine")), "draining": draining})
        return JSONResponse(self.head.view())

    async def move(self, request: Request) -> Response:
        self._admit(request, "admin")
        fields = await asyncio.to_thread(read_object, await read_body(request))
        engine = fields.get("engine") and str(fields["engine"])
        await self.head.do("move", {"stream": str(fields.get("stream")), "engine": engine})
        return JSONResponse(self.head.view())

    async def health(self, request: Request) -> Response:
        return JSONResponse(await self._health())

    async def ready(self, request: Request) -> Response:
        found = await self._health()
        return JSONResponse(
            found, 200 if found["status"] == "ok" else 503, {} if found["status"] == "ok" else {"Retry-After": "2"}
        )

    async def _health(self) -> dict[str, Any]:
        engines = self.head.ready()
        if not engines:
            return {"status": "unready", "reason": self._empty().message}
        reply = await self._forward.get(engines[0], "/healthz") or {}
        return {"status": "ok", "model": reply.get("model"), "streams": len(self.head.configs), "engines": len(engines)}

    async def metrics(self, request: Request) -> Response:
        """See `gathered`."""
        self._admit(request, "view")
        engines = self.head.ready()
        texts = await asyncio.gather(*(self._forward.text(known, "/metrics") for known in engines))
        text = gathered({known.name: text for known, text in zip(engines, texts, strict=True)}, self.head.view())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    # How it is done

    def _linked(self, path: str, query: str) -> bool:
        """Whether this is a link to evidence that an engine signed, and still good."""
        return self._links.holds(path, query, time.time())

    def _admit(self, connection: HTTPConnection, *scopes: Scope) -> Visitor:
        if connection.scope.get(LINKED):
            visitor = follower(connection)
        else:
            address = connection.client.host if connection.client else "unknown"
            visitor = self.gate.admit(connection.headers, address)
        self.limits.request(visitor.name, time.monotonic())
        visitor.need(*scopes)
        return visitor

    def _empty(self) -> RequestError:
        why = "; ".join(f"{each.name}: {each.trouble}" for each in list(self.head.engines.values())[:3])
        return RequestError("not_ready", f"No engine of the fleet is there yet ({why}).", 2.0)

    def _unknown(self, name: str) -> AssistantError:
        return AssistantError(
            "unknown_stream",
            f"There is no stream {name!r}; there are: {', '.join(list(self.head.configs)[:10]) or 'none'}.",
        )
