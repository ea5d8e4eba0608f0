"""What is recorded over HTTP: clips that play and seek in a browser, and stills of any moment."""

from __future__ import annotations

import asyncio
import re
import time

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from streamer.assistant import Assistant
from streamer.errors import AssistantError
from streamer.memory.clips import Clips, streamed
from streamer.memory.moments import read_moment
from streamer.server.errors import RequestError

SECONDS = re.compile(r"\d{9,11}(\.\d{1,9})?")


class Footage:
    """Answers requests for clips and stills. Who may ask is checked before."""

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        self._making = asyncio.Semaphore(1)

    async def clip(self, request: Request) -> Response:
        """`?from=…&to=…`, and `codec=h264` for what any browser plays; without `to` it goes up to now."""
        clips, stream = self._clips(request)
        codec = request.query_params.get("codec")
        if codec not in (None, "h264"):
            raise RequestError(
                "bad_option", f"A clip's codec can be h264, not {codec!r}; without one it is the camera's own."
            )
        since, until = read_time(request, "from"), read_time(request, "to", "now")
        async with self._making:
            made = await asyncio.to_thread(clips.clip, stream, since, until, encoded=codec is not None)
        name = f"{stream}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(made.clip.begins))}Z.mp4"
        headers = {
            "Content-Disposition": f'inline; filename="{name}"',
            "Cache-Control": "no-store",
            "Streamer-Begins": f"{made.clip.begins:.3f}",
            "Streamer-Ends": f"{made.clip.ends:.3f}",
        }
        if made.path is not None:
            return FileResponse(made.path, media_type="video/mp4", headers=headers)
        return StreamingResponse(iterate_in_threadpool(streamed(made.clip)), media_type="video/mp4", headers=headers)

    async def still(self, request: Request) -> Response:
        """`?at=…`: the picture that stood then."""
        clips, stream = self._clips(request)
        at = read_time(request, "at")
        async with self._making:
            picture, taken = await asyncio.to_thread(clips.still, stream, at)
        headers = {"Cache-Control": "no-store", "Streamer-Captured": f"{taken:.3f}"}
        return Response(picture, media_type="image/jpeg", headers=headers)

    def _clips(self, request: Request) -> tuple[Clips, str]:
        stream, keeper = request.path_params["stream"], self._assistant.keeper
        if keeper is None or not keeper.recordings.of(stream):
            self._assistant.source(stream)
            raise AssistantError(
                "no_recording", f"Nothing is recorded of stream {stream!r}: set record to true for it."
            )
        return keeper.clips, stream


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
