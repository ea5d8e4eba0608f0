"""How fast this machine indexes a recording, and in how much memory.

`python -m tests.memory.index_speed [--minutes 60] [--fps 2] [--model nano] [--video FILE]`; without a file it is the demo's clip,
again and again. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import torch
from av.packet import Packet

from capture.sources.demo import CLIP
from streamer.config import parse_config
from streamer.indexing import Recording, file_video, index_video, load
from streamer.memory.indexes import Facts, Index
from streamer.reading import Place


def looped(path: Path, seconds: float) -> Path:
    """The demo's clip, as often as fills so many seconds."""
    with av.open(str(path), "w") as output, av.open(str(CLIP)) as source:
        video = source.streams.video[0]
        stream, shift = output.add_stream_from_template(video), Fraction(0)
        packets = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in source.demux(video) if p.size]
        unit = video.time_base or Fraction(1, 90_000)
        length = max((pts or 0) + (duration or 1) for _, pts, _, duration, _ in packets) * unit
        while shift < seconds:
            for data, pts, dts, duration, key in packets:
                packet: Packet[av.VideoStream] = Packet(data)
                packet.stream, packet.time_base, packet.duration, packet.is_keyframe = stream, unit, duration, key
                packet.pts, packet.dts = (pts or 0) + round(shift / unit), (dts or 0) + round(shift / unit)
                output.mux(packet)
            shift += length
    return path


def measure(folder: Path, video: str, fps: float, model: str) -> dict[str, object]:
    """Reads a video into an index in `folder`, loads it and asks it once."""
    runner, threads = load(parse_config({"model": {"name": model}})), os.cpu_count() or 1
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    marks: list[tuple[int, float]] = []

    def told(facts: Facts) -> None:
        marks.append((len(facts.steps), time.perf_counter() - began))

    facts = index_video(
        Place(runner, alone=True), folder, file_video(folder, video, threads=threads), fps, 10**12, told
    )
    took, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tenth = max(1, len(marks) // 10)  # of the pieces, which are one or several steps
    began = time.perf_counter()
    recording = Recording(runner, Index(folder / "indexes" / facts.name), facts)
    loaded = time.perf_counter() - began
    began = time.perf_counter()
    answer = "".join(recording.ask("Which number was shown?"))
    return {
        "seconds": facts.seconds, "fps": fps, "tokens": facts.tokens, "took_s": round(took, 1),
        "times_real_time": round(facts.seconds / took, 1),
        "step_ms_first_tenth": round(1000 * marks[tenth - 1][1] / marks[tenth - 1][0], 1),
        "step_ms_last_tenth": round(
            1000 * (marks[-1][1] - marks[-tenth][1]) / max(1, marks[-1][0] - marks[-tenth][0]), 1
        ),
        "memory_mb": round((peak - before) / 1024), "index_mb": round(Index(folder / "indexes" / facts.name).bytes / 1e6),
        "load_s": round(loaded, 2), "answer_s": round(time.perf_counter() - began, 2), "answer": answer,
        "load_average": os.getloadavg()[0], "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--video")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = given.video or str(looped(Path(folder) / "looped.mkv", 60 * given.minutes))
        print(json.dumps(measure(Path(folder), video, given.fps, given.model)))


if __name__ == "__main__":
    main()
