"""Watches of a whole fleet: every engine has all of them, and looks for those of the streams that it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from protocols.fields import read_object
from streamer.cluster.directory import Directory, Known
from streamer.cluster.forward import Forwarder
from streamer.errors import AssistantError
from streamer.server.bodies import read_body
from streamer.server.errors import error_response
from streamer.server.limits import Limits
from streamer.watch_config import WatchConfig

if TYPE_CHECKING:
    from streamer.server.watches import Admit


class Watching:
    """The routes below /v1/watches, and /v1/events: to see them needs the scope view, all else ask."""

    def __init__(self, head: Directory, limits: Limits, forward: Forwarder, admit: Admit) -> None:
        self.head, self.limits, self._forward, self._admit = head, limits, forward, admit

    async def watches(self, request: Request) -> Response:
        self._admit(request, "view")
        return JSONResponse({"watches": await self.all()})

    async def all(self) -> list[dict[str, Any]]:
        """Every watch; what is known of each of its streams is as the engine says that has it."""
        replies = await asyncio.gather(*(self._forward.get(known, "/v1/watches") for known in self.head.ready()))
        out: dict[str, dict[str, Any]] = {}
        for known, reply in zip(self.head.ready(), replies, strict=False):
            for view in (reply or {}).get("watches", []):
                mine = [
                    each
                    for each in view["streams"]
                    if self.head.placement.streams.get(each.get("stream"), None)
                    and self.head.placement.streams[each["stream"]].engine == known.name
                ]
                whole = out.setdefault(
                    view["name"], {**view, "streams": [], "events": 0, "right": 0, "false_alarms": 0}
                )
                whole["streams"] += mine
                for key in ("events", "right", "false_alarms"):
                    whole[key] += view[key]
        configured = {each.name for each in self.head.fleet.watches}
        return [{**each, "configured": name in configured} for name, each in out.items() if name in self.head.watches]

    async def add_watch(self, request: Request) -> Response:
        self._admit(request, "ask")
        fields = await asyncio.to_thread(read_object, await read_body(request))
        one = fields.pop("stream", None)
        if one is not None:
            fields.setdefault("streams", [one])
        if "streams" not in fields and len(self.head.configs) == 1:
            fields["streams"] = list(self.head.configs)
        try:
            config = WatchConfig.model_validate(fields)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise AssistantError("bad_option", f"The watch is refused: {where}: {error.errors()[0]['msg']}.") from None
        await self.head.do("watch", {"name": config.name, "config": config.model_dump(mode="json", exclude_unset=True)})
        return JSONResponse({**config.model_dump(mode="json"), "configured": False}, 201)

    async def watch(self, request: Request) -> Response:
        visitor = self._admit(request, "view" if request.method == "GET" else "ask")
        name = request.path_params["watch"]
        if name not in self.head.watches:
            raise AssistantError(
                "unknown_watch", f"There is no watch {name!r}; there are: {', '.join(self.head.watches) or 'none'}."
            )
        if request.method == "DELETE":
            await self.head.do("watch", {"name": name, "config": None})
            return Response(status_code=204)
        if request.method == "PATCH":
            body = await read_body(request)
            replies = await asyncio.gather(
                *(self._forward.to(known, request, visitor, body) for known in self.head.ready())
            )
            if bad := next((each for each in replies if each.status_code >= 400), None):
                return bad
        return JSONResponse(next((each for each in await self.all() if each["name"] == name), {"name": name}))

    async def watch_events(self, request: Request) -> Response:
        self._admit(request, "view")
        query = f"?{request.url.query}" if request.url.query else ""
        replies = await asyncio.gather(
            *(self._forward.get(known, f"/v1/watches/events{query}") for known in self.head.ready())
        )
        events = sorted(
            (each for reply in replies if reply for each in reply["events"]), key=lambda each: str(each["id"])
        )
        limit = request.query_params.get("limit", "100")
        most = int(limit) if limit.isdecimal() and len(limit) < 6 else 100
        return JSONResponse({"events": events[:most] if "after" in request.query_params else events[-most:]})

    async def of_event(self, request: Request) -> Response:
        """Whichever engine told it."""
        visitor = self._admit(request, "view" if request.method == "GET" else "ask")
        body = await read_body(request)
        reply: Response = error_response(
            AssistantError("unknown_event", "No engine that is there knows such an event.")
        )
        for known in self.head.ready():
            reply = await self._forward.to(known, request, visitor, body)
            if reply.status_code < 400:
                return reply
        return reply

    async def events(self, request: Request) -> Response:
        """What watches tell, of all engines, as server-sent events."""
        visitor = self._admit(request, "view")
        self.limits.connect(visitor.name)
        queue: asyncio.Queue[bytes] = asyncio.Queue(256)

        async def hear(known: Known) -> None:
            while True:
                try:
                    url = f"{known.at and known.at.url}/v1/events?{request.url.query}"
                    async with self.head.client.stream("GET", url, headers=self.head.bearer(known, visitor)) as reply:
                        event = b""
                        async for chunk in reply.aiter_raw():
                            event += chunk
                            while b"\n\n" in event:
                                whole, event = event.split(b"\n\n", 1)
                                await queue.put(whole + b"\n\n")
                except (httpx.HTTPError, AssertionError):
                    pass
                await asyncio.sleep(1.0)

        async def told() -> AsyncIterator[bytes]:
            tasks = [asyncio.create_task(hear(known)) for known in self.head.engines.values()]
            try:
                while True:
                    yield await queue.get()
            finally:
                for task in tasks:
                    task.cancel()
                self.limits.disconnect(visitor.name)

        return StreamingResponse(told(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
