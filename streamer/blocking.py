"""The assistant for plain code: the same calls without `await`. Its event loop runs in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal

from capture import Frame
from streamer.assistant import Assistant
from streamer.config import Config
from streamer.engine.answer import Answer, FinishReason, Moment, Usage
from streamer.engine.stream import StreamStatus
from streamer.errors import AssistantError
from streamer.memory.timeline import Entry
from streamer.watches.event import WatchEvent
from streamer.watches.kept import Feedback


class BlockingAnswer:
    """An answer as an iterator of text, or to be looked at now and then with `poll`."""

    def __init__(self, answer: Answer, portal: BlockingPortal) -> None:
        self._answer, self._portal = answer, portal
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
        self._portal.start_task_soon(self._answer.cancel)

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

    @property
    def moment(self) -> Moment | None:
        """See `Answer`."""
        return self._answer.moment

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
        self._running: BlockingPortal | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal(name="assistant"))
            stack.enter_context(portal.wrap_async_context_manager(self._assistant))
            self._stack = stack.pop_all()
        self._running = portal
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Without the error, for which the loop would cut off answers that are still being handed over.
        self._running = None
        self._stack.close()

    @property
    def _portal(self) -> BlockingPortal:
        if self._running is None:
            raise AssistantError("closed", "The assistant is not running: use it in a 'with' block.")
        return self._running

    def streams(self) -> list[StreamStatus]:
        """See `Assistant.streams`."""
        return self._assistant.streams()

    def attach(self, name: str, source: str, **options: Any) -> StreamStatus:
        """See `Assistant.attach`."""
        return self._portal.call(partial(self._assistant.attach, name, source, **options))

    def detach(self, name: str) -> None:
        """See `Assistant.detach`."""
        self._portal.call(self._assistant.detach, name)

    def push(self, name: str, pixels: np.ndarray, timestamp: float | None = None) -> None:
        """See `Assistant.push`."""
        self._assistant.push(name, pixels, timestamp)

    def newest_frame(self, name: str) -> Frame | None:
        """See `Assistant.newest_frame`."""
        return self._assistant.newest_frame(name)

    def timeline(self, name: str, **wanted: Any) -> list[Entry]:
        """See `Archive.timeline`."""
        return self._portal.call(partial(self._assistant.archive.timeline, name, **wanted))

    def still(self, name: str, at: str | float) -> bytes:
        """See `Archive.still`."""
        return self._portal.call(self._assistant.archive.still, name, at)

    def clip(
        self, name: str, since: str | float, until: str | float, path: str | Path, *, encoded: bool = False
    ) -> Path:
        """See `Archive.clip`."""
        return self._portal.call(partial(self._assistant.archive.clip, name, since, until, path, encoded=encoded))

    def add_watch(self, name: str, question: str, streams: Iterable[str] = (), **options: Any) -> dict[str, Any]:
        """See `Watches.add`."""
        return self._portal.call(partial(self._assistant.watches.add, name, question, streams, **options))

    def watches(self) -> list[dict[str, Any]]:
        """See `Watches.all`."""
        return self._portal.call(self._assistant.watches.all)

    def remove_watch(self, name: str) -> None:
        """See `Watches.remove`."""
        self._portal.call(self._assistant.watches.remove, name)

    def mark(self, event: str, feedback: Feedback | None) -> None:
        """See `Watches.judge`."""
        self._portal.call(self._assistant.watches.judge, event, feedback)

    def event_still(self, event: str) -> bytes | None:
        """The picture that decided an event, as JPEG; None where none is kept."""
        return self._portal.call(self._assistant.watches.kept.still, event)

    def on_event(self, callback: Callable[[WatchEvent], object]) -> None:
        """Calls back with each event from now on, in order, from the assistant's thread: it must not block."""
        self._portal.call(self._assistant.watches.on_event, callback)

    def ask(self, question: str, **options: Any) -> BlockingAnswer:
        """See `Assistant.ask`."""

        answer = BlockingAnswer(self._portal.call(partial(self._assistant.ask, question, **options)), self._portal)
        self._portal.start_task_soon(answer.follow)
        return answer
