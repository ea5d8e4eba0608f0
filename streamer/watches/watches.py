"""All watches of a daemon: made, paused, snoozed and removed; what the engine sees for them is told. On one event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from capture import Frame
from capture.image import encode_jpeg
from model import ConfigError as ModelConfigError
from protocols.question import JsonSchema, Question, Sampling
from streamer.engine.answer import Answer
from streamer.engine.engine import Engine
from streamer.engine.standing import Standing
from streamer.engine.stream import Stream, captured_wall
from streamer.errors import AssistantError
from streamer.memory.keeper import Keeper
from streamer.memory.store import StoreError
from streamer.watch_config import WatchConfig
from streamer.watches.asked import checked
from streamer.watches.event import EventIds, EventType, WatchEvent
from streamer.watches.feed import Feed
from streamer.watches.kept import Feedback, Kept
from streamer.watches.post import SURE, Post
from streamer.watches.watch import Event

log = logging.getLogger("streamer")
STILL_SIDE = 1_280
"""Pixels of an event's picture at most, on its longer side."""
WAITING = 1_000
"""Events that may wait to be kept and told; of more the oldest are given up, and that is logged."""
ANSWER_TOKENS = 64
"""Of an answer whose changes are told."""
GROWS = 6.0
"""Seconds until what is recorded can be read."""
Tokens = Callable[[Question], list[int]]
Ask = Callable[[Question], Awaitable[Answer]]
EVENTS = "/v1/watches/events"


class Watches:
    """The watches, by name. Every method but `__init__` is called on the assistant's event loop."""

    def __init__(self, engine: Engine, streams: Mapping[str, Stream]) -> None:
        """`streams` are the assistant's, which come and go."""
        self._engine, self._streams = engine, streams
        self.feed = Feed()
        self.kept = Kept(None)
        self._configs: dict[str, WatchConfig] = {}
        self._made: set[str] = set()
        self._posts: dict[tuple[str, str], Post] = {}
        self._askers: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._states: dict[tuple[str, str], dict[str, Any]] = {}
        self._ids = EventIds()
        self._keeper: Keeper | None = None
        self._telling: asyncio.Queue[tuple[Post, Event, Frame, dict[str, Any]]] = asyncio.Queue(WAITING)
        self._teller: asyncio.Task[None] | None = None
        self._clips: set[asyncio.Task[None]] = set()
        self.changed: Callable[[], None] = lambda: None
        """Called whenever `standing` is another."""
        self.outputs: Callable[[], Iterable[str]] = tuple
        """Names of the outputs that there are for watches."""

    async def begin(self, configs: Iterable[WatchConfig], keeper: Keeper | None, tokens: Tokens, ask: Ask) -> None:
        """Begins with the configured watches, and those made when it last ran. `tokens` and `ask` are the assistant's."""
        self._keeper, self._tokens, self._ask = keeper, tokens, ask
        self.kept = Kept(None if keeper is None else keeper.store)
        made, self._states, newest = await asyncio.to_thread(self.kept.load)
        self._ids = EventIds(newest)
        self._teller = asyncio.create_task(self._tell_all())
        for config in configs:
            self._start(config)
        for name, fields in made.items():
            if name in self._configs:
                self.kept.drop(name)  # what is configured by now takes its place
                continue
            try:
                self._start(WatchConfig.model_validate(fields))
            except (ValidationError, AssistantError) as error:
                log.warning("watch %s, which was made while the daemon ran, can't go on: %s", name, error)
            else:
                self._made.add(name)
        await self._resume_clips()

    async def stop(self) -> None:
        """Keeps what is known; what waits to be told is."""
        for name in tuple(self._configs):
            self._end(name)
        if self._teller is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._telling.join(), 1.0)
            self._teller.cancel()
        for task in self._clips:
            task.cancel()
        self.feed.close()

    def renew(self, old: Iterable[WatchConfig], new: Iterable[WatchConfig]) -> list[str]:
        """Takes the watches of a changed configuration; returns a line for each that is another."""
        before, after = ({config.name: config for config in configs} for configs in (old, new))
        lines = []
        for name in [*before, *(each for each in after if each not in before)]:
            config = after.get(name)
            if config == before.get(name) and name in self._configs:
                continue
            if name in self._configs:
                self._states |= {(name, post.stream): post.keep() for post in self._posts_of(name)}
                self._end(name)
                del self._configs[name]
            if config is not None:
                self._start(config)
            self._made.discard(name)
            lines.append(
                f"watch {name} was {'removed' if config is None else 'changed' if name in before else 'added'}"
            )
        self.changed()
        return lines

    # What may be done to them

    async def add(self, name: str, question: str, streams: Iterable[str] = (), **options: Any) -> dict[str, Any]:
        """Makes a watch; with one stream, its name may be left out. `options` are the keys of a configured watch.

        Raises AssistantError: bad_option, watch_exists, unknown_stream, no_yes_or_no, too_many_watches.
        """
        chosen = tuple(streams) or (tuple(self._streams) if len(self._streams) == 1 else ())
        fields = {"name": name, "streams": list(chosen), "question": question, **options}
        config = checked(fields, self._streams, self.outputs())
        if name in self._configs:
            raise AssistantError(
                "watch_exists", f"There is a watch {name!r} already: remove it first, or choose another name."
            )
        await self._admit(config)
        await self._try_out(config)
        self._start(config)
        self._made.add(name)
        await self._settle(self.kept.make(name, config.model_dump(mode="json", exclude_unset=True), time.time()))
        return self.view(name, {})

    async def remove(self, name: str) -> None:
        """Ends a watch; its events stay. A configured one is back after a restart. Raises AssistantError: unknown_watch."""
        self._known(name)
        self._end(name)
        del self._configs[name]
        self._made.discard(name)
        self.changed()
        for key in [key for key in self._states if key[0] == name]:
            del self._states[key]
        await self._settle(self.kept.drop(name))

    def pause(self, name: str, *, paused: bool = True) -> None:
        """Looks no more, or again. Raises AssistantError: unknown_watch."""
        for post in self._posts_of(name):
            if post.paused != paused:
                post.paused = paused
                self._knows(post)
                if paused:
                    self._rest(post)
                else:
                    post.watch.interrupt()
                    self._set_out(post)

    def snooze(self, name: str, seconds: float) -> None:
        """Tells nothing for so long; 0 ends it. What lasts longer is told then. Raises AssistantError: unknown_watch, bad_option."""
        if not 0 <= seconds <= 31 * 86_400:
            raise AssistantError(
                "bad_option", f"A watch may be snoozed for 0 to {31 * 86_400} seconds, not {seconds:g}."
            )
        for post in self._posts_of(name):
            post.snooze(time.time() + seconds if seconds else 0.0)

    async def judge(self, event: str, feedback: Feedback | None) -> None:
        """Keeps that an event was right or a false alarm. Raises AssistantError: unknown_event."""
        if await self.kept.judge(event, feedback) is None:
            raise AssistantError("unknown_event", f"There is no event {event!r}: it may be too old.")

    async def all(self) -> list[dict[str, Any]]:
        """Every watch, with what it knows of each of its streams."""
        counts = await self.kept.counts()
        return [self.view(name, counts.get(name, {})) for name in self._configs]

    async def one(self, name: str) -> dict[str, Any]:
        """One of them. Raises AssistantError: unknown_watch."""
        self._known(name)
        return self.view(name, (await self.kept.counts()).get(name, {}))

    async def forget(self, stream: str, since: float = float("-inf"), until: float = float("inf")) -> None:
        """Removes a stream's events of a span (Unix seconds), with their pictures. Raises AssistantError: storage."""
        try:
            await self.kept.forget(stream, since, until)
        except StoreError as error:
            raise AssistantError("storage", f"The events of {stream!r} can't be forgotten now: {error}.") from None

    def view(self, name: str, counts: Any) -> dict[str, Any]:
        """A watch as plain data."""
        config, posts = self._configs[name], self._posts_of(name)
        return {
            **config.model_dump(mode="json", exclude={"streams"}),
            "configured": name not in self._made,
            "paused": all(post.paused for post in posts),
            "streams": [post.view() for post in posts],
            "events": counts.get("events", 0),
            "right": counts.get("right", 0),
            "false_alarms": counts.get("false_alarm", 0),
        }

    def standing(self) -> list[dict[str, Any]]:
        """Every watch as outputs know it: what it is, who is told, and by stream what is so now."""
        return [
            config.model_dump(mode="json", include={"name", "streams", "when", "format", "outputs"})
            | {
                "states": {
                    each: post.watch.state.belief for (name, each), post in self._posts.items() if name == config.name
                }
            }
            for config in self._configs.values()
        ]

    # How they come and go

    def _known(self, name: str) -> WatchConfig:
        if name not in self._configs:
            there = ", ".join(self._configs) or "none"
            raise AssistantError("unknown_watch", f"There is no watch {name!r}; there are: {there}.")
        return self._configs[name]

    def _posts_of(self, name: str) -> list[Post]:
        return [self._posts[name, stream] for stream in self._known(name).streams]

    def _start(self, config: WatchConfig) -> None:
        self._configs[config.name] = config
        for stream in config.streams:
            kept = self._states.get((config.name, stream))
            post = self._posts[config.name, stream] = Post(config, stream, self._found, self._knows, kept)
            if not post.paused:
                self._set_out(post)
        self.changed()

    def _end(self, name: str) -> None:
        for post in self._posts_of(name):
            self._rest(post)
            if self._keeps(post.stream):
                self.kept.know(name, post.stream, post.keep())
            del self._posts[name, post.stream]

    def _set_out(self, post: Post) -> None:
        config, key = post.config, (post.config.name, post.stream)
        if config.when == "changes":
            self._askers[key] = asyncio.create_task(self._ask_again(post))
        else:
            tokens = self._tokens(Question(config.question, post.stream))
            self._engine.watch(Standing(config.name, post.stream, tokens, config.every, config.change, post))

    def _rest(self, post: Post) -> None:
        key = post.config.name, post.stream
        self._engine.unwatch(post.stream, post.config.name)
        if (asker := self._askers.pop(key, None)) is not None:
            asker.cancel()

    async def _admit(self, config: WatchConfig) -> None:
        """Raises AssistantError where the device has no time for a look as often as is wanted, beside frames and other looks."""
        if config.when == "changes":
            return
        scheduler, more = self._engine.scheduler, len(config.streams)

        def load() -> tuple[float, float]:
            frames, most = scheduler.demand() / scheduler.capacity(), scheduler.answer_slots
            return frames + scheduler.looks.load(most), frames + scheduler.looks.load(most, more, config.every)

        now, then = await asyncio.wrap_future(self._engine.call(load))
        if then > 1 and self._posts:
            raise AssistantError(
                "too_many_watches",
                f"Watch {config.name!r} would have the device work {then:.0%} of its time, {now:.0%} is taken by frames and "
                f"{len(self._posts)} looks of other watches: raise every ({config.every:g} s), or remove a watch.",
            )

    async def _try_out(self, config: WatchConfig) -> None:
        """Raises AssistantError where the model, asked now, answers with neither yes nor no."""
        if config.when == "changes":
            return
        runner, executor = self._engine.runner, self._engine.executor
        tokens = self._tokens(Question(config.question, config.streams[0]))

        def look() -> float:
            stream = executor.streams.get(config.streams[0])
            if stream is None or not stream.opened or not executor.free_answers:
                return 1.0
            return runner.judge(stream.slot, executor.free_answers[-1:], [tokens])[0].sure

        try:
            sure = await asyncio.wrap_future(self._engine.call(look))
        except ModelConfigError as error:
            raise AssistantError("no_yes_or_no", f"No yes and no here: {error}.") from None
        if sure < SURE:
            raise AssistantError(
                "no_yes_or_no",
                f"{runner.name} answers {config.question!r} with neither yes nor no: ask whether something is so, or set when to "
                "changes, which tells of each new answer.",
            )

    async def _settle(self, written: Any) -> None:
        if written is not None:
            await asyncio.wait([asyncio.wrap_future(written)], timeout=2.0)

    # Answers in words

    async def _ask_again(self, post: Post) -> None:
        """Asks a question whose answers change, as often as its watch wants, while its stream shows something."""
        config, seen = post.config, -1
        form = None if config.format is None else config.format
        while True:
            await asyncio.sleep(config.every)
            stream = self._streams.get(post.stream)
            if stream is None or stream.newest is None or not stream.opened or stream.frames_seen == seen:
                continue
            seen, frame, generation = stream.frames_seen, stream.newest, stream.generation
            try:
                answer = await self._ask(question_of(config, post.stream))
                text = await answer.text()
            except AssistantError as error:
                post.trouble = error.message
                continue
            if answer.finish_reason == "failed" or (form is not None and answer.finish_reason != "stop"):
                post.trouble = answer.error or f"the answer was longer than {ANSWER_TOKENS} tokens"
                continue
            value = text if form is None else json.dumps(json.loads(text), sort_keys=True)
            post.see(value, captured_wall(frame), frame, generation)

    # What is told

    def _keeps(self, stream: str) -> bool:
        return stream not in self._streams or self._streams[stream].config.keep != "nothing"

    def _knows(self, post: Post) -> None:
        """A post believes otherwise than before, without an event."""
        if self._keeps(post.stream):
            self.kept.know(post.config.name, post.stream, post.keep())
        self.changed()

    def _found(self, post: Post, event: Event, frame: Frame) -> None:
        if self._telling.full():
            lost = self._telling.get_nowait()
            self._telling.task_done()
            log.error(
                "an event of watch %s is lost: the disk is too slow for %d that wait", lost[0].config.name, WAITING
            )
        self._telling.put_nowait((post, event, frame, post.keep()))

    async def _tell_all(self) -> None:
        while True:
            post, event, frame, state = await self._telling.get()
            try:
                await self._tell(post, event, frame, state)
            except Exception:
                log.exception("an event of watch %s could not be told", post.config.name)
            finally:
                self._telling.task_done()

    async def _tell(self, post: Post, event: Event, frame: Frame, state: dict[str, Any]) -> None:
        """Keeps an event and tells it, in this order: a crash between the two has it heard late, by its id, and never twice."""
        config, id = post.config, self._ids.next(time.time())
        keeps = self._keeps(post.stream)
        picture = await asyncio.to_thread(encode_jpeg, frame.pixels, STILL_SIDE) if keeps else None
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
            _plain(config, event.before),
            _plain(config, event.after),
            round(event.gap, 3),
            None if picture is None else f"{EVENTS}/{id}/still.jpg",
            self._clip(config, post.stream, event.began, event.decided),
        )
        await self._publish(told, state, picture)
        if told.clip is not None:
            self._follow(told, config.clip_after)

    async def _publish(self, event: WatchEvent, state: dict[str, Any], picture: bytes | None) -> None:
        if self._keeps(event.stream):
            await self.kept.tell(event, state, picture)
        if self._keeper is not None and event.about is None:
            changed = f": {event.before} → {event.after}" if event.type == "watch.changed" else ""
            text = f"{event.watch}: {event.question}{changed}"
            place, stream = self._keeper.timeline.place(event.captured_at), self._streams.get(event.stream)
            time_of = None if stream is None else stream.seen_until
            self._keeper.timeline.add(
                event.type, event.stream, text, event.facts(), place=place, time=time_of, still=picture
            )
        log.info("watch %s: %s on stream %s", event.watch, event.type, event.stream)
        self.feed.publish(event)

    # Clips

    def _clip(self, config: WatchConfig, stream: str, began: float, decided: float) -> str | None:
        there = self._streams.get(stream)
        if there is None or there.recorder is None:
            return None
        since, until = began - config.clip_before, decided + config.clip_after
        return f"/v1/streams/{stream}/clip?from={since:.3f}&to={until:.3f}&codec=h264"

    def _follow(self, event: WatchEvent, after: float) -> None:
        task = asyncio.create_task(self._evidence(event, event.captured_at + after + GROWS))
        self._clips.add(task)
        task.add_done_callback(self._clips.discard)

    async def _evidence(self, event: WatchEvent, at: float) -> None:
        """Tells that an event's clip is whole, once it is."""
        await asyncio.sleep(max(at - time.time(), 0.0))
        keeper, post = self._keeper, self._posts.get((event.watch, event.stream))
        if keeper is None or post is None:
            return
        if await asyncio.to_thread(keeper.recordings.of, event.stream, event.began_at, event.captured_at):
            kind: EventType = "watch.evidence"
            facts = {**event.facts(), "id": self._ids.next(time.time()), "type": kind, "about": event.id}
            await self._publish(WatchEvent.of(facts), post.keep(), None)

    async def _resume_clips(self) -> None:
        """Tells of clips that were not whole yet when the process ended."""
        events = await self.kept.after("", newest=True)
        told = {each["about"] for each in events}
        for facts in events:
            if facts["clip"] is None or facts["about"] is not None or facts["id"] in told:
                continue
            event = WatchEvent.of({key: value for key, value in facts.items() if key != "feedback"})
            if event.watch in self._configs:
                self._follow(event, self._configs[event.watch].clip_after)


def question_of(config: WatchConfig, stream: str) -> Question:
    """The question whose answers' changes are told."""
    form = None if config.format is None else JsonSchema(config.format, "format")
    return Question(config.question, stream, sampling=Sampling(temperature=0), max_tokens=ANSWER_TOKENS, format=form)


def _plain(config: WatchConfig, value: Any) -> Any:
    """What an answer of a schema holds, or the words, or whether it is so."""
    return json.loads(value) if config.format is not None and isinstance(value, str) else value
