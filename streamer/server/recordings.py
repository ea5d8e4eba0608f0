"""What is recorded over HTTP: clips that play and seek in a browser, and stills of any moment."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response, StreamingResponse

from streamer.assistant import Assistant
from streamer.errors import AssistantError
from streamer.memory.clips import WHOLE_SIDE, Clips, streamed
from streamer.memory.moments import read_moment
from streamer.server.admission import LINKED
from streamer.server.auth import Visitor
from streamer.server.bodies import PICTURE_HEADERS, Attended
from streamer.server.errors import RequestError
from streamer.server.limits import Limits
from streamer.server.streams import Streams
from streamer.server.turns import Turns
from streamer.server.watches import known_id

MOST_WAITING = 4
"""Clips of one visitor that are made, or wait to be, at once; and so of stills."""
GROWS = 6.0
"""Seconds until what is recorded can be read."""
SAME, NEAR = 0.005, 0.5
"""Seconds apart that one frame's capture may be told, and one that stands for it where that is not on the disk."""
SECONDS = re.compile(r"\d{9,11}(\.\d{1,9})?")


class Footage:
    """Answers requests for clips and stills, of whom `admit` lets in, for as long as that one `sees` them."""

    def __init__(
        self,
        assistant: Assistant,
        streams: Streams,
        limits: Limits,
        admit: Callable[[Request], Visitor],
        sees: Callable[[Request, Visitor], bool],
    ) -> None:
        self._assistant, self._streams, self._limits = assistant, streams, limits
        self._admit, self._sees = admit, sees
        self.clips, self.stills = Turns("clips", 1, MOST_WAITING), Turns("stills", 1, MOST_WAITING)

    async def clip(self, request: Request) -> Response | Attended:
        """`?from=…&to=…`, and `codec=h264` for what any browser plays; without `to` it goes up to now."""
        visitor, stream = self._admit(request), request.path_params["stream"]
        clips = self._clips(stream)
        codec = request.query_params.get("codec")
        if codec not in (None, "h264"):
            raise RequestError(
                "bad_option", f"A clip's codec can be h264, not {codec[:40]!r}; without one it is the camera's own."
            )
        since, until = read_time(request, "from"), read_time(request, "to", "now")
        async with self._turn(request, visitor, self.clips):
            made = await asyncio.to_thread(clips.clip, stream, since, until, encoded=codec is not None)
        name = f"{stream}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(made.clip.begins))}Z.mp4"
        headers = {
            "Content-Disposition": f'inline; filename="{name}"',
            **_evidence(request),
            "Streamer-Begins": f"{made.clip.begins:.3f}",
            "Streamer-Ends": f"{made.clip.ends:.3f}",
        }
        response: Response
        if made.path is not None:
            response = FileResponse(made.path, media_type="video/mp4", headers=headers)
        elif request.method == "HEAD":
            response = Response(media_type="video/mp4", headers=headers)
        else:
            pieces = iterate_in_threadpool(streamed(made.clip))
            response = StreamingResponse(pieces, media_type="video/mp4", headers=headers)
        self._limits.connect(visitor.name)
        return Attended(response, lambda: self._sees(request, visitor), lambda: self._limits.disconnect(visitor.name))

    async def still(self, request: Request) -> Response:
        """`?at=…`: the picture that stood then."""
        visitor, stream = self._admit(request), request.path_params["stream"]
        clips = self._clips(stream)
        at = read_time(request, "at")
        async with self._turn(request, visitor, self.stills):
            picture, taken = await asyncio.to_thread(clips.still, stream, at)
        headers = {**PICTURE_HEADERS, "Streamer-Captured": f"{taken:.3f}"}
        return Response(picture, media_type="image/jpeg", headers=headers)

    async def frame(self, request: Request) -> Response:
        """The whole frame that decided an event, as large as it was recorded; comes once the disk has it."""
        visitor = self._admit(request)
        self._streams.check_loaded()
        event = await self._assistant.watches.kept.find(known_id(request.path_params["event"]))
        if event is None or event.frame is None:
            raise AssistantError("unknown_event", "No such event has a recorded frame: it may be too old.")
        clips, at = self._clips(event.stream), event.captured_at
        while True:
            late = time.time() - at > GROWS
            try:
                async with self._turn(request, visitor, self.stills):
                    picture, taken = await asyncio.to_thread(clips.still, event.stream, at + SAME, WHOLE_SIDE)
                if at - taken <= (NEAR if late else SAME):
                    break
                raise AssistantError("no_recording", "The frame that decided this event is not among what is recorded.")
            except AssistantError:
                if late:
                    raise
            await asyncio.sleep(1.0)
        headers = {**_evidence(request), "Streamer-Captured": f"{taken:.3f}"}
        return Response(picture, media_type="image/jpeg", headers=headers)

    def _clips(self, stream: str) -> Clips:
        keeper = self._assistant.keeper
        if keeper is None or not keeper.recordings.of(stream):
            self._streams.known(stream)
            raise AssistantError(
                "no_recording", f"Nothing is recorded of stream {stream!r}: set record to true for it."
            )
        return keeper.clips

    @asynccontextmanager
    async def _turn(self, request: Request, visitor: Visitor, turns: Turns) -> AsyncIterator[None]:
        """Waits for a visitor's turn. Raises RequestError: rate_limit_exceeded; ClientDisconnect, as nothing is made for nobody."""
        async with turns.turn(visitor.name):
            if await request.is_disconnected():
                raise ClientDisconnect
            yield


def _evidence(request: Request) -> dict[str, str]:
    """Headers of what may be shown on other pages by a link."""
    return {**PICTURE_HEADERS, **({"Cross-Origin-Resource-Policy": "cross-origin"} if request.scope[LINKED] else {})}


def read_time(request: Request, name: str, otherwise: str | None = None) -> float:
    """A moment that a request names, in Unix seconds. Raises RequestError: missing_required_parameter, bad_moment."""
    text, now = request.query_params.get(name, otherwise), time.time()
    if text is None:
        raise RequestError("missing_required_parameter", f"Name the moment: ?{name}=14:03, say.")
    return moment(name, text, now)


def moment(name: str, text: str, now: float) -> float:
    """As `read_time`, of the text that stands under a name."""
    try:
        return float(text) if SECONDS.fullmatch(text) else read_moment(text, now)
    except ValueError as error:
        raise RequestError("bad_moment", f"{name}: {error}.") from None
