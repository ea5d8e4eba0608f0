"""Keeps what outlasts the process, for the assistant, which calls it on its event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from model import ConfigError as ModelConfigError
from model.state import Snapshot
from protocols.question import Question
from streamer.config import ConfigError, StreamConfig, parse_config
from streamer.engine.answer import Answer
from streamer.engine.engine import Engine
from streamer.engine.stream import Resumed, Stream, captured_wall
from streamer.errors import AssistantError
from streamer.events import News, StreamEvent
from streamer.memory.clips import Clips
from streamer.memory.diary import Diary
from streamer.memory.folder import FolderError, folder_of
from streamer.memory.indexes import forget as forget_indexes
from streamer.memory.notes import Notes
from streamer.memory.past import Past
from streamer.memory.recording import Recordings
from streamer.memory.retention import Pace
from streamer.memory.snapshot import Taken
from streamer.memory.snapshots import Snapshots
from streamer.memory.store import RETRY_SECONDS, Store, StoreError
from streamer.memory.timeline import Timeline
from streamer.storage_config import StorageConfig

log = logging.getLogger("streamer")
PATIENCE = 2.0
"""Seconds that a client waits for the disk before it is told that its stream is watched, though it is not kept yet."""
LAST_SECONDS = 1.0
"""Seconds that the daemon's end waits for the engine to hand over the last snapshots."""
TRIM_SECONDS = 30.0
"""Seconds between two looks at what is too much of the timeline."""
LOOK_SECONDS = 0.5
"""Seconds between two looks at whose snapshot is due."""
Copy = tuple[Stream, int, Taken, Callable[[], Snapshot]]
"""A stream, the frames that it had seen, what else is known of its state, and what brings that to the CPU."""


class Keeper:
    """What is kept of streams. Everything but the store's own thread runs on the assistant's event loop."""

    def __init__(self, config: StorageConfig, engine: Engine, streams: Mapping[str, Stream]) -> None:
        """Takes the state folder; waits for the disk. `streams` come and go. Raises AssistantError: storage."""
        assert config.folder is not None
        self.config, self._engine, self._streams = config, engine, streams
        self._added: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._pace = Pace(config.every, config.write_rate)
        self.refused = 0
        """Snapshots of another model or source, with which no stream could go on."""
        try:
            self.store = Store(folder_of(config.folder), self._write_again)
            self.snapshots = Snapshots(self.store.folder, config.snapshots)
            self.recordings = Recordings(self.store.folder, config.recordings, config.recording_hours)
            self.timeline = Timeline(self.store, config.timeline, config.timeline_hours)
            bounds = config.replay, config.span
            self.past = Past(self.snapshots, engine, self.recordings, self.timeline, *bounds)
        except FolderError as error:
            raise AssistantError("storage", f"{error}.") from None
        except (OSError, sqlite3.Error) as error:
            self.store.close()
            raise AssistantError("storage", f"The state folder can't be read: {error}.") from None
        self.clips = Clips(self.recordings)
        self.diary, self.notes = Diary(self.timeline, streams), Notes(self.timeline, streams)
        self._added = dict(self.store.read("SELECT name, config FROM streams ORDER BY added, name"))

    def listen(self, news: News) -> None:
        """Hears what happens to streams, and tells of those that go on."""
        self._tell, news.heard = news.publish, self.diary.heard

    def begin(self, ask: Callable[[Question], Answer], busy: Callable[[], bool]) -> None:
        """Takes snapshots, and notes for which it may `ask` while nobody else is `busy`, until `stop`."""
        self._tasks = [asyncio.create_task(work) for work in (self._run(), self._trim(), self.notes.run(ask, busy))]

    async def stop(self) -> None:
        """Takes each stream's last snapshot; what is to be written is so when `close` returns."""
        self.diary.end()
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.take(self._streams.values()), LAST_SECONDS)

    def close(self) -> None:
        """Writes what waits and lets the folder go; waits for the disk, about two seconds at most."""
        self.recordings.close()
        self.store.close()

    @property
    def fault(self) -> str | None:
        """Why something can't be kept now, in one line."""
        return self.store.fault or self.recordings.fault

    # Streams that were added while running

    async def attach_added(self, there: Collection[str], attach: Callable[[StreamConfig], Awaitable[Any]]) -> None:
        """Watches the streams again that were added while the daemon ran; one that can't be is told, and tried the next time.

        What is configured by now, and so `there`, takes the place of what was added.
        """
        for name, options in list(self._added.items()):
            if name in there:
                await self.remove(name)
                continue
            try:
                await attach(parse_config({"streams": [json.loads(options)]}, f"stream {name}").streams[0])
            except (AssistantError, ConfigError) as error:
                log.warning("stream %s, which was added while the daemon ran, can't be watched now: %s", name, error)

    async def add(self, config: StreamConfig) -> None:
        """A stream was added: once this returns it is watched after a restart too, unless the disk is at fault."""
        if config.keep == "nothing":
            return
        self._added[config.name] = json.dumps(config.model_dump(mode="json", exclude_unset=True))
        await self._kept(self._write(config.name))

    async def remove(self, name: str) -> None:
        """A stream was removed, and is not watched after a restart."""
        if self._added.pop(name, None) is not None:
            await self._kept(self.store.write("DELETE FROM streams WHERE name = ?", (name,), now=True))

    def _write(self, name: str) -> Future[int]:
        row = (name, self._added[name], time.time())
        return self.store.write("INSERT OR REPLACE INTO streams VALUES (?, ?, ?)", row, now=True)

    def _write_again(self) -> None:
        self.snapshots.begin_anew()
        self.recordings.begin_anew()
        for name in tuple(self._added):
            self._write(name)

    async def _kept(self, row: Future[Any]) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(row)), PATIENCE)
        except (StoreError, OSError, TimeoutError) as error:
            log.warning("a change of streams is not kept yet: %s", self.store.fault or error or "the disk is slow")

    # Snapshots

    async def resume(self, stream: Stream) -> None:
        """Lets a stream that has just been given its slot go on with what is kept of it, if there is anything."""
        if stream.config.keep == "nothing":
            return await self._tell_kept(stream.name)
        self.timeline.open(stream.name)
        name = stream.config.memory_of or stream.name
        if name != stream.name and name not in self._streams:
            await self._take_over(name, stream.name)
        for kept in reversed(self.snapshots.of(stream.name) or self.snapshots.of(name)):
            found = await asyncio.to_thread(self.snapshots.load, kept)
            if found is None:
                continue
            taken, state = found
            if why := self._unlike(stream, taken):
                self.refused += 1
                log.warning("stream %s begins anew: its memory %s", stream.name, why)
                return
            resumed = Resumed(taken.time, taken.wall, taken.generation, taken.resumes + 1)
            try:
                resume = partial(self._engine.executor.resume, stream, state, resumed)
                await asyncio.wrap_future(self._engine.call(resume))
            except ModelConfigError as error:
                log.warning("stream %s begins anew: %s", stream.name, error)
                return
            age = max(time.time() - taken.wall, 0.0)
            log.info("stream %s goes on with its memory, which is %.0f s old", stream.name, age)
            facts = {"age_s": age, "time": taken.time, "wall": taken.wall, "resumes": resumed.resumes}
            self._tell(StreamEvent("stream.resumed", stream.name, facts))
            return

    async def _tell_kept(self, name: str) -> None:
        """Of a stream that is to leave no trace, there may be some from before."""
        with suppress(AssistantError):
            if name in await self.held():
                log.warning(
                    "stream %s keeps nothing from now on, but what was kept of it before is there: remove it with "
                    "streamer forget %s",
                    *(name, name),
                )

    async def _take_over(self, old: str, new: str) -> None:
        """What happened to a stream that is watched under another name now, and what is recorded of it, goes along."""
        try:
            await self.timeline.rename(old, new)
            await asyncio.to_thread(self.recordings.rename, old, new)
            await self._watched_as(old, new)
        except (StoreError, OSError) as error:
            log.warning("what is kept of stream %s can't be stream %s's yet: %s", old, new, self.store.fault or error)

    async def _watched_as(self, old: str, new: str) -> None:
        """What watches know and have told of a stream is of one that has another name now, and so are those made of it."""
        for name, text in await asyncio.to_thread(self.store.read, "SELECT name, config FROM watches"):
            config = json.loads(text)
            if old in config["streams"]:
                config["streams"] = list(dict.fromkeys(new if each == old else each for each in config["streams"]))
                self.store.write("UPDATE watches SET config = ? WHERE name = ?", (json.dumps(config), name))
        self.store.write("UPDATE OR IGNORE watch_states SET stream = ? WHERE stream = ?", (new, old))
        facts = "json_set(facts, '$.stream', ?1, '$.clip', replace(facts ->> 'clip', ?2, ?3))"
        places = (f"/streams/{old}/clip?", f"/streams/{new}/clip?")
        sql = f"UPDATE watch_events SET stream = ?1, facts = {facts} WHERE stream = ?4"
        await asyncio.wrap_future(self.store.write(sql, (new, *places, old), now=True))

    def _unlike(self, stream: Stream, taken: Taken) -> str | None:
        """Why a stream can't go on with a snapshot."""
        runner = self._engine.runner
        if taken.fingerprint != runner.fingerprint:
            return f"is model {taken.model}'s with other weights or attention than {runner.name} has now"
        if taken.source != stream.source.name and stream.config.memory_of is None:
            return (
                f"is of {taken.source}, it watches {stream.source.name} now: set memory_of to {stream.name} to keep it"
            )
        return None

    async def take(self, streams: Iterable[Stream]) -> None:
        """Snapshots of these streams, as far as they have seen anything new; done when they are on the disk."""
        with suppress(StoreError, OSError, RuntimeError):
            copies = await asyncio.wrap_future(self._engine.call(lambda: self._copies(list(streams))))
            for written in [self._save(copy) for copy in copies]:
                await asyncio.shield(asyncio.wrap_future(written))

    async def take_last(self, stream: Stream) -> None:
        """As `take`, and the stream loses its slot in the same instant: nothing is seen that its snapshot has not."""

        def leave() -> list[Copy]:
            copies = self._copies([stream])
            self._engine.executor.remove(stream.name)
            return copies

        with suppress(StoreError, OSError, RuntimeError):
            for copy in await asyncio.wrap_future(self._engine.call(leave)):
                await asyncio.shield(asyncio.wrap_future(self._save(copy)))

    async def forget(self, name: str) -> None:
        """Removes all snapshots of a stream, and its timeline."""
        await self._kept(self.store.do(lambda: self.snapshots.forget(name)))
        try:
            forgotten = asyncio.create_task(self.timeline.forget(name, float("-inf"), float("inf")))
            await asyncio.wait_for(asyncio.shield(forgotten), PATIENCE)  # which goes on where it takes longer
        except (StoreError, OSError, sqlite3.Error, TimeoutError) as error:
            log.warning(
                "the timeline of %s is not all gone yet: %s", name, self.store.fault or error or "the disk is slow"
            )

    def left(self, name: str) -> None:
        """A stream is not watched any more."""
        self.diary.left(name)
        self.timeline.shut(name)

    async def forget_span(self, name: str, since: float, until: float) -> dict[str, Any]:
        """Removes what is kept of a stream's span (Unix seconds), and every later snapshot, which has seen it; says what went.

        Raises AssistantError: storage, where the disk is at fault.
        """
        self.notes.give_way()
        self.diary.forget(name, since, until)
        try:
            snapshots = await asyncio.wrap_future(self.store.do(lambda: self.snapshots.forget(name, since)))
            entries = await self.timeline.forget(name, since, until)
        except (StoreError, OSError, sqlite3.Error) as error:
            raise AssistantError("storage", f"Stream {name!r} can't be forgotten now: {error}.") from None
        segments, seconds = await asyncio.to_thread(self.recordings.forget, name, since, until)
        await asyncio.to_thread(self.clips.forget, name)
        try:
            indexes = await asyncio.to_thread(forget_indexes, self.store.folder.path, name, since, until)
        except OSError as error:
            raise AssistantError("storage", f"An index of stream {name!r} can't be removed now: {error}.") from None
        gone = {"snapshots": snapshots, "segments": segments, "recorded_s": round(seconds, 3), "entries": entries}
        return {**gone, "indexes": indexes}

    async def held(self) -> dict[str, dict[str, Any]]:
        """By stream, watched or not, how much is kept of it. Raises AssistantError: storage."""
        try:
            entries = await asyncio.to_thread(self.timeline.counts)
        except sqlite3.Error as error:
            raise AssistantError("storage", f"What is kept can't be read now: {error}.") from None
        out = {}
        for name in sorted({*self.snapshots.streams, *self.recordings.streams, *entries}):
            snapshots, recorded = self.snapshots.of(name), self.recordings.of(name)
            out[name] = {
                "watched": name in self._streams,
                "snapshots": len(snapshots),
                "newest": max((each.wall for each in snapshots), default=None),
                "recorded_s": round(sum(each.ends - each.begins for each in recorded), 3),
                "entries": entries.get(name, 0),
                "bytes": sum(each.size for each in snapshots) + sum(each.size for each in recorded),
            }
        return out

    def _outlived(self) -> list[str]:
        """Streams that are watched no more, with no snapshot from as long as their timelines are kept."""
        since = time.time() - self.config.timeline_hours * 3_600
        gone = [name for name in self.snapshots.streams if name not in self._streams]
        return [name for name in gone if all(each.wall < since for each in self.snapshots.of(name))]

    async def _trim(self) -> None:
        """Sums dropped frames up, and holds the timeline, and what is kept of streams that are gone, to their bounds."""
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            self.diary.sum_up(time.monotonic())
            with suppress(StoreError, OSError, sqlite3.Error):  # the store tells
                await self.timeline.trim(time.time())
                for name in self._outlived():
                    await asyncio.wrap_future(self.store.do(partial(self.snapshots.forget, name)))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            self.diary.look(now)
            kept = {name: each for name, each in self._streams.items() if each.config.keep != "nothing"}
            interval = self._pace.interval(kept)
            for stream in kept.values():
                stream.save_interval = interval
            due = self._pace.next(kept, now)
            while due is not None and due[1] <= now:
                await self._turn(kept[due[0]], now)
                now = time.monotonic()
                due = self._pace.next(kept, now)

    async def _turn(self, stream: Stream, now: float) -> None:
        """One stream's snapshot, waited for until it is on the disk: a slow disk gets fewer."""
        size = 0
        try:
            for copy in await asyncio.wrap_future(self._engine.call(lambda: self._copies([stream]))):
                size = await asyncio.wrap_future(self._save(copy))
        except (StoreError, OSError):  # the store tells
            return self._pace.failed(stream.name, now, RETRY_SECONDS)
        except Exception as error:
            log.warning("stream %s: no snapshot could be taken: %s", stream.name, error)
        self._pace.took(stream.name, size, now)

    def _save(self, copy: Copy) -> Future[int]:
        stream, seen, taken, fetch = copy

        def write() -> int:
            kept = self.snapshots.write(taken, fetch(), time.time())
            stream.saved_wall, stream.saved_frames = taken.wall, seen
            return kept.size

        return self.store.do(write)

    # On the engine's thread

    def _copies(self, streams: Iterable[Stream]) -> list[Copy]:
        out: list[Copy] = []
        runner = self._engine.runner
        for stream in streams:
            newest, seen = stream.newest, stream.frames_seen
            if newest is None or not stream.opened or stream.config.keep == "nothing" or seen == stream.saved_frames:
                continue
            taken = Taken(
                stream=stream.name,
                source=stream.source.name,
                wall=captured_wall(newest),
                time=stream.moment(newest),
                position=newest.time,
                sequence=newest.sequence,
                generation=stream.generation,
                resumes=stream.resumes,
                model=runner.name,
                fingerprint=runner.fingerprint,
                version=_version(),
            )
            out.append((stream, seen, taken, runner.copy(stream.slot)))
        return out


@cache
def _version() -> str:
    """Asked once: it is read from the disk, and each snapshot names it on the engine's thread."""
    try:
        return version("streamer")
    except PackageNotFoundError:
        return "unknown"
