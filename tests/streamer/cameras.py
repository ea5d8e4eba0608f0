"""Many cameras, most of which stand still, before the whole daemon: a measure, no test.

    python -m tests.streamer.cameras --moving 4 --still 36 --device cuda --model 4b --random-weights --askers 1 [--readers 0]

`streamer bench` has a video of its own for each stream and shows all of it; here streams share twelve that move and four that
do not, in turn, and those that show nothing new are left out by the change gate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from itertools import cycle, islice
from pathlib import Path

import av
from av.video.frame import PictureType

from streamer.cli.bench import UNLIMITED, add_arguments, measure, render_all
from streamer.config import parse_config

MOVING, STILL = 12, 4


def still(path: Path, of: Path) -> None:
    """The first picture of a clip, for as long as the clip is."""
    with av.open(str(of)) as source, av.open(str(path), "w") as container:
        video = source.streams.video[0]
        stream = container.add_stream("libx264", rate=video.average_rate, options={"preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        frame = next(source.decode(video))
        frame.pict_type = (
            PictureType.NONE
        )  # or each is coded whole, as the first was, and costs ten times as much to decode
        for n in range(video.frames):
            frame.pts, frame.time_base = n, 1 / video.average_rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--moving", type=int, default=4)
    parser.add_argument("--still", type=int, default=36)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        moving = [Path(folder) / f"{n}.mp4" for n in range(min(MOVING, max(chosen.moving, 1)))]
        render_all(moving)
        quiet = [path.with_name(f"still-{path.name}") for path in moving[:STILL]]
        for path, of in zip(quiet, moving, strict=False):
            still(path, of)
        files = [*islice(cycle(moving), chosen.moving), *islice(cycle(quiet), chosen.still)]
        usual = {"loop": True, "change": 4.0, "change_floor": 0.2}
        if chosen.deadline is not None:
            usual["deadline"] = chosen.deadline
        config = {
            "server": {"port": 0},
            "model": {
                "name": chosen.model,
                "device": chosen.device,
                "dtype": chosen.dtype or ("bfloat16" if chosen.device == "cuda" else "float32"),
                "random_weights": chosen.random_weights,
            },
            "streams": [{"name": f"bench-{n}", "source": str(path), **usual} for n, path in enumerate(files)],
            "limits": {
                "streams": len(files),
                "answers": max(8, chosen.askers + chosen.open),
                "readers": chosen.readers,
                **UNLIMITED,
            },
        }
        figures = asyncio.run(measure(parse_config(config, "cameras"), chosen.seconds, chosen.askers, chosen.open))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
