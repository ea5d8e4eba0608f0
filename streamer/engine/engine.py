"""The one thread that owns the device: the model, its slots and everything in them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from functools import partial
from typing import TypeVar

import torch

from capture import Frame
from model import Runner
from model.serving.runner import Encoded
from streamer.engine.chores import Chores
from streamer.engine.decisions import KINDS, Decision, FrameStep, Idle, Look
from streamer.engine.executor import Executor, Request, line
from streamer.engine.integrity import faults
from streamer.engine.pace import Pace
from streamer.engine.scheduler import Scheduler
from streamer.engine.standing import Standing
from streamer.engine.stream import Stream
from streamer.engine.underway import Looking, Running, pictures
from streamer.engine.warmup import warm_up

log = logging.getLogger("streamer")
T = TypeVar("T")
RESTART_SECONDS = 60.0
"""An engine that fails twice within this time is beyond help."""
LOOK_MARGIN = 1.5
"""How much longer than usual the next step's pictures and its beginning may take before a device has nothing to do."""
CHECK_SECONDS = 1.0
"""Seconds between two looks of an idle engine at whether all adds up."""


class Engine:
    """Runs one step at a time, as the scheduler decides.

    Where the model leaves a core, a frame step's pictures are looked at on a thread of its own, which touches no state: on a CPU
    by the vision tower, beside a GPU they are fitted and copied to it. Meanwhile answers go on, or the step before is taken
    into the state. Steps are taken in the order of their decisions, and before anything else that is asked of the engine; but
    questions are heard at once, as they wait for no step. A step that runs beside the host leaves it free to look at the next,
    and to begin that behind it, so that the device goes from the one to the other.

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
        threads: Callable[[], int] = lambda: 1,
        reset: Callable[[str, str], None] = lambda stream, reason: None,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self.pace = pace or Pace()
        self.executor = Executor(stream_slots, answer_slots, reset)
        self.step_seconds: dict[str, deque[float]] = {kind: deque(maxlen=4096) for kind in KINDS.values()}
        self.steps: Counter[str] = Counter()
        self._answering = 0.0
        self.threads = 1
        """CPU threads of a step."""
        self._threads, self._load, self._progress = threads, load, progress
        self._inbox: deque[Callable[[], None]] = deque()
        self._questions: deque[Callable[[], None]] = deque()
        self._chores = Chores()
        self._looker: ThreadPoolExecutor | None = None
        self._looking: Looking | None = None
        self._running: Running | None = None
        self._look_seconds = self._launch_seconds = 0.0
        self._wake = threading.Event()
        self._stopping = False
        self._began: float | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        self._restarted = self._checked = float("-inf")
        self.integrity_faults: Counter[str] = Counter()
        """By kind, how often something did not add up."""
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
        return self._call(do, self._inbox.append)

    def spare(self, do: Callable[[], T], within: float) -> Future[T]:
        """Runs `do` there in time that nothing else needs, or after `within` seconds all the same; it touches no stream or answer."""
        return self._call(do, partial(self._chores.add, time.monotonic() + within))

    def _call(self, do: Callable[[], T], put: Callable[[Callable[[], None]], None]) -> Future[T]:
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

        put(run)
        self._wake.set()
        if self._ended:
            self._take_all()
        return future

    def add(self, stream: Stream) -> Future[None]:
        """Gives the stream a slot; its frames are seen from now on."""
        return self.call(lambda: self.executor.add(stream))

    def load(self) -> Future[tuple[float, float]]:
        """Frames a second that the device sees at most, and that its streams bring."""
        return self.call(lambda: (self.scheduler.capacity(), self.scheduler.demand()))

    def remove(self, name: str) -> Future[None]:
        """Takes the stream's slot back; its questions that still wait fail."""
        return self.call(lambda: self.executor.remove(name))

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

    def watch(self, standing: Standing) -> Future[None]:
        """Asks a stream's question again and again, from now on or from when there is such a stream."""
        return self.call(lambda: self.executor.watch(standing))

    def unwatch(self, stream: str, watch: str) -> Future[None]:
        """Asks it no more."""
        return self.call(lambda: self.executor.unwatch(stream, watch))

    def ask(self, request: Request) -> Future[None]:
        return self._call(lambda: self.executor.ask(request), self._questions.append)

    def cancel(self, answer: str) -> Future[None]:
        return self.call(lambda: self.executor.finish(answer, "cancelled"))

    def stuck_for(self, now: float) -> float:
        """Seconds that the current step has been running, or its pictures been looked at; 0 between steps."""
        began, looking = self._began, self._looking
        if began is None and looking is not None:
            began = looking.submitted
        return 0.0 if began is None else now - began

    @property
    def tokens(self) -> int:
        """Tokens spoken in all."""
        return self.executor.tokens

    @property
    def alive(self) -> bool:
        """Whether the thread runs; it may be restarting."""
        return self._thread is not None and self._thread.is_alive() and self.failure is None

    # On the engine's thread

    def prepare(self) -> Runner:
        """Loads the model and learns what its steps cost."""
        self.threads = self._threads()
        torch.set_num_threads(self.threads)
        self.runner = self._load()
        streams, answers = self.executor.stream_slots, self.executor.answer_slots
        self.scheduler: Scheduler[Frame] = Scheduler(
            frames_per_step=self.runner.frames_per_step,
            largest_batch=min(self.runner.largest_batch, streams),
            answer_slots=answers,
            pace=self.pace,
        )
        # Where the model has every core, a tower beside it would only take them away from the decoder.
        if self._looker is None and len(os.sched_getaffinity(0)) > self.threads:
            self._looker = ThreadPoolExecutor(1, "look", lambda: torch.set_num_threads(self.threads))
        self.executor.begin(self.runner, self.scheduler)
        ahead = self._looker is not None
        warm_up(self.runner, self.scheduler, streams, answers, ahead=ahead, progress=self._warming)
        return self.runner

    def _warming(self, done: int, of: int) -> None:
        if self._stopping:
            raise InterruptedError("stopped while the model was warmed up")
        self._progress(done, of)

    def turn(self) -> float | None:
        """Takes what has come and does one step. Returns 0, or for how long there is nothing to do (None: until woken)."""
        looking, running, deferred = self._looking, self._running, self.runner.backend.deferred
        self._take_calls(self._questions)
        now = time.monotonic()
        if running is not None and (self._inbox or self._chores.due <= now):
            return self._end(running)
        if running is not None and now < running.due:
            return running.due - now
        looked = looking is not None and looking.looked.done()
        if looking is not None and (self._inbox or (looked and not deferred)):
            return self._take(looking)
        if running is None and looking is None:  # what came just now waits for both, too
            self._take_calls(self._inbox)
        if running is None and (chore := self._chores.next(now, 0.0)) is not None:
            return self._do(chore)
        for name, stream in self.executor.streams.items():
            for frame in stream.take(self.scheduler.room(name)):
                self.scheduler.offer(name, frame, now)
            stream.share = self.scheduler.share(name)
        decision = self.scheduler.decide(now, frames=looking is None or not deferred)
        for (name, reason), count in self.scheduler.take_drops().items():
            self.executor.streams[name].drops[reason] += count
        if looking is not None and looked:  # on a deferred backend: what of answers has time before the step
            if not isinstance(decision, Idle):
                if running is not None:
                    self._end(running)
                self._timed(decision)
            return self._take(looking)
        if isinstance(decision, Idle):
            if running is not None and looking is None:
                return self._end(running)
            if looking is None:
                self._check(now)
            if running is None and (chore := self._chores.next(now, self.scheduler.spare(now))) is not None:
                return self._do(chore)
            until = min(float("inf") if decision.until is None else decision.until, self._chores.due)
            return None if until == float("inf") else max(until - now, 0.0)
        ahead = isinstance(decision, FrameStep) and self._ahead(decision)
        if isinstance(decision, FrameStep):
            self._looking = self._look(decision) if ahead else None
        if running is not None and not ahead:
            self._end(running)
        if isinstance(decision, FrameStep):
            if looking is not None:
                self._take(looking)
            if ahead:
                self.scheduler.begun(decision)
                return 0.0
        if looking is not None and self.executor.shows(decision):
            self._take(looking)  # one picture is looked at at a time
            if self._running is not None:
                self._end(self._running)
        return self._timed(decision)

    def _check(self, now: float) -> None:
        """Counts what does not add up, and warns once of each kind."""
        if now < self._checked + CHECK_SECONDS:
            return
        self._checked = now
        for kind, fault in faults(self.executor, []).items():
            if not self.integrity_faults[kind]:
                log.warning("the engine's %s do not add up, which is a fault of its own: %s", kind, fault)
            self.integrity_faults[kind] += 1

    def _timed(self, decision: Decision[Frame]) -> float:
        self._began = began = time.monotonic()
        try:
            decision = self.executor.carry_out(decision)
        finally:
            self._began = None
        seconds = time.monotonic() - began
        if not isinstance(decision, FrameStep):
            self._answering += seconds
        return self._account(decision, seconds)

    def _do(self, chore: Callable[[], None]) -> float:
        self._began = began = time.monotonic()
        chore()
        self._began, seconds = None, time.monotonic() - began
        self._answering += seconds
        self._chores.took(seconds)
        return 0.0

    def _account(self, decision: Decision[Frame], cost: float, took: float | None = None) -> float:
        if isinstance(decision, Look) and not decision.watches:
            return 0.0  # nothing has changed before it
        self.scheduler.measured(decision, cost, took)
        kind = KINDS[type(decision)]
        self.steps[kind] += 1
        self.step_seconds[kind].append(cost)
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
                self._restart(line(error))
        self._ended = True
        if self._looker is not None:
            self._looker.shutdown(wait=False, cancel_futures=True)
        self.executor.end_answers("failed" if self.failure else "cancelled", self.failure)
        self._take_all()

    def _take_all(self) -> None:
        self._take_calls(self._questions)
        self._take_calls(self._inbox)
        self._take_calls(deque(self._chores.rest()))

    @staticmethod
    def _take_calls(inbox: deque[Callable[[], None]]) -> None:
        with suppress(IndexError):
            while True:
                inbox.popleft()()

    def _restart(self, reason: str) -> None:
        """Begins again with a fresh model and empty memories; a second failure soon after the first is the end."""
        now = time.monotonic()
        if now - self._restarted < RESTART_SECONDS:
            self.failure = f"the engine failed: {reason}"
            return
        self._restarted, self.restarting = now, True
        self.executor.end_answers("failed", f"the engine failed and begins again: {reason}")
        streams, self._looking, self._running = list(self.executor.streams.values()), None, None
        try:
            self.runner.release()
            self.prepare()
        except Exception as error:
            self.failure = f"the engine failed ({reason}) and could not begin again: {line(error)}"
            return
        for stream in streams:
            stream.begin_again()
            self.executor.add(stream)
            self.executor.reset(stream.name, f"the engine failed and began again: {reason}")
        self.restarting = False

    def _ahead(self, step: FrameStep[Frame]) -> bool:
        """Whether a step can be looked at before those in front of it are taken: no stream begins with it or is reset by it."""
        return self._looker is not None and self.executor.goes_on(step)

    def _look(self, step: FrameStep[Frame]) -> Looking:
        assert self._looker is not None
        batch = self.executor.batch(step)
        slots, shown = [stream.slot for stream, _ in batch], pictures(batch)

        def look() -> tuple[Encoded, float]:
            began = time.monotonic()
            return self.runner.encode(slots, shown), time.monotonic() - began

        now = time.monotonic()
        looking = Looking(step, batch, now, now - self._answering, self._looker.submit(look))
        looking.looked.add_done_callback(lambda _: self._wake.set())
        return looking

    def _take(self, looking: Looking) -> float:
        """Takes a step that is being looked at into the state.

        It costs what the slower of its two threads takes: the other is free for the next step meanwhile. It takes as long as both
        at least, and longer where it had to wait for the step before; what was done for answers meanwhile doesn't count.

        On a device it begins behind the step that still runs there, unless one of its streams has to begin anew.
        """
        if self._looking is looking:
            self._looking = None
        running = self._running
        if running is not None and not all(stream.opened for stream, _ in looking.batch):
            self._end(running)
            running = None
        self._began = time.monotonic()
        wait_for([looking.looked])
        look = 0.0 if looking.looked.exception() else looking.looked.result()[1]
        self._look_seconds += 0.1 * (look - self._look_seconds)
        self._began = began = time.monotonic()
        try:
            before = None if running is None else partial(self._end, running)
            end = self.executor.launch(looking.batch, looking.looked, before)
            if self.runner.backend.deferred:
                if self._running is running:  # else this one had to wait for its end
                    self._launch_seconds += 0.1 * (time.monotonic() - began - self._launch_seconds)
                if self._running is not None:
                    self._end(self._running)
                if running is not None:
                    self._began = began = time.monotonic()
                    self.scheduler.begun(looking.step)
                cost = self.scheduler.frame_costs.estimate(len(looking.step.frames))
                margin = LOOK_MARGIN * (self._look_seconds + self._launch_seconds)
                self._running = Running(looking, end, began, began + cost - margin)
                return 0.0
            end()
        except BaseException:
            self._began = None
            raise
        self._began = None
        ended = time.monotonic()
        took = max(look + ended - began, ended - self._answering - looking.began)
        return self._account(looking.step, max(look, ended - began), took)

    def _end(self, running: Running) -> float:
        """Waits for the step that runs beside the host. Looking at its pictures cost the device nothing."""
        self._running = None
        try:
            running.end()
        finally:
            self._began = None
        ended = time.monotonic()
        took = ended - self._answering - running.looking.began
        self._account(running.looking.step, ended - running.began, took)
        if self._looking is not None:
            self.scheduler.begun(self._looking.step)
        return 0.0
