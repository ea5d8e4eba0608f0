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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamer.config import Config
    from streamer.daemon import Daemon

WIDTH, HEIGHT, RATE = 1280, 720, 25
CLIP_SECONDS = 20
SETTLE_SECONDS = 3.0
QUESTIONS = ("What is happening?", "What is there now?", "How many are there?", "What came before?")
LONG_ANSWER = 1_000
"""Tokens of an answer that is kept open."""
OPENING_SECONDS = 60.0
"""The longest that is waited for the first words of all that is kept open."""
UNLIMITED = {"visitor_answers": 1_024, "visitor_questions_per_minute": 1_000_000}
"""The askers are one visitor."""
QUIET_SECONDS = 10.0
"""The longest run without askers: only what they are compared with."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `streamer bench`."""
    parser.add_argument(
        "--file",
        metavar="VIDEO",
        help="video to watch (default: 720p H.264 at 25 FPS, rendered, another for each stream)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="length of the run with askers; the one before it, without, is 10 at most (default 20)",
    )
    parser.add_argument(
        "--askers", type=int, default=3, help="clients that ask all the time in the second run (default 3)"
    )
    parser.add_argument(
        "--open", type=int, default=0, help="long answers kept open beside them, begun anew as they end (default 0)"
    )
    parser.add_argument("--streams", type=int, default=1, help="how many videos are watched at once (default 1)")
    parser.add_argument(
        "--deadline",
        type=float,
        help="seconds from capture to state in time (default: as the daemon has it, 0.2 or more)",
    )
    parser.add_argument("--model", "--preset", default="nano", help="nano, 4b, a folder or a repository (default nano)")
    parser.add_argument(
        "--random-weights", action="store_true", help="a preset with random weights: the cost is the same"
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda (default cpu); on cuda the kernels' floor is measured too"
    )
    parser.add_argument("--dtype", help="float32, bfloat16, fp8 or int8 (default float32 on cpu, bfloat16 on cuda)")
    parser.add_argument("--no-floor", action="store_true", help="on cuda, leave out the kernels' table and floor")
    parser.add_argument("--threads", type=int, help="CPU threads of the model (default: as the daemon has it)")
    parser.add_argument("--readers", type=int, help="processes that decode (default: by streams and cores; 0: none)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(options: argparse.Namespace) -> int:
    """Measures and prints; returns the exit code."""
    from streamer.config import ConfigError
    from streamer.server.listening import DaemonError

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(options.file)] if options.file else [Path(folder) / f"{i}.mp4" for i in range(options.streams)]
        if not options.file:
            render_all(files)
        try:
            figures = asyncio.run(measure(bench_config(options, files), options.seconds, options.askers, options.open))
        except (ConfigError, DaemonError) as error:
            print(f"streamer: {error}", file=sys.stderr)
            return 1
    if options.json:
        print(json.dumps(figures, indent=2), flush=True)
    else:
        print("\n".join(table(figures)), flush=True)
    if options.device == "cuda" and options.random_weights and not options.no_floor:
        floor = [sys.executable, "-m", "model.serving.roofline", "--preset", options.model]
        subprocess.run(floor, stdout=sys.stderr, check=False)
    return 0


def bench_config(options: argparse.Namespace, files: Sequence[Path]) -> Config:
    """The daemon that is measured, its streams on `files` in turn. Raises ConfigError."""
    from streamer.config import parse_config

    model = {
        "name": options.model,
        "device": options.device,
        "dtype": options.dtype or ("bfloat16" if options.device == "cuda" else "float32"),
        "random_weights": options.random_weights,
    }
    if options.threads:
        model["threads"] = options.threads
    usual = {"loop": True, **({} if options.deadline is None else {"deadline": options.deadline})}
    streams = [{"name": f"bench-{i}", "source": str(files[i % len(files)]), **usual} for i in range(options.streams)]
    limits = {
        "streams": options.streams,
        "answers": max(8, options.askers + options.open),
        "readers": options.readers,
        **UNLIMITED,
    }
    data = {"server": {"port": 0}, "model": model, "streams": streams, "limits": limits}
    return parse_config(data, "streamer bench")


def render_all(paths: Sequence[Path]) -> None:
    """A clip for each path, side by side as far as there are cores."""
    with ProcessPoolExecutor(min(len(paths), len(os.sched_getaffinity(0))), get_context("spawn")) as pool:
        list(pool.map(render, paths, repeat(CLIP_SECONDS), range(len(paths))))


def render(path: Path, seconds: float = CLIP_SECONDS, seed: int = 0) -> None:
    """Writes a 720p H.264 clip at 25 FPS: shapes that wander over a textured background, with a camera's noise."""
    import av
    import numpy as np

    chance = np.random.default_rng(seed)
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
                x = int((WIDTH - 160) * (0.5 + 0.5 * np.sin(i / (20 + 7 * k) + k + seed)))
                y = int((HEIGHT - 160) * (0.5 + 0.5 * np.cos(i / (27 + 5 * k) + 2 * k + seed)))
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
    decoding_seconds: float
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
        self._began, self._cpu, self._decoding = time.monotonic(), cpu_seconds(), decoding_seconds()
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
            cpu_seconds=cpu_seconds() - self._cpu,
            decoding_seconds=decoding_seconds() - self._decoding,
            steps=list(steps["frames"]),
            decodes=list(steps["decode"]),
            ages=[age for stream in self._streams for age in stream.ages],
            late=sum(age > stream.terms.deadline for stream in self._streams for age in stream.ages),
            drops=dict(self._dropped() - self._drops),
        )


def decoding_seconds() -> float:
    """CPU seconds of the threads that read and decode the streams, here and in processes of their own."""
    here = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("source ")]
    return sum(map(spent, [f"self/task/{thread}" for thread in here])) + reading_seconds()


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that read for it."""
    return time.process_time() + reading_seconds()


def reading_seconds() -> float:
    """CPU seconds of the processes that read."""
    from capture.readers.pool import READERS

    return sum(map(spent, map(str, READERS.processes)))


def spent(task: str) -> float:
    """CPU seconds of a process or a thread, by where it is in /proc."""
    stat = Path(f"/proc/{task}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK")


async def measure(config: Config, seconds: float, askers: int, kept_open: int) -> dict[str, Any]:
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
        await asyncio.sleep(min(seconds, QUIET_SECONDS))
        quiet = meter.read()
        meter = Meter(daemon)
        firsts, beside = await ask_all_the_time(url, askers, kept_open, len(config.streams), seconds)
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
        "open": kept_open,
        "open_when_asked_share": beside,
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
        "decoding_cores": asked.decoding_seconds / asked.seconds,
        **alone(daemon),
    }
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}


async def ask_all_the_time(
    url: str, askers: int, kept_open: int, streams: int, seconds: float
) -> tuple[list[float], float | None]:
    """Runs the askers in a process of their own.

    Returns the seconds from each question to its answer's first word, and the share of questions at whose asking all that
    are to be kept open were.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "streamer.cli.bench",
        *map(str, (url, askers, kept_open, streams, seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    found = json.loads(out)
    whole: list[bool] = found["whole"]
    return found["firsts"], sum(whole) / len(whole) if whole else None


async def askers_process(url: str, askers: int, kept_open: int, streams: int, seconds: float) -> dict[str, list[Any]]:
    """Asks over the websocket until the time is over, each asker as soon as it is answered, and once at least.

    The time begins once all that is to be kept open speaks.
    """
    from streamer.client import AsyncClient

    firsts: list[float] = []
    whole: list[bool] = []
    speaking: set[int] = set()

    async def ask(number: int) -> None:
        async with AsyncClient(url) as client:
            while True:
                whole.append(len(speaking) == kept_open)
                began = time.monotonic()
                first: float | None = None
                question, stream = QUESTIONS[number % len(QUESTIONS)], f"bench-{number % streams}"
                async for _ in client.ask(question, stream=stream, max_tokens=24):
                    first = first or time.monotonic() - began
                number += 1
                if first is not None:
                    firsts.append(first)
                if time.monotonic() > end:
                    return

    async def speak(number: int) -> None:
        async with AsyncClient(url) as client:
            while True:
                async for _ in client.ask(QUESTIONS[0], stream=f"bench-{number % streams}", max_tokens=LONG_ANSWER):
                    speaking.add(number)
                speaking.discard(number)

    open_answers = [asyncio.create_task(speak(number)) for number in range(kept_open)]
    late = time.monotonic() + OPENING_SECONDS
    while len(speaking) < kept_open and time.monotonic() < late and not any(task.done() for task in open_answers):
        await asyncio.sleep(0.02)
    end = time.monotonic() + seconds
    await asyncio.gather(*(ask(number) for number in range(askers)))
    for task in open_answers:
        task.cancel()
    await asyncio.gather(*open_answers, return_exceptions=True)
    return {"firsts": firsts, "whole": whole}


def alone(daemon: Daemon, steps: int = 40) -> dict[str, float]:
    """The model without the daemon around it: frames and tokens a second, one stream."""
    import numpy as np

    from model import Sampling
    from model.serving.streams import in_line

    runner = daemon.assistant.engine.runner
    frames = [np.full((HEIGHT // 2, WIDTH // 2, 3), 90, np.uint8)] * runner.frames_per_step
    with in_line(runner.stream):
        runner.open(0, HEIGHT, WIDTH)
        rate = each(lambda i: runner.see([0], [frames], [i / 10]), steps)
        fork = runner.slots - 1
        runner.fork(0, fork)
        token = runner.prefill(fork, runner.tokenizer.encode_question(QUESTIONS[0]), Sampling())
        tokens = each(lambda i: runner.decode([fork], [token], [Sampling()]), steps)
    return {"model_frames_per_second": rate * runner.frames_per_step, "model_tokens_per_second": tokens}


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
    address, *counts, duration = sys.argv[1:]
    asking, speaking_on, watched = map(int, counts)
    print(json.dumps(asyncio.run(askers_process(address, asking, speaking_on, watched, float(duration)))))
