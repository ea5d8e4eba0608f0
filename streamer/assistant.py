"""The public Python API: watch streams, ask about them, hear of them. Lives on one asyncio event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import numpy as np
from pydantic import ValidationError

from capture import Frame, PushSource, Source, SourceError
from model import Runner
from model.serving.grammar import Grammar
from protocols.fields import refusal
from protocols.question import Question, Sampling
from streamer.archive import Archive, recalled
from streamer.config import Config, ConfigError, parse_config
from streamer.engine.answer import Answer, Usage
from streamer.engine.engine import Engine
from streamer.engine.executor import Request
from streamer.engine.shown import Picture
from streamer.engine.stream import Stream, StreamStatus
from streamer.errors import AssistantError
from streamer.events import News, StreamEvent, Subscription
from streamer.forms import Forms
from streamer.handover import Handover
from streamer.library import Library
from streamer.loading import engine_threads, load, pace, start
from streamer.memory.keeper import Keeper
from streamer.prompt import prompt_tokens, settled
from streamer.reload import plan
from streamer.streams import Streams
from streamer.watches.watches import Watches

__all__ = ["Answer", "Assistant", "StreamEvent", "StreamStatus", "Subscription", "Usage"]

log = logging.getLogger("streamer")
LOADING = "The model is being loaded: try again in a moment."
TELL_SECONDS = 1.0
"""Drops are told at most this often for each stream."""
STUCK_SECONDS = 10.0
"""A step that runs longer than this makes the daemon unready."""


class Assistant:
    """Watches streams and answers questions about them. An async context manager; one event loop owns it."""

    def __init__(self, config: Config, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """`progress` is told, from another thread, how many of all steps have been tried while the model warms up.

        Raises TypeError for what is no `Config`.
        """
        if not isinstance(config, Config):
            raise TypeError(f"config is a {type(config).__name__}: make a Config of it with streamer.parse_config")
        self.config = config
        limits = config.limits
        self.news = News()
        self._forms = Forms()
        self.engine = Engine(
            partial(load, config),
            stream_slots=limits.streams,
            answer_slots=limits.answers,
            pace=pace(config),
            threads=partial(engine_threads, config),
            reset=self.news.reset,
            progress=progress,
        )
        self._loaded = False
        self._starting: float | None = None
        """Since when, on the monotonic clock, the model is being loaded."""
        self._begun = False
        self._streams = Streams(self.engine, self.news, lambda: self.config)
        self._answers: dict[str, Answer] = {}
        self._teller: asyncio.Task[None] | None = None
        self._stuck = False
        self.watches = Watches(self.engine, self._streams)
        """Standing questions, and the events that they tell."""
        self.keeper: Keeper | None = None
        """What outlasts the process; None where nothing is kept."""
        self.library: Library | None = None
        """Recordings that are read once and asked; None where nothing is kept."""
        self.handover = Handover(self._streams, self._answers, self._cancel, lambda: self.keeper, self._unready)
        """For whoever shares streams out over many processes."""
        self.archive = Archive(lambda: self.keeper)
        """What happened to streams, and what is recorded of them."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Loads and warms up the model, then watches the configured streams, and those that were added when it last ran.

        Raises CheckpointError or ConfigError of the model's, AssistantError for a stream that can never work, for a state
        folder that can't be used, and where it was started before.
        """
        if self._begun:
            raise AssistantError("closed", "An assistant runs once: make a new one for another 'with' block.")
        self._begun = True
        self.news.begin()
        self._starting = time.monotonic()
        try:
            if self.config.storage.folder is not None:
                self.keeper = await asyncio.to_thread(Keeper, self.config.storage, self.engine, self._streams)
                self._streams.keeper = self.keeper
                self.keeper.listen(self.news)
                folder = self.keeper.store.folder.path
                self.library = Library(
                    self.engine, self.config, folder, lambda: self.watches.links, lambda: self._streams
                )
            # First, as a mistake here should not have to wait for the model.
            sources = [await self._streams.open(stream) for stream in self.config.streams]
            await start(self.engine, self.config)
            self._loaded = True
            self._streams.trained_rate = self.model.trained_rate
            for stream, source in zip(self.config.streams, sources, strict=True):
                await self._streams.attach(stream, source if self.model.trained_rate is None else None)
            if self.keeper is not None:
                await self.keeper.attach_added(self._streams, self._streams.attach)
                self.keeper.begin(self._answer, lambda: bool(self._answers))
            await self.watches.begin(self.config.watches, self.keeper, self._prompt, self.compile, self._ask_in_form)
            if self.library is not None:
                await self.library.resume()
        except BaseException:
            await self.stop()
            raise
        finally:
            self._starting = None
        self._teller = asyncio.create_task(self._tell())

    async def stop(self) -> None:
        """Ends answers as cancelled, then the streams and the engine; about a second at most, unless a recording is being read."""
        if self._teller is not None:
            self._teller.cancel()
            with suppress(asyncio.CancelledError):
                await self._teller
        await self.watches.stop()
        if self.library is not None:
            await self.library.stop()
        if self.keeper is not None:
            await self.keeper.stop()
        await asyncio.gather(
            asyncio.to_thread(self.engine.stop), *(asyncio.to_thread(stream.stop) for stream in self._streams.values())
        )
        if self.keeper is not None:
            await asyncio.to_thread(self.keeper.close)
        for answer in list(self._answers.values()):
            answer.finished("cancelled", None)
        self.news.close()
        self._streams.clear()
        await asyncio.sleep(0)

    @property
    def ready(self) -> bool:
        """Whether the model is warm and the engine gets on."""
        return (
            self._loaded
            and self._starting is None
            and self.engine.alive
            and not self.engine.restarting
            and not self._stuck
        )

    @property
    def trouble(self) -> str | None:
        """Why `ready` is False, in one line."""
        if self.engine.failure:
            return self.engine.failure
        if not self._loaded or self._starting is not None:
            return "the model is being loaded"
        if not self.engine.alive:
            return "the engine has stopped"
        if self.engine.restarting:
            return "the engine failed and begins again"
        return f"the engine's step has run for more than {STUCK_SECONDS:g} s" if self._stuck else None

    @property
    def loading_s(self) -> float | None:
        """For how long the model is being loaded already; None once it is, with the configured streams attached."""
        return None if self._starting is None else time.monotonic() - self._starting

    @property
    def model(self) -> Runner:
        """The model's facts: name, trained, slots, state_bytes, … Raises AssistantError before it is loaded."""
        if not self._loaded:
            raise AssistantError("not_ready", LOADING)
        return self.engine.runner

    def source_changes(self) -> dict[str, dict[str, int]]:
        """By stream, how often its source came into each of its states."""
        return {name: dict(stream.source.status.changes) for name, stream in self._streams.items()}

    @property
    def oldest_question_s(self) -> float:
        """How long the question that waits longest for its first word has waited; 0 where none waits."""
        now = time.monotonic()
        return max((answer.waited(now) for answer in self._answers.values()), default=0.0)

    @property
    def names(self) -> list[str]:
        """Every stream's name, in order of attaching."""
        return list(self._streams)

    def streams(self) -> list[StreamStatus]:
        """Every stream's status, in order of attaching."""
        now = time.monotonic()
        return [stream.status(now) for stream in self._streams.values()]

    async def attach(self, /, name: str, source: str, **options: Any) -> StreamStatus:
        """Begins to watch a source; `options` are the keys of a configured stream.

        Raises AssistantError: bad_option, stream_exists, too_many_streams, too_many_frames, bad_source, not_ready.
        """
        try:
            config = parse_config({"streams": [{"name": name, "source": source, **options}]}, "stream").streams[0]
        except ConfigError as error:
            problems = "; ".join(problem.removeprefix("streams[0].") for problem in error.problems)
            raise AssistantError("bad_option", f"The stream is refused: {problems.rstrip('?.')}.") from None
        if not self.ready:
            raise AssistantError("not_ready", f"No stream can be attached now: {self.trouble}.")
        status = await self._streams.attach(config)
        if self.keeper is not None:
            await self.keeper.add(config)
        return status

    async def detach(self, name: str) -> None:
        """Ends a stream and forgets its memory; its open answers go on. Raises AssistantError: unknown_stream."""
        await self._streams.detach(name)
        if self.keeper is not None:
            await self.keeper.remove(name)
            await self.keeper.forget(name)
        await self.watches.forget(name)

    def stream(self, name: str) -> Stream:
        """One of the streams. Raises AssistantError: unknown_stream."""
        return self._streams.named(name)

    async def held(self) -> dict[str, dict[str, Any]]:
        """By stream, watched or not, what is kept of it; see `Keeper.held`."""
        return {} if self.keeper is None else await self.keeper.held()

    async def forget(
        self, name: str, since: float = float("-inf"), until: float = float("inf"), *, keep_memory: bool = False
    ) -> dict[str, Any]:
        """Removes what is kept of a stream's span (Unix seconds) and every later snapshot; says what went and what remains.

        What the stream remembers begins anew too, unless `keep_memory`; one that is watched no more may be named as well.
        Raises AssistantError: unknown_stream, storage.
        """
        stream = self._streams.named(name) if name in self._streams or name not in await self.held() else None
        if stream is not None and not keep_memory:
            await asyncio.wrap_future(self.engine.call(lambda: self.engine.executor.forget(stream)))
        gone = {"snapshots": 0, "segments": 0, "recorded_s": 0.0, "entries": 0, "indexes": 0}
        if self.keeper is not None:
            gone = await self.keeper.forget_span(name, since, until)
        await self.watches.forget(name, since, until)
        remains = "what it has seen until now, which it keeps" if keep_memory else "nothing: it begins anew"
        remains = "what was kept before" if stream is None and since > float("-inf") else remains
        return {"stream": name, **gone, "memory": remains}

    def push(self, name: str, pixels: np.ndarray, timestamp: float | None = None) -> None:
        """Shows one frame, uint8 [H, W, 3] RGB, to a stream whose source is `push://`; copies it and never waits.

        `timestamp` is in seconds of the pusher's clock. Raises AssistantError: unknown_stream, bad_source, bad_frame.
        """
        stream = self._streams.named(name)
        if not isinstance(stream.source, PushSource):
            raise AssistantError(
                "bad_source", f"Stream {name!r} watches {stream.source.name}: only push:// takes pushed frames."
            )
        try:
            stream.source.push(pixels, timestamp)
        except SourceError as error:
            raise AssistantError("bad_frame", f"The frame is refused: {error}.") from None

    async def reload(self, config: Config) -> list[str]:
        """Applies a configuration as far as it can change live; returns a line for everything that was or was not done.

        Streams come and go; one whose priority or deadline changed keeps its memory, any other change begins it again.
        The speed and manner of answers, and the limits of questions, change for what is asked from now on.
        """
        asked = plan(self.config, config, {name: stream.config for name, stream in self._streams.items()})
        watches, self.config = self.config.watches, asked.config
        await asyncio.wrap_future(self.engine.set_pace(pace(config)))
        lines = asked.lines
        for change in asked.changes:
            try:
                lines.append(await self._streams.change(change))
            except AssistantError as error:
                lines.append(error.message)
        lines += self.watches.renew(watches, config.watches)
        return lines or ["nothing changed"]

    def source(self, name: str) -> Source:
        """Where a stream's frames come from. Raises AssistantError: unknown_stream."""
        return self._streams.named(name).source

    def newest_frame(self, name: str) -> Frame | None:
        """The frame that the model saw last. Raises AssistantError: unknown_stream."""
        return self._streams.named(name).newest

    def ask(
        self,
        question: str,
        *,
        stream: str | None = None,
        instructions: str = "",
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        presence_penalty: float | None = None,
        thinking: int = 0,
        seed: int | None = None,
        history: Sequence[tuple[str, str]] = (),
        at: str | float | None = None,
        since: str | float | None = None,
        until: str | float | None = None,
        recording: str | None = None,
    ) -> Answer:
        """Asks about what a stream has shown so far; with one stream, its name may be left out.

        `history` holds earlier (question, answer) pairs, oldest first. `thinking` is how many tokens the model may think
        before it answers, which `Answer.pieces` shows. `at` asks about a moment of the past instead: Unix seconds, or as people
        write it (`streamer.memory.moments`); the answer's `moment` says which one was reached. `since` and `until` (now, if left
        out) show a recorded span of it again, and ask about that alone; `recording` asks one of the `library`. Else as configured. Raises
        AssistantError: not_ready, empty_question, unknown_stream, no_frames, question_too_long, bad_sampling, no_thinking,
        too_many_answers, bad_moment, not_remembered, bad_span, no_recording, unknown_recording.
        """
        given = {
            "temperature": temperature, "top_p": top_p, "top_k": top_k, "presence_penalty": presence_penalty, "seed": seed,
        }  # fmt: skip
        try:
            sampling = Sampling.model_validate(given)
        except ValidationError as error:
            raise AssistantError("bad_sampling", refusal(error, given).message) from None
        spoken = Question(question, stream, instructions, tuple(history), (), sampling, max_tokens, thinking)
        return self.answer(replace(spoken, at=at, since=since, until=until, recording=recording))

    async def compile(self, question: Question) -> Grammar | None:
        """The form that a question wants of its answer, ready to be followed.

        Raises AssistantError: not_ready, bad_format, no_tools.
        """
        if question.format is None and not question.tools:
            return None
        self._check_ready()
        return await self._forms.compile(self.model, question)

    def answer(self, question: Question, grammar: Grammar | None = None, visitor: str | None = None) -> Answer:
        """As `ask`, for a question that a wire has brought; its answer keeps to `grammar`, which `compile` made of it.

        `visitor` is whose question it is, where it is kept.
        """
        if self.keeper is None:
            return self._answer(question, grammar)
        self.keeper.notes.give_way()
        answer = self._answer(question, grammar)
        self.keeper.diary.asked(answer, question, visitor)
        return answer

    def _answer(self, question: Question, grammar: Grammar | None = None, picture: np.ndarray | None = None) -> Answer:
        """As `answer`, and kept nowhere. With a `picture` it is about that alone, whatever the stream has shown."""
        limits, tokenizer = self.config.limits, self.model.tokenizer
        self._check_ready()
        if not question.text.strip():
            raise AssistantError("empty_question", "The question has no text: write one.")
        watched = None if question.recording is not None else self._streams.named(question.stream)
        past = recalled(self.keeper, self.library, name := "" if watched is None else watched.name, question)
        if past is None and watched is not None and not watched.opened:
            state = watched.source.status
            why = f"{state.state}: {state.reason}" if state.reason else str(state.state)
            raise AssistantError(
                "no_frames", f"Stream {watched.name!r} has shown nothing yet ({why}): ask again later."
            )
        question = settled(question, name, self.config, self.model.config)
        tokens = prompt_tokens(question, tokenizer, limits.question_tokens)
        most = limits.answers + limits.waiting_questions
        if len(self._answers) >= most:
            raise AssistantError(
                "too_many_answers",
                f"{limits.answers} answers are open and {limits.waiting_questions} questions wait, which is all that is "
                "allowed: ask again when one is complete, or raise limits.waiting_questions.",
            )
        id = f"ans_{uuid4().hex[:20]}"
        answer = self._answers[id] = Answer(id, name, len(tokens), self._cancel, self._over)
        request = Request(id, question, tokens, answer, grammar, replay=None if picture is None else Picture(picture))
        if past is None:
            self.engine.ask(request)
        else:
            past.begin(answer, request)
        return answer

    def _prompt(self, question: Question) -> list[int]:
        return prompt_tokens(question, self.model.tokenizer, self.config.limits.question_tokens)

    async def _ask_in_form(self, question: Question, picture: np.ndarray | None) -> Answer:
        return self._answer(question, await self.compile(question), picture)

    def subscribe(self, stream: str | None = None) -> Subscription:
        """News of one stream, or of all: first each stream's status now, then what happens. Close it after use."""
        return self.news.subscribe(stream, {name: each.source.status for name, each in self._streams.items()})

    def _unready(self) -> str | None:
        return None if self.ready else self.trouble

    def _check_ready(self) -> None:
        if not self.ready:
            raise AssistantError("not_ready", f"No question can be answered now: {self.trouble}.")

    def _over(self, answer: Answer) -> None:
        self._answers.pop(answer.id, None)
        if self.keeper is not None:
            self.keeper.diary.answered(answer)

    def _cancel(self, answer: Answer) -> None:
        if self.keeper is not None:
            self.keeper.past.cancel(answer.id)
        if self.library is not None:
            self.library.cancel(answer.id)
        self.engine.cancel(answer.id)

    async def _tell(self) -> None:
        """Tells of drops, and notices an engine that does not get on."""
        while True:
            await asyncio.sleep(TELL_SECONDS)
            for stream in self._streams.values():
                self.news.dropped(stream.name, stream.drops)
            stuck = self.engine.stuck_for(time.monotonic()) > STUCK_SECONDS
            if stuck and not self._stuck:
                log.error("the engine's step has run for more than %g s", STUCK_SECONDS)
            self._stuck = stuck
