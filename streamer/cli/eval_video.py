"""What H.264 and the daemon cost in right answers: the examination's scenes at 720p, asked about in three ways.

`in memory` the model sees the pictures as painted, `decoded` as they come out of an H.264 file, and `daemon` is the whole
way: the file watched by a daemon, the questions asked over its websocket once the last frame is seen.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from tqdm import tqdm

from capture import SourceOptions, drained, open_source
from model.evaluation.report import grid, kinds, told, total
from model.evaluation.run import SEED, papers
from model.evaluation.score import MEMORY, NOW, Marks, ask, draw
from model.serving.runner import Runner, load_runner
from model.serving.sampling import Sampling
from model.world.layout import layout, part_of
from model.world.questions import Question, normalise
from model.world.render import Assets, Painter
from model.world.scene import Scene
from streamer.client import AsyncClient, ClientError
from streamer.config import Config, parse_config
from streamer.daemon import Daemon
from streamer.server.listening import DaemonError

SCENES = {"now": 16, "memory 128": 3}
"""Scenes of each paper."""
WAYS = {"in memory": "tensors in memory", "decoded": "H.264, decoded", "daemon": "H.264, daemon, websocket"}
SHORT, RATE = 720, 25
TOGETHER = 2
"""Frames painted at once: at this size each takes many megabytes."""
WORDS = 16
"""Tokens after which an answer is cut."""
PATIENCE = 20.0
"""Seconds without a further frame after which the daemon will see no more of a file."""


class VideoError(Exception):
    """Why what was measured is not what was meant to be, in one line."""


FAILURES = (VideoError, DaemonError, ClientError)


@dataclass
class Film:
    """A painted scene's file, the questions about its end, and what was answered in each way."""

    paper: str
    file: Path
    frames: int
    questions: list[Question]
    said: dict[str, list[str]]

    @property
    def texts(self) -> list[str]:
        return [question.text for question in self.questions]


def paint(painter: Painter, scene: Scene, seed: int) -> np.ndarray:
    """A scene as a camera of its shape has it, uint8 [frames, height, width, 3], the height `SHORT`."""
    width = round(SHORT * scene.aspect / 16) * 16
    sheet, parts = layout([scene]), []
    for start in range(0, 2 * scene.steps, TOGETHER):
        part = part_of(sheet, slice(start, start + TOGETHER))
        for picture in painter.paint(part, seed + start, SHORT, width):
            parts.append(picture.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).numpy())
    return np.concatenate(parts)


def encode(path: Path, pictures: np.ndarray) -> None:
    """An H.264 file as a camera makes it: constant quality, few milliseconds a frame."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast", "tune": "zerolatency"}
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def decoded(path: Path) -> list[np.ndarray]:
    """Every frame as the daemon's source hands it over."""
    source = open_source(str(path), SourceOptions(realtime=False))
    return [frame.pixels for frame in drained(source, 8)]


def answers(runner: Runner, pictures: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
    """What the model says after it has seen the pictures, two a step, at 25 a second."""
    runner.open(0, *pictures[0].shape[:2])
    for i in range(0, len(pictures), 2):
        runner.see([0], [pictures[i : i + 2]], [(i + 1) / RATE])
    said = []
    for question in questions:
        runner.fork(0, 1)
        tokens = [runner.prefill(1, runner.tokenizer.encode_question(question), Sampling())]
        while tokens[-1] not in runner.tokenizer.stops and len(tokens) < WORDS:
            tokens += runner.decode([1], tokens[-1:], [Sampling()])
        said.append(runner.tokenizer.decode([token for token in tokens if token not in runner.tokenizer.stops]))
    return said


def films(
    runner: Runner, painter: Painter, scenes: dict[str, int], seeds: Sequence[int], folder: Path
) -> Iterator[Film]:
    """Paints scenes and writes their files; the model has answered of both the pictures and what the decoder makes of them."""
    for seed, paper in ((seed, paper) for seed in seeds for paper in papers(quick=True) if paper.name in scenes):
        for i in range(scenes[paper.name]):
            rng = np.random.default_rng((seed, paper.steps, len(paper.name), i))
            scene = draw(paper, rng, paper.gallery(painter.gallery))
            questions = ask(paper, rng, scene, paper.steps - 1, runner.tokenizer)
            pictures, file = paint(painter, scene, i), folder / f"{seed}-{paper.steps}-{i}.mp4"
            encode(file, pictures)
            seen = decoded(file)
            if len(seen) != len(pictures):
                raise VideoError(f"{file.name}: {len(seen)} of {len(pictures)} frames came out of the decoder")
            film = Film(paper.name, file, len(pictures), questions, {})
            film.said["in memory"] = answers(runner, list(pictures), film.texts)
            film.said["decoded"] = answers(runner, seen, film.texts)
            yield film


async def show(client: AsyncClient, film: Film) -> None:
    """Lets the daemon see a whole file, however long it takes, and asks. Raises VideoError where a frame was not seen."""
    name = film.file.stem
    await client.attach(name, str(film.file), policy="every", realtime=False)
    seen, since = -1, time.monotonic()
    while seen < film.frames and time.monotonic() - since < PATIENCE:
        status = (await client.streams())[0]
        if status["frames_seen"] > seen:
            seen, since = status["frames_seen"], time.monotonic()
        await asyncio.sleep(0.02)
    if seen != film.frames or status["drops"]:
        lost = f"{seen} of {film.frames} frames were seen, dropped: {status['drops']}"
        raise VideoError(f"{film.file.name}: {lost} ({status['state']} {status['reason']})")
    film.said["daemon"] = [
        "".join([words async for words in client.ask(text, stream=name, max_tokens=WORDS, temperature=0.0)])
        for text in film.texts
    ]
    await client.detach(name)


async def serve(config: Config, made: Sequence[Film], bar: Any) -> None:
    """Shows every film to one daemon, one after the other."""
    daemon = Daemon(config)
    url = await daemon.start()
    try:
        async with AsyncClient(url) as client:
            for film in made:
                await show(client, film)
                bar.update()
    finally:
        await daemon.stop()


def measure(model: str, device: str, scenes: dict[str, int] = SCENES, fresh: int = 0) -> tuple[Marks, dict[str, Any]]:
    """Right answers in each way, with the facts for JSON; `fresh` seeds are drawn anew instead of the fixed one.

    Raises CheckpointError, FileNotFoundError and `FAILURES`.
    """
    painter, begin = Painter(Assets.load(), "cpu"), time.monotonic()
    seeds = [secrets.randbelow(2**31) for _ in range(fresh)] or [SEED]
    dtype = "bfloat16" if device == "cuda" else "float32"
    chosen = {"name": model, "device": device, "dtype": dtype, "threads": torch.get_num_threads()}
    limits = {"visitor_questions_per_minute": 1_000_000}
    pace = {"ceiling_tokens_per_second": 1_000}
    config = parse_config({"server": {"port": 0}, "model": chosen, "limits": limits, "answers": pace}, "streamer eval")
    count = sum(scenes.values()) * len(seeds)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2 * count, unit="scene") as bar:
        bar.set_description("in memory")
        made = []
        for film in films(
            load_runner(model, device=device, dtype=dtype, slots=2), painter, scenes, seeds, Path(folder)
        ):
            made.append(film)
            bar.update()
        bar.set_description("through the daemon")
        asyncio.run(serve(config, made, bar))
    about = {"suite": "world", "model": model, "device": device, "dtype": dtype, "seeds": seeds}
    frames, took = sum(film.frames for film in made), round(time.monotonic() - begin, 1)
    marks, ways = compare(made)
    return marks, {**about, "frames": frames, "seconds": took, "through video": ways, "rows": marks.rows()}


def compare(made: Sequence[Film]) -> tuple[Marks, dict[str, Any]]:
    """The marks of each way, and in all: right answers, what is lost against memory, and answers alike memory's."""
    marks, alike = Marks(), dict.fromkeys(WAYS, 0)
    for film in made:
        for way, said in film.said.items():
            for question, words, whole in zip(film.questions, said, film.said["in memory"], strict=True):
                marks.add(film.paper, question, way, normalise(words) == normalise(question.answer))
                alike[way] += words == whole
    right = {way: total(marks, SCENES, (*NOW, *MEMORY), who=way) for way in WAYS}
    best, asked = right["in memory"]
    return marks, {
        name: {
            "right": right[way][0],
            "asked": asked,
            "share": round(right[way][0] / asked, 4),
            "lost": round((best - right[way][0]) / asked, 4),
            "answered alike": alike[way],
        }
        for way, name in WAYS.items()
    }


def table(marks: Marks, found: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown: right answers (questions) by skill, and what was lost in all."""
    rows = [
        [f"{skill}{', ' * bool(kind)}{kind}", *(told(total(marks, SCENES, [skill], [kind], way)) for way in WAYS)]
        for skill in (*NOW, *MEMORY)
        for kind in kinds(skill)
        if total(marks, SCENES, [skill], [kind], "in memory")[1]
    ]
    ways = found["through video"].values()
    rows.append(["all", *(f"{way['share']:.3f} ({way['asked']})" for way in ways)])
    rows.append(["lost", *(f"{way['lost']:.3f}" for way in ways)])
    rows.append(["answered as from memory", *(str(way["answered alike"]) for way in ways)])
    yield f"{found['frames']} frames of H.264 at {SHORT}p, all of them seen by the daemon"
    yield from grid(["", *WAYS.values()], rows)
