"""The ASGI app: every door of the daemon on one port, each with the scope it asks for."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from protocols.chat import chosen_stream, model_body, model_ids, models_body, read_chat
from protocols.fields import ProtocolError, read_object
from protocols.realtime.beta import HEADER as HEADER_OF_BETA
from protocols.realtime.beta import SUBPROTOCOL as SUBPROTOCOL_OF_BETA
from protocols.realtime.session import RealtimeSession
from protocols.responses import read_response
from streamer.assistant import Assistant
from streamer.config import Config
from streamer.outputs.outputs import Outputs
from streamer.prompt import default_sampling
from streamer.server.addresses import named, only
from streamer.server.admission import LINKED, follower
from streamer.server.auth import SUBPROTOCOL, Gate, Scope, Signed, Token, Visitor
from streamer.server.bodies import PICTURE_HEADERS, Attended, read_body, viewing
from streamer.server.chat import complete
from streamer.server.connections import TRY_AGAIN_LATER
from streamer.server.errors import (
    RequestError,
    error_response,
)
from streamer.server.guarded import guarded, nowhere
from streamer.server.library import Recorded
from streamer.server.limits import Limits
from streamer.server.metrics import Metrics
from streamer.server.outputs import OutputRoutes
from streamer.server.page import WEB, Page, own_names
from streamer.server.questions import Questions
from streamer.server.realtime import RealtimeConnection
from streamer.server.recordings import Footage, read_time
from streamer.server.responses import respond
from streamer.server.streams import Streams
from streamer.server.timeline import Timelines
from streamer.server.tokens import known_tokens, signed_tokens
from streamer.server.views import health_view, stream_view
from streamer.server.watches import Watching
from streamer.server.whip import Publishing

log = logging.getLogger("streamer.http")
WHIP_METHODS = ["OPTIONS", "POST", "PATCH", "DELETE", "GET", "HEAD", "PUT"]


def create_app(assistant: Assistant, config: Config, outputs: Outputs) -> Starlette:
    """The daemon's routes. Serve it with `listening.server_options(config)`; call `close_connections(app)` before stopping.

    Raises ConfigError where tokens can't be read, or where others could reach the daemon without them.
    """
    routes = Routes(assistant, config, outputs, known_tokens(config), signed_tokens(config))
    doors = [
        WebSocketRoute("/v1/realtime", routes.realtime),
        WebSocketRoute("/{path:path}", nowhere),
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        Route("/v1/responses", routes.responses, methods=["POST"]),
        Route("/v1/models", routes.models),
        Route("/v1/models/{model:path}", routes.model),
        Route("/v1/streams", routes.streams, methods=["GET"]),
        Route("/v1/streams", routes.attach, methods=["POST"]),
        Route("/v1/streams/{stream}", routes.stream, methods=["GET"]),
        Route("/v1/streams/{stream}", routes.detach, methods=["DELETE"]),
        Route("/v1/streams/{stream}/frame.jpg", routes.frame),
        Route("/v1/streams/{stream}/video.mjpeg", routes.video),
        Route("/v1/streams/{stream}/clip", routes.footage.clip),
        Route("/v1/memory", routes.held),
        Route("/v1/streams/{stream}/memory", routes.forget, methods=["DELETE"]),
        Route("/v1/streams/{stream}/still", routes.footage.still),
        Route("/v1/watches/events/{event}/frame.jpg", routes.footage.frame),
        *routes.outputs.routes,
        *routes.timelines.routes(),
        *routes.recorded.routes(),
        *routes.watching.routes(),
        Route("/whip/{stream}", routes.whip, methods=WHIP_METHODS),
        Route("/whip/{stream}/{session}", routes.whip, methods=WHIP_METHODS),
        Route("/healthz", routes.health),
        Route("/readyz", routes.ready),
        Route("/metrics", routes.metrics),
        # Takes every path that no other route took.
        Mount("/", Page(directory=WEB, html=True), name="page"),
    ]
    return guarded(routes, doors, config.server, routes.gate, routes.limits, routes.linked)


async def close_connections(app: Starlette) -> None:
    """Ends every answer (`response.done` cancelled) and closes every websocket with 1001, within about a second."""
    await app.state.routes.close()


class Routes:
    """The endpoints, and the connections that are open."""

    def __init__(
        self, assistant: Assistant, config: Config, outputs: Outputs, tokens: list[Token], signed: Signed | None
    ) -> None:
        self._assistant, self._config, self._outputs = assistant, config, outputs
        self.gate = Gate(tokens, config.server.origins, names=own_names(config.server.host), signed=signed)
        limits = config.limits
        self.limits = Limits(limits.visitor_connections, limits.visitor_answers, limits.visitor_questions_per_minute)
        self._metrics = Metrics()
        self._streams = Streams(assistant, private_sources=config.server.private_sources)
        self._questions = Questions(
            assistant,
            self._streams,
            self.limits,
            self._metrics,
            media_domains=config.server.media_domains,
        )
        self._publishing = Publishing(assistant, f"{config.server.root_path}/whip")
        self.footage = Footage(assistant, self._streams, self.limits, self._admit_to_evidence, self._sees)
        self.outputs = OutputRoutes(outputs, self.limits, self._admit, self._stays, config.server.private_sources)
        self.timelines = Timelines(assistant, self._streams, lambda request: self._admit(request, "view"))
        self.watching = Watching(assistant, self._streams, self._admit, self._admit_to_evidence)
        self.recorded = Recorded(assistant, self._admit, self._admit_to_evidence)
        self._connections: set[RealtimeConnection] = set()
        self._closing = asyncio.Event()
        self._began = int(time.time())

    async def close(self) -> None:
        self._closing.set()
        await asyncio.gather(self._publishing.close(), *(each.shut_down() for each in self._connections))

    def reload(self, config: Config, tokens: list[Token], signed: Signed | None) -> list[str]:
        """Takes the tokens, origins and limits of a changed configuration; closes what is no longer allowed.

        Returns what became of tokens, a line each.
        """
        server, limits = config.server, config.limits
        lines = self.gate.renew(tokens, server.origins, signed)
        self.limits.renew(limits.visitor_connections, limits.visitor_answers, limits.visitor_questions_per_minute)
        self._streams.renew(private_sources=server.private_sources)
        self.outputs.renew(private_sources=server.private_sources)
        self._questions.renew(media_domains=server.media_domains)
        self._config = self._config.model_copy(update={"server": server, "limits": limits})
        self.revoke()
        return lines

    def revoke(self) -> None:
        """Closes the websockets and sessions of those who may no longer be here; pictures end by themselves."""
        for connection in list(self._connections):
            connection.revoke_unless(self.stands)
        self._publishing.revoke_unless(self.stands)

    def stands(self, visitor: Visitor) -> bool:
        return self.gate.stands(visitor, time.time())

    def _stays(self, visitor: Visitor) -> bool:
        """Whether what a visitor looks at goes on."""
        return not self._closing.is_set() and self.stands(visitor)

    async def realtime(self, websocket: WebSocket) -> None:
        """Any scope comes in; what a client may do is asked event by event."""
        try:
            visitor = self._admit(websocket, "view", "ask", "publish")
        except RequestError as error:
            address = websocket.client.host if websocket.client else "unknown"
            websocket.app.state.refusals.log("websocket", "/v1/realtime", address, error.code)
            await websocket.send_denial_response(error_response(error))
            return
        offered = websocket.scope["subprotocols"]
        beta = SUBPROTOCOL_OF_BETA in offered or HEADER_OF_BETA in websocket.headers.get("openai-beta", "")
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        try:
            self.limits.connect(visitor.name)
        except RequestError as error:
            await websocket.close(TRY_AGAIN_LATER, error.message)
            return
        session = self._session(websocket)
        connection = RealtimeConnection(
            websocket, self._assistant, session, visitor, self._questions, self.timelines, beta=beta
        )
        self._connections.add(connection)
        self._metrics.connections += 1
        try:
            await connection.serve()
        finally:
            self._metrics.connections -= 1
            self._connections.discard(connection)
            self.limits.disconnect(visitor.name)

    def _session(self, websocket: WebSocket) -> RealtimeSession:
        """The stream is named by `stream`, or by the model's id as in chat completions."""
        model = websocket.query_params.get("model") or self._config.model.name
        stream = websocket.query_params.get("stream")
        if stream is None:
            try:
                stream = chosen_stream(model, self._config.model.name, self._streams.names())
            except ProtocolError:
                stream = None
        loaded = self._assistant.loading_s is None
        calls_tools = not loaded or self._assistant.model.tokenizer.prompt.tools is not None
        return RealtimeSession(model, stream=stream or None, calls_tools=calls_tools)

    async def chat(self, request: Request) -> Response:
        visitor = self._admit(request, "ask")
        names, recordings = self._streams.names(), await self.recorded.names()
        body, model = await read_body(request), self._config.model.name
        asked = await asyncio.to_thread(read_chat, body, model, names, recordings)
        return await complete(request, asked, visitor, self._questions)

    async def responses(self, request: Request) -> Response:
        visitor = self._admit(request, "ask")
        names, recordings = self._streams.names(), await self.recorded.names()
        body, model = await read_body(request), self._config.model.name
        asked = await asyncio.to_thread(read_response, body, model, names, recordings)
        return await respond(request, asked, visitor, self._questions)

    async def models(self, request: Request) -> Response:
        self._admit(request, "view", "ask")
        return JSONResponse(models_body(self._config.model.name, await self._asked(), self._began, self._told()))

    async def model(self, request: Request) -> Response:
        self._admit(request, "view", "ask")
        wanted = request.path_params["model"]
        named(request.scope, wanted, model_ids(self._config.model.name, await self._asked()))
        return JSONResponse(model_body(wanted, self._began, self._told()))

    async def _asked(self) -> list[str]:
        """The streams, and the recordings that no stream has the name of."""
        return list(dict.fromkeys([*self._streams.names(), *await self.recorded.names()]))

    def _told(self) -> dict[str, Any]:
        """How the model's answers are drawn where a request leaves it open."""
        if not self._assistant.ready:
            return {}
        model, answers = self._assistant.model.config, self._config.answers
        chosen = {name: value for name in default_sampling(model) if (value := getattr(answers, name)) is not None}
        told: dict[str, Any] = {"sampling": default_sampling(model) | chosen}
        if model.think_end_token_id is not None:
            told["thinking_sampling"] = default_sampling(model, thinking=True) | chosen
        return told

    async def streams(self, request: Request) -> Response:
        self._admit(request, "view")
        self._streams.check_loaded()
        return JSONResponse({"streams": [stream_view(status) for status in self._streams.all()]})

    async def stream(self, request: Request) -> Response:
        self._admit(request, "view")
        return JSONResponse(stream_view(self._streams.status(request.path_params["stream"])))

    async def attach(self, request: Request) -> Response:
        visitor = self._admit(request, "admin")
        fields = await asyncio.to_thread(read_object, await read_body(request))
        name, source = fields.pop("name", None), fields.pop("source", None)
        if not isinstance(name, str) or not isinstance(source, str):
            raise ProtocolError("missing_required_parameter", "A stream needs a 'name' and a 'source'.", "name")
        return JSONResponse(stream_view(await self._streams.attach(visitor, name, source, fields)), 201)

    async def detach(self, request: Request) -> Response:
        self._admit(request, "admin")
        await self._streams.detach(request.path_params["stream"])
        return Response(status_code=204)

    async def frame(self, request: Request) -> Response:
        """The picture that the model saw last."""
        self._admit(request, "view")
        picture = await self._streams.picture(request.path_params["stream"])
        return Response(picture, media_type="image/jpeg", headers=PICTURE_HEADERS)

    async def video(self, request: Request) -> Response | Attended:
        """The pictures that the model sees, as motion JPEG; who watches has a connection open."""
        visitor = self._admit(request, "view")
        name = request.path_params["stream"]
        self._streams.frame(name)
        kind = "multipart/x-mixed-replace; boundary=frame"
        if request.method == "HEAD":
            return Response(media_type=kind, headers=PICTURE_HEADERS)
        self.limits.connect(visitor.name)
        pictures = self._streams.pictures(name)
        return viewing(pictures, kind, lambda: self._stays(visitor), lambda: self.limits.disconnect(visitor.name))

    async def held(self, request: Request) -> Response:
        """How much is kept of which streams, those that are watched no more among them."""
        self._admit(request, "admin")
        self._streams.check_loaded()
        return JSONResponse(
            {"streams": [{"name": name, **each} for name, each in (await self._assistant.held()).items()]}
        )

    async def forget(self, request: Request) -> Response:
        """`?from=…&to=…`, all of it without them; `keep_memory=true` lets the stream remember what it has seen."""
        self._admit(request, "admin")
        only(request.query_params, "from", "to", "keep_memory")
        name = request.path_params["stream"]
        if name not in self._streams.names() and name not in await self._assistant.held():
            self._streams.known(name)
        since = read_time(request, "from") if "from" in request.query_params else float("-inf")
        until = read_time(request, "to") if "to" in request.query_params else float("inf")
        keep = request.query_params.get("keep_memory", "false")
        if keep not in ("true", "false"):
            raise RequestError("bad_option", f"keep_memory is true or false, not {keep[:40]!r}.")
        return JSONResponse(await self._assistant.forget(name, since, until, keep_memory=keep == "true"))

    async def whip(self, request: Request) -> Response:
        """Publishing by WebRTC (RFC 9725); what a session's URL may do is known to its publisher alone."""
        place = request.path_params
        visitor = self._admit(request, "publish") if request.method != "OPTIONS" else None
        body = await read_body(request)
        reply = await self._publishing.request(
            request.method, place["stream"], place.get("session"), request.headers, body, visitor
        )
        return Response(reply.body, reply.status, dict(reply.headers))

    async def health(self, request: Request) -> Response:
        return JSONResponse(health_view(self._assistant))

    async def ready(self, request: Request) -> Response:
        ready = self._assistant.ready and not self._closing.is_set()
        return JSONResponse(health_view(self._assistant), 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        self._admit(request, "view")
        return PlainTextResponse(
            self._metrics.text(self._assistant, self._outputs.status()),
            media_type="text/plain; version=0.0.4; charset=utf-8",
        )

    def linked(self, path: str, query: str) -> bool:
        """Whether this is a signed link to evidence, and still good."""
        return self._assistant.watches.links.holds(path, query, time.time())

    def _sees(self, request: Request, visitor: Visitor) -> bool:
        """Whether whoever was let in to evidence goes on seeing it."""
        if not request.scope[LINKED]:
            return self._stays(visitor)
        return not self._closing.is_set() and self.linked(get_route_path(request.scope), request.url.query)

    def _admit_to_evidence(self, request: Request) -> Visitor:
        """Lets in whoever follows a signed link, by the address, or may view. Raises RequestError."""
        if request.scope[LINKED]:
            visitor = follower(request)
            self.limits.request(visitor.name, time.monotonic())
            return visitor
        try:
            return self._admit(request, "view")
        except RequestError as error:
            if error.code == "unauthorized" and "signature" in request.query_params:
                raise RequestError(
                    "unauthorized", "This link has expired or was changed: take a new one from the list of events."
                ) from None
            raise

    def _admit(self, connection: HTTPConnection, *scopes: Scope) -> Visitor:
        address = connection.client.host if connection.client else "unknown"
        visitor = self.gate.admit(connection.headers, address)
        self.limits.request(visitor.name, time.monotonic())
        visitor.need(*scopes)
        return visitor
