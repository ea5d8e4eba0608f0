"""An answer on its way: words from the engine's thread, read on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol


class Moment(Protocol):
    """What an answer speaks of where that is not all that a stream has shown until now: a moment of the past above all."""

    reached: float
    """Capture of the newest frame in the state that answers, Unix seconds; 0 where it has none."""

    def facts(self) -> dict[str, Any]:
        """Plain data: what was asked, what was reached, and how."""
        ...


TOLD_SECONDS = 0.25
"""Seconds between two words about how far the past has been shown."""


@dataclass(frozen=True, slots=True)
class Progress:
    """So many steps of the past, of all that there are, have been shown; the newest frame's capture is `reached`, Unix seconds."""

    shown: int
    of: int
    reached: float


FinishReason = Literal["stop", "length", "cancelled", "failed"]


@dataclass(slots=True)
class Usage:
    """What an answer took; seconds count from the moment of asking."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    seconds: float | None = None
    reasoning_tokens: int = 0
    """Those of `completion_tokens` that were thought, not said."""


class Answer:
    """An async iterator of text, in pieces as they come; a slow reader gets larger pieces. `pieces` has the model's thoughts too.

    What waits is bounded by the answer's `max_tokens`. `finish_reason` is None until the answer is complete; with "failed",
    `error` is one line.
    """

    def __init__(
        self,
        id: str,
        stream: str,
        prompt_tokens: int,
        cancel: Callable[[Answer], None],
        done: Callable[[Answer], object],
    ) -> None:
        self.id, self.stream = id, stream
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.moment: Moment | None = None
        """Which moment it speaks of, where the past was asked."""
        self.transcript: list[str] | None = None
        """What it has said, where that is to be kept."""
        self.over = asyncio.Event()
        self.usage = Usage(prompt_tokens)
        self._cancel, self._done = cancel, done
        self._loop = asyncio.get_running_loop()
        self._asked = time.monotonic()
        self._waiting: list[tuple[bool, str]] = []
        self._news = asyncio.Event()
        self._progress: Progress | None = None
        self._told = float("-inf")

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> str:
        while (piece := await self._next()) is not None:
            if not isinstance(piece, Progress) and not piece[0]:
                return piece[1]
        raise StopAsyncIteration

    async def pieces(self) -> AsyncIterator[tuple[bool, str]]:
        """Whether it is a thought, and the text, of each piece."""
        async for piece in self.news():
            if not isinstance(piece, Progress):
                yield piece

    async def news(self) -> AsyncIterator[tuple[bool, str] | Progress]:
        """As `pieces`; and before them how far the past has been shown, as often as is of use."""
        while (piece := await self._next()) is not None:
            yield piece

    async def _next(self) -> tuple[bool, str] | Progress | None:
        while not self._waiting:
            progress, self._progress = self._progress, None
            if progress is not None:
                return progress
            if self.finish_reason is not None:
                return None
            self._news.clear()
            await self._news.wait()
        kind = self._waiting[0][0]
        count = next((i for i, (thought, _) in enumerate(self._waiting) if thought != kind), len(self._waiting))
        text = "".join(words for _, words in self._waiting[:count])
        del self._waiting[:count]
        return kind, text

    def waited(self, now: float) -> float:
        """Seconds that its first word has been waited for, 0 once it has come."""
        return now - self._asked if self.usage.first_token_s is None else 0.0

    async def text(self) -> str:
        """The whole answer, once it is complete."""
        return "".join([piece async for piece in self])

    def cancel(self) -> None:
        """Ends the answer at its next token; does nothing once it is complete."""
        if self.finish_reason is None:
            self._cancel(self)

    # From the engine's thread

    def spoke(self, text: str, tokens: int, thought: bool = False) -> None:
        """See `streamer.engine.engine.Listener`."""
        self._post(lambda: self._take(text, tokens, thought, time.monotonic()))

    def showed(self, count: int, of: int, reached: float) -> None:
        """So many steps of the past have been shown."""
        now = time.monotonic()
        if now - self._told >= TOLD_SECONDS or count == of:
            self._told = now
            self._post(lambda: self._show(Progress(count, of, reached)))

    def finished(self, reason: FinishReason, error: str | None) -> None:
        """See `streamer.engine.engine.Listener`."""
        self._post(lambda: self._end(reason, error, time.monotonic()))

    def _post(self, do: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(do)

    def _show(self, progress: Progress) -> None:
        self._progress = progress
        self._news.set()

    def _take(self, text: str, tokens: int, thought: bool, now: float) -> None:
        if self.usage.first_token_s is None:
            self.usage.first_token_s = now - self._asked
        self.usage.completion_tokens += tokens
        self.usage.reasoning_tokens += tokens * thought
        if text:
            self._waiting.append((thought, text))
            if self.transcript is not None and not thought:
                self.transcript.append(text)
            self._news.set()

    def _end(self, reason: FinishReason, error: str | None, now: float) -> None:
        if self.finish_reason is None:
            self.finish_reason, self.error = reason, error
            self.usage.seconds = now - self._asked
            self.over.set()
            self._done(self)
        self._news.set()
