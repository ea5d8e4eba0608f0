"""Tells what posts find: each event is kept first, with the picture that decided, then told, and followed by its clip."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from capture import Frame
from capture.image import encode_jpeg
from protocols.question import Question, Sampling
from streamer.engine.answer import Answer
from streamer.engine.shown import part
from streamer.engine.stream import Stream
from streamer.errors import AssistantError
from streamer.memory.keeper import Keeper
from streamer.watch_config import WatchConfig
from streamer.watches.asked import plain
from streamer.watches.event import EventIds, EventType, WatchEvent
from streamer.watches.feed import Feed
from streamer.watches.kept import Kept
from streamer.watches.post import Post
from streamer.watches.watch import Event

log = logging.getLogger("streamer")
STILL_SIDE = 1_280
"""Pixels of an event's picture at most, on its longer side."""
WAITING = 1_000
"""Events that may wait to be kept and told; of more the oldest are given up, and that is logged."""
GROWS, LATE = 6.0, 60
"""Seconds until what is recorded can be read, and those that a busy device may be late with it."""
TRIM_SECONDS = 600.0
"""Seconds without an event after which those that are too old are let go."""
DESCRIBE, DESCRIPTION_TOKENS = "What do you see?", 96
"""What is asked about an event that is to be described, and tokens of the answer at most."""
EVENTS = "/v1/watches/events"
Ask = Callable[[Question, np.ndarray | None], Awaitable[Answer]]
"""Has a question answered, of its stream or of a picture, uint8 [H, W, 3], alone."""


class Teller:
    """Tells events of all posts. On the assistant's event loop."""

    def __init__(
        self, streams: Mapping[str, Stream], posts: Mapping[tuple[str, str], Post], answers: asyncio.Semaphore
    ) -> None:
        """`streams` are the assistant's and `posts` those of its watches, which come and go; `answers` are to be had."""
        self._answers = answers
        self._streams, self._posts = streams, posts
        self.feed = Feed()
        self.kept = Kept(None)
        self._ids = EventIds()
        self._keeper: Keeper | None = None
        self._telling: asyncio.Queue[tuple[Post, Event, Frame, dict[str, Any]]] = asyncio.Queue(WAITING)
        self._task: asyncio.Task[None] | None = None
        self._following: set[asyncio.Task[None]] = set()
        """What is still to be told of events: their clips and descriptions."""

    def begin(self, keeper: Keeper | None, kept: Kept, newest: str | None, ask: Ask) -> None:
        """Tells from now on; `newest` is the id of the last event that was told before."""
        self._keeper, self.kept, self._ids, self._ask = keeper, kept, EventIds(newest), ask
        kept.trim(time.time())
        self._task = asyncio.create_task(self._tell_all())

    async def stop(self) -> None:
        """Tells what waits."""
        if self._task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._telling.join(), 1.0)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for task in self._following:
            task.cancel()
        self.feed.close()

    def keeps(self, stream: str) -> bool:
        """Whether anything of a stream outlasts the process."""
        return stream not in self._streams or self._streams[stream].config.keep != "nothing"

    def found(self, post: Post, event: Event, frame: Frame) -> None:
        """A post has an event, which is told as soon as it is kept."""
        if self._telling.full():
            lost = self._telling.get_nowait()
            self._telling.task_done()
            log.error(
                "an event of watch %s is lost: the disk is too slow for %d that wait", lost[0].config.name, WAITING
            )
        self._telling.put_nowait((post, event, frame, post.keep()))

    async def _tell_all(self) -> None:
        while True:
            try:
                async with asyncio.timeout(TRIM_SECONDS):
                    post, event, frame, state = await self._telling.get()
            except TimeoutError:
                self.kept.trim(time.time())
                continue
            try:
                await self._tell(post, event, frame, state)
            except Exception:
                log.exception("an event of watch %s could not be told", post.config.name)
            finally:
                self._telling.task_done()

    async def _tell(self, post: Post, event: Event, frame: Frame, state: dict[str, Any]) -> None:
        """Keeps an event and tells it, in this order: a crash between the two has it heard late, by its id, and never twice."""
        config, id = post.config, self._ids.next(time.time())
        keeps = self.keeps(post.stream)
        seen = part(frame.pixels, config.only)
        picture = await asyncio.to_thread(encode_jpeg, seen, STILL_SIDE) if keeps else None
        told = WatchEvent(
            id,
            event.kind,
            config.name,
            post.stream,
            config.severity,
            config.question,
            round(event.decided, 6),
            round(event.began, 6),
            None if event.probability is None else round(event.probability, 6),
            plain(config, event.before),
            plain(config, event.after),
            round(event.gap, 3),
            still=None if picture is None else f"{EVENTS}/{id}/still.jpg",
            frame=f"{EVENTS}/{id}/frame.jpg" if self._records(post.stream) else None,
            clip=self._clip(config, post.stream, event.began, event.decided) if self._records(post.stream) else None,
        )
        await self._publish(told, state, picture)
        if told.clip is not None:
            self._follow(told, config.clip_after)
        if config.describe:
            self._spawn(self._describe(told, post, seen))

    async def _publish(self, event: WatchEvent, state: dict[str, Any], picture: bytes | None) -> None:
        if self.keeps(event.stream):
            await self.kept.tell(event, state, picture)
        if self._keeper is not None and (event.about is None or event.description):
            changed = f": {event.before} → {event.after}" if event.type == "watch.changed" else ""
            text = f"{event.watch}: {event.description or event.question + changed}"
            place, stream = self._keeper.timeline.place(event.captured_at), self._streams.get(event.stream)
            time_of = None if stream is None else stream.seen_until
            self._keeper.timeline.add(
                event.type, event.stream, text, event.facts(), place=place, time=time_of, still=picture
            )
        log.info("watch %s: %s on stream %s", event.watch, event.type, event.stream)
        self.feed.publish(event)

    # Clips

    def _records(self, stream: str) -> bool:
        there = self._streams.get(stream)
        return there is not None and there.recorder is not None

    def _clip(self, config: WatchConfig, stream: str, began: float, decided: float) -> str:
        since, until = began - config.clip_before, decided + config.clip_after
        return f"/v1/streams/{stream}/clip?from={since:.3f}&to={until:.3f}&codec=h264"

    def _follow(self, event: WatchEvent, after: float) -> None:
        self._spawn(self._evidence(event, event.captured_at + after + GROWS))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _evidence(self, event: WatchEvent, at: float) -> None:
        """Tells that an event's clip is whole, once it is."""
        await asyncio.sleep(max(at - time.time(), 0.0))
        for _ in range(LATE):
            keeper, post = self._keeper, self._posts.get((event.watch, event.stream))
            if keeper is None or post is None:
                return
            if await asyncio.to_thread(keeper.recordings.of, event.stream, event.began_at, event.captured_at):
                return await self._publish(self._about(event, "watch.evidence"), post.keep(), None)
            await asyncio.sleep(1.0)

    def _about(self, event: WatchEvent, kind: EventType, description: str | None = None) -> WatchEvent:
        return replace(event, id=self._ids.next(time.time()), type=kind, about=event.id, description=description)

    # Descriptions

    async def _describe(self, event: WatchEvent, post: Post, seen: np.ndarray) -> None:
        """Asks about what decided, as it was `seen`: on a busy device the stream shows another thing when it comes to the answer."""
        wanted = post.config.describe
        question = wanted if isinstance(wanted, str) else DESCRIBE
        chosen = Sampling(temperature=0)
        try:
            async with self._answers:
                answer = await self._ask(
                    Question(question, event.stream, sampling=chosen, max_tokens=DESCRIPTION_TOKENS), seen
                )
                text = (await answer.text()).strip()
        except AssistantError as error:
            log.warning("an event of watch %s is not described: %s", event.watch, error)
            return
        if answer.finish_reason in ("stop", "length") and text:
            await self._publish(self._about(event, "watch.described", text), post.keep(), None)
        else:
            log.warning(
                "an event of watch %s is not described: %s", event.watch, answer.error or "the model says nothing"
            )

    async def resume_clips(self) -> None:
        """Tells of clips that were not whole yet when the process ended."""
        events = await self.kept.after("", newest=True)
        told = {each["about"] for each in events if each["type"] == "watch.evidence"}
        for facts in events:
            if facts["clip"] is None or facts["about"] is not None or facts["id"] in told:
                continue
            event = WatchEvent.of({key: value for key, value in facts.items() if key != "feedback"})
            post = self._posts.get((event.watch, event.stream))
            if post is not None:
                self._follow(event, post.config.clip_after)
