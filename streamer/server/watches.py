"""Watches over HTTP: made, listed, paused and removed, and the events that they told, with their pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from protocols.fields import ProtocolError, read_object
from protocols.realtime.decisions import WatchCommand
from streamer.assistant import Assistant
from streamer.errors import AssistantError
from streamer.server.admission import LINKED
from streamer.server.auth import Scope, Visitor
from streamer.server.bodies import read_body
from streamer.server.errors import RequestError
from streamer.server.streams import Streams
from streamer.watches.event import CROCKFORD

MOST_LISTED = 1_000
FEEDBACK = ("right", "false_alarm", None)


class Admit(Protocol):
    """Who comes in; see `Routes._admit`."""

    def __call__(self, connection: HTTPConnection, *scopes: Scope) -> Visitor: ...


class Watching:
    """The routes below /v1/watches: to see them needs the scope view, all else ask."""

    def __init__(
        self,
        assistant: Assistant,
        streams: Streams,
        admit: Admit,
        admit_to_evidence: Callable[[Request], Visitor],
    ) -> None:
        """`admit_to_evidence` lets in whoever may see one event's picture."""
        self._assistant, self._watches, self._streams, self._admit = assistant, assistant.watches, streams, admit
        self._admit_to_evidence = admit_to_evidence

    def routes(self) -> list[Route]:
        """In the order in which they are tried."""
        return [
            Route("/v1/watches", self.all, methods=["GET"]),
            Route("/v1/watches", self.add, methods=["POST"]),
            Route("/v1/watches/events", self.events, methods=["GET"]),
            Route("/v1/watches/events/{event}/still.jpg", self.still, methods=["GET"]),
            Route("/v1/watches/events/{event}/feedback", self.judge, methods=["POST"]),
            Route("/v1/watches/{watch}/tuning", self.tuning, methods=["GET"]),
            Route("/v1/watches/{watch}", self.one, methods=["GET"]),
            Route("/v1/watches/{watch}", self.change, methods=["PATCH"]),
            Route("/v1/watches/{watch}", self.remove, methods=["DELETE"]),
        ]

    async def all(self, request: Request) -> Response:
        self._enter(request, "view")
        return JSONResponse({"watches": await self._watches.all()})

    async def one(self, request: Request) -> Response:
        self._enter(request, "view")
        return JSONResponse(await self._watches.one(request.path_params["watch"]))

    async def tuning(self, request: Request) -> Response:
        """Which threshold feedback speaks for."""
        self._admit(request, "view")
        return JSONResponse((await self._watches.tune(request.path_params["watch"])).facts())

    async def add(self, request: Request) -> Response:
        """The keys of a configured watch; `stream` names one alone."""
        self._enter(request, "ask")
        fields = await asyncio.to_thread(read_object, await read_body(request))
        return JSONResponse(await make(self._assistant, self._streams, fields), 201)

    async def change(self, request: Request) -> Response:
        """`paused`, true or false; `snooze`, in seconds, 0 to end it; and any key of a watch but its name, where it is not configured."""
        self._enter(request, "ask")
        fields = await asyncio.to_thread(read_object, await read_body(request))
        return JSONResponse(await change(self._assistant, request.path_params["watch"], fields))

    async def remove(self, request: Request) -> Response:
        self._enter(request, "ask")
        await self._watches.remove(request.path_params["watch"])
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """Those after the one that `after` names, oldest first; without it the newest, in the same order."""
        self._enter(request, "view")
        after, limit = request.query_params.get("after"), request.query_params.get("limit", "100")
        if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit[:9]) <= MOST_LISTED:
            raise RequestError("bad_option", f"limit is a number from 1 to {MOST_LISTED}, not {limit[:40]!r}.")
        events = await self._watches.kept.after(after or "", int(limit), newest=after is None)
        return JSONResponse({"events": [self._watches.links.of(event) for event in events]})

    async def still(self, request: Request) -> Response:
        """The picture that decided an event."""
        self._admit_to_evidence(request)
        self._streams.check_loaded()
        picture = await self._watches.kept.still(known_id(request.path_params["event"]))
        if picture is None:
            raise AssistantError("unknown_event", "There is no picture of such an event: it may be too old.")
        headers = {
            "Cache-Control": "private, max-age=86400, immutable",
            "Cross-Origin-Resource-Policy": "cross-origin" if request.scope[LINKED] else "same-origin",
        }
        return Response(picture, media_type="image/jpeg", headers=headers)

    async def judge(self, request: Request) -> Response:
        """`feedback`: right, false_alarm, or null to take it back."""
        self._enter(request, "ask")
        fields = await asyncio.to_thread(read_object, await read_body(request))
        event = known_id(request.path_params["event"])
        return JSONResponse(await judge(self._assistant, event, fields))

    def _enter(self, request: Request, scope: Scope) -> None:
        """Raises RequestError: before the model is loaded, no watch is there that was made before."""
        self._admit(request, scope)
        self._streams.check_loaded()


async def make(assistant: Assistant, streams: Streams, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a watch of what a client sent. Raises ProtocolError, RequestError: unknown_stream, and AssistantError as `Watches.add`."""
    given = dict(fields)
    name, question, stream = given.pop("name", None), given.pop("question", None), given.pop("stream", None)
    named = given.pop("streams", [] if stream is None else [stream])
    if not isinstance(name, str) or not isinstance(question, str):
        raise ProtocolError("missing_required_parameter", "A watch needs a 'name' and a 'question'.", "name")
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise ProtocolError("invalid_value", "'streams' is a list of names of streams.", "streams")
    chosen = [streams.known(each) for each in named] or [streams.chosen(None)]
    if not assistant.ready:
        raise AssistantError("not_ready", f"No watch can be made now: {assistant.trouble}.")
    return await assistant.watches.add(name, question, chosen, **given)


async def change(assistant: Assistant, watch: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Changes, pauses or snoozes a watch as a client wants. Raises ProtocolError, and AssistantError as `Watches.change` and `.snooze`."""
    options = dict(fields)
    paused, snooze = options.pop("paused", None), options.pop("snooze", None)
    if paused is not None and not isinstance(paused, bool):
        raise ProtocolError("invalid_value", "'paused' is true or false.", "paused")
    if snooze is not None and (isinstance(snooze, bool) or not isinstance(snooze, int | float)):
        raise ProtocolError("invalid_value", "'snooze' is a number of seconds.", "snooze")
    if options:
        await assistant.watches.change(watch, **options)
    if snooze is not None:
        assistant.watches.snooze(watch, snooze)
    if paused is not None:
        assistant.watches.pause(watch, paused=paused)
    return await assistant.watches.one(watch)


async def judge(assistant: Assistant, event: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps what a client says of an event. Raises ProtocolError, and AssistantError: unknown_event."""
    feedback = fields.get("feedback", "")
    if feedback not in FEEDBACK:
        raise ProtocolError("invalid_value", "'feedback' is right, false_alarm or null.", "feedback")
    await assistant.watches.judge(event, feedback)
    return {"event": event, "feedback": feedback}


def known_id(text: str) -> str:
    """An event's id. Raises AssistantError: unknown_event."""
    if not text.startswith("event_") or not set(text[6:]) <= set(CROCKFORD):
        raise AssistantError("unknown_event", f"{text[:40]!r} is no event's id: they begin with event_.")
    return text


async def perform(assistant: Assistant, streams: Streams, visitor: Visitor, command: WatchCommand) -> dict[str, Any]:
    """Carries out what a session asks of watches; returns its reply's keys. Raises as `make`; RequestError: forbidden, not_ready."""
    visitor.need("view" if command.verb in ("subscribe", "list") else "ask")
    streams.check_loaded()
    match command.verb:
        case "subscribe":
            return {"after": known_id(command.name) if command.name else None}
        case "list":
            return {"watches": await assistant.watches.all()}
        case "add":
            return {"watch": await make(assistant, streams, command.fields)}
        case "update":
            return {"watch": await change(assistant, command.name, command.fields)}
        case "remove":
            await assistant.watches.remove(command.name)
            return {"name": command.name}
        case "feedback":
            told = await judge(assistant, known_id(command.name), command.fields)
            return {"id": told["event"], "feedback": told["feedback"]}


async def alarms(assistant: Assistant, after: str) -> AsyncIterator[dict[str, Any]]:
    """What watches tell, as plain data: first what was told after an event's id, where there is one; and how many went unheard."""
    watches = assistant.watches
    listener, kept, links = watches.feed.listen(), watches.kept, watches.links
    try:
        last = after or None
        while after and (page := await kept.after(after)):
            for facts in page:
                told = {key: value for key, value in facts.items() if key != "feedback"}
                yield links.of(told)
            after = last = page[-1]["id"]
        async for event in listener:
            if last is not None and event.id <= last:
                continue
            if listener.missed:
                yield {"type": "watch.missed", "missed": listener.missed, "after": last}
                listener.missed = 0
            yield links.of(event.facts())
            last = event.id
    finally:
        listener.close()
