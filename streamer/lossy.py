"""What H.264 costs in right answers: the examination's scenes at 720p, straight from memory and through a file and its decoder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from tqdm import tqdm

from capture import Mailbox, SourceOptions, State, open_source
from model.runner import Runner, load_runner
from model.sampling import Sampling
from model.training.demo import part_of
from model.training.exam import SEED, papers
from model.training.paint import Assets, Painter
from model.training.sitting import ask, draw
from model.training.world import Scene, layout

SCENES = {"now": 24, "memory 128": 4}
"""Scenes of each paper."""
SHORT, RATE = 720, 25
TOGETHER = 8
"""Frames painted at once: at this size each takes many megabytes."""
WORDS = 16
"""Tokens after which an answer is cut."""


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
    mailbox, found = Mailbox(8, policy="every"), []
    source = open_source(str(path), SourceOptions(realtime=False))
    source.start(mailbox, lambda status: None)
    while mailbox.newest is not None or source.status.state != State.ENDED:
        found += [frame.pixels for frame in mailbox.take(1)]
        if mailbox.newest is None:
            time.sleep(0.001)
    source.stop()
    return found


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


def measure(model: str, device: str, scenes: dict[str, int] = SCENES) -> dict[str, Any]:
    """Right answers from memory and through video, of how many asked. Raises CheckpointError, FileNotFoundError."""
    painter = Painter(Assets.load(), "cpu")
    runner = load_runner(model, device=device, slots=2)
    found: dict[str, Any] = {"model": model, "asked": 0, "in memory": 0, "through video": 0, "answered alike": 0}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=sum(scenes.values()), unit="scene") as bar:
        for paper in (paper for paper in papers(quick=True) if paper.name in scenes):
            for i in range(scenes[paper.name]):
                rng = np.random.default_rng((SEED, paper.steps, len(paper.name), i))
                scene = draw(paper, rng, paper.gallery(painter.gallery))
                questions = ask(paper, rng, scene, paper.steps - 1, runner.tokenizer)
                pictures, file = paint(painter, scene, i), Path(folder) / f"{paper.steps}-{i}.mp4"
                encode(file, pictures)
                seen = decoded(file)
                if len(seen) != len(pictures):
                    raise RuntimeError(f"{file.name}: {len(seen)} of {len(pictures)} frames came out of the decoder")
                texts = [question.text for question in questions]
                whole, lossy = answers(runner, list(pictures), texts), answers(runner, seen, texts)
                found["asked"] += len(questions)
                for question, first, second in zip(questions, whole, lossy, strict=True):
                    found["in memory"] += first == question.answer
                    found["through video"] += second == question.answer
                    found["answered alike"] += first == second
                bar.update()
    return found
