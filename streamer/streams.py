"""The streams that are watched, by name: how one comes, goes, and changes while it runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping

from capture import Source, SourceStatus
from streamer.admission import admit, full, opened, reading_processes
from streamer.config import Config, StreamConfig
from streamer.engine.engine import Engine
from streamer.engine.stream import Stream, StreamStatus, suited
from streamer.errors import AssistantError
from streamer.events import News
from streamer.memory.keeper import Keeper
from streamer.reload import Change


class Streams(Mapping[str, Stream]):
    """Every attached stream, in order of attaching. Lives on the assistant's event loop."""

    def __init__(self, engine: Engine, news: News, config: Callable[[], Config]) -> None:
        """`config` is asked anew each time, as it may have been read again meanwhile."""
        self._engine, self._news, self._config = engine, news, config
        self._streams: dict[str, Stream] = {}
        self._attaching: set[str] = set()
        self._prepared: dict[str, Stream] = {}
        """Streams that will come: their sources are open, nothing of them is seen."""
        self._stopping: set[asyncio.Task[None]] = set()
        self.lasts: Callable[[], bool] = lambda: True
        """See `Assistant.lease`."""
        self.keeper: Keeper | None = None
        """As the assistant's."""
        self.trained_rate: float | None = None
        """Frames a second that the model is trained at, once it is loaded."""

    def __getitem__(self, name: str) -> Stream:
        return self._streams[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def __len__(self) -> int:
        return len(self._streams)

    def named(self, name: str | None) -> Stream:
        """The stream of that name, or the only one where none is named. Raises AssistantError: unknown_stream."""
        names = ", ".join(self) or "none"
        if name is None:
            if len(self) == 1:
                return next(iter(self.values()))
            raise AssistantError("unknown_stream", f"Which stream is meant? Name one; there are: {names}.")
        if name not in self:
            raise AssistantError("unknown_stream", f"There is no stream {name!r}; there are: {names}.")
        return self[name]

    async def open(self, config: StreamConfig) -> Source:
        """A configured stream's source. Raises AssistantError: bad_source, bad_option."""
        whole = self._config()
        streams = max(len(whole.streams), len(self) + len(self._attaching))
        readers = reading_processes(whole.limits.readers, streams, len(os.sched_getaffinity(0)))
        kept = self.keeper is not None
        return await opened(suited(config, self.trained_rate), whole.webrtc, kept=kept, readers=readers)

    async def attach(self, config: StreamConfig, source: Source | None = None) -> StreamStatus:
        """Begins to watch a stream, whose `source` may be open already.

        Raises AssistantError: stream_exists, too_many_streams, too_many_frames, bad_source, bad_option.
        """
        name, most = config.name, self._config().limits.streams
        if name in self or name in self._attaching:
            raise AssistantError(
                "stream_exists",
                f"There is a stream {name!r} already: remove it (streamer stream remove {name}) or take another name.",
            )
        if len(self) + len(self._attaching) >= most:
            raise AssistantError("too_many_streams", await full(self._engine, most))
        self._attaching.add(name)
        prepared = self._prepared.pop(name, None)
        try:
            if prepared is not None and (source is not None or prepared.config != config):
                self._stop(prepared)
                prepared = None
            stream = prepared or self._made(config, source or await self.open(config))
            await admit(self._engine, self._config().limits, stream)
            await asyncio.wrap_future(self._engine.add(stream))
            if self.keeper is not None:
                await self.keeper.resume(stream)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self._engine.remove(name)
            if prepared is not None:
                self._stop(prepared)
            raise
        finally:
            self._attaching.discard(name)
        self._streams[name] = stream
        if prepared is not None:
            stream.comes(self.lasts)
            self._changed(stream, stream.source.status)
            self._engine.wake()
            return stream.status(time.monotonic())
        if config.record and self.keeper is not None:
            stream.recorder = self.keeper.recordings.recorder(name)
        stream.start(self._changed)
        return stream.status(time.monotonic())

    async def prepare(self, config: StreamConfig) -> Stream:
        """Opens a stream's source, of which nothing is seen until it is attached. Raises AssistantError: bad_source, bad_option."""
        await self.unprepare(config.name)
        stream = self._prepared[config.name] = self._made(config, await self.open(config))
        stream.lasts = lambda: False
        stream.start(self._changed)
        return stream

    async def unprepare(self, name: str) -> None:
        """Closes it again, where it has not been attached."""
        if (stream := self._prepared.pop(name, None)) is not None:
            self._stop(stream)

    def _made(self, config: StreamConfig, source: Source) -> Stream:
        return Stream(config, source, self._engine.wake, self.trained_rate, self.lasts)

    def _changed(self, stream: Stream, status: SourceStatus) -> None:
        if self._streams.get(stream.name) is stream:
            self._news.changed(stream.name, status)

    def _stop(self, stream: Stream) -> None:
        """Ends a stream's source while others go on: a camera may take a second to be let go."""
        task = asyncio.create_task(asyncio.to_thread(stream.stop))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def detach(self, name: str, *, waits: bool = True) -> None:
        """Ends a stream; what is kept of it stays. Its source has ended when this returns, if it `waits`.

        Raises AssistantError: unknown_stream.
        """
        stream = self.named(name)
        del self._streams[name]
        self._news.dropped(name, stream.drops)
        self._news.forget(name)
        if self.keeper is not None:
            self.keeper.left(name)
        try:
            await asyncio.wrap_future(self._engine.remove(name))
        finally:
            if waits:
                await asyncio.to_thread(stream.stop)
            else:
                self._stop(stream)

    async def change(self, change: Change) -> str:
        """Makes a stream be as configured; says what was done. Raises AssistantError."""
        config, name = change.stream, change.stream.name
        match change.kind:
            case "remove":
                await self.detach(name)
                return f"stream {name} was removed"
            case "add":
                await self.attach(config)
                return f"stream {name} was added"
            case "terms":
                running = self.named(name)
                running.config = config
                await asyncio.wrap_future(self._engine.set_terms(running))
                return f"stream {name} has priority {config.priority} and deadline {config.deadline:g} s now"
            case "restart":
                try:
                    source = await self.open(config)
                except AssistantError as error:
                    return f"{error.message}; it goes on as it was"
                if self.keeper is not None:
                    await self.keeper.take([self.named(name)])
                await self.detach(name)
                await self.attach(config, source)
                goes_on = "goes on with its memory" if self.named(name).resumes else "begins again"
                return f"stream {name} was changed and {goes_on}"

    def clear(self) -> None:
        """Forgets all of them, which have ended."""
        self._streams.clear()
        for stream in self._prepared.values():
            stream.mailbox.close()
            stream.source.stop(0.0)
        self._prepared.clear()
