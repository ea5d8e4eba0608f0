"""One client of the gateway's `/v1/realtime`: a leg to each engine that it has to do with, and one conversation over all of them.

What a client says goes to the engine that has the stream it is about. Where that stream moves, the next engine is told the
session's settings and the conversation's latest items, so that the client goes on; answers end where they began.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from protocols.fields import ProtocolError
from streamer.cluster.directory import Known
from streamer.cluster.forward import silent
from streamer.errors import AssistantError
from streamer.server.auth import Visitor
from streamer.server.errors import RequestError

if TYPE_CHECKING:
    from streamer.cluster.gateway import Gateway

log = logging.getLogger("streamer.fleet")
ITEMS = 32
"""Of a conversation those that an engine which takes it over is told."""
WAIT_SECONDS = 10.0
BY_ITSELF = "gateway"
"""The id of events that no client has sent."""
ADDED = ("conversation.item.added", "conversation.item.done")
ECHOES = frozenset([*ADDED, "session.updated"])
OWN = frozenset({"stream.list", "stream.attach", "stream.detach", "watch.list"})
"""What the gateway answers itself."""
PASSED_ON = '{"type":"response.output_text.delta"'
Refused = (AssistantError, RequestError, ProtocolError)


class Leg:
    """A websocket to one engine, and the answers that are asked for or open there."""

    def __init__(self, known: Known, socket: ClientConnection) -> None:
        self.known, self.socket = known, socket
        self.asked: deque[tuple[str, str | None]] = deque()
        """What asks for an answer that is not begun yet, and of which stream."""
        self.open: dict[str, str | None] = {}
        """The answers, by stream."""
        self.reader: asyncio.Task[None] | None = None
        self.at = known.at
        self.knows: set[str] = set()
        """Items of the conversation that the engine has."""
        self.silent: Counter[tuple[str, str]] = Counter()
        """Events, by kind and item, that say again what the gateway told it: they are no news to the client."""

    def echoes(self, kind: str, text: str) -> bool:
        """Whether an event answers what the gateway told the engine by itself."""
        if kind == "error":
            return bool(json.loads(text)["error"].get("event_id") == BY_ITSELF)
        if not self.silent or kind not in ECHOES:
            return False
        key = kind, "" if kind == "session.updated" else str(json.loads(text)["item"].get("id"))
        if self.silent[key] <= 0:
            return False
        self.silent[key] -= 1
        return True

    async def tell(self, items: Mapping[str, dict[str, Any]]) -> None:
        """Has the engine know a conversation's items that were said elsewhere."""
        for id, item in items.items():
            if id not in self.knows:
                self.knows.add(id)
                self.silent.update((kind, id) for kind in ADDED)
                await self.socket.send(
                    json.dumps({"type": "conversation.item.create", "event_id": BY_ITSELF, "item": item})
                )


class Relay:
    """Carries what a client and its engines say."""

    def __init__(self, websocket: WebSocket, gateway: Gateway, visitor: Visitor) -> None:
        self.visitor = visitor
        self._websocket, self._gateway, self._head = websocket, gateway, gateway.head
        self._legs: dict[str, Leg] = {}
        self._model = websocket.query_params.get("model")
        self._beta = websocket.headers.get("openai-beta")
        self.stream: str | None = websocket.query_params.get("stream")
        self._settings: dict[str, Any] = {}
        self._items: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._begun = False
        self._subscribed: str | None = None
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Runs until either side closes; the websocket is accepted already."""
        try:
            with suppress(*Refused):
                self.stream = self.stream or self._gateway.meant(self._model or "")
            self._spawn(self._follow())
            with suppress(AssistantError):
                await self._leg(self.stream)
            while True:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                text = message.get("text")
                try:
                    if text is None:
                        await self._say(message.get("bytes") or b"", self.stream)
                    else:
                        await self._hear(text)
                except (*Refused, ConnectionClosed) as error:
                    await self._error(error, text)
        except WebSocketDisconnect:
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(leg.socket.close() for leg in self._legs.values()), return_exceptions=True)

    async def close(self, code: int, reason: str) -> None:
        """Says goodbye, unless the client is gone already."""
        with suppress(RuntimeError, WebSocketDisconnect):
            await self._websocket.close(code, reason)

    # From the client

    async def _hear(self, text: str) -> None:
        try:
            event = json.loads(text)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            await self._say(text, self.stream)  # the engine says what is wrong with it
            return
        kind = event["type"]
        if kind in OWN:
            await self._answer(kind, event)
        elif kind == "session.update" and isinstance(event.get("session"), dict):
            session = event["session"]
            stream = session.get("stream")
            if isinstance(stream, str) and stream in self._head.configs:
                self.stream = stream
            self._settings |= session
            await self._say(text, self.stream)
        elif kind == "response.create":
            response = event.get("response") if isinstance(event.get("response"), dict) else {}
            recording = response.get("recording")  # type: ignore[union-attr]
            if isinstance(recording, str):
                there = await self._to(await self._gateway.recordings.owner(recording))
                there.asked.append((text, None))
                await there.socket.send(text)
            else:
                stream = response.get("stream") or self.stream  # type: ignore[union-attr]
                await self._say(text, stream, asks=True)
        elif kind == "response.cancel" and isinstance(event.get("response_id"), str):
            leg = next((leg for leg in self._legs.values() if event["response_id"] in leg.open), None)
            await (self._say(text, self.stream) if leg is None else leg.socket.send(text))
        elif kind == "watch.subscribe":
            self._subscribed = text
            for known in self._head.ready():
                await (await self._to(known)).socket.send(text)
        elif kind.startswith("watch."):
            raise RequestError("invalid_request", f"A fleet's gateway takes {kind} over HTTP alone: /v1/watches.")
        else:
            stream = event.get("stream")
            await self._say(text, stream if isinstance(stream, str) else self.stream)

    async def _answer(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "stream.list":
            self.visitor.need("view")
            await self._tell("stream.listed", streams=await self._gateway.listed(self.visitor))
        elif kind == "watch.list":
            self.visitor.need("view")
            await self._tell("watch.listed", watches=await self._gateway.all_watches())
        elif kind == "stream.attach":
            options = event.get("options")
            view = await self._gateway.attached(
                self.visitor,
                event.get("stream"),
                event.get("source"),
                dict(options) if isinstance(options, dict) else {},
            )
            await self._tell("stream.attached", stream=view["name"], **view)
        else:
            self.visitor.need("admin")
            await self._head.do("detach", {"stream": str(event.get("stream"))})
            await self._tell("stream.detached", stream=event.get("stream"))

    async def _say(self, message: str | bytes, stream: str | None, *, asks: bool = False) -> None:
        """To whoever has the stream; once more where that is gone meanwhile. Raises AssistantError."""
        end = asyncio.get_running_loop().time() + WAIT_SECONDS
        while True:
            try:
                leg = await self._leg(stream)
                if asks and isinstance(message, str):
                    leg.asked.append((message, stream))
                await leg.socket.send(message)
                return
            except ConnectionClosed:
                if asks:
                    return  # whoever notices that the leg is broken asks again
            except AssistantError as error:
                if error.code != "not_ready":
                    raise
            if asyncio.get_running_loop().time() > end:
                raise AssistantError("not_ready", "The engine that has this stream does not answer: try again.")
            await asyncio.sleep(0.1)

    # Legs

    async def _leg(self, stream: str | None) -> Leg:
        """The leg to a stream's owner; to any engine for what is about none. Raises AssistantError."""
        if stream is not None and stream in self._head.configs:
            return await self._to(await self._head.found(stream, WAIT_SECONDS))
        if self._legs:
            return next(iter(self._legs.values()))
        if not (ready := self._head.ready()):
            raise AssistantError("not_ready", "No engine of the fleet is there now: try again in a moment.")
        return await self._to(ready[0])

    async def _to(self, known: Known) -> Leg:
        async with self._lock:
            leg = self._legs.get(known.name)
            if leg is not None and leg.at is known.at:
                await leg.tell(self._items)
                return leg
            if known.at is None:
                raise AssistantError("not_ready", f"Engine {known.name!r} is gone: try again.")
            mine = self.stream if self._head.owner(self.stream or "") is known else None
            query = f"?stream={mine}" if mine else ""
            headers = self._head.bearer(known, self.visitor) | ({"OpenAI-Beta": self._beta} if self._beta else {})
            try:
                socket = await connect(
                    f"{known.at.url.replace('http', 'ws', 1)}/v1/realtime{query}",
                    additional_headers=headers, compression=None, proxy=None, max_size=None, open_timeout=5.0, ping_interval=None,
                )  # fmt: skip
            except (OSError, InvalidHandshake, TimeoutError) as error:
                raise silent(known, error) from None
            leg = self._legs[known.name] = Leg(known, socket)
            if self._settings:
                session = {key: value for key, value in self._settings.items() if key != "stream"} | (
                    {"stream": mine} if mine else {}
                )
                await socket.send(json.dumps({"type": "session.update", "event_id": BY_ITSELF, "session": session}))
                leg.silent["session.updated", ""] += self._begun
            await leg.tell(self._items)
            if self._subscribed is not None and self._begun:
                await socket.send(self._subscribed)
            leg.reader = self._spawn(self._read(leg))
            return leg

    async def _read(self, leg: Leg) -> None:
        """What an engine says; what it says of that which the gateway told it is no news to the client."""
        first = not self._begun
        self._begun = True
        with suppress(ConnectionClosed):
            async for message in leg.socket:
                text = message if isinstance(message, str) else message.decode()
                if not text.startswith(PASSED_ON):
                    kind = text[9 : text.find('"', 9)]
                    if kind == "session.created" and not first:
                        continue
                    if leg.echoes(kind, text):
                        continue
                    if kind in ("response.created", "response.done", "conversation.item.done"):
                        self._note(leg, kind, json.loads(text))
                await self._websocket.send_text(text)
        if self._legs.get(leg.known.name) is leg:
            del self._legs[leg.known.name]
        await self._broken(leg)

    def _note(self, leg: Leg, kind: str, event: dict[str, Any]) -> None:
        if kind == "response.created":
            _, stream = leg.asked.popleft() if leg.asked else ("", self.stream)
            leg.open[event["response"]["id"]] = stream
        elif kind == "response.done":
            leg.open.pop(event["response"]["id"], None)
        elif (item := _told_again(event["item"])) is not None:
            leg.knows.add(item["id"])
            self._items[item["id"]] = item
            while len(self._items) > ITEMS:
                self._items.popitem(last=False)

    async def _broken(self, leg: Leg) -> None:
        """An engine is gone: answers that it had begun are over, what it had not begun is asked of the next one."""
        for response in leg.open:
            error = {"type": "server_error", "code": "engine_lost"}
            view: dict[str, Any] = {
                "object": "realtime.response", "id": response, "status": "failed", "output": [], "usage": None,
                "status_details": {"type": "failed", "reason": "engine_lost", "error": error},
            }  # fmt: skip
            await self._tell("response.done", response=view)
        for text, stream in leg.asked:
            try:
                await self._say(text, stream, asks=True)
            except (AssistantError, ConnectionClosed) as error:
                await self._error(error, text)

    async def _follow(self) -> None:
        """Goes to the next owner of the session's stream as soon as there is one, and tells that it did."""
        at: str | None = None
        while True:
            changed = self._head.orders.changed
            stream = self.stream
            owner = self._head.owner(stream) if stream is not None else None
            if owner is not None and owner.name != at:
                moved, at = at is not None, owner.name
                if moved or owner.name not in self._legs:
                    with suppress(*Refused):
                        leg = await self._to(owner)
                        if moved:
                            leg.silent["session.updated", ""] += 1
                            await leg.socket.send(
                                json.dumps(
                                    {"type": "session.update", "event_id": BY_ITSELF, "session": {"stream": stream}}
                                )
                            )
                            told: dict[str, Any] = next(
                                (each for each in reversed(self._head.orders.moved) if each["stream"] == stream), {}
                            )
                            await self._tell(
                                "stream.resumed",
                                stream=stream,
                                engine=owner.name,
                                age_s=told.get("gap_s"),
                                unseen_s=told.get("unseen_s"),
                            )
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 1.0)

    # To the client

    async def _tell(self, kind: str, **told: Any) -> None:
        event = {"type": kind, "event_id": f"event_{uuid4().hex[:20]}", **told}
        with suppress(RuntimeError, WebSocketDisconnect):
            await self._websocket.send_text(json.dumps(event, ensure_ascii=False, separators=(",", ":")))

    async def _error(self, error: Any, text: str | None) -> None:
        """Says why what a client said can't be done, by that event's id."""
        try:
            told = json.loads(text or "")
            id = told.get("event_id") if isinstance(told, dict) else None
        except ValueError:
            id = None
        code = getattr(error, "code", "not_ready") if not isinstance(error, ConnectionClosed) else "not_ready"
        message = error.message if isinstance(error, (AssistantError, RequestError)) else str(error)
        kind = "server_error" if code == "not_ready" else "invalid_request_error"
        view = {
            "type": kind,
            "code": code,
            "message": message,
            "param": None,
            "event_id": id if isinstance(id, str) else None,
        }
        await self._tell("error", error=view)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _told_again(item: dict[str, Any]) -> dict[str, Any] | None:
    """An item of a conversation as a client creates it; None for what can't be."""
    if item.get("type") != "message" or not item.get("content"):
        return None
    kind = "output_text" if item["role"] == "assistant" else "input_text"
    parts = [{"type": kind, "text": part["text"]} for part in item["content"] if isinstance(part.get("text"), str)]
    return {"type": "message", "id": item["id"], "role": item["role"], "content": parts} if parts else None
