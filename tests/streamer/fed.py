"""A source whose frames a test hands over itself, and a listener that collects an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from capture import Frame, Mailbox, Recorder, SourceStatus, State
from model import load_runner
from model.serving.backends import Backend, Finite
from protocols.question import Question, Sampling
from streamer.config import StreamConfig
from streamer.engine.engine import Engine
from streamer.engine.executor import Request
from streamer.engine.integrity import faults
from streamer.engine.pace import Pace
from streamer.engine.stream import Stream
from tests.tiny import TINY


class FedSource:
    def __init__(self) -> None:
        self.name, self.status = "fed:", SourceStatus(State.LIVE)
        self.mailbox = Mailbox()
        self.count = 0

    def record(self, recorder: Recorder) -> None:
        raise NotImplementedError

    def start(self, mailbox: Mailbox, notify: Callable[[SourceStatus], None]) -> None:
        self.mailbox = mailbox

    def stop(self, timeout: float = 2.0) -> None:
        self.mailbox.close()

    def feed(self, pixels: np.ndarray, moment: float | None = None) -> None:
        when = self.count * 0.04 if moment is None else moment
        self.mailbox.put(Frame(pixels, time.monotonic(), when, self.count, self.name))
        self.count += 1


class Ear:
    def __init__(self) -> None:
        self.text, self.tokens = "", 0
        self.reason: str | None = None
        self.error: str | None = None
        self.done = threading.Event()

    def spoke(self, text: str, tokens: int, thought: bool = False) -> None:
        assert self.reason is None
        self.text += text
        self.tokens += tokens

    def finished(self, reason: str, error: str | None) -> None:
        assert self.reason is None
        self.reason, self.error = reason, error
        self.done.set()


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def defer(backend: Backend) -> None:
    """Does steps as late as they may be done, and minds that nothing else is asked of the backend until then but one more step."""
    pending: list[tuple[Any, ...]] = []

    def ended(call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*given: Any) -> Any:
            assert not pending, "a step has begun and not ended"
            return call(*given)

        return guarded

    ingest = backend.ingest
    backend.read, backend.open = ended(backend.read), ended(backend.open)  # type: ignore[method-assign]

    def begin(*step: Any) -> Finite:
        assert len(pending) < 2, "two steps have begun and not ended"
        pending.append(step)

        def end() -> list[bool]:
            assert pending[0] is step, "steps end in the order in which they began"
            del pending[0]
            return ingest(*step)()

        return end

    backend.deferred, backend.ingest = True, begin  # type: ignore[method-assign]


class Bench:
    """The real engine and a tiny model, turned by hand."""

    def __init__(self, streams: int = 2, answers: int = 3, *, deferred: bool = False, threads: int = 1) -> None:
        """`deferred` as a GPU: a step of frames is begun, and done at its end only."""
        self.resets: list[tuple[str, str]] = []
        self.engine = Engine(
            lambda: load_runner(TINY["name"], slots=streams + answers, random_weights=True),
            stream_slots=streams,
            answer_slots=answers,
            pace=Pace(floor=500, ceiling=1000),
            threads=lambda: threads,
            reset=lambda stream, reason: self.resets.append((stream, reason)),
        )
        self.engine.prepare()
        if deferred:
            defer(self.engine.runner.backend)
        self.sources: dict[str, FedSource] = {}
        self.streams: dict[str, Stream] = {}

    def add(self, name: str, **options: object) -> Stream:
        source = FedSource()
        keys = {"policy": "every", "deadline": 10, **options}
        stream = Stream(StreamConfig.model_validate({"name": name, "source": "fed:", **keys}), source, lambda: None)
        stream.start(lambda stream, status: None)
        self.engine.add(stream)
        self.engine.turn()
        self.sources[name], self.streams[name] = source, stream
        return stream

    def show(self, seed: int, *names: str) -> None:
        """Hands one step's frames to each stream at once, and turns until they are in the state."""
        wanted = {name: self.streams[name].frames_seen + self.streams[name].drops["failed"] for name in names}
        for name in names:
            for i in range(self.engine.runner.frames_per_step):
                self.sources[name].feed(picture(1000 * seed + 10 * i + ord(name[0])))
        while any(self.streams[n].frames_seen + self.streams[n].drops["failed"] == seen for n, seen in wanted.items()):
            self.engine.turn()
        self.check()

    def check(self) -> None:
        """Slots, frames and answers add up."""
        running, looking = self.engine._running, self.engine._looking
        underway = [each for each in (looking, running and running.looking) if each is not None]
        assert not faults(self.engine.executor, [entry for each in underway for entry in each.batch])

    def ask(
        self, id: str, stream: str, *, length: int = 8, words: str = "What is happening?", seed: int = 0, **how: float
    ) -> Ear:
        ear = Ear()
        tokens = self.engine.runner.tokenizer.encode_question(words)
        sampling = Sampling.model_validate({"temperature": 1.0, "top_p": 0.9, "seed": seed, **how})
        question = Question(words, stream, sampling=sampling, max_tokens=length)
        self.engine.ask(Request(id, question, tokens, ear))
        return ear

    def until(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if done():
                return self.check()
            wait = self.engine.turn()
            if wait is None or wait > 0:
                time.sleep(min(wait or 0.001, 0.001))
        raise AssertionError("never came about")
