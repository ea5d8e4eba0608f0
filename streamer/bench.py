"""`streamer bench`: what the whole daemon does on this machine, measured through a file, the daemon and its websocket."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamer.config import Config
    from streamer.daemon import Daemon

WIDTH, HEIGHT, RATE = 1280, 720, 25
CLIP_SECONDS = 20
SETTLE_SECONDS = 3.0
QUESTIONS = ("What is happening?", "What is there now?", "How many are there?", "What came before?")
UNLIMITED = {"visitor_answers": 1_024, "visitor_questions_per_minute": 1_000_000}
"""The askers are one visitor."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `streamer bench`."""
    parser.add_argument(
        "--file", metavar="VIDEO", help="video to watch (default: a 720p H.264 clip at 25 FPS is rendered)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each of the two runs (default 20)")
    parser.add_argument(
        "--askers", type=int, default=3, help="clients that ask all the time in the second run (default 3)"
    )
    parser.add_argument("--streams", type=int, default=1, help="how often the video is watched at once (default 1)")
    parser.add_argument(
        "--deadline", type=float, default=0.2, help="seconds from capture to state in time (default 0.2)"
    )
    parser.add_argument("--model", "--preset", default="nano", help="nano, 4b, a folder or a repository (default nano)")
    parser.add_argument(
        "--random-weights", action="store_true", help="a preset with random weights: the cost is the same"
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda (default cpu); on cuda the kernels' floor is measured too"
    )
    parser.add_argument("--dtype", help="float32, bfloat16 or fp8 (default float32 on cpu, bfloat16 on cuda)")
    parser.add_argument("--no-floor", action="store_true", help="on cuda, leave out the kernels' table and floor")
    parser.add_argument("--threads", type=int, help="CPU threads of the model (default: half the cores)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(options: argparse.Namespace) -> int:
    """Measures and prints; returns the exit code."""
    from streamer.config import ConfigError
    from streamer.daemon import DaemonError

    with tempfile.TemporaryDirectory() as folder:
        file = Path(options.file) if options.file else Path(folder) / "bench.mp4"
        if not options.file:
            render(file)
        try:
            figures = asyncio.run(measure(bench_config(options, file), options.seconds, options.askers))
        except (ConfigError, DaemonError) as error:
            print(f"streamer: {error}", file=sys.stderr)
            return 1
    if options.json:
        print(json.dumps(figures, indent=2), flush=True)
    else:
        print("\n".join(table(figures)), flush=True)
    if options.device == "cuda" and options.random_weights and not options.no_floor:
        floor = [sys.executable, "-m", "model.benchmark", "--preset", options.model]
        subprocess.run(floor, stdout=sys.stderr, check=False)
    return 0


def bench_config(options: argparse.Namespace, file: Path) -> Config:
    """The daemon that is measured. Raises ConfigError."""
    from streamer.config import parse_config

    model = {
        "name": options.model,
        "device": options.device,
        "dtype": options.dtype or ("bfloat16" if options.device == "cuda" else "float32"),
        "random_weights": options.random_weights,
    }
    if options.threads:
        model["threads"] = options.threads
    streams = [
        {"name": f"bench-{i}", "source": str(file), "loop": True, "deadline": options.deadline}
        for i in range(options.streams)
    ]
    limits = {"streams": options.streams, "answers": max(8, options.askers), **UNLIMITED}
    data = {"server": {"port": 0}, "model": model, "streams": streams, "limits": limits}
    return parse_config(data, "streamer bench")


def render(path: Path, seconds: float = CLIP_SECONDS) -> None:
    """Writes a 720p H.264 clip at 25 FPS: shapes that wander over a textured background, with a camera's noise."""
    import av
    import numpy as np

    chance = np.random.default_rng(0)
    texture = chance.integers(0, 24, (HEIGHT, WIDTH), dtype=np.uint8)
    noise = chance.integers(0, 4, (2 * HEIGHT, WIDTH), dtype=np.uint8)
    ground = texture + (
        90 + 60 * np.sin(np.arange(WIDTH) / 90)[None, :] + 40 * np.cos(np.arange(HEIGHT) / 60)[:, None]
    ).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23", "threads": "1", "g": "50"}
        for i in range(round(seconds * RATE)):
            luma = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            luma[:HEIGHT] = ground + noise[37 * i % HEIGHT :][:HEIGHT]
            for k in range(4):
                x = int((WIDTH - 160) * (0.5 + 0.5 * np.sin(i / (20 + 7 * k) + k)))
                y = int((HEIGHT - 160) * (0.5 + 0.5 * np.cos(i / (27 + 5 * k) + 2 * k)))
                luma[y : y + 160, x : x + 160] = 40 * k + 60
                chroma = luma[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
                chroma[k % 2, y // 2 : y // 2 + 80, x // 2 : x // 2 + 80] = 60 + 50 * k
            for packet in stream.encode(av.VideoFrame.from_ndarray(luma, format="yuv420p")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@dataclass
class Window:
    """What the daemon did between two moments."""

    seconds: float
    frames: int
    tokens: int
    cpu_seconds: float
    steps: list[float]
    decodes: list[float]
    ages: list[float]
    late: int
    drops: dict[str, int]

    @property
    def late_share(self) -> float:
        """The part of the frames that were dropped or came into the state after their deadline."""
        dropped = sum(self.drops.values())
        return (self.late + dropped) / max(1, len(self.ages) + dropped)


class Meter:
    """Reads the daemon's counters at the beginning and the end of a window."""

    def __init__(self, daemon: Daemon) -> None:
        self._engine = daemon.assistant.engine
        self._streams = list(daemon.assistant._streams.values())
        for seconds in self._engine.step_seconds.values():
            seconds.clear()
        for stream in self._streams:
            stream.ages.clear()
        self._began, self._cpu = time.monotonic(), time.process_time()
        self._frames, self._tokens, self._drops = self._seen(), self._engine.tokens, self._dropped()

    def _seen(self) -> int:
        return sum(stream.frames_seen for stream in self._streams)

    def _dropped(self) -> Counter[str]:
        return sum((Counter(stream.drops) for stream in self._streams), Counter())

    def read(self) -> Window:
        """What happened since. Ages and steps are of the newest 4,096 of each."""
        steps = self._engine.step_seconds
        return Window(
            seconds=time.monotonic() - self._began,
            frames=self._seen() - self._frames,
            tokens=self._engine.tokens - self._tokens,
            cpu_seconds=time.process_time() - self._cpu,
            steps=list(steps["frames"]),
            decodes=list(steps["decode"]),
            ages=[age for stream in self._streams for age in stream.ages],
            late=sum(age > stream.terms.deadline for stream in self._streams for age in stream.ages),
            drops=dict(self._dropped() - self._drops),
        )


async def measure(config: Config, seconds: float, askers: int) -> dict[str, Any]:
    """Both runs, then the model alone. Keys carry their units."""
    from streamer.daemon import Daemon

    daemon = Daemon(config)
    began = time.monotonic()
    url = await daemon.start()
    start_seconds = time.monotonic() - began
    try:
        while not all(status.frames_seen for status in daemon.assistant.streams()):
            await asyncio.sleep(0.05)
        await asyncio.sleep(SETTLE_SECONDS)
        meter = Meter(daemon)
        resident = resident_bytes()
        await asyncio.sleep(seconds)
        quiet = meter.read()
        meter = Meter(daemon)
        firsts = await ask_all_the_time(url, askers, len(config.streams), seconds)
        asked = meter.read()
        grown = resident_bytes() - resident
        engine, model = daemon.assistant.engine, daemon.assistant.model
        facts = {"model": model.name, "trained": model.trained, "state_bytes": model.state_bytes}
    finally:
        await daemon.stop()
    cores = len(os.sched_getaffinity(0))
    figures: dict[str, Any] = {
        **machine(),
        **facts,
        "model_threads": engine.threads,
        "start_s": start_seconds,
        "run_s": seconds,
        "streams": len(config.streams),
        "askers": askers,
        "frames_per_second": quiet.frames / quiet.seconds,
        "frames_per_second_with_askers": asked.frames / asked.seconds,
        "frames_seen_with_askers_share": (asked.frames / asked.seconds) / (quiet.frames / quiet.seconds),
        **spread("frame_step_ms", quiet.steps),
        **spread("frame_step_with_askers_ms", asked.steps),
        **spread("frame_age_ms", quiet.ages),
        **spread("frame_age_with_askers_ms", asked.ages),
        **spread("first_token_ms", firsts),
        "frames_late_share": quiet.late_share,
        "frames_late_with_askers_share": asked.late_share,
        "answers": len(firsts),
        "tokens_per_second": asked.tokens / asked.seconds,
        **spread("decode_step_ms", asked.decodes),
        "drops": quiet.drops,
        "drops_with_askers": asked.drops,
        "resident_bytes": resident_bytes(),
        "resident_growth_bytes": grown,
        "cpu_share": quiet.cpu_seconds / quiet.seconds / cores,
        "cpu_share_with_askers": asked.cpu_seconds / asked.seconds / cores,
        **alone(daemon),
    }
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}


async def ask_all_the_time(url: str, askers: int, streams: int, seconds: float) -> list[float]:
    """Runs the askers in a process of their own; returns the seconds from each question to its answer's first word."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "streamer.bench",
        *map(str, (url, askers, streams, seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    firsts: list[float] = json.loads(out)
    return firsts


async def askers_process(url: str, askers: int, streams: int, seconds: float) -> list[float]:
    """Asks over the websocket until the time is over, each asker as soon as it is answered."""
    from streamer.client import AsyncClient

    firsts: list[float] = []
    end = time.monotonic() + seconds

    async def ask(number: int) -> None:
        async with AsyncClient(url) as client:
            while time.monotonic() < end:
                began = time.monotonic()
                first: float | None = None
                question, stream = QUESTIONS[number % len(QUESTIONS)], f"bench-{number % streams}"
                async for _ in client.ask(question, stream=stream, max_tokens=24):
                    first = first or time.monotonic() - began
                number += 1
                if first is not None:
                    firsts.append(first)

    await asyncio.gather(*(ask(number) for number in range(askers)))
    return firsts


def alone(daemon: Daemon, steps: int = 40) -> dict[str, float]:
    """The model without the daemon around it: frames and tokens a second, one stream."""
    import numpy as np

    from model import Sampling

    runner = daemon.assistant.engine.runner
    frames = [np.full((HEIGHT // 2, WIDTH // 2, 3), 90, np.uint8)] * runner.frames_per_step
    runner.open(0, HEIGHT, WIDTH)
    rate = each(lambda i: runner.see([0], [frames], [i / 10]), steps)
    fork = runner.slots - 1
    runner.fork(0, fork)
    token = runner.prefill(fork, runner.tokenizer.encode_question(QUESTIONS[0]), Sampling())
    return {
        "model_frames_per_second": rate * runner.frames_per_step,
        "model_tokens_per_second": each(lambda i: runner.decode([fork], [token], [Sampling()]), steps),
    }


def each(do: Callable[[int], object], times: int) -> float:
    """How often a second `do` runs, after one run that does not count."""
    do(0)
    began = time.monotonic()
    for i in range(times):
        do(i + 1)
    return times / (time.monotonic() - began)


def spread(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """Median and 99th percentile under `name`_p50 and `name`_p99, from seconds to milliseconds; None without values."""
    if not seconds:
        return {f"{name}_p50": None, f"{name}_p99": None}
    ordered = sorted(seconds)
    return {
        f"{name}_p50": 1000 * statistics.median(ordered),
        f"{name}_p99": 1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
    return {
        "machine": name,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def table(figures: dict[str, Any]) -> Iterable[str]:
    """One line a figure."""
    width = max(map(len, figures))
    for key, value in figures.items():
        yield f"{key.ljust(width)}  {value:.2f}" if isinstance(value, float) else f"{key.ljust(width)}  {value}"


if __name__ == "__main__":
    address, count, watched, duration = sys.argv[1:]
    print(json.dumps(asyncio.run(askers_process(address, int(count), int(watched), float(duration)))))
