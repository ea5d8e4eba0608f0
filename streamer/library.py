"""Recordings in the daemon: read in the time that streams leave, kept in the state folder, and asked as often as one likes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from model import Runner
from streamer.config import Config
from streamer.engine.answer import Answer
from streamer.engine.engine import Engine
from streamer.engine.executor import Request
from streamer.errors import AssistantError
from streamer.fields import NAME
from streamer.indexing import StoppedError, Video, check_room, file_video, index_video, stream_video
from streamer.memory.folder import PRIVATE
from streamer.memory.indexes import FACTS, KIND, Facts, Index, RecordingError, free_name, listed, numbered
from streamer.reading import Place
from streamer.shelf import READING, Asked, Cited, Shelf, line
from streamer.watches.links import Links

log = logging.getLogger("streamer")
T = TypeVar("T")
LINKS_LAST = 7 * 86_400.0
"""Seconds for which a link to a clip opens it."""
STOP_SECONDS = 5.0
"""For which a recording that is being read is waited for at the end, so that what was read of it can be kept."""
VIDEO = "video"
"""The file that came over the wire, in its index's folder."""


@dataclass
class Job:
    """A recording that is read, or waits to be: `seconds` of it so far."""

    video: Video
    fps: float
    seconds: float = 0.0
    begun: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Recollection:
    """A recording that a question is about."""

    library: Library
    name: str

    def begin(self, answer: Answer, request: Request) -> None:
        """Has a request answered; whatever happens, its answer comes to an end."""
        self.library.begin(self.name, answer, request)


class Library:
    """The recordings of one state folder. Lives on the assistant's event loop."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        folder: Path,
        links: Callable[[], Links],
        streams: Callable[[], Collection[str]],
    ) -> None:
        """`links` signs those to clips; `streams` tells names that no recording is given, asked from any thread."""
        self.folder, self.budget = folder, config.storage.indexes
        self._streams = streams
        self._engine, self._model, self._links = engine, config.model.name, links
        self._shelf = Shelf(engine, config, folder)
        self._jobs: dict[str, Job] = {}
        self._failed: dict[str, tuple[Job, str]] = {}
        """By recording, what could not be read on, and why."""
        self._turn = asyncio.Lock()
        self._reader = ThreadPoolExecutor(1, "reading")
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False

    async def resume(self) -> None:
        """Goes on with what came over the wire and was not read to its end; removes what did not come whole."""
        for name, fps in await asyncio.to_thread(self._unread):
            with suppress(AssistantError):
                await self.read_file(self.folder / KIND / name / VIDEO, fps, name)

    async def stop(self) -> None:
        """Stops reading; what was kept of it can be gone on with. To keep it needs the engine: stop that afterwards.

        Whatever is still being read after `STOP_SECONDS` is left as it was kept last.
        """
        self._stopping = True
        for job in self._jobs.values():
            job.stop.set()
        reading = {self._tasks[_key(name)] for name, job in self._jobs.items() if job.begun}
        tasks = set(self._tasks.values())
        for task in tasks - reading:
            task.cancel()
        if reading:
            _, late = await asyncio.wait(reading, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._shelf.close()

    def names(self) -> list[str]:
        """Recordings that are kept or read; waits for the disk a moment."""
        place = self.folder / KIND
        kept = [each.name for each in place.iterdir() if (each / FACTS).is_file()] if place.is_dir() else []
        return sorted({*kept, *self._jobs})

    def all(self) -> list[dict[str, Any]]:
        """What is known of each, by name; waits for the disk."""
        found = {facts.name: view(facts, index.bytes) for index, facts in listed(self.folder)}
        failed = list(self._failed.items())
        for name, job in [*self._jobs.items(), *((name, job) for name, (job, _) in failed)]:
            begun = Facts(name, job.video.source, 0, 0.0, self._model, "", job.fps, job.video.begins)
            if name not in found:
                found[name] = view(begun, self._bytes(name))
        for name, (_, fault) in failed:
            found[name]["note"] = fault
        for name, job in list(self._jobs.items()):
            read = {"seconds": round(job.seconds, 3), "of": round(job.video.seconds, 3)}
            found[name] |= {**read, "state": "reading" if job.begun else "waiting"}
        return [found[name] for name in sorted(found)]

    def of(self, name: str) -> Facts:
        """What is known of one that is kept; waits for the disk. Raises AssistantError: unknown_recording."""
        facts = Index(self.folder / KIND / name).facts() if re.fullmatch(NAME, name) else None
        if facts is None:
            raise AssistantError(
                "unknown_recording", f"There is no recording {name[:80]!r}: GET /v1/recordings lists them."
            )
        return facts

    def reserve(self, name: str) -> Path:
        """A folder for a recording that is to come, under a name made of this one; waits for the disk. Raises OSError."""
        parent = self.folder / KIND
        parent.mkdir(mode=PRIVATE, parents=True, exist_ok=True)

        def taken(name: str) -> bool:
            if name in self._streams():
                return True
            try:
                (parent / name).mkdir(mode=PRIVATE)
                return False
            except FileExistsError:
                return True

        return parent / numbered(free_name(self.folder, Path(name).stem, ""), taken)

    async def read_file(
        self, path: Path | str, fps: float = 2.0, name: str | None = None, shown: str | None = None
    ) -> str:
        """Begins to read a video file in the background; its recording's name. Raises AssistantError as `_read_video`.

        A refusal names the file as it is `shown`: if left out, as the recording's `name` or else the path.
        """

        def find() -> Video:
            named = shown or name or str(path)[:200]
            try:
                return file_video(self.folder, str(path), shown or name)
            except (ValueError, RuntimeError):  # a NUL, half a character; a home of nobody, a circle of links
                raise RecordingError(f"{named!r} is no path that a file can have: name another") from None
            except OSError as error:
                raise RecordingError(f"{named}: it can't be read ({line(error)}): name another") from None
            except RecordingError:
                if _nowhere(str(path)):
                    raise RecordingError(
                        f"{named}: there is no such file in the daemon's working folder: name it by its whole path"
                    ) from None
                raise

        return await self._read_video(find, fps, name)

    async def read_stream(self, stream: str, since: float, until: float, fps: float = 2.0) -> str:
        """Begins to read what was recorded of a stream from `since` to `until` (Unix seconds). Raises AssistantError as `_read_video`."""
        return await self._read_video(partial(stream_video, self.folder, stream, since, until), fps)

    async def _read_video(self, find: Callable[[], Video], fps: float, name: str | None = None) -> str:
        """Begins to read a video under this name, or one that is made of its own.

        Raises AssistantError: bad_option, bad_recording, no_storage, no_memory, no_retrieval, not_ready.
        """
        if not 0 < fps <= 1_000:
            raise AssistantError("bad_option", f"fps {fps:g} must be more than 0 and at most 1000.", "fps")
        runner = await self._shelf.runner()
        try:
            video = await asyncio.to_thread(find)
            if name is None:
                name = await asyncio.to_thread(self._free_name, video)
            video = replace(video, name=name)
        except (RecordingError, OSError) as error:
            raise AssistantError("bad_recording", f"{line(error)}.") from None
        try:
            if told := await asyncio.to_thread(check_room, runner, self.folder, video, fps, self.budget):
                log.warning("recording %s", told)
        except (RecordingError, OSError) as error:
            raise AssistantError("no_storage", f"{line(error)}.") from None
        if video.name in self._jobs:
            raise AssistantError("bad_recording", f"Recording {video.name!r} is being read already: wait for it.")
        if self._stopping:
            raise AssistantError(
                "not_ready", f"Recording {video.name!r} can't be read now: the daemon is shutting down."
            )
        self._failed.pop(video.name, None)
        self._jobs[video.name] = job = Job(video, fps)
        self._start(_key(video.name), self._read(job, runner))
        return video.name

    async def remove(self, name: str) -> None:
        """Stops reading a recording and removes all that is kept of it. Raises AssistantError: unknown_recording, storage."""
        if (job := self._jobs.get(name)) is not None:
            job.stop.set()
            await job.over.wait()
        elif self._failed.pop(name, None) is None:
            await asyncio.to_thread(self.of, name)
        place = self.folder / KIND / name
        try:
            if await asyncio.to_thread(place.is_dir):
                await asyncio.to_thread(Index(place).remove)
        except OSError as error:
            raise AssistantError("storage", f"Recording {name!r} can't be removed: {error.strerror}.") from None
        await self._shelf.remove(name)

    def asked(self, name: str) -> Recollection:
        """What answers a question about a recording. Raises AssistantError: unknown_recording, not_ready."""
        if (job := self._jobs.get(name)) is not None:
            part = f", {100 * job.seconds / job.video.seconds:.0f} % of it so far" if job.video.seconds else ""
            raise AssistantError("not_ready", f"Recording {name!r} is being read{part}: ask once all of it is.")
        if not re.fullmatch(NAME, name) or not (self.folder / KIND / name / FACTS).is_file():
            self.of(name)
        return Recollection(self, name)

    def begin(self, name: str, answer: Answer, request: Request) -> None:
        """See `Recollection.begin`."""

        def done(task: asyncio.Task[None]) -> None:
            if task.cancelled():  # perhaps before it began
                answer.finished("cancelled", None)

        self._start(answer.id, self._carry_out(name, answer, request)).add_done_callback(done)

    def cancel(self, answer: str) -> None:
        """The answer isn't wanted any more."""
        if answer in self._tasks:
            self._tasks[answer].cancel()

    def _sign(self, place: str) -> str:
        return self._links().signed(place, time.time() + LINKS_LAST)

    def _free_name(self, video: Video) -> str:
        """A name made of the video's, which neither a stream nor another recording has; waits for the disk. Raises OSError."""
        indexed = {facts.name: facts.source for _, facts in listed(self.folder)}

        def taken(name: str) -> bool:
            if name in indexed:
                return indexed[name] != video.source  # its own is gone on with, though a stream took its name since
            job = self._jobs.get(name)
            return name in self._streams() or (job is not None and job.video.source != video.source)

        return numbered(video.name, taken)

    def _bytes(self, name: str) -> int:
        try:
            return Index(self.folder / KIND / name).bytes
        except OSError:  # that is why it could not be read
            return 0

    def _start(self, key: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks[key] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return task

    async def _carry_out(self, name: str, answer: Answer, request: Request) -> None:
        try:
            facts = await asyncio.to_thread(self.of, name)
            answer.moment = moment = Cited(facts, self._sign, facts.begins or 0.0)
            held = await self._shelf.hold(facts, answer)
        except AssistantError as error:
            return answer.finished("failed", error.message.rstrip("."))
        except Exception as error:
            return answer.finished("failed", f"the recording could not be loaded: {line(error)}")
        try:
            self._engine.ask(replace(request, recording=Asked(held, moment)))
            await answer.over.wait()
        finally:
            self._shelf.left(held)

    async def _read(self, job: Job, runner: Runner) -> None:
        name, slot = job.video.name, None
        try:
            async with self._turn:
                if job.stop.is_set():
                    return
                slot = await self._shelf.slot(runner)
                job.begun = True
                work = partial(self._index, job, Place(runner, slot, self._run))
                facts = await asyncio.get_running_loop().run_in_executor(self._reader, work)
                if runner.state.pages is not None and runner.state.pages.lengths[slot] == facts.tokens:
                    self._shelf.put(slot, runner, facts)  # not where it was read before
                log.info("recording %s is read: %.0f s, %d tokens", name, facts.seconds, facts.tokens)
        except StoppedError:
            pass
        except Exception as error:
            fault = line(error).replace(job.video.source, name)  # a path of this machine's is nobody else's business
            self._failed[name] = job, fault
            log.warning("recording %s can't be read: %s", name, fault)
        finally:
            if slot is not None:
                self._shelf.give_back(slot)
            self._jobs.pop(name, None)
            job.over.set()

    def _run(self, do: Callable[[], T]) -> T:
        return self._engine.spare(do, 0.0 if self._stopping else READING).result()

    def _index(self, job: Job, place: Place) -> Facts:
        def told(facts: Facts) -> None:
            job.seconds = facts.seconds
            if job.stop.is_set():
                raise StoppedError

        return index_video(place, self.folder, job.video, job.fps, self.budget, told)

    def _unread(self) -> list[tuple[str, float]]:
        """Recordings whose file came over the wire and that are not read to their end; what did not come whole goes."""
        place, names = self.folder / KIND, list[tuple[str, float]]()
        for each in sorted(place.iterdir()) if place.is_dir() else ():
            facts = Index(each).facts()
            if (each / VIDEO).is_file() and (facts is None or not facts.complete):
                names.append((each.name, 2.0 if facts is None else facts.fps))
            elif facts is None and (each / f"{VIDEO}.part").exists():
                Index(each).remove()
        return names


def _key(name: str) -> str:
    """Of the task that reads a recording."""
    return f"read {name}"


def _nowhere(path: str) -> bool:
    """Whether a path begins at the working folder, and nothing is there; waits for the disk."""
    return not path.startswith(("/", "~")) and "://" not in path and not os.path.lexists(path)


def view(facts: Facts, size: int) -> dict[str, Any]:
    """What is told of a recording; of a file its name without the folder, of a stream's span the stream."""
    known = {key: getattr(facts, key) for key in ("name", "model", "fps", "frames", "tokens", "begins", "note")}
    source, seconds = facts.source, round(facts.seconds, 3)
    known["source"] = Path(source).name if source.startswith("/") else source.split()[0]
    state = "ready" if facts.complete else "broken off"
    return {**known, "seconds": seconds, "of": seconds, "state": state, "bytes": size}
