"""All watches of a daemon: made, paused, snoozed and removed; what the engine sees for them is told. On one event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from capture import Frame
from protocols.question import Question
from streamer.engine.engine import Engine
from streamer.engine.shown import part
from streamer.engine.standing import Standing
from streamer.engine.stream import Stream, captured_wall
from streamer.errors import AssistantError
from streamer.memory.keeper import Keeper
from streamer.memory.store import StoreError
from streamer.storage_config import StorageConfig
from streamer.watch_config import WatchConfig
from streamer.watches.admission import Compile, Tokens, admit, try_out
from streamer.watches.asked import ANSWER_TOKENS, checked, question_of
from streamer.watches.event import WatchEvent
from streamer.watches.feed import Feed
from streamer.watches.kept import Feedback, Kept
from streamer.watches.links import Links, kept_key
from streamer.watches.post import Post, asked_of
from streamer.watches.teller import Ask, Teller
from streamer.watches.tuning import Tuning, tune

log = logging.getLogger("streamer")
MOST_MADE = 256
"""Watches that may be made while the daemon runs."""
MOST_SNOOZE = 31 * 86_400
"""Seconds."""


class Watches:
    """The watches, by name. Every method but `__init__` is called on the assistant's event loop."""

    def __init__(self, engine: Engine, streams: Mapping[str, Stream]) -> None:
        """`streams` are the assistant's, which come and go."""
        self._engine, self._streams = engine, streams
        self._configs: dict[str, WatchConfig] = {}
        self._made: set[str] = set()
        self._posts: dict[tuple[str, str], Post] = {}
        self._askers: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._states: dict[tuple[str, str], dict[str, Any]] = {}
        self._answers = asyncio.Semaphore(max(1, engine.executor.answer_slots // 2))
        """However many watches want words, half of all answers are left to people."""
        self._teller = Teller(streams, self._posts, self._answers)
        self.links = Links(kept_key(None), **kept_for(StorageConfig()))
        """By which evidence is seen without a token."""
        self.key: bytes | None = None
        """What signs links where it is not this daemon's own."""
        self.changed: Callable[[], None] = lambda: None
        """Called whenever `standing` is another."""
        self.outputs: Callable[[], Iterable[str]] = tuple
        """Names of the outputs that there are for watches."""

    async def begin(
        self, configs: Iterable[WatchConfig], keeper: Keeper | None, tokens: Tokens, compile: Compile, ask: Ask
    ) -> None:
        """Begins with the configured watches, and those made when it last ran. The last three are the assistant's."""
        self._tokens, self._compile, self._ask = tokens, compile, ask
        store, config = (None, StorageConfig()) if keeper is None else (keeper.store, keeper.config)
        own = await asyncio.to_thread(kept_key, None if store is None else store.folder.path)
        address = self.links.address
        self.links = Links(self.key or own, **kept_for(config))
        self.links.address = address
        kept = Kept(store, kept_for(config)["events"])
        made, self._states, newest = await asyncio.to_thread(kept.load)
        self._teller.begin(keeper, kept, newest, ask)
        for watch in configs:
            self._start(watch)
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
        self._states = {key: state for key, state in self._states.items() if key[0] in self._configs}
        await self._teller.resume_clips()

    async def stop(self) -> None:
        """Keeps what is known; what waits to be told is."""
        for name in tuple(self._configs):
            self._end(name)
        await self._teller.stop()

    @property
    def feed(self) -> Feed:
        """Who hears of events."""
        return self._teller.feed

    @property
    def kept(self) -> Kept:
        """The events that were told, and what else outlasts the process."""
        return self._teller.kept

    def on_event(self, callback: Callable[[WatchEvent], object]) -> None:
        """Calls back with each event from now on, in order, on the event loop: it must not block, and what it raises is logged."""
        self.feed.callbacks.append(callback)

    def renew(self, old: Iterable[WatchConfig], new: Iterable[WatchConfig]) -> list[str]:
        """Takes the watches of a changed configuration; returns a line for each that is another."""
        before, after = ({config.name: config for config in configs} for configs in (old, new))
        lines = []
        for name in [*before, *(each for each in after if each not in before)]:
            config = after.get(name)
            if config == before.get(name) and name in self._configs:
                continue
            if name in self._configs:
                self._part(name)
            if config is not None:
                self._start(config)
            self._made.discard(name)
            lines.append(
                f"watch {name} was {'removed' if config is None else 'changed' if name in before else 'added'}"
            )
        self.changed()
        return lines

    # What may be done to them

    async def add(self, /, name: str, question: str, streams: Iterable[str] = (), **options: Any) -> dict[str, Any]:
        """Makes a watch; with one stream, its name may be left out. `options` are the keys of a configured watch.

        Raises AssistantError: bad_option, watch_exists, unknown_stream, no_yes_or_no, too_many_watches.
        """
        chosen = tuple(streams) or (tuple(self._streams) if len(self._streams) == 1 else ())
        fields = {"name": name, "streams": list(chosen), "question": question, **options}
        config = checked(fields, self._streams, self.outputs())
        self._make_room(name)
        await admit(self._engine, config, len(self._posts))
        await try_out(self._engine, config, self._tokens, self._compile)
        self._make_room(name)  # as another may have come meanwhile
        self._start(config)
        self._made.add(name)
        made = self.view(name, {})
        await self._settle(self.kept.make(name, config.model_dump(mode="json", exclude_unset=True), time.time()))
        return made

    async def change(self, name: str, /, **options: Any) -> None:
        """Gives a watch other options; what it knows stays as long as the same is asked.

        Raises AssistantError: unknown_watch, and as `add`; bad_option also for one that is configured.
        """
        old = self._known(name)
        if name not in self._made or "name" in options:
            why = "its name stays" if name in self._made else "it is configured: change it there, and reload"
            raise AssistantError("bad_option", f"Watch {name!r} can't be changed so: {why}.")
        fields = old.model_dump(mode="json", exclude_unset=True)
        config = checked({**fields, **options}, self._streams, self.outputs())
        if (config.every, len(config.streams)) != (old.every, len(old.streams)):
            await admit(self._engine, config, len(self._posts) - len(old.streams))
        if asked_of(config) != asked_of(old):
            await try_out(self._engine, config, self._tokens, self._compile)
        if self._known(name) is not old:
            raise AssistantError("bad_option", f"Watch {name!r} has just become another: try again.")
        self._part(name)
        try:
            self._start(config)
        except AssistantError:
            self._start(old)
            raise
        await self._settle(self.kept.make(name, config.model_dump(mode="json", exclude_unset=True), time.time()))

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
        if not 0 <= seconds <= MOST_SNOOZE:
            raise AssistantError("bad_option", f"A watch may be snoozed for 0 to {MOST_SNOOZE} seconds.")
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

    async def tune(self, name: str) -> Tuning:
        """Which threshold people's feedback on its events speaks for. Raises AssistantError: unknown_watch, bad_option."""
        config = self._known(name)
        if config.when == "changes":
            raise AssistantError("bad_option", f"Watch {name!r} tells of changed answers, which have no threshold.")
        if config.when == "becomes_false":
            return tune("fall", config.fall, await self.kept.judged(name, "watch.ended"))
        return tune("rise", config.rise, await self.kept.judged(name, "watch.started"))

    async def forget(self, stream: str, since: float = float("-inf"), until: float = float("inf")) -> None:
        """Removes a stream's events of a span (Unix seconds), with their pictures. Raises AssistantError: storage."""
        try:
            await self.kept.forget(stream, since, until)
        except StoreError as error:
            raise AssistantError("storage", f"The events of {stream!r} can't be forgotten now: {error}.") from None

    def view(self, name: str, counts: Any) -> dict[str, Any]:
        """A watch as plain data. Raises AssistantError: unknown_watch."""
        config, posts = self._known(name), self._posts_of(name)
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
            | {"states": {post.stream: post.watch.state.belief for post in self._posts_of(config.name)}}
            for config in self._configs.values()
        ]

    # Of streams that come from another process, or go there

    def carried(self, stream: str) -> dict[str, dict[str, Any]]:
        """By watch, what is known of a stream: what `resume` takes where it is watched next."""
        return {name: post.keep() for (name, each), post in self._posts.items() if each == stream}

    def resume(self, stream: str, states: Mapping[str, dict[str, Any]]) -> None:
        """Goes on with what watches knew of a stream elsewhere."""
        for name, config in self._configs.items():
            if stream not in config.streams or name not in states:
                continue
            self._rest(self._posts[name, stream])
            post = self._posts[name, stream] = Post(config, stream, self._teller.found, self._knows, states[name])
            if not post.paused:
                self._set_out(post)

    # How they come and go

    def _make_room(self, name: str) -> None:
        """Raises AssistantError: watch_exists, too_many_watches."""
        if name in self._configs:
            raise AssistantError(
                "watch_exists", f"There is a watch {name!r} already: remove it first, or choose another name."
            )
        if len(self._made) >= MOST_MADE:
            raise AssistantError(
                "too_many_watches", f"{MOST_MADE} watches have been made already: remove one, or configure them."
            )

    def _known(self, name: str) -> WatchConfig:
        if name not in self._configs:
            there = ", ".join(self._configs) or "none"
            raise AssistantError("unknown_watch", f"There is no watch {name!r}; there are: {there}.")
        return self._configs[name]

    def _posts_of(self, name: str) -> list[Post]:
        return [self._posts[name, stream] for stream in self._known(name).streams]

    def _start(self, config: WatchConfig) -> None:
        """Raises AssistantError, and then there is no such watch."""
        posts = [
            Post(config, stream, self._teller.found, self._knows, self._states.get((config.name, stream)))
            for stream in config.streams
        ]
        for post in posts if config.when != "changes" else ():
            self._tokens(Question(config.question, post.stream))  # what is too long for a question is refused here
        self._configs[config.name] = config
        for post in posts:
            self._posts[config.name, post.stream] = post
            if not post.paused:
                self._set_out(post)
        self.changed()

    def _part(self, name: str) -> None:
        """Ends one that may come again, with what it knows."""
        self._states |= {(name, post.stream): post.keep() for post in self._posts_of(name)}
        self._end(name)
        del self._configs[name]

    def _end(self, name: str) -> None:
        for post in self._posts_of(name):
            self._rest(post)
            if self._teller.keeps(post.stream):
                self.kept.know(name, post.stream, post.keep())
            del self._posts[name, post.stream]

    def _set_out(self, post: Post) -> None:
        config, key = post.config, (post.config.name, post.stream)
        if config.when == "changes":
            self._askers[key] = asyncio.create_task(self._ask_again(post))
        else:
            tokens = self._tokens(Question(config.question, post.stream))
            standing = Standing(config.name, post.stream, tokens, config.every, config.change, post, config.only)
            self._engine.watch(standing)

    def _rest(self, post: Post) -> None:
        key = post.config.name, post.stream
        self._engine.unwatch(post.stream, post.config.name)
        if (asker := self._askers.pop(key, None)) is not None:
            asker.cancel()

    async def _settle(self, written: Any) -> None:
        if written is not None:
            await asyncio.wait([asyncio.wrap_future(written)], timeout=2.0)

    # Answers in words

    async def _ask_again(self, post: Post) -> None:
        """Asks a question whose answers change, as often as its watch wants, while its stream shows something."""
        seen = -1
        while True:
            await asyncio.sleep(post.config.every)
            stream = self._streams.get(post.stream)
            if stream is None or stream.newest is None or not stream.opened or stream.frames_seen == seen:
                continue
            seen = stream.frames_seen
            try:
                await self._ask_once(post, stream.newest, stream.generation)
            except AssistantError as error:
                post.trouble = error.message
            except Exception as error:  # whatever it is: the next answer may do
                post.trouble = f"the last look failed: {error!r}"
                log.exception("watch %s failed on stream %s", post.config.name, post.stream)

    async def _ask_once(self, post: Post, frame: Frame, generation: int) -> None:
        """Raises AssistantError."""
        config = post.config
        shown = None if config.only is None else part(frame.pixels, config.only)
        async with self._answers:
            answer = await self._ask(question_of(config, post.stream), shown)
            text = await answer.text()
        if answer.finish_reason == "failed" or (config.format is not None and answer.finish_reason != "stop"):
            post.trouble = answer.error or f"the answer was longer than {ANSWER_TOKENS} tokens"
            return
        value = text if config.format is None else json.dumps(json.loads(text), sort_keys=True)
        post.see(value, captured_wall(frame), frame, generation)

    def _knows(self, post: Post) -> None:
        """A post believes otherwise than before, without an event."""
        if self._teller.keeps(post.stream):
            self.kept.know(post.config.name, post.stream, post.keep())
        self.changed()


def kept_for(config: StorageConfig) -> dict[str, float]:
    """For how many seconds events with their pictures, and recordings, are kept."""
    return {"events": config.timeline_hours * 3_600, "recordings": config.recording_hours * 3_600}
