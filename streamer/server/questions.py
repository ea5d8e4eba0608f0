"""Where every door brings its questions: each visitor's limits, what is counted, and an answer's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from capture import Frame, SourceError
from capture.network.policy import refuse_private
from protocols.question import Question
from streamer.assistant import Answer, Assistant, StreamStatus
from streamer.errors import AssistantError
from streamer.server.attachments import PREFIX, fetched, shown
from streamer.server.auth import Visitor
from streamer.server.errors import RequestError
from streamer.server.limits import Limits
from streamer.server.metrics import Metrics


class Questions:
    """Takes questions from visitors within their limits.

    Args:
        private_sources: visitors on other machines may attach what only this machine reaches.
        media_domains: hosts that pictures and videos may be fetched from.
    """

    def __init__(
        self,
        assistant: Assistant,
        limits: Limits,
        metrics: Metrics,
        *,
        private_sources: bool = False,
        media_domains: Collection[str] = (),
    ) -> None:
        self._assistant, self._limits, self._metrics = assistant, limits, metrics
        self._private_sources, self._domains = private_sources, media_domains

    def renew(self, *, private_sources: bool, media_domains: Collection[str]) -> None:
        """Takes what a changed configuration says of sources and addresses."""
        self._private_sources, self._domains = private_sources, media_domains

    async def attach(self, visitor: Visitor, name: str, source: str, options: Mapping[str, Any]) -> StreamStatus:
        """Begins to watch a source for a visitor, who from elsewhere may not name what only this machine reaches.

        Raises RequestError (forbidden) and AssistantError (as `Assistant.attach`).
        """
        visitor.need("admin")
        if name.startswith(PREFIX):
            raise AssistantError("bad_option", f"The stream is refused: names in {PREFIX}… are the daemon's own.")
        if visitor.remote and not self._private_sources:
            try:
                await asyncio.to_thread(refuse_private, source)
            except SourceError as error:
                raise AssistantError("bad_source", f"Stream {name!r} can't be watched: {error}") from None
            options = {**options, "public_only": True}
        return await self._assistant.attach(name, source, **options)

    def streams(self) -> list[StreamStatus]:
        """The streams that there are for visitors: all but those that only show what a question brought along."""
        return [status for status in self._assistant.streams() if not status.name.startswith(PREFIX)]

    def known(self, name: str) -> str:
        """`name`, of a stream that there is for visitors. Raises RequestError: unknown_stream."""
        names = self.names()
        if name not in names:
            raise RequestError(
                "unknown_stream", f"There is no stream {name!r}; there are: {', '.join(names) or 'none'}."
            )
        return name

    def frame(self, name: str) -> Frame | None:
        """The picture that the model saw last. Raises RequestError: unknown_stream."""
        return self._assistant.newest_frame(self.known(name))

    async def detach(self, name: str) -> None:
        """Ends a stream. Raises RequestError: unknown_stream."""
        await self._assistant.detach(self.known(name))

    def names(self) -> list[str]:
        return [status.name for status in self.streams()]

    def turned_away(self) -> None:
        """A question was refused before it came here."""
        self._metrics.questions["refused"] += 1

    def _only_stream(self) -> str | None:
        names = self.names()
        return names[0] if len(names) == 1 else None

    @asynccontextmanager
    async def ask(self, visitor: Visitor, question: Question) -> AsyncIterator[tuple[Answer, Mapping[str, Any]]]:
        """An answer, which is cancelled where it is left early, and the visitor's rate limit.

        Raises RequestError (forbidden, too_many_answers, rate_limit_exceeded) and AssistantError.
        """
        visitor.need("ask")
        try:
            limit = self._limits.ask(visitor.name, time.monotonic())
        except RequestError:
            self._metrics.questions["refused"] += 1
            raise
        self._metrics.open_answers += 1
        answer: Answer | None = None
        try:
            async with AsyncExitStack() as stack:
                grammar = await self._assistant.compile(question)
                question = await fetched(question, self._domains)
                stream = self._only_stream() if question.stream is None else self.known(question.stream)
                if question.attachments:
                    stream = await stack.enter_async_context(shown(self._assistant, question.attachments))
                answer = self._assistant.answer(replace(question, stream=stream), grammar)
                yield answer, limit
        except (AssistantError, RequestError):
            self._metrics.questions["refused"] += answer is None
            raise
        finally:
            self._metrics.open_answers -= 1
            self._limits.answered(visitor.name)
            if answer is not None:
                answer.cancel()
                self._metrics.answered(answer.finish_reason or "cancelled", answer.usage)
