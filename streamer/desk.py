"""Where every door brings its questions: each visitor's limits, what is counted, and an answer's end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from streamer.assistant import Answer, Assistant, AssistantError
from streamer.auth import DoorError, Visitor
from streamer.limits import Limits
from streamer.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Question:
    """A question as a door received it; None leaves a choice to the configuration."""

    text: str
    stream: str | None = None
    instructions: str = ""
    history: Sequence[tuple[str, str]] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class Desk:
    """Takes questions from visitors within their limits."""

    def __init__(self, assistant: Assistant, limits: Limits, metrics: Metrics) -> None:
        self._assistant, self._limits, self._metrics = assistant, limits, metrics

    @asynccontextmanager
    async def ask(self, visitor: Visitor, question: Question) -> AsyncIterator[tuple[Answer, Mapping[str, Any]]]:
        """An answer, which is cancelled where it is left early, and the visitor's rate limit.

        Raises DoorError (forbidden, too_many_answers, rate_limit_exceeded) and AssistantError.
        """
        visitor.need("ask")
        try:
            limit = self._limits.ask(visitor.name, time.monotonic())
        except DoorError:
            self._metrics.questions["refused"] += 1
            raise
        self._metrics.open_answers += 1
        answer: Answer | None = None
        try:
            answer = self._assistant.ask(
                question.text,
                stream=question.stream,
                instructions=question.instructions,
                history=question.history,
                max_tokens=question.max_tokens,
                temperature=question.temperature,
                top_p=question.top_p,
                seed=question.seed,
            )
            yield answer, limit
        except AssistantError:
            self._metrics.questions["refused"] += 1
            raise
        finally:
            self._metrics.open_answers -= 1
            self._limits.answered(visitor.name)
            if answer is not None:
                answer.cancel()
                self._metrics.answered(answer.finish_reason or "cancelled", answer.usage)
