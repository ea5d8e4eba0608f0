"""The timeline for visitors, over HTTP and websocket: what happened to a stream, how dense that is, and the notes' pictures."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from streamer.assistant import Assistant
from streamer.errors import AssistantError
from streamer.memory.moments import written
from streamer.memory.store import StoreError
from streamer.memory.timeline import Entry, Forgotten, SearchError, Timeline, Wanted, kinds_lack
from streamer.server.addresses import only
from streamer.server.auth import Visitor
from streamer.server.bodies import PICTURE_HEADERS
from streamer.server.errors import RequestError
from streamer.server.recordings import moment
from streamer.server.streams import Streams
from streamer.server.turns import Turns

T = TypeVar("T")
USUAL_ENTRIES, MOST_ENTRIES = 100, 1_000
USUAL_BUCKETS, MOST_BUCKETS = 60, 2_000
WRITTEN_SECONDS = 2.0
"""That a subscriber waits at most until what was added before can be read."""
USUAL_SPAN = "1 hour ago"
"""From when on the density is told where nobody says."""
MOST_CHARACTERS = 2**21
"""Of the texts and facts that are told at once, so that whoever reads them slowly holds little memory; what is left out follows."""
WANTED = ("from", "to", "search", "kind")
"""Keys of a query that say which entries are meant."""
MOST_KINDS = 16
MOST_WAITING = 8
"""Searches of one visitor, each of which may take half a second where a timeline has 100,000 entries."""


class Timelines:
    """Answers for the timelines of an assistant's streams. `admit` lets in who may see them."""

    def __init__(self, assistant: Assistant, streams: Streams, admit: Callable[[Request], Visitor]) -> None:
        self._assistant, self._streams, self._admit = assistant, streams, admit
        self.searches = Turns("searches", 2, MOST_WAITING)

    def routes(self) -> list[Route]:
        """Where they are, over HTTP."""
        place = "/v1/streams/{stream}/timeline"
        return [
            Route(place, self.listed),
            Route(f"{place}/density", self.density),
            Route(f"{place}/{{entry}}.jpg", self.still),
        ]

    async def listed(self, request: Request) -> Response:
        """`?from=…&to=…&search=…&kind=note,question&limit=…`, the newest first; `before=ID` for those that follow."""
        visitor, query = self._admit(request), request.query_params
        only(query, *WANTED, "limit", "before")
        told = await self.entries(visitor, request.path_params["stream"], dict(query))
        return await asyncio.to_thread(JSONResponse, told)

    async def density(self, request: Request) -> Response:
        """How many entries there are in each of `?buckets=` equal parts of `from` to `to`, by kind; and which spans of it are recorded."""
        visitor, query = self._admit(request), request.query_params
        only(query, *WANTED, "buckets")
        stream = request.path_params["stream"]
        timeline = await self._timeline(stream)
        buckets = _number("buckets", query.get("buckets"), USUAL_BUCKETS, MOST_BUCKETS)
        wanted = _wanted(stream, visitor, {"from": USUAL_SPAN, "to": "now", **query})
        async with self.searches.turn(visitor.name):
            counts = await self._read(lambda: timeline.density(wanted, buckets))
        keeper = self._assistant.keeper
        told = {
            "stream": stream,
            "from": wanted.since,
            "to": wanted.until,
            "bucket_s": (wanted.until - wanted.since) / buckets,
            "counts": counts,
            "recorded": [] if keeper is None else keeper.recordings.spans(stream, wanted.since, wanted.until),
            "now": time.time(),
        }
        return JSONResponse(told)

    async def still(self, request: Request) -> Response:
        """A note's picture."""
        self._admit(request)
        stream, entry = request.path_params["stream"], request.path_params["entry"]
        timeline = await self._timeline(stream)
        id = _number("an entry's id", entry, 0, 2**63 - 1)
        picture = await self._read(lambda: timeline.still(stream, id))
        if picture is None:
            raise RequestError("not_found", f"Entry {id} of stream {stream!r} has no picture.")
        return Response(picture, media_type="image/jpeg", headers=PICTURE_HEADERS)

    async def entries(self, visitor: Visitor, stream: str, query: Mapping[str, Any]) -> dict[str, Any]:
        """The newest entries that a query means, and whether there are more. Raises RequestError, AssistantError."""
        timeline = await self._timeline(stream)
        limit = _number("limit", query.get("limit"), USUAL_ENTRIES, MOST_ENTRIES)
        before = None if query.get("before") is None else _number("before", query["before"], 0, 2**63 - 1)
        wanted = _wanted(stream, visitor, query)
        async with self.searches.turn(visitor.name):
            views, more = await self._read(lambda: _views(timeline.entries(wanted, limit + 1, before), limit))
        return {"stream": stream, "entries": views, "more": more}

    async def subscribe(
        self, visitor: Visitor, stream: str, tell: Callable[[dict[str, Any] | Forgotten], None]
    ) -> Callable[[], None]:
        """Tells what a visitor may know of what is added to a stream's timeline from now on; calling what is returned ends that.

        Once it returns, all that was added before can be read. Raises AssistantError.
        """
        timeline = await self._timeline(stream)

        def hear(event: Entry | Forgotten) -> None:
            if event.stream != stream:
                return
            if isinstance(event, Forgotten):
                tell(event)
            elif event.visitor in (None, visitor.name) or visitor.may("admin"):
                tell(_view(event))

        timeline.ears.add(hear)
        try:
            await asyncio.wait_for(timeline.written(), WRITTEN_SECONDS)
        except (StoreError, OSError, TimeoutError):
            pass  # the disk is at fault, which the store tells
        except BaseException:
            timeline.ears.discard(hear)
            raise
        return lambda: timeline.ears.discard(hear)

    async def _timeline(self, stream: str) -> Timeline:
        """That which `stream` is in: one that is watched, or of which there are entries still."""
        keeper = self._assistant.keeper
        if keeper is None:
            self._streams.known(stream)
            raise AssistantError("not_remembered", "Nothing of the past is kept here: set storage.folder to keep it.")
        if stream not in self._streams.names() and not await self._read(lambda: keeper.timeline.known(stream)):
            self._streams.known(stream)
        return keeper.timeline

    async def _read(self, read: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(read)
        except SearchError as error:
            raise RequestError("bad_search", f"{str(error)[0].upper()}{str(error)[1:]}.") from None
        except sqlite3.Error as error:
            raise AssistantError("storage", f"The timeline can't be read now: {error}.") from None


def _view(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "at": written(entry.wall)}


def _views(found: Sequence[Entry], limit: int) -> tuple[list[dict[str, Any]], bool]:
    """The first entries as plain data, no more than is told at once, and whether there are others."""
    views: list[dict[str, Any]] = []
    left = MOST_CHARACTERS
    for each in found[:limit]:
        left -= len(each.text) + len(str(each.data))
        if views and left < 0:
            break
        views.append(_view(each))
    return views, len(found) > len(views)


def _wanted(stream: str, visitor: Visitor, query: Mapping[str, Any]) -> Wanted:
    """What a query means for a visitor, who sees others' questions as an administrator alone. Raises RequestError."""
    now = time.time()
    since = moment("from", query["from"], now) if query.get("from") is not None else -math.inf
    until = moment("to", query["to"], now) if query.get("to") is not None else math.inf
    if until <= since:
        raise RequestError("bad_moment", f"The span from {written(since)} to {written(until)} is empty: turn it round.")
    given: str | Sequence[str] = query.get("kind") or ()
    kinds = tuple(given.split(",", MOST_KINDS) if isinstance(given, str) else given)
    if len(kinds) > MOST_KINDS:
        raise RequestError("bad_option", f"kind may name {MOST_KINDS} kinds at most.")
    if (lack := kinds_lack(kinds)) is not None:
        raise RequestError("bad_option", lack)
    return Wanted(
        stream,
        since,
        until,
        kinds,
        query.get("search"),
        None if visitor.may("admin") else visitor.name,
    )


def _number(name: str, given: Any, usual: int, most: int) -> int:
    """A whole number from 1 to `most`. Raises RequestError: bad_option."""
    text = str(usual if given is None else given)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= most):
        raise RequestError("bad_option", f"{name} is a number from 1 to {most}, not {text[:40]!r}.")
    return int(text)
