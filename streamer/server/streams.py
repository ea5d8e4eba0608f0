"""The streams that there are for visitors, and what may be done to them: the same for every door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from capture import Frame, SourceError
from capture.image import encode_jpeg
from capture.network.policy import looked_up, refuse_private
from streamer.assistant import LOADING, Assistant, StreamStatus
from streamer.errors import AssistantError
from streamer.server.attachments import PREFIX
from streamer.server.auth import Visitor
from streamer.server.errors import RequestError

PICTURE_SIDE = 640
"""Pixels of the longer side of pictures that are shown."""
PICTURES_PER_SECOND = 10.0
MOST_SECONDS = 30.0
"""After which who came while the model is being loaded is to try again at the latest."""


class Streams:
    """All streams but those that only show what a question brought along.

    Args:
        private_sources: visitors on other machines may attach what only this machine reaches.
    """

    def __init__(self, assistant: Assistant, *, private_sources: bool = False) -> None:
        self._assistant, self._private_sources = assistant, private_sources

    def renew(self, *, private_sources: bool) -> None:
        """Takes what a changed configuration says of sources."""
        self._private_sources = private_sources

    async def attach(self, visitor: Visitor, name: str, source: str, options: Mapping[str, Any]) -> StreamStatus:
        """Begins to watch a source for a visitor, who from elsewhere may not name what only this machine reaches.

        Raises RequestError (forbidden) and AssistantError (as `Assistant.attach`).
        """
        visitor.need("admin")
        self.check_loaded()
        if twice := {"name", "source"} & options.keys():
            raise AssistantError("bad_option", f"{min(twice)!r} is no option: it is said already.", min(twice))
        if name.startswith(PREFIX):
            raise AssistantError("bad_option", f"The stream is refused: names in {PREFIX}… are the daemon's own.")
        if visitor.remote and not self._private_sources:
            try:
                await looked_up(refuse_private, source)
            except (SourceError, OSError) as error:
                raise AssistantError("bad_source", f"Stream {name!r} can't be watched: {error}") from None
            options = {**options, "public_only": True}
        return await self._assistant.attach(name, source, **options)

    async def detach(self, name: str) -> None:
        """Ends a stream. Raises RequestError: unknown_stream."""
        await self._assistant.detach(self.known(name))

    def all(self) -> list[StreamStatus]:
        """Each stream's figures."""
        return [status for status in self._assistant.streams() if not status.name.startswith(PREFIX)]

    def status(self, name: str) -> StreamStatus:
        """One stream's figures. Raises RequestError: unknown_stream, not_ready."""
        self.known(name)
        for status in self.all():
            if status.name == name:
                return status
        raise self._unknown(name)

    def names(self) -> list[str]:
        """Those that there are; while the model is being loaded, those that there will be."""
        if self._assistant.loading_s is not None:
            return [stream.name for stream in self._assistant.config.streams]
        return [name for name in self._assistant.names if not name.startswith(PREFIX)]

    def only(self) -> str | None:
        """The name of the stream that needs no naming, as there is no other."""
        names = self.names()
        return names[0] if len(names) == 1 else None

    def known(self, name: str) -> str:
        """`name`, of a stream that there is for visitors. Raises RequestError: unknown_stream, not_ready."""
        if name not in self.names():
            raise self._unknown(name)
        self.check_loaded()
        return name

    def chosen(self, name: str | None) -> str:
        """`name`, or where that is None the only one's. Raises RequestError: unknown_stream, not_ready.

        The assistant itself would take another visitor's pictures for the only stream, and name them beside others.
        """
        found = self.only() if name is None else name
        if found is None:
            raise RequestError("unknown_stream", f"Which stream is meant? Name one; there are: {self._listed()}.")
        return self.known(found)

    def check_loaded(self) -> None:
        """Raises RequestError: not_ready, with when to try again, while the model is being loaded."""
        if (loading := self._assistant.loading_s) is not None:
            # As long again as it took so far: whoever tries twice has waited long enough in most cases.
            raise RequestError("not_ready", LOADING, min(MOST_SECONDS, max(1.0, loading)))

    def frame(self, name: str) -> Frame | None:
        """The picture that the model saw last. Raises RequestError: unknown_stream."""
        return self._assistant.newest_frame(self.known(name))

    async def picture(self, name: str) -> bytes:
        """That picture as a JPEG. Raises RequestError: unknown_stream, no_frames."""
        frame = self.frame(name)
        if frame is None:
            raise RequestError("no_frames", "This stream has shown nothing yet.", 1.0)
        return await asyncio.to_thread(encode_jpeg, frame.pixels, PICTURE_SIDE)

    async def pictures(self, name: str) -> AsyncIterator[bytes]:
        """The pictures that the model sees, as parts of motion JPEG with the boundary `frame`, for as long as there is the stream."""
        shown = None
        while True:
            try:
                frame = self.frame(name)
            except (AssistantError, RequestError):
                return
            if frame is not None and frame is not shown:
                shown = frame
                picture = await asyncio.to_thread(encode_jpeg, frame.pixels, PICTURE_SIDE)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                yield head.encode() + picture + b"\r\n"
            await asyncio.sleep(1 / PICTURES_PER_SECOND)

    def _unknown(self, name: str) -> RequestError:
        return RequestError("unknown_stream", f"There is no stream {name[:80]!r}; there are: {self._listed()}.")

    def _listed(self) -> str:
        return ", ".join(self.names()) or "none"
