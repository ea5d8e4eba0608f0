"""Questions about clips through the daemon: each clip is shown once over the websocket, and asked about at its moments.

What was replied is kept in a file of results, a line a question, so that a run that was ended goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from capture import Frame, Mailbox, SourceError, SourceOptions, State, open_source
from capture.image import encode_jpeg
from model.checkpoint import locate
from model.config import PRESETS
from model.evaluation import ovo_bench, questions, streaming_bench
from model.evaluation.questions import LayoutError, Question
from model.serving.calibration import digest
from model.serving.runner import NANO
from streamer.client import AsyncClient, ClientError
from streamer.config import Config, parse_config
from streamer.daemon import Daemon
from streamer.server.listening import DaemonError

STREAM = "clip"
GLIMPSE, GLIMPSED = 4, "glimpse"
"""Frames that the control without memory sees, and its stream."""
SIDE, QUALITY = 1_280, 92
"""Of the pictures that are sent; the daemon scales them to what its model sees."""
WORDS = 32
"""Tokens after which an answer is cut."""
PATIENCE = 60.0
"""Seconds within which the daemon must have seen two frames."""
LATE = 1.0
"""Seconds by which a clip may end before a moment of which it is asked without that being told."""


class Suite(Protocol):
    """How questions of one layout are read, and their replies scored: a module."""

    MATCHED: str
    PASSED_OVER: str

    def read(self, folder: Path) -> tuple[list[Question], int]: ...

    def right(self, question: Question, reply: str) -> bool: ...

    def counted(self, marks: Iterable[tuple[Question, bool]]) -> dict[str, dict[str, list[int]]]: ...

    def table(self, counts: Mapping[str, Mapping[str, list[int]]]) -> Iterator[str]: ...


SUITES: dict[str, Suite] = {"questions": questions, "streamingbench": streaming_bench, "ovo-bench": ovo_bench}


class ClipError(Exception):
    """Why an examination can't go on, in one line."""


FAILURES = (ClipError, LayoutError, DaemonError, ClientError)


@dataclass(frozen=True)
class Reply:
    """What was replied, how far its clip was shown, and how long the first word and all of it took, in seconds.

    `glimpse` is what was replied by who saw the last four frames only, where that was asked.
    """

    words: str
    seen: float
    first_s: float
    whole_s: float
    glimpse: str | None = None


@dataclass
class Results:
    """The file of results: its first line says what was examined, each other one is a reply.

    Raises ClipError where the file holds another examination's, or none.
    """

    path: Path
    about: Mapping[str, Any]
    replies: dict[str, Reply] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = json.dumps(self.about).encode() + b"\n"
        try:
            if self.path.exists() and not self.path.is_file():
                raise ClipError(f"{self.path} is no file: choose another with --results")  # a device may never end
            begun = self.path.read_bytes() if self.path.exists() else b""
            if begun != first and first.startswith(begun):
                self.path.write_bytes(first)  # not there yet, or ended within its first line
            with self.path.open("r+b") as file:
                for number, line in enumerate(file):
                    if number and not line.endswith(b"\n"):  # it was being written when the run was ended
                        file.truncate(file.tell() - len(line))
                        break
                    data = json.loads(line)
                    if number == 0 and data != self.about:
                        raise ClipError(
                            f"{self.path} holds results of {json.dumps(data)}: choose another with --results"
                        )
                    if number:
                        key = data.pop("key")
                        self.replies[key] = Reply(**data)
        except OSError as error:
            raise self.unkept(error) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ClipError(f"{self.path} is no file of results: choose another with --results") from None

    def unkept(self, error: OSError) -> ClipError:
        """Why the file can't be read or written."""
        return ClipError(f"{self.path}: {error.strerror}; choose another file with --results")

    def add(self, question: Question, reply: Reply) -> None:
        """Keeps one reply, in the file as well. Raises ClipError where that can't be written."""
        line = json.dumps({"key": question.key, **vars(reply)}, ensure_ascii=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode("utf-8", "replace"))
        except OSError as error:
            raise self.unkept(error) from None
        self.replies[question.key] = reply


def clip_file(folder: Path, clip: str) -> Path | None:
    """Where a clip lies: in the folder, or in its `clips`; None where it is missing."""
    try:
        return next((path for path in (folder / "clips" / clip, folder / clip) if path.is_file()), None)
    except (OSError, ValueError):  # a name that no file can have, or a folder that can't be looked into
        return None


async def frames(path: Path, fps: float) -> AsyncGenerator[Frame, None]:
    """The clip's frames, at most `fps` a second, as fast as they are taken; a GIF begins again at its end, as browsers show it.

    Raises SourceError for what can't be decoded.
    """
    mailbox = Mailbox(2, policy="every")
    loop = path.suffix.lower() == ".gif"
    source = open_source(str(path), SourceOptions(realtime=False, fps=fps, loop=loop, largest_side=SIDE))
    source.start(mailbox, lambda status: None)
    try:
        while True:
            if taken := mailbox.take(1):
                yield taken[0]
            elif source.status.state is State.ENDED and mailbox.newest is None:
                break
            else:
                await asyncio.sleep(0.002)
    finally:
        await asyncio.to_thread(source.stop)
    if not source.status.frames:
        raise SourceError(source.status.reason or "it holds no picture")


async def examine(
    client: AsyncClient, path: Path, fps: float, asked: Sequence[Question], *, controls: bool = False
) -> AsyncGenerator[tuple[Question, Reply], None]:
    """Shows a clip once, and asks each question once all that it may see was seen, two frames at a time as models take them.

    With `controls` the same is asked of a stream of its own that has seen no more than the last four of these frames. Raises
    SourceError for a clip that can't be decoded, ClientError, and ClipError where frames were lost.
    """
    waiting, pair, sent, shown = sorted(asked, key=lambda question: question.at), [], 0, 0.0
    recent: deque[tuple[bytes, float]] = deque(maxlen=GLIMPSE)

    async def reply(question: Question) -> tuple[Question, Reply]:
        said = await ask(client, question, shown)
        return question, replace(said, glimpse=await glimpse(client, path, question, recent)) if controls else said

    await client.attach(STREAM, f"push://{STREAM}", policy="every", stall_after=PATIENCE)
    try:
        async with aclosing(frames(path, fps)) as clip:
            async for frame in clip:
                pair.append(frame)
                if len(pair) < 2:
                    continue
                while sent and waiting and frame.time > waiting[0].at:
                    yield await reply(waiting.pop(0))
                if not waiting:
                    break
                for each in pair:
                    picture = await asyncio.to_thread(encode_jpeg, each.pixels, SIDE, QUALITY)
                    await client.push(picture, stream=STREAM, timestamp=each.time)
                    recent.append((picture, each.time))
                sent, shown, pair = sent + 2, frame.time, []
                await seen(client, path, sent)
        if not sent:
            raise SourceError("it holds fewer than two pictures")
        for question in waiting:
            yield await reply(question)
    finally:
        await client.detach(STREAM)


async def glimpse(client: AsyncClient, path: Path, question: Question, recent: Iterable[tuple[bytes, float]]) -> str:
    """What is replied by a stream that begins with the `recent` pictures, at their times. Raises ClientError, ClipError."""
    await client.attach(GLIMPSED, f"push://{GLIMPSED}", policy="every", stall_after=PATIENCE)
    try:
        sent = 0
        for picture, moment in recent:
            await client.push(picture, stream=GLIMPSED, timestamp=moment)
            sent += 1
        await seen(client, path, sent, GLIMPSED)
        return (await ask(client, question, 0.0, GLIMPSED)).words
    finally:
        await client.detach(GLIMPSED)


async def seen(client: AsyncClient, path: Path, sent: int, stream: str = STREAM) -> None:
    """Returns once the daemon has seen all that was sent. Raises ClipError where it lost some."""
    until = time.monotonic() + PATIENCE
    while True:
        status = next(each for each in await client.streams() if each["name"] == stream)
        if status["frames_seen"] >= sent:
            return
        if status["drops"] or time.monotonic() > until:
            lost = f"{status['frames_seen']} of {sent} frames were seen, dropped: {status['drops']}"
            raise ClipError(f"{path.name}: {lost} ({status['state']} {status['reason']})")
        await asyncio.sleep(0.005)


async def ask(client: AsyncClient, question: Question, shown: float, stream: str = STREAM) -> Reply:
    begin, first, words = time.monotonic(), 0.0, ""
    async for piece in client.ask(question.text, stream=stream, max_tokens=WORDS, temperature=0.0):
        first = first or time.monotonic() - begin
        words += piece
    whole = time.monotonic() - begin
    return Reply(words, round(shown, 3), round(first or whole, 4), round(whole, 4))


async def serve(
    config: Config, clips: Mapping[Path, Sequence[Question]], fps: float, results: Results, bar: Any, *, controls: bool
) -> dict[str, str]:
    """Shows every clip to one daemon, one after the other; returns those that could not be shown, and why."""
    broken: dict[str, str] = {}
    daemon = Daemon(config)
    url = await daemon.start()
    try:
        async with AsyncClient(url) as client:
            for path, asked in clips.items():
                bar.set_description(path.name)
                try:
                    async with aclosing(examine(client, path, fps, asked, controls=controls)) as replies:
                        async for question, reply in replies:
                            results.add(question, reply)
                            bar.update()
                except SourceError as error:
                    broken[asked[0].clip] = str(error)
    finally:
        await daemon.stop()
    return broken


def measure(
    folder: Path,
    model: Mapping[str, Any],
    fps: float,
    path: Path | None = None,
    suite: str = "questions",
    *,
    controls: bool = False,
) -> dict[str, Any]:
    """Examines a model on a folder of questions, as far as there is no reply yet; the facts for JSON.

    `model` is the configuration's section; `path` the file of results, in the folder where it is None.
    Raises `FAILURES`, CheckpointError and FileNotFoundError.
    """
    if not folder.is_dir():
        raise LayoutError(f"--data {folder} is no folder")
    asked, passed = SUITES[suite].read(folder)
    about: dict[str, Any] = {"suite": suite, "model": dict(model), "fps": fps}
    if not model.get("random_weights") and model["name"] not in PRESETS.keys() - {"nano"}:
        about["weights"] = digest(NANO if model["name"] == "nano" else locate(model["name"]))
    if controls:
        about["controls"] = GLIMPSED
    results = Results(path or folder / f"results-{suite}-{Path(model['name']).name}.jsonl", about)
    lost: dict[str, str] = {}
    clips: dict[Path, list[Question]] = {}
    for question in {question.key: question for question in asked}.values():  # what is there twice has one reply
        file = clip_file(folder, question.clip)
        if file is None:
            lost[question.clip] = "missing"
        elif question.key not in results.replies:
            clips.setdefault(file, []).append(question)
    if clips:
        limits = {"visitor_questions_per_minute": 1_000_000}
        pace = {"ceiling_tokens_per_second": 1_000}
        config = parse_config(
            {"server": {"port": 0}, "model": dict(model), "limits": limits, "answers": pace}, "streamer eval"
        )
        left = sum(map(len, clips.values()))
        with tqdm(total=len(asked), initial=len(asked) - left, unit="question", disable=None) as bar:
            lost |= asyncio.run(serve(config, clips, fps, results, bar, controls=controls))
    return {**about, "results": str(results.path), **found(SUITES[suite], asked, passed, lost, results)}


def found(
    suite: Suite, asked: Sequence[Question], passed: int, lost: Mapping[str, str], results: Results
) -> dict[str, Any]:
    """What came of it: right replies of those asked by kind, the latency, and what was left out."""
    pairs = [(each, results.replies[each.key]) for each in asked if each.key in results.replies]
    facts: dict[str, Any] = {
        "matched": suite.MATCHED,
        "questions": len(asked),
        "asked": len(pairs),
        "passed_over": passed,
        "clips_left_out": dict(lost),
        "asked_past_the_end": sum(each.at - reply.seen > LATE for each, reply in pairs),
        "counts": suite.counted((each, suite.right(each, reply.words)) for each, reply in pairs),
    }
    if any(reply.glimpse is not None for _, reply in pairs):
        facts["counts_last_four_frames"] = suite.counted(
            (each, suite.right(each, reply.glimpse)) for each, reply in pairs if reply.glimpse is not None
        )
    if pairs:
        for name in ("first_s", "whole_s"):
            times = [getattr(reply, name) for _, reply in pairs]
            facts[name] = {
                "median": round(float(np.median(times)), 4),
                "p95": round(float(np.percentile(times, 95)), 4),
            }
    return facts


def table(facts: Mapping[str, Any]) -> Iterator[str]:
    """Lines of Markdown: right replies by kind, and what stands beside them."""
    yield f"{facts['asked']} of {facts['questions']} questions asked of {facts['model']['name']}, {facts['fps']:g} frames a second"
    yield f"matched: {facts['matched']}"
    if facts["clips_left_out"]:
        yield f"{len(facts['clips_left_out'])} clips left out:"
        yield from (f"  {clip}: {why}" for clip, why in facts["clips_left_out"].items())
    suite = SUITES[facts["suite"]]
    if facts["passed_over"]:
        yield f"{facts['passed_over']} {suite.PASSED_OVER} are passed over"
    if facts["asked_past_the_end"]:
        yield f"{facts['asked_past_the_end']} questions were asked at their clip's end, over {LATE:g} s before their moment"
    if facts["asked"]:
        yield ""
        yield from suite.table(facts["counts"])
        yield ""
        if "counts_last_four_frames" in facts:
            yield "by who saw the last four frames only"
            yield ""
            yield from suite.table(facts["counts_last_four_frames"])
            yield ""
        first, whole = (f"{facts[name]['median']:.3f} s ({facts[name]['p95']:.3f})" for name in ("first_s", "whole_s"))
        yield f"median (95 in 100 within): first word after {first}, all of it after {whole}"
    yield f"replies: {facts['results']}"
