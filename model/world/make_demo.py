"""The clip that `demo:` plays, painted like the training's world: `python -m model.world.make_demo capture/clips`.

Writes demo.mp4 (H.264, 25 frames a second) and demo.json: what is in it when, and what is right to answer when.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from tqdm import tqdm

from model.world.layout import extent, layout, part_of, see
from model.world.objects import COLOURS, Thing
from model.world.phrasings import NEVER_SEEN, NOTHING
from model.world.render import Assets, Painter
from model.world.scene import ABSENT, Gallery, Look, Scene, Visit

RATE, WIDTH, HEIGHT = 25, 640, 360
SECONDS = 48.0
CROSSING = 0.7
"""Seconds that entering takes, and leaving."""
TOGETHER = 48
"""Frames painted at once."""


@dataclass(frozen=True)
class Part:
    """A thing that enters from a side at `start` seconds, goes from one place to another (in [-1, 1]²), and has left at `stop`."""

    thing: Thing
    start: float
    stop: float
    way: tuple[tuple[float, float], tuple[float, float]]
    size: float = 0.36


PARTS = (
    Part(Thing("shape", "circle", "red"), 0.6, 7.0, ((-0.45, 0.1), (0.4, 0.0))),
    Part(Thing("object", "dog"), 9.0, 15.0, ((0.5, -0.1), (-0.3, 0.1)), 0.4),
    Part(Thing("number", "42"), 17.0, 23.0, ((-0.2, 0.0), (0.2, 0.0)), 0.24),
    Part(Thing("shape", "square", "blue"), 25.0, 31.0, ((0.4, 0.2), (-0.4, -0.1))),
    Part(Thing("object", "banana"), 33.0, 39.0, ((-0.3, -0.2), (0.3, 0.1)), 0.4),
    Part(Thing("shape", "star", "yellow"), 41.0, 47.0, ((0.3, 0.2), (-0.3, -0.2))),
)
"""What comes by, one after another."""
SHOTS = ((0.0, 0), (8.0, 1), (16.0, 5), (24.0, 6), (32.0, 2), (40.0, 8))
"""From which second which of the gallery's pieces of video is behind it, to and fro at half its pace."""


def visit(part: Part, gallery: Gallery) -> Visit:
    """A part as the world has it."""
    thing, white, black = part.thing, (0.96, 0.96, 0.96), (0.04, 0.04, 0.04)
    tint = COLOURS[thing.colour] if thing.kind == "shape" else black
    how = Look(part.size, 1.0, 0.0, 0.0, False, tint, white, True, 0, 0.0)
    start, stop = round(part.start * RATE), round(part.stop * RATE)
    half = extent(thing, how, WIDTH / HEIGHT, gallery)
    outside = [(float(np.copysign(1.05 + half[0], x)), y) for x, y in part.way]
    points = np.array([outside[0], *part.way, outside[1]])
    last = stop - start - 1
    turns = [0, CROSSING * RATE, last - CROSSING * RATE, last]
    centre = np.stack([np.interp(np.arange(last + 1), turns, points[:, axis]) for axis in (0, 1)], 1)
    return Visit(thing, 0, start, stop, half, centre.astype(np.float32), how)


def scene(gallery: Gallery) -> Scene:
    """The whole clip."""
    frames, visits = round(SECONDS * RATE), [visit(part, gallery) for part in PARTS]
    see(visits, frames // 2)
    ground, clips = np.zeros(frames, np.int64), list(gallery.clips["train"])
    for second, index in SHOTS:
        start = round(second * RATE)
        swing = np.arange(frames - start) // 2 % (2 * gallery.clip - 2)
        ground[start:] = clips[index] + np.minimum(swing, 2 * gallery.clip - 2 - swing)
    still = np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1))
    light = np.tile(np.array([0.9, 0.9, 0.9, 0.02, 0.02, 0.02], np.float32), (frames, 1))
    plain = np.ones((frames, 3), np.float32), np.array([1.0, 0.0, 0.0, 0.0], np.float32)
    seconds = (2 * np.arange(frames // 2) + 1) / RATE
    whole = still * np.array([0.92, 0.92, 1.0], np.float32)
    return Scene(frames // 2, WIDTH / HEIGHT, visits, seconds, still, ground, whole, light, *plain, False)


def truth(whole: Scene) -> dict[str, Any]:
    """What is in the clip when, and the right answers to the questions that `streamer run` proposes, as it plays for the first time.

    Between an answer's end and the next one's begin, while something enters or leaves, no answer is wrong.
    """
    step = 2 / RATE
    visits = whole.visits
    clear = [((v.first + 1) * step, (v.last + 1) * step) for v in visits]
    around = [np.flatnonzero(v.visible > ABSENT) for v in visits]
    begun = [float(steps[0] * step) for steps in around]
    gone = [0.0, *(float((steps[-1] + 2) * step) for steps in around)]
    now = [(*span, v.thing.phrase) for span, v in zip(clear, visits, strict=True)]
    now += [(a, b, NOTHING) for a, b in zip(gone, [*begun, SECONDS], strict=True)]

    def turn(name: str, before: str, after: str) -> list[tuple[float, float, str]]:
        i = next(i for i, v in enumerate(visits) if v.thing.name == name)
        return [(0.0, begun[i], before), (clear[i][0], SECONDS, after)]

    answers = {
        "What do you see?": sorted(now),
        "What number was shown?": turn("42", NEVER_SEEN, "42"),
        "What color was the circle?": turn("circle", NEVER_SEEN, "red"),
        "Has a dog appeared?": turn("dog", "no", "yes"),
        "Has a banana appeared?": turn("banana", "no", "yes"),
        "What was the first thing you saw?": [(clear[0][0], SECONDS, visits[0].thing.phrase)],
    }
    things = [
        {"what": v.thing.phrase, "kind": v.thing.kind, "name": v.thing.name, "colour": v.thing.colour or None}
        | {"from": round(start, 2), "to": round(stop, 2)}
        | {"places": [[round(float(x), 2) for x in v.centre[round(i * (len(v.centre) - 1))]] for i in (0.2, 0.5, 0.8)]}
        for (start, stop), v in zip(clear, visits, strict=True)
    ]
    questions = [
        {
            "question": text,
            "answers": [{"from": round(a, 2), "to": round(b, 2), "answer": said} for a, b, said in spans],
        }
        for text, spans in answers.items()
    ]
    about = {"seconds": SECONDS, "frames_per_second": RATE, "width": WIDTH, "height": HEIGHT}
    return about | {"things": things, "questions": questions}


def pictures(painter: Painter, whole: Scene) -> Iterator[np.ndarray]:
    """Each frame, uint8 [HEIGHT, WIDTH, 3]."""
    sheet = layout([whole])
    for start in tqdm(range(0, 2 * whole.steps, TOGETHER), unit_scale=TOGETHER, unit="frame"):
        for painted in painter.paint(part_of(sheet, slice(start, start + TOGETHER)), 0, HEIGHT, WIDTH, film=False):
            yield from painted.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).numpy()


def write(path: Path, frames: Iterator[np.ndarray]) -> None:
    """An H.264 file that any player can seek in."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "23", "preset": "slow", "g": str(2 * RATE), "threads": "1"}
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where demo.mp4 and demo.json go")
    folder = parser.parse_args().folder
    assets = Assets.load()
    whole = scene(assets.gallery)
    (folder / "demo.json").write_text(json.dumps(truth(whole), indent=1) + "\n")
    write(folder / "demo.mp4", pictures(Painter(assets, "cpu"), whole))


if __name__ == "__main__":
    main()
