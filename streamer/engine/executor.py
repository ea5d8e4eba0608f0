"""Carries out one decision on the model and its slots, so that what fails is the matter of its stream or answer alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from capture import Frame
from capture.gate import thumbnail
from model import Runner, Sampling
from model.serving.backends import Finite
from model.serving.grammar import Constraint, Grammar
from model.serving.runner import Encoded
from model.state import Snapshot
from model.tokenizer import Detokenizer
from protocols.question import Question
from streamer.engine.answer import FinishReason
from streamer.engine.decisions import Decision, Decode, FrameStep, Look, Prefill, Replay
from streamer.engine.scheduler import Scheduler
from streamer.engine.shown import Recorded, Shown, part
from streamer.engine.standing import Scene, Seen, Standing
from streamer.engine.stream import Resumed, Stream, captured_wall, check
from streamer.engine.thoughts import Thoughts
from streamer.engine.underway import Batch, Looked, pictures

log = logging.getLogger("streamer")
NOT_READY = 0.01
"""Seconds after which it is asked again for a step of the past that was not decoded yet."""


class Listener(Protocol):
    """Who hears an answer; called from the engine's thread, and must not block."""

    def spoke(self, text: str, tokens: int, thought: bool = False) -> None:
        """`tokens` more tokens were spoken, or thought; `text` is what they complete, which may be nothing yet."""

    def finished(self, reason: FinishReason, error: str | None) -> None:
        """With reason "failed", `error` is one line."""


@dataclass(frozen=True, slots=True)
class Request:
    """A question that nothing is left open in, on its way to an answer: `tokens` are the whole prompt's ids.

    `grammar` is the form that the answer must keep to.
    With a `state` it is asked there, instead of in a fork of its stream.
    What `replay` shows is taken into that state, or without one into an empty one, before the question is read.
    With a `recording` it is asked in a fork of that.
    """

    id: str
    question: Question
    tokens: list[int]
    listener: Listener
    grammar: Grammar | None = None
    state: Snapshot | None = None
    replay: Shown | None = None
    recording: Recorded | None = None


@dataclass
class _Answer:
    request: Request
    sampling: Sampling
    detokenizer: Detokenizer
    constraint: Constraint | None = None
    slot: int | None = None
    place: int = 0
    """The slot in its runner, which is a recording's own."""
    read: int = 0
    shown: int = 0
    token: int = 0
    spoken: int = 0
    thoughts: Thoughts = field(default_factory=Thoughts)

    @property
    def bound(self) -> Constraint | None:
        """What the next token must keep to; thoughts are free."""
        return None if self.thoughts.going_on else self.constraint


class Executor:
    """Streams and answers in their slots, on the engine's thread. What it raises means that the model can do nothing any more.

    `reset` (stream, reason) is told when a stream lost its memory.
    """

    def __init__(self, stream_slots: int, answer_slots: int, reset: Callable[[str, str], None]) -> None:
        self.stream_slots, self.answer_slots, self.reset = stream_slots, answer_slots, reset
        self.tokens = 0
        self.standing: dict[str, dict[str, Standing]] = {}
        """By stream, and by watch, whether there is such a stream or not."""
        self.scenes: dict[str, Scene] = {}

    def begin(self, runner: Runner, scheduler: Scheduler[Frame]) -> None:
        """Every slot of this model is free, and nobody has one."""
        self.runner, self.scheduler = runner, scheduler
        self.streams: dict[str, Stream] = {}
        self.answers: dict[str, _Answer] = {}
        self.free_streams = list(range(self.stream_slots))
        self.free_answers = list(range(self.stream_slots, self.stream_slots + self.answer_slots))

    def add(self, stream: Stream) -> None:
        """Gives a stream a slot."""
        stream.slot = self.free_streams.pop()
        self.streams[stream.name] = stream
        self.scheduler.add_stream(stream.name, stream.terms, frames_per_second=stream.expected_rate)
        for standing in self.standing.get(stream.name, {}).values():
            self.scheduler.looks.add(stream.name, standing.watch, standing.every, time.monotonic())

    def remove(self, name: str) -> None:
        """Takes a stream's slot back, if there is such a stream."""
        stream = self.streams.pop(name, None)
        if stream is None:
            return
        self.scheduler.remove_stream(name)
        self.scenes.pop(name, None)
        self.runner.reset(stream.slot)
        stream.opened = False
        self.free_streams.append(stream.slot)

    def watch(self, standing: Standing) -> None:
        """Asks its question again and again, while there is such a stream."""
        self.standing.setdefault(standing.stream, {})[standing.watch] = standing
        if standing.stream in self.streams:
            self.scheduler.looks.add(standing.stream, standing.watch, standing.every, time.monotonic())

    def unwatch(self, stream: str, watch: str) -> None:
        """Asks it no more."""
        self.standing.get(stream, {}).pop(watch, None)
        self.scenes.get(stream, Scene()).forget(watch)
        self.scheduler.looks.remove(stream, watch)

    def ask(self, request: Request) -> None:
        """Lets a question wait for a slot."""
        sampling = Sampling(**request.question.sampling.chosen())
        tokenizer = self.runner.tokenizer
        thoughts = Thoughts(*tokenizer.think, request.question.thinking)
        constraint = None if request.grammar is None else request.grammar.begin()
        self.answers[request.id] = _Answer(request, sampling, tokenizer.detokenizer(), constraint, thoughts=thoughts)
        shown = 0 if request.replay is None else request.replay.count
        self.scheduler.ask(request.id, len(request.tokens), time.monotonic(), shown)

    def end_answers(self, reason: FinishReason, error: str | None) -> None:
        """Tells every listener that its answer is over; the slots are left as they are, as the model may be dead."""
        answers, self.answers = list(self.answers.values()), {}
        for answer in answers:
            answer.request.listener.finished(reason, error)

    def carry_out(self, decision: Decision[Frame]) -> Decision[Frame]:
        """Does what was decided, or the part of it that is returned."""
        if isinstance(decision, FrameStep):
            self.see(decision)
        elif isinstance(decision, Prefill):
            self.prefill(decision)
        elif isinstance(decision, Decode):
            self.decode(decision)
        elif isinstance(decision, Replay):
            self.replay(decision)
        elif isinstance(decision, Look):
            return self.look(decision)
        return decision

    def batch(self, step: FrameStep[Frame]) -> Batch:
        """The streams of a step with their frames."""
        return [(self.streams[name], frames) for name, frames in step.frames]

    def goes_on(self, step: FrameStep[Frame]) -> bool:
        """Whether no stream begins with this step or is reset by it."""
        with suppress(ValueError):
            for stream, frames in self.batch(step):
                check(frames)
                if not stream.opened:
                    return False
            return True
        return False

    def see(self, step: FrameStep[Frame]) -> None:
        """Takes frames into the state; a stream whose frames are none loses its memory."""
        batch: Batch = []
        for stream, frames in self.batch(step):
            try:
                check(frames)
                batch.append((stream, frames))
            except ValueError as error:
                self.lose(stream, frames, line(error))
        self.enter(batch)

    def enter(self, batch: Batch, looked: Looked | None = None) -> None:
        """Takes a step into the state; a stream that is not open, or was reset since its pictures were looked at, begins."""
        self.launch(batch, looked)()

    def launch(
        self, batch: Batch, looked: Looked | None = None, before: Callable[[], object] | None = None
    ) -> Callable[[], None]:
        """As `enter`, but what is returned waits for the step's end.

        It is called before anything else is done to the model but to launch one more step, all of whose streams are open.
        `before` ends the one that still runs, if there is: a step that can't begin behind it is tried again after that.
        """
        if not all(stream.opened for stream, _ in batch):
            batch, looked = [(stream, frames) for stream, frames in batch if self.open(stream, frames)], None
        told: Finite = list
        alone = False
        try:
            told = self.step(batch, None if looked is None else looked.result()[0]) if batch else list
        except Exception as error:
            if before is not None:
                before()
                return self.launch(batch, looked)
            finite, alone = self.each_alone(batch, error), True
            told = lambda: finite  # noqa: E731

        def end() -> None:
            nonlocal alone
            try:
                finite = told()
            except Exception as error:
                finite, alone = self.each_alone(batch, error), True
            now = time.monotonic()
            for (stream, frames), good in zip(batch, finite, strict=True):
                if good and stream.opened:
                    stream.saw(frames, now)
                    self.scheduler.looks.seen(stream.name)
                elif stream.opened:
                    self.lose(stream, frames, "its state was no longer finite (NaN)")
                elif not alone:  # the step before lost the memory that this one went on with
                    stream.drops["failed"] += len(frames)

        return end

    def open(self, stream: Stream, frames: tuple[Frame, ...]) -> bool:
        """Begins the memory of a stream that has none, by the size of its first frame; False where that failed."""
        if stream.opened:
            return True
        try:
            self.runner.open(stream.slot, *frames[0].pixels.shape[:2])
        except Exception as error:
            self.lose(stream, frames, line(error))
            return False
        stream.opened = True
        stream.generation += 1
        stream.began_anew()
        return True

    def resume(self, stream: Stream, state: Snapshot, resumed: Resumed) -> None:
        """Lets a stream that has seen nothing yet go on from a snapshot. Raises ConfigError for one of another model."""
        self.runner.restore(stream.slot, state)
        stream.opened = True
        stream.resume(resumed)

    def step(self, batch: Batch, looked: Encoded | None = None) -> Finite:
        """One call of the model; at its end, whether each stream's state is still finite."""
        slots = [stream.slot for stream, _ in batch]
        times = [self.runner.moment([stream.moment(frame) for frame in frames]) for stream, frames in batch]
        return self.runner.launch(slots, pictures(batch), times, looked)

    def each_alone(self, batch: Batch, error: Exception) -> list[bool]:
        """The steps of each stream out of a batch that failed."""
        log.warning("a step of %d streams failed (%s): each is tried alone", len(batch), line(error))
        return [self.alone(stream, frames) for stream, frames in batch]

    def alone(self, stream: Stream, frames: tuple[Frame, ...]) -> bool:
        """The step of one stream out of a batch that failed."""
        try:
            return self.step([(stream, frames)])()[0]
        except Exception as error:
            self.lose(stream, frames, line(error))
            return False

    def lose(self, stream: Stream, frames: Sequence[Frame], reason: str) -> None:
        """The stream's memory is lost with these frames, and begun again with the next."""
        stream.opened = False
        stream.drops["failed"] += len(frames)
        self.runner.reset(stream.slot)
        log.warning("stream %s was reset: %s", stream.name, reason)
        self.reset(stream.name, reason)

    def forget(self, stream: Stream) -> None:
        """The stream's memory is emptied because somebody wants it so, and begun again with the next frame."""
        stream.opened, stream.saved_wall = False, None
        self.runner.reset(stream.slot)
        self.reset(stream.name, "it was told to forget")

    def prefill(self, step: Prefill) -> None:
        """Reads the next part of a question into its fork, which the first part makes; the last brings the first token."""
        answer = self.answers[step.answer]
        request, name = answer.request, answer.request.question.stream or ""
        try:
            if answer.slot is None:
                stream = self.streams.get(name)
                elsewhere = request.state is not None or request.recording is not None
                if not elsewhere and (stream is None or not stream.opened):
                    gone = "was removed" if stream is None else "has been reset and has seen nothing since"
                    return self.finish(step.answer, "failed", f"stream {name!r} {gone}")
                if request.recording is not None:
                    answer.place = request.recording.fork(self.free_answers[-1] - self.stream_slots)
                    answer.slot = self.free_answers.pop()
                elif request.state is not None:
                    answer.slot = answer.place = self.free_answers.pop()
                    self.runner.restore(answer.slot, request.state)
                elif stream is not None:
                    answer.slot = answer.place = self.free_answers.pop()
                    self.runner.fork(stream.slot, answer.slot)
            end = answer.read + step.tokens
            last = end == len(request.tokens)
            constraint = answer.bound if last else None
            piece, runner = request.tokens[answer.read : end], self.runner_of(answer)
            token = runner.prefill(answer.place, piece, answer.sampling, constraint)
            answer.read = end
            if last:
                self.speak(step.answer, token)
        except Exception as error:
            self.finish(step.answer, "failed", line(error))

    def shows(self, decision: Decision[Frame]) -> bool:
        """Whether the model is to look at other pictures than those of a frame step."""
        if isinstance(decision, Look):
            return any(self.standing[decision.stream][name].only is not None for name in decision.watches)
        return isinstance(decision, Replay)

    def replay(self, step: Replay) -> None:
        """Shows an answer one more step; what can't be shown any more is left out."""
        answer = self.answers[step.answer]
        request, now = answer.request, time.monotonic()
        assert request.replay is not None
        try:
            if answer.slot is None:
                answer.slot = answer.place = self.free_answers.pop()
                if request.state is not None:
                    self.runner.restore(answer.slot, request.state)
            shown = request.replay.take()
            if shown is None:
                return self.scheduler.shows(step.answer, request.replay.count - answer.shown, now + NOT_READY)
            if request.state is None and not answer.shown:
                self.runner.open(answer.slot, *shown.pixels[0].shape[:2])
            moment = self.runner.moment(shown.times)
            if not self.runner.see([answer.slot], [list(shown.pixels)], [moment])[0]:
                return self.finish(step.answer, "failed", "its state was no longer finite (NaN)")
            answer.shown += 1
            self.scheduler.shows(step.answer, request.replay.count - answer.shown, now)
        except EOFError as error:
            if request.state is None and not answer.shown:
                return self.finish(step.answer, "failed", str(error))
            self.scheduler.shows(step.answer, 0, now)
        except Exception as error:
            self.finish(step.answer, "failed", line(error))

    def look(self, step: Look) -> Look:
        """Judges the questions of those watches whose picture has changed; all are told."""
        stream = self.streams[step.stream]
        newest, scene = stream.newest, self.scenes.setdefault(step.stream, Scene())
        if newest is None or not stream.opened:
            return Look(step.stream, ())
        seen = Seen(newest, captured_wall(newest), stream.generation)
        standing = [self.standing[step.stream][name] for name in step.watches]
        looked = {only: part(newest.pixels, only) for only in {each.only for each in standing}}
        small = {only: thumbnail(pixels) for only, pixels in looked.items()}
        asked = [each for each in standing if scene.news(each, small[each.only], seen.captured)]
        for each in standing:
            if each not in asked:
                each.listener.unchanged(seen)
        if not asked:
            return Look(step.stream, ())
        slots = self.free_answers[-len(asked) :]
        try:
            parts = [None if each.only is None else looked[each.only] for each in asked]
            judged = self.runner.judge(stream.slot, slots, [each.tokens for each in asked], parts)
        except Exception as error:
            for each in asked:
                each.listener.failed(line(error))
        else:
            for each, answer in zip(asked, judged, strict=True):
                scene.looked(each.watch, seen.captured)
                each.listener.looked(seen, answer)
        for slot in slots:
            self.runner.reset(slot)
        return Look(step.stream, tuple(each.watch for each in asked))

    def decode(self, step: Decode) -> None:
        """One more token for each of these answers."""
        by_runner: dict[Runner, list[str]] = {}
        for name in step.answers:
            by_runner.setdefault(self.runner_of(self.answers[name]), []).append(name)
        for runner, names in by_runner.items():
            answers = [self.answers[name] for name in names]
            try:
                places, said = [answer.place for answer in answers], [answer.token for answer in answers]
                hows, bounds = [answer.sampling for answer in answers], [answer.bound for answer in answers]
                tokens = runner.decode(places, said, hows, bounds)
            except Exception as error:
                for name in names:
                    self.finish(name, "failed", line(error))
                continue
            for name, token in zip(names, tokens, strict=True):
                self.speak(name, token)

    def runner_of(self, answer: _Answer) -> Runner:
        """What an answer is given by."""
        return self.runner if answer.request.recording is None else answer.request.recording.runner

    def speak(self, name: str, token: int) -> None:
        """Tells the listener of a token, which may be the last."""
        answer = self.answers[name]
        answer.token = token = answer.thoughts.bounded(token)
        if token in self.runner.tokenizer.stops:
            return self.finish(name, "stop")
        constraint = answer.bound
        if constraint is not None:
            constraint.accept(token)
            if constraint.error is not None:
                return self.finish(name, "failed", f"the answer can't go on in its form: {constraint.error}")
        answer.spoken += 1
        self.tokens += 1
        thought = answer.thoughts.going_on
        text = answer.thoughts.shown(token, answer.detokenizer)
        answer.request.listener.spoke(text, 1, thought)
        if constraint is not None and constraint.complete:
            self.finish(name, "stop")
        elif answer.spoken >= (answer.request.question.max_tokens or 0):
            self.finish(name, "length")

    def finish(self, name: str, reason: FinishReason, error: str | None = None) -> None:
        """Ends an answer, if it is open or waits, and gives its slot back."""
        answer = self.answers.pop(name, None)
        if answer is None:
            return
        self.scheduler.end_answer(name)
        if answer.request.replay is not None:
            answer.request.replay.close()
        if rest := answer.detokenizer.flush():
            answer.request.listener.spoke(rest, 0, answer.thoughts.going_on)
        if answer.slot is not None:
            self.free_answers.append(answer.slot)  # first: whoever is told may count on it
            if answer.request.recording is not None:
                answer.request.recording.over(answer.place)
        answer.request.listener.finished(reason, error)
        if answer.slot is not None:
            # last: on a dead device it raises, and whoever listens must be told
            self.runner_of(answer).reset(answer.place)


def line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
