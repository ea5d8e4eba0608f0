"""The assistant for plain code: the same calls without `await`. Its event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from capture import Frame
from streamer.assistant import Assistant
from streamer.config import Config
from streamer.engine.answer import Answer, FinishReason, Usage
from streamer.engine.stream import StreamStatus

T = TypeVar("T")


class BlockingAnswer:
    """An answer as an iterator of text, or to be looked at now and then with `poll`."""

    def __init__(self, answer: Answer, loop: asyncio.AbstractEventLoop) -> None:
        self._answer, self._loop = answer, loop
        self._words: SimpleQueue[str | None] = SimpleQueue()
        self._ended = False

    def __iter__(self) -> Iterator[str]:
        while not self._ended:
            words = self._words.get()
            if words is None:
                self._ended = True
            else:
                yield words

    def poll(self) -> str:
        """The text that has come since the last look, often none; never waits."""
        words = ""
        try:
            while not self._ended:
                more = self._words.get_nowait()
                self._ended = more is None
                words += more or ""
        except Empty:
            pass
        return words

    def text(self) -> str:
        """All that was not read yet, once the answer is complete."""
        return "".join(self)

    def cancel(self) -> None:
        """Ends the answer at its next token."""
        self._loop.call_soon_threadsafe(self._answer.cancel)

    @property
    def complete(self) -> bool:
        """Whether everything has been read."""
        return self._ended

    @property
    def finish_reason(self) -> FinishReason | None:
        """See `Answer`."""
        return self._answer.finish_reason

    @property
    def error(self) -> str | None:
        """See `Answer`."""
        return self._answer.error

    @property
    def usage(self) -> Usage:
        """See `Answer`."""
        return self._answer.usage

    async def follow(self) -> None:
        """Hands the words over; runs on the assistant's loop."""
        async for words in self._answer:
            self._words.put(words)
        self._words.put(None)


class BlockingAssistant:
    """`Assistant` behind plain calls, as a context manager. Any thread may use it.

    `push`, `streams` and `newest_frame` never wait; `ask` waits for the question to be accepted, not for its answer.
    """

    def __init__(self, config: Config) -> None:
        self._assistant = Assistant(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="assistant", daemon=True)
        self._following: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait(self._assistant.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._assistant.stop())
        self._end()

    def streams(self) -> list[StreamStatus]:
        """See `Assistant.streams`."""
        return self._assistant.streams()

    def attach(self, name: str, source: str, **options: Any) -> StreamStatus:
        """See `Assistant.attach`."""
        return self._wait(self._assistant.attach(name, source, **options))

    def detach(self, name: str) -> None:
        """See `Assistant.detach`."""
        self._wait(self._assistant.detach(name))

    def push(self, name: str, pixels: np.ndarray, timestamp: float | None = None) -> None:
        """See `Assistant.push`."""
        self._assistant.push(name, pixels, timestamp)

    def newest_frame(self, name: str) -> Frame | None:
        """See `Assistant.newest_frame`."""
        return self._assistant.newest_frame(name)

    def ask(self, question: str, **options: Any) -> BlockingAnswer:
        """See `Assistant.ask`."""

        async def begin() -> BlockingAnswer:
            answer = BlockingAnswer(self._assistant.ask(question, **options), self._loop)
            task = asyncio.create_task(answer.follow())
            self._following.add(task)
            task.add_done_callback(self._following.discard)
            return answer

        return self._wait(begin())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        async def last() -> None:
            await asyncio.gather(*self._following)
            await self._loop.shutdown_default_executor()

        self._wait(last())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
