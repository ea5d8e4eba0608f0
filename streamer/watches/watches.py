"""All watches of a daemon: made, paused, snoozed and removed; what the engine sees for them is told. On one event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from model import ConfigError as ModelConfigError
from protocols.question import JsonSchema, Question, Sampling
from streamer.engine.engine import Engine
from streamer.engine.shown import part
from streamer.engine.standing import Standing
from streamer.engine.stream import Stream, captured_wall
from streamer.errors import AssistantError
from streamer.memory.keeper import Keeper
from streamer.memory.store import StoreError
from streamer.watch_config import WatchConfig
from streamer.watches.asked import checked
from streamer.watches.event import WatchEvent
from streamer.watches.feed import Feed
from streamer.watches.kept import Feedback, Kept
from streamer.watches.links import Links, kept_key
from streamer.watches.post import SURE, Post
from streamer.watches.teller import Ask, Teller
from streamer.watches.tuning import Tuning, tune

log = logging.getLogger("streamer")
ANSWER_TOKENS = 64
"""Of an answer whose changes are told."""
Tokens = Callable[[Question], list[int]]


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
        self._teller = Teller(streams, self._posts)
        self.links = Links(kept_key(None))
        """By which evidence is seen without a token."""
        self.changed: Callable[[], None] = lambda: None
        """Called whenever `standing` is another."""
        self.outputs: Callable[[], Iterable[str]] = tuple
        """Names of the outputs that there are for watches."""

    async def begin(self, configs: Iterable[WatchConfig], keeper: Keeper | None, tokens: Tokens, ask: Ask) -> None:
        """Begins with the configured watches, and those made when it last ran. `tokens` and `ask` are the assistant's."""
        self._tokens, self._ask = tokens, ask
        self.links = Links(await asyncio.to_thread(kept_key, None if keeper is None else keeper.store.folder.path))
        kept = Kept(None if keeper is None else keeper.store)
        made, self._states, newest = await asyncio.to_thread(kept.load)
        self._teller.begin(keeper, kept, newest, ask)
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
            post = self._posts[config.name, stream] = Post(config, stream, self._teller.found, self._knows, kept)
            if not post.paused:
                self._set_out(post)
        self.changed()

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
            if stream is None or stream.newest is None or not stream.opened or not executor.free_answers:
                return 1.0
            shown = None if config.only is None else part(stream.newest.pixels, config.only)
            return runner.judge(stream.slot, executor.free_answers[-1:], [tokens], [shown])[0].sure

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
                shown = None if config.only is None else part(frame.pixels, config.only)
                answer = await self._ask(question_of(config, post.stream), shown)
                text = await answer.text()
            except AssistantError as error:
                post.trouble = error.message
                continue
            if answer.finish_reason == "failed" or (form is not None and answer.finish_reason != "stop"):
                post.trouble = answer.error or f"the answer was longer than {ANSWER_TOKENS} tokens"
                continue
            value = text if form is None else json.dumps(json.loads(text), sort_keys=True)
            post.see(value, captured_wall(frame), frame, generation)

    def _knows(self, post: Post) -> None:
        """A post believes otherwise than before, without an event."""
        if self._teller.keeps(post.stream):
            self.kept.know(post.config.name, post.stream, post.keep())
        self.changed()


def question_of(config: WatchConfig, stream: str) -> Question:
    """The question whose answers' changes are told."""
    form = None if config.format is None else JsonSchema(config.format, "format")
    return Question(config.question, stream, sampling=Sampling(temperature=0), max_tokens=ANSWER_TOKENS, format=form)
