"""WHIP's door: a browser's or an encoder's WebRTC peer becomes a stream's source."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from protocols.whip import Decision, End, Publish, Reply, Trickle, WhipEndpoint
from streamer.errors import AssistantError
from streamer.server.attachments import PREFIX
from streamer.server.auth import Visitor
from streamer.server.errors import RequestError

if TYPE_CHECKING:
    from capture.sources.webrtc import WhipSource
    from streamer.assistant import Assistant

log = logging.getLogger("streamer.whip")
SCHEME = "whip://"
SHARE_OF_ONE = 0.5
"""Of all slots for streams those that one publisher may take, one at least; an administrator may take all."""
GRACE_SECONDS = 60.0
"""How long a stream that a publisher began waits for it to come back, before it is removed."""
ANSWER_SECONDS = 7.0
"""Encoders give up after eight."""


class Publishing:
    """Every publisher's session, and the streams that they began."""

    def __init__(self, assistant: Assistant, path: str = "/whip") -> None:
        """`path` is where the door is, as publishers reach it."""
        self._assistant = assistant
        self._endpoint = WhipEndpoint(path)
        self._begun: dict[str, str] = {}
        """Streams that publishers began, and who that was."""
        self._publishers: dict[str, tuple[str, Visitor]] = {}
        """By session, the stream and who publishes it."""
        self._watching: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Looks after no session any more."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    def revoke_unless(self, stands: Callable[[Visitor], bool]) -> None:
        """Ends the sessions of publishers who may no longer be here."""
        for session, (name, visitor) in list(self._publishers.items()):
            if not stands(visitor):
                del self._publishers[session]
                if self._endpoint.session_of(name) == session and self._exists(name):
                    self._source(name).unpublish()

    async def request(
        self,
        method: str,
        stream: str,
        session: str | None,
        headers: Mapping[str, str],
        body: bytes,
        visitor: Visitor | None = None,
    ) -> Reply:
        """One request; all but OPTIONS have a visitor. Raises ProtocolError, AssistantError and RequestError."""
        if stream.startswith(PREFIX):
            raise RequestError("not_found", f"Names in {PREFIX}… are the daemon's own: publish under another one.")
        return await self._carry_out(self._endpoint.request(method, stream, session, headers, body), visitor)

    async def _carry_out(self, decision: Decision, visitor: Visitor | None) -> Reply:
        match decision:
            case Publish():
                return await self._publish(decision, visitor)
            case Trickle():
                await asyncio.wrap_future(self._source(decision.stream).trickle(decision.candidates))
                return decision.reply
            case End():
                if self._exists(decision.stream):
                    self._source(decision.stream).unpublish()
                await self._remove(decision.stream)
                return decision.reply
            case Reply():
                return decision

    async def _publish(self, publish: Publish, visitor: Visitor | None) -> Reply:
        from capture import SourceError

        name = publish.stream
        if not self._exists(name):
            owner = visitor.name if visitor is not None else ""
            most = max(1, int(self._assistant.config.limits.streams * SHARE_OF_ONE))
            if list(self._begun.values()).count(owner) >= most and not (visitor is not None and visitor.may("admin")):
                raise RequestError(
                    "too_many_streams", f"{most} streams of this publisher are here already: end one first.", 5.0
                )
            self._begun[name] = owner
            try:
                await self._assistant.attach(name, f"{SCHEME}{name}")
            except BaseException:
                self._begun.pop(name, None)
                raise
        source = self._source(name)
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def ended() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(over.set)

        try:
            work = source.publish(publish.offer, ended)
            answer = await asyncio.wait_for(asyncio.wrap_future(work), ANSWER_SECONDS)
        except SourceError as error:
            await self._remove(name)
            raise RequestError("invalid_sdp", f"{str(error)[0].upper()}{str(error)[1:]}.") from None
        except TimeoutError:
            await self._remove(name)
            raise RequestError("not_ready", f"The peer could not be answered in {ANSWER_SECONDS:g} s.", 5.0) from None
        session, reply = self._endpoint.published(publish, answer)
        if visitor is not None:
            self._publishers[session] = name, visitor
        task = asyncio.create_task(self._watch(name, session, over))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return reply

    async def _watch(self, name: str, session: str, over: asyncio.Event) -> None:
        """Forgets a session when its peer is gone, and its stream if nobody comes back."""
        await over.wait()
        self._endpoint.ended(session)
        self._publishers.pop(session, None)
        log.info("stream %s: its publisher is gone", name)
        await asyncio.sleep(GRACE_SECONDS)
        if self._endpoint.session_of(name) is None:
            await self._remove(name)

    async def _remove(self, name: str) -> None:
        """Removes a stream that a publisher began, unless another publishes it."""
        if name in self._begun and self._endpoint.session_of(name) is None:
            self._begun.pop(name, None)
            if self._exists(name):
                await self._assistant.detach(name)

    def _exists(self, name: str) -> bool:
        return any(status.name == name for status in self._assistant.streams())

    def _source(self, name: str) -> WhipSource:
        from capture.sources.webrtc import WhipSource

        source = self._assistant.source(name)
        if not isinstance(source, WhipSource):
            raise AssistantError("stream_exists", f"Stream {name!r} watches {source.name}: publish under another name.")
        return source
