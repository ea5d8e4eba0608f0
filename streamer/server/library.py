"""Recordings over HTTP: what there is, a file that is brought and read, one that goes, and clips of what answers cite."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from capture import SourceError
from protocols.chat import KNOWN_BY, video_file
from protocols.fields import ProtocolError, read_object
from streamer.assistant import LOADING, Assistant
from streamer.errors import AssistantError
from streamer.library import VIDEO, Library
from streamer.memory.cut import cut
from streamer.memory.indexes import Index, changed, used_bytes
from streamer.server.admission import LET_GO, LINKED
from streamer.server.auth import Visitor
from streamer.server.bodies import JSON, PICTURE_HEADERS, chunks_of, read_body
from streamer.server.errors import RequestError
from streamer.server.recordings import moment
from streamer.server.turns import Turns

LONGEST_CLIP = 120.0
MOST_WAITING = 4


class Recorded:
    """The doors to the assistant's library. `admit` lets in with a scope, `admit_to_evidence` also whoever follows a signed link."""

    def __init__(
        self,
        assistant: Assistant,
        admit: Callable[..., Visitor],
        admit_to_evidence: Callable[[Request], Visitor],
    ) -> None:
        self._assistant, self._admit, self._admit_to_evidence = assistant, admit, admit_to_evidence
        self.clips, self.uploads = Turns("clips", 1, MOST_WAITING), Turns("files", 2, MOST_WAITING)
        self._coming = 0
        """Bytes of files that are coming and not yet read."""

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/v1/recordings", self.listed, methods=["GET"]),
            Route("/v1/recordings", self.add, methods=["POST"]),
            Route("/v1/recordings/{recording}", self.one, methods=["GET"]),
            Route("/v1/recordings/{recording}", self.remove, methods=["DELETE"]),
            Route("/v1/recordings/{recording}/clip", self.clip),
        ]

    async def names(self) -> list[str]:
        """Those that can be asked, or will be."""
        library = self._assistant.library
        return [] if library is None else await asyncio.to_thread(library.names)

    async def listed(self, request: Request) -> Response:
        """All of them; none where nothing is kept."""
        self._admit(request, "view", "ask")
        library = self._assistant.library
        return JSONResponse({"recordings": [] if library is None else await asyncio.to_thread(library.all)})

    async def one(self, request: Request) -> Response:
        """How far one is read, above all."""
        self._admit(request, "view", "ask")
        return JSONResponse(await self._view(request.path_params["recording"]))

    async def add(self, request: Request) -> Response:
        """A file's bytes (`?name=…&fps=2`), or as JSON a stream's span, or a path of this machine's for who is on it."""
        visitor, library = self._admit(request, "admin"), self._library()
        if self._assistant.loading_s is not None:
            raise RequestError("not_ready", LOADING, 1.0)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON:
            name = await self._read(library, visitor, await asyncio.to_thread(read_object, await read_body(request)))
        else:
            fps = _number("fps", request.query_params.get("fps", "2"))
            async with self.uploads.turn(visitor.name):
                place = await self._receive(request, library)
            try:
                shown = _shown(request.query_params.get("name", ""))
                name = await library.read_file(place / VIDEO, fps, place.name, shown)
            except AssistantError as error:
                size = await asyncio.to_thread(lambda: (place / VIDEO).stat().st_size)
                await asyncio.to_thread(Index(place).remove)
                if error.code != "bad_recording":
                    raise
                raise RequestError(error.code, f"{error.message} It may be incomplete: {size:,} bytes came.") from None
        return JSONResponse(await self._view(name), 201, {"Location": f"/v1/recordings/{name}"})

    async def remove(self, request: Request) -> Response:
        """Its index goes, and the file with it where that was brought."""
        self._admit(request, "admin")
        await self._library().remove(request.path_params["recording"])
        return Response(status_code=204)

    async def clip(self, request: Request) -> Response:
        """`?from=12.0&to=15.0`, in seconds of the recording: an MP4 that any browser plays."""
        visitor = self._admit_to_evidence(request)
        since, until = (_number(name, request.query_params.get(name, "")) for name in ("from", "to"))
        facts = await asyncio.to_thread(self._library().of, request.path_params["recording"])
        if not 0 <= since < until or until - since > LONGEST_CLIP or since > facts.seconds:
            raise RequestError(
                "bad_span",
                f"The clip from {since:g} s to {until:g} s can't be made: the recording has {facts.seconds:.0f} s, and a clip "
                f"{LONGEST_CLIP:.0f} at most.",
            )
        headers: dict[str, str] = dict(PICTURE_HEADERS)
        if request.scope[LINKED]:
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        async with self.clips.turn(visitor.name):
            if facts.begins is not None and self._assistant.keeper is not None:
                stream, clips = facts.source.split()[0], self._assistant.keeper.clips
                span = facts.begins + since, facts.begins + until
                made = await asyncio.to_thread(clips.clip, stream, *span, encoded=True)
                if made.path is not None:
                    return FileResponse(made.path, media_type="video/mp4", headers=headers)
            if await asyncio.to_thread(changed, facts):
                raise RequestError(
                    "recording_changed", f"{facts.name} has changed since it was indexed: index it again."
                )
            path = await asyncio.to_thread(_cut, Path(facts.source), since, until)
        gone = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, media_type="video/mp4", headers=headers, background=gone)

    async def _read(self, library: Library, visitor: Visitor, asked: Mapping[str, Any]) -> str:
        fps = asked.get("fps", 2.0)
        if not isinstance(fps, int | float) or isinstance(fps, bool):
            raise ProtocolError("invalid_value", f"fps must be a number, not {str(fps)[:40]!r}.", "fps")
        if (path := asked.get("path")) is not None:
            if not isinstance(path, str):
                raise ProtocolError("invalid_value", f"path must be a text, not {str(path)[:40]!r}.", "path")
            if visitor.remote:
                raise RequestError(
                    "forbidden",
                    "A path names a file of the daemon's machine, which who is on it may: send the file itself.",
                )
            return await library.read_file(path, fps)
        stream, since, until = asked.get("stream"), asked.get("from"), asked.get("to", "now")
        if not isinstance(stream, str) or not isinstance(since, str) or not isinstance(until, str):
            raise ProtocolError(
                "missing_required_parameter", "Send a video file, or name a 'stream' with 'from' and 'to'.", "stream"
            )
        now = time.time()
        begins, ends = moment("from", since, now), moment("to", until, now)
        if begins >= ends:
            raise RequestError("bad_span", f"The span from {since} to {until} is none: exchange them.")
        return await library.read_stream(stream, begins, ends, fps)

    async def _receive(self, request: Request, library: Library) -> Path:
        """The folder of a recording with the file that came whole. Raises RequestError."""
        length = request.headers.get("content-length", "0")
        room = library.budget - self._coming - await asyncio.to_thread(used_bytes, library.folder)
        if int(length) > room:
            raise _full(library, int(length))
        chunks = chunks_of(request)
        head = b""
        async for chunk in chunks:
            head += chunk
            if len(head) >= KNOWN_BY:
                break
        try:
            video_file(head)
        except ValueError as error:
            raise RequestError("unsupported_media_type", f"This file {error}.") from None
        try:
            place = await asyncio.to_thread(library.reserve, request.query_params.get("name", "recording")[:128])
        except OSError as error:
            raise _unkept(error) from None
        part, size = place / f"{VIDEO}.part", 0
        try:
            with part.open("wb") as file:
                while head:
                    size += len(head)
                    self._coming += len(head)
                    if size > room:
                        raise _full(library, size)
                    await asyncio.to_thread(file.write, head)
                    request.scope[LET_GO](len(head))
                    head = await anext(chunks, b"")
            await asyncio.to_thread(part.rename, place / VIDEO)
        except BaseException as error:
            await asyncio.to_thread(Index(place).remove)
            if isinstance(error, OSError):
                raise _unkept(error) from None
            raise
        finally:
            self._coming -= size
        return place

    async def _view(self, name: str) -> dict[str, Any]:
        for each in await asyncio.to_thread(self._library().all):
            if each["name"] == name:
                return each
        raise AssistantError("unknown_recording", f"There is no recording {name[:80]!r}.")

    def _library(self) -> Library:
        """Raises RequestError: no_storage."""
        if self._assistant.library is None:
            raise RequestError("no_storage", "No recordings are kept here: start the daemon without --stateless.")
        return self._assistant.library


def _cut(source: Path, since: float, until: float) -> Path:
    """The clip in a file of its own. Raises RequestError: no_recording, no_storage."""
    try:
        handle, name = tempfile.mkstemp(prefix="streamer-", suffix=".mp4")
        os.close(handle)
        if cut(source, since, until, Path(name)):
            return Path(name)
        Path(name).unlink()
        why = "nothing is shown there"
    except (OSError, av.error.FFmpegError, SourceError) as error:
        why = str(getattr(error, "strerror", None) or error)
    raise RequestError("no_recording", f"The clip can't be made of {source.name}: {why}.")


def _shown(name: str) -> str:
    """A file as its refusal names it: as whoever brought it did."""
    return "".join(each for each in name[:128] if each.isprintable()).strip() or "the video"


def _unkept(error: OSError) -> RequestError:
    return RequestError("no_storage", f"The file can't be kept: {error.strerror}.", 60.0)


def _full(library: Library, size: int) -> RequestError:
    return RequestError(
        "payload_too_large",
        f"{size / 1e6:.0f} MB are more than is left of storage.indexes ({library.budget / 1e6:.0f} MB): remove a recording.",
    )


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError("invalid_value", f"{name} must be a number, not {text[:40]!r}.") from None
