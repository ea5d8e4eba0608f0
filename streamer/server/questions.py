"""Where every door brings its questions: each visitor's limits, what is counted, and an answer's end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from model.families.tools import CallParser
from protocols.question import Question
from streamer.assistant import Answer, Assistant
from streamer.errors import AssistantError
from streamer.prompt import call_parser
from streamer.server.attachments import fetched, shown
from streamer.server.auth import Visitor
from streamer.server.errors import RequestError
from streamer.server.limits import Limits
from streamer.server.metrics import Metrics
from streamer.server.streams import Streams


class Questions:
    """Takes questions from visitors within their limits.

    Args:
        media_domains: hosts that pictures and videos may be fetched from.
    """

    def __init__(
        self,
        assistant: Assistant,
        streams: Streams,
        limits: Limits,
        metrics: Metrics,
        *,
        media_domains: Collection[str] = (),
    ) -> None:
        self.streams = streams
        self._assistant, self.limits, self._metrics = assistant, limits, metrics
        self._domains = media_domains

    def renew(self, *, media_domains: Collection[str]) -> None:
        """Takes what a changed configuration says of addresses."""
        self._domains = media_domains

    def call_parser(self, question: Question) -> CallParser | None:
        """What reads calls out of the answer's text; None where none may be made."""
        return call_parser(question, self._assistant.model.tokenizer)

    def turned_away(self) -> None:
        """A question was refused before it came here."""
        self._metrics.questions["refused"] += 1

    @asynccontextmanager
    async def ask(self, visitor: Visitor, question: Question) -> AsyncIterator[tuple[Answer, Mapping[str, Any]]]:
        """An answer, which is cancelled where it is left early, and the visitor's rate limit.

        Raises RequestError (forbidden, not_ready, too_many_answers, rate_limit_exceeded) and AssistantError.
        """
        visitor.need("ask")
        self.streams.check_loaded()
        try:
            limit = self.limits.ask(visitor.name, time.monotonic())
        except RequestError:
            self._metrics.questions["refused"] += 1
            raise
        self._metrics.open_answers += 1
        answer: Answer | None = None
        try:
            async with AsyncExitStack() as stack:
                grammar = await self._assistant.compile(question)
                question = await fetched(question, self._domains)
                stream, broken = question.stream, None
                if stream is not None or not (question.attachments or question.recording):
                    stream = self.streams.chosen(stream)
                if question.attachments and question.recording is None:
                    stream, broken = await stack.enter_async_context(shown(self._assistant, question.attachments))
                answer = self._assistant.answer(replace(question, stream=stream), grammar, visitor.name)
                if broken is not None:
                    answer.moment = broken
                yield answer, limit
        except (AssistantError, RequestError):
            self._metrics.questions["refused"] += answer is None
            raise
        finally:
            self._metrics.open_answers -= 1
            self.limits.answered(visitor.name)
            if answer is not None:
                answer.cancel()
                self._metrics.answered(answer.finish_reason or "cancelled", answer.usage)
