"""The one thread that owns the device: the model, its slots and everything in them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch

from capture import Frame
from model import Runner, Sampling
from model.serving.runner import Looked
from model.serving.traced import DECODE_BATCH
from model.tokenizer import Detokenizer
from streamer.engine.answer import FinishReason
from streamer.engine.scheduler import Decision, Decode, FrameStep, Idle, Pace, Prefill, Scheduler
from streamer.engine.stream import Stream

log = logging.getLogger("streamer")
T = TypeVar("T")
RESTART_SECONDS = 60.0
"""An engine that fails twice within this time is beyond help."""
LARGEST_BATCH = 8
"""Streams in one frame step at most."""


class Listener(Protocol):
    """Who hears an answer; called from the engine's thread, and must not block."""

    def spoke(self, text: str, tokens: int) -> None:
        """`tokens` more tokens were spoken; `text` is what they complete, which may be nothing yet."""

    def finished(self, reason: FinishReason, error: str | None) -> None:
        """With reason "failed", `error` is one line."""


@dataclass
class Question:
    """A question on its way to becoming an answer: `tokens` are the whole prompt's ids."""

    id: str
    stream: str
    tokens: list[int]
    sampling: Sampling
    max_tokens: int
    listener: Listener


@dataclass
class _Answer:
    question: Question
    detokenizer: Detokenizer
    slot: int | None = None
    read: int = 0
    token: int = 0
    spoken: int = 0


Batch = list[tuple[Stream, tuple[Frame, ...]]]


@dataclass
class _Looking:
    """A frame step whose pictures are being looked at, on another thread, which takes so many seconds.

    `began` is the time on the clock less the seconds that answers had taken by then.
    """

    step: FrameStep[Frame]
    batch: Batch
    began: float
    looked: Future[tuple[Looked, float]]


class Engine:
    """Runs one step at a time, as the scheduler decides.

    On a CPU of several cores the vision tower looks at a frame step's pictures on a thread of its own, which touches no state;
    meanwhile answers go on, or the step before is taken into the state. Steps are taken in the order of their decisions,
    and before anything else that is asked of the engine.

    Every method but `turn` and what it calls may be used from any thread. `reset` (stream, reason) is told when a stream
    lost its memory, `progress` (steps tried, of all) while the model is warmed up; both from the engine's thread.
    """

    def __init__(
        self,
        load: Callable[[], Runner],
        *,
        stream_slots: int,
        answer_slots: int,
        pace: Pace | None = None,
        threads: int = 1,
        reset: Callable[[str, str], None] = lambda stream, reason: None,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self.pace = pace or Pace()
        self.stream_slots, self.answer_slots = stream_slots, answer_slots
        self.step_seconds: dict[str, deque[float]] = {
            kind: deque(maxlen=4096) for kind in ("frames", "prefill", "decode")
        }
        self.steps: Counter[str] = Counter()
        self.tokens = 0
        self.busy_seconds = self._answering = 0.0
        self.threads = threads
        self._load, self._reset, self._progress = load, reset, progress
        self._streams: dict[str, Stream] = {}
        self._answers: dict[str, _Answer] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._looker: ThreadPoolExecutor | None = None
        self._looking: _Looking | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._began: float | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        self._restarted = float("-inf")
        self.restarting = False
        self.failure: str | None = None

    # From any thread

    def start(self) -> Future[Runner]:
        """Loads and warms up the model on the engine's own thread; the future is the model once it is ready."""
        ready: Future[Runner] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="engine", daemon=True)
        self._thread.start()
        return ready

    def stop(self, timeout: float = 1.5) -> None:
        """Ends every answer as cancelled, and the thread, which is waited for once: a long call of torch's may keep it."""
        asked_before, self._stopping = self._stopping, True
        self._wake.set()
        if self._thread is not None and not asked_before:
            self._thread.join(timeout)

    def wake(self) -> None:
        self._wake.set()

    def call(self, do: Callable[[], T]) -> Future[T]:
        """Runs `do` on the engine's thread between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._ended:
                    raise RuntimeError(self.failure or "the engine has stopped")
                future.set_result(do())
            except Exception as error:
                future.set_exception(error)

        self._inbox.append(run)
        self._wake.set()
        if self._ended:
            self._take_calls()
        return future

    def add(self, stream: Stream) -> Future[None]:
        """Gives the stream a slot; its frames are seen from now on."""
        return self.call(lambda: self._add(stream))

    def load(self) -> Future[tuple[float, float]]:
        """Frames a second that the device sees at most, and that its streams bring."""
        return self.call(lambda: (self.scheduler.capacity(), self.scheduler.demand()))

    def remove(self, name: str) -> Future[None]:
        """Takes the stream's slot back; its questions that still wait fail."""
        return self.call(lambda: self._remove(name))

    def set_terms(self, stream: Stream) -> Future[None]:
        """Lets the stream's deadline and priority be those of its configuration."""
        terms = stream.promised()

        def do() -> None:
            stream.terms = terms
            self.scheduler.set_terms(stream.name, terms)

        return self.call(do)

    def set_pace(self, pace: Pace) -> Future[None]:
        """Answers are spoken at this pace from now on."""

        def do() -> None:
            self.pace = self.scheduler.pace = pace

        return self.call(do)

    def ask(self, question: Question) -> Future[None]:
        return self.call(lambda: self._ask(question))

    def cancel(self, answer: str) -> Future[None]:
        return self.call(lambda: self._finish(answer, "cancelled"))

    def stuck_for(self, now: float) -> float:
        """Seconds that the current step has been running; 0 between steps."""
        began = self._began
        return 0.0 if began is None else now - began

    @property
    def alive(self) -> bool:
        """Whether the thread runs; it may be restarting."""
        return self._thread is not None and self._thread.is_alive() and self.failure is None

    # On the engine's thread

    def prepare(self) -> Runner:
        """Loads the model and learns what its steps cost."""
        torch.set_num_threads(self.threads)
        self.runner = self._load()
        self._free_streams = list(range(self.stream_slots))
        self._free_answers = list(range(self.stream_slots, self.stream_slots + self.answer_slots))
        self.scheduler: Scheduler[Frame] = Scheduler(
            frames_per_step=self.runner.frames_per_step,
            largest_batch=min(LARGEST_BATCH, self.stream_slots),
            answer_slots=self.answer_slots,
            pace=self.pace,
        )
        if self._looker is None and self.runner.looks_ahead and len(os.sched_getaffinity(0)) > 1:
            self._looker = ThreadPoolExecutor(1, "look", lambda: torch.set_num_threads(self.threads))
        self._warm_up()
        return self.runner

    def turn(self) -> float | None:
        """Takes what has come and does one step. Returns 0, or for how long there is nothing to do (None: until woken)."""
        looking = self._looking
        if looking is not None and (self._inbox or looking.looked.done()):
            return self._take(looking)
        self._take_calls()
        now = time.monotonic()
        for name, stream in self._streams.items():
            for frame in stream.take(self.scheduler.room(name)):
                self.scheduler.offer(name, frame, now)
            stream.share = self.scheduler.share(name)
        decision = self.scheduler.decide(now)
        for (name, reason), count in self.scheduler.take_drops().items():
            self._streams[name].drops[reason] += count
        if isinstance(decision, Idle):
            if looking is not None:
                return self._take(looking)
            return None if decision.until is None else max(decision.until - now, 0.0)
        if isinstance(decision, FrameStep):
            ahead = self._ahead(decision)
            self._looking = self._look(decision) if ahead else None
            if looking is not None:
                self._take(looking)
            if ahead:
                self.scheduler.begun(decision)
                return 0.0
        return self._timed(decision)

    def _timed(self, decision: Decision[Frame]) -> float:
        self._began = began = time.monotonic()
        try:
            self._carry_out(decision)
        finally:
            self._began = None
        seconds = time.monotonic() - began
        if not isinstance(decision, FrameStep):
            self._answering += seconds
        return self._account(decision, seconds, seconds)

    def _account(self, decision: Decision[Frame], cost: float, busy: float, took: float | None = None) -> float:
        self.scheduler.measured(decision, cost, took)
        kind = _kind(decision)
        self.steps[kind] += 1
        self.step_seconds[kind].append(cost)
        self.busy_seconds += busy
        return 0.0

    def _run(self, ready: Future[Runner]) -> None:
        ready.set_running_or_notify_cancel()
        try:
            ready.set_result(self.prepare())
        except BaseException as error:
            ready.set_exception(error)
            return
        while not self._stopping and self.failure is None:
            try:
                self._wake.clear()
                wait = self.turn()
                if wait != 0.0:
                    self._wake.wait(wait)
            except Exception as error:
                log.exception("the engine failed")
                self._restart(_line(error))
        self._ended = True
        if self._looker is not None:
            self._looker.shutdown(wait=False, cancel_futures=True)
        self._end_answers("failed" if self.failure else "cancelled", self.failure)
        self._take_calls()

    def _take_calls(self) -> None:
        with suppress(IndexError):
            while True:
                self._inbox.popleft()()

    def _restart(self, reason: str) -> None:
        """Begins again with a fresh model and empty memories; a second failure soon after the first is the end."""
        now = time.monotonic()
        if now - self._restarted < RESTART_SECONDS:
            self.failure = f"the engine failed: {reason}"
            return
        self._restarted, self.restarting = now, True
        self._end_answers("failed", f"the engine failed and begins again: {reason}")
        streams, self._streams, self._looking = list(self._streams.values()), {}, None
        try:
            self.runner.release()
            self.prepare()
        except Exception as error:
            self.failure = f"the engine failed ({reason}) and could not begin again: {_line(error)}"
            return
        for stream in streams:
            stream.opened = False
            self._add(stream)
            self._reset(stream.name, f"the engine failed and began again: {reason}")
        self.restarting = False

    def _end_answers(self, reason: FinishReason, error: str | None) -> None:
        answers, self._answers = list(self._answers.values()), {}
        for answer in answers:
            answer.question.listener.finished(reason, error)

    def _carry_out(self, decision: Decision[Frame]) -> None:
        if isinstance(decision, FrameStep):
            self._see(decision)
        elif isinstance(decision, Prefill):
            self._prefill(decision)
        elif isinstance(decision, Decode):
            self._decode(decision)

    def _ahead(self, step: FrameStep[Frame]) -> bool:
        """Whether a step can be looked at before those in front of it are taken: no stream begins with it or is reset by it."""
        if self._looker is None or not all(self._streams[name].opened for name, _ in step.frames):
            return False
        with suppress(ValueError):
            for _, frames in step.frames:
                _check(frames)
            return True
        return False

    def _look(self, step: FrameStep[Frame]) -> _Looking:
        assert self._looker is not None
        batch = [(self._streams[name], frames) for name, frames in step.frames]
        slots, pictures = [stream.slot for stream, _ in batch], _pictures(batch)

        def look() -> tuple[Looked, float]:
            began = time.monotonic()
            return self.runner.look(slots, pictures), time.monotonic() - began

        return _Looking(step, batch, time.monotonic() - self._answering, self._looker.submit(look))

    def _take(self, looking: _Looking) -> float:
        """Takes a step that is being looked at into the state.

        It costs what the slower of its two threads takes: the other is free for the next step meanwhile. It takes as long as both
        at least, and longer where it had to wait for the step before; what was done for answers meanwhile doesn't count.
        """
        if self._looking is looking:
            self._looking = None
        self._began = time.monotonic()
        wait_for([looking.looked])
        look = 0.0 if looking.looked.exception() else looking.looked.result()[1]
        began = time.monotonic()
        try:
            self._enter(looking.batch, looking.looked)
        finally:
            self._began = None
        ended = time.monotonic()
        took = max(look + ended - began, ended - self._answering - looking.began)
        return self._account(looking.step, max(look, ended - began), ended - began, took)

    def _see(self, step: FrameStep[Frame]) -> None:
        batch: Batch = []
        for name, frames in step.frames:
            stream = self._streams[name]
            try:
                _check(frames)
                batch.append((stream, frames))
            except ValueError as error:
                self._lose(stream, frames, _line(error))
        self._enter(batch)

    def _enter(self, batch: Batch, looked: Future[tuple[Looked, float]] | None = None) -> None:
        """Takes a step into the state; a stream that is not open, or was reset since its pictures were looked at, begins."""
        if not all(stream.opened for stream, _ in batch):
            batch, looked = [(stream, frames) for stream, frames in batch if self._open(stream, frames)], None
        try:
            finite = self._step(batch, None if looked is None else looked.result()[0]) if batch else []
        except Exception as error:
            log.warning("a step of %d streams failed (%s): each is tried alone", len(batch), _line(error))
            finite = [self._alone(stream, frames) for stream, frames in batch]
        now = time.monotonic()
        for (stream, frames), good in zip(batch, finite, strict=True):
            if good:
                stream.saw(frames, now)
            elif stream.opened:
                self._lose(stream, frames, "its state was no longer finite (NaN)")

    def _open(self, stream: Stream, frames: tuple[Frame, ...]) -> bool:
        if stream.opened:
            return True
        try:
            self.runner.open(stream.slot, *frames[0].pixels.shape[:2])
        except Exception as error:
            self._lose(stream, frames, _line(error))
            return False
        stream.opened = True
        stream.generation += 1
        return True

    def _step(self, batch: Batch, looked: Looked | None = None) -> list[bool]:
        slots, times = [stream.slot for stream, _ in batch], [frames[-1].time for _, frames in batch]
        return self.runner.see(slots, _pictures(batch), times, looked)

    def _alone(self, stream: Stream, frames: tuple[Frame, ...]) -> bool:
        try:
            return self._step([(stream, frames)])[0]
        except Exception as error:
            self._lose(stream, frames, _line(error))
            return False

    def _lose(self, stream: Stream, frames: Sequence[Frame], reason: str) -> None:
        """The stream's memory is lost with these frames, and begun again with the next."""
        stream.opened = False
        stream.drops["failed"] += len(frames)
        self.runner.reset(stream.slot)
        log.warning("stream %s was reset: %s", stream.name, reason)
        self._reset(stream.name, reason)

    def _prefill(self, step: Prefill) -> None:
        answer = self._answers[step.answer]
        question = answer.question
        try:
            if answer.slot is None:
                stream = self._streams.get(question.stream)
                if stream is None or not stream.opened:
                    gone = "was removed" if stream is None else "has been reset and has seen nothing since"
                    return self._finish(step.answer, "failed", f"stream {question.stream!r} {gone}")
                answer.slot = self._free_answers.pop()
                self.runner.fork(stream.slot, answer.slot)
            end = answer.read + step.tokens
            token = self.runner.prefill(answer.slot, question.tokens[answer.read : end], question.sampling)
            answer.read = end
            if end == len(question.tokens):
                self._speak(step.answer, token)
        except Exception as error:
            self._finish(step.answer, "failed", _line(error))

    def _decode(self, step: Decode) -> None:
        answers = [self._answers[name] for name in step.answers]
        try:
            tokens = self.runner.decode(
                [answer.slot for answer in answers if answer.slot is not None],
                [answer.token for answer in answers],
                [answer.question.sampling for answer in answers],
            )
        except Exception as error:
            for name in step.answers:
                self._finish(name, "failed", _line(error))
            return
        for name, token in zip(step.answers, tokens, strict=True):
            self._speak(name, token)

    def _speak(self, name: str, token: int) -> None:
        answer = self._answers[name]
        answer.token = token
        if token in self.runner.tokenizer.stops:
            return self._finish(name, "stop")
        answer.spoken += 1
        self.tokens += 1
        answer.question.listener.spoke(answer.detokenizer.push(token), 1)
        if answer.spoken >= answer.question.max_tokens:
            self._finish(name, "length")

    def _finish(self, name: str, reason: FinishReason, error: str | None = None) -> None:
        answer = self._answers.pop(name, None)
        if answer is None:
            return
        self.scheduler.end_answer(name)
        if rest := answer.detokenizer.flush():
            answer.question.listener.spoke(rest, 0)
        if answer.slot is not None:
            self._free_answers.append(answer.slot)  # first: whoever is told may count on it
        answer.question.listener.finished(reason, error)
        if answer.slot is not None:
            self.runner.reset(answer.slot)  # last: on a dead device it raises, and whoever listens must be told

    def _ask(self, question: Question) -> None:
        self._answers[question.id] = _Answer(question, self.runner.tokenizer.detokenizer())
        self.scheduler.ask(question.id, len(question.tokens), time.monotonic())

    def _add(self, stream: Stream) -> None:
        stream.slot = self._free_streams.pop()
        self._streams[stream.name] = stream
        self.scheduler.add_stream(stream.name, stream.terms, frames_per_second=stream.expected_rate)

    def _remove(self, name: str) -> None:
        stream = self._streams.pop(name, None)
        if stream is None:
            return
        self.scheduler.remove_stream(name)
        self.runner.reset(stream.slot)
        stream.opened = False
        self._free_streams.append(stream.slot)

    def _warm_up(self) -> None:
        """Runs every size of step on empty slots, so that the first frames are not late and costs are known."""
        for slot in range(self.stream_slots):
            self.runner.open(slot, 720, 1280)
        for slot in range(self.stream_slots, self.stream_slots + self.answer_slots):
            self.runner.fork(0, slot)
            self.runner.prefill(slot, [min(self.runner.tokenizer.stops)], Sampling())
        trials = self._trials()
        for done, (step, run) in enumerate(trials):
            if self._stopping:
                raise InterruptedError("stopped while the model was warmed up")
            self._progress(done, len(trials))
            run()
            self.scheduler.measured(step, *run())
        self._progress(len(trials), len(trials))
        for slot in range(self.stream_slots + self.answer_slots):
            self.runner.reset(slot)

    def _trials(self) -> list[tuple[Decision[Frame], Callable[[], tuple[float, float]]]]:
        """Steps of every size, the largest first: what memory they take, the smaller ones use again. Each tells its cost."""
        runner, black = self.runner, np.zeros((720, 1280, 3), np.uint8)
        forks, stop = range(self.stream_slots, self.stream_slots + self.answer_slots), min(runner.tokenizer.stops)
        powers = [1, 2, 4, 8, 16, 32, 64, 128]
        trials: list[tuple[Decision[Frame], Callable[[], tuple[float, float]]]] = []
        for size in range(self.scheduler.largest_batch, 0, -1):
            if size in powers or runner.device.type == "cuda":
                seen: FrameStep[Frame] = FrameStep((("", ()),) * size)
                shown = [[black] * runner.frames_per_step] * size
                see = partial(runner.see, range(size), shown, [0.0] * size)
                look = None if self._looker is None else partial(runner.look, range(size), shown)
                trials.append((seen, partial(_cost, see, look)))
        for tokens in (256, 128, 64, 32, 16):
            prefill = partial(runner.prefill, forks[0], [stop] * tokens, Sampling())
            trials.append((Prefill("", tokens), partial(_cost, prefill)))
        for size in sorted({n for n in (*range(1, DECODE_BATCH), *powers) if n <= self.answer_slots}, reverse=True):
            decode = partial(runner.decode, forks[:size], [stop] * size, [Sampling()] * size)
            trials.append((Decode(("",) * size), partial(_cost, decode)))
        return trials


def _cost(do: Callable[..., object], look: Callable[[], Looked] | None = None) -> tuple[float, float]:
    """Seconds that a step costs and takes; one that is looked at on another thread costs what the slower of the two takes."""
    began = time.monotonic()
    looked = [] if look is None else [look()]
    between = time.monotonic()
    do(*looked)
    ended = time.monotonic()
    return max(between - began, ended - between), ended - began


def _kind(decision: Decision[Frame]) -> str:
    return {FrameStep: "frames", Prefill: "prefill", Decode: "decode"}[type(decision)]


def _pictures(batch: Batch) -> list[list[np.ndarray]]:
    return [[frame.pixels for frame in frames] for _, frames in batch]


def _check(frames: Sequence[Frame]) -> None:
    """What no source should hand over. Raises ValueError."""
    for frame in frames:
        pixels = frame.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise ValueError(f"a frame of {pixels.dtype} {pixels.shape} came; frames are uint8 height×width×3")


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
