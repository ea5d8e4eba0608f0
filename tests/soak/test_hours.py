"""Hours of one camera at 25 FPS and a question a second, over a real daemon's socket: what grows, and by how much an hour.

`pytest tests/soak/test_hours.py -m nightly --soak-seconds 14400` takes four hours and writes its samples beside the state
folder. The model is a tiny one: what might grow lies in capture, engine, doors and memory, not in the weights.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from streamer.client import AsyncClient, ClientError
from tests.ports import free_port

EVERY = 15.0
"""Seconds between two samples."""
WARM = 0.15
"""Share of the run that comes before what is judged: buffers, caches and the allocator's arenas fill first."""
MOST_BYTES_AN_HOUR = 4 * 2**20
DAEMON = "import tests.tiny; from streamer.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Sample:
    hours: float
    resident: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int, hours: float) -> Sample:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return cls(hours, int(lines["VmRSS"].split()[0]) * 1024, int(lines["Threads"]), descriptors)


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Growth an hour by least squares, and half its 95 % interval.

    Residuals of samples in a row are alike, so the interval takes as many independent samples as their first
    autocorrelation leaves (Santer et al. 2000, equation 6): n (1 - r) / (1 + r).
    """
    fit = statistics.linear_regression(times, values)
    rest = [value - fit.intercept - fit.slope * at for at, value in zip(times, values, strict=True)]
    total = sum(error * error for error in rest)
    if not total:
        return fit.slope, 0.0
    alike = max(sum(a * b for a, b in pairwise(rest)) / total, 0.0)
    independent = max(len(rest) * (1 - alike) / (1 + alike), 3.0)
    mean = statistics.fmean(times)
    spread = math.sqrt(sum((at - mean) ** 2 for at in times))
    return fit.slope, 1.96 * math.sqrt(total / (independent - 2)) / spread


def test_slope_is_least_squares_with_its_interval() -> None:
    times = [n / 100 for n in range(200)]
    grown, half = slope(times, [7 + 3 * at + 0.01 * (-1) ** n for n, at in enumerate(times)])
    assert grown == pytest.approx(3, abs=0.01) and 0 < half < 0.01
    drifting, wide = slope(
        times, [math.sin(at * math.pi) for at in times]
    )  # neighbours are alike: hardly any sample is new
    assert wide > 5 * 1.96 * 0.5 / math.sqrt(200) / 0.58 and abs(drifting) < 3


@pytest.mark.nightly
@pytest.mark.timeout(0)
def test_nothing_grows_by_the_hour(soak_seconds: float, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "server": {"port": port},
                "model": {"name": "tiny", "random_weights": True, "threads": 1},
                "streams": [{"name": "door", "source": "demo:", "fps": 25, "record": True}],
                "storage": {"folder": str(tmp_path / "state"), "recordings": 50_000_000, "snapshots": 50_000_000},
            }
        )
    )
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen([sys.executable, "-c", DAEMON, "run", str(config)], stdout=log, stderr=log)
    try:
        samples, asked = asyncio.run(
            watch(f"http://127.0.0.1:{port}", daemon.pid, soak_seconds, tmp_path / "samples.jsonl")
        )
        assert daemon.poll() is None
    finally:
        daemon.terminate()
        daemon.wait(30)
    judged = [sample for sample in samples if sample.hours >= samples[-1].hours * WARM]
    hours = [sample.hours for sample in judged]
    growth = {
        name: slope(hours, [getattr(sample, name) for sample in judged])
        for name in ("resident", "threads", "descriptors")
    }
    print(f"{samples[-1].hours:.2f} h, {asked} questions answered, {len(judged)} samples judged")
    for name, (by, half) in growth.items():
        print(f"{name}: {by:+.4g} ± {half:.2g} an hour; from {getattr(judged[0], name)} to {getattr(judged[-1], name)}")
    by, half = growth["resident"]
    assert by - half <= MOST_BYTES_AN_HOUR
    assert all(growth[name][0] - growth[name][1] <= 0.5 for name in ("threads", "descriptors"))


async def watch(url: str, pid: int, seconds: float, kept: Path) -> tuple[list[Sample], int]:
    """Asks once a second and samples the daemon until `seconds` are over."""
    samples: list[Sample] = []
    asked = 0
    async with asyncio.timeout(120):
        while True:
            try:
                async with AsyncClient(url) as client:
                    if any(stream["frames_seen"] for stream in await client.streams()):
                        break
            except ClientError:  # not up yet
                pass
            await asyncio.sleep(0.5)
    began = time.monotonic()
    async with AsyncClient(url) as client:
        with kept.open("a") as file:
            while (now := time.monotonic() - began) < seconds:
                if now >= len(samples) * EVERY:
                    samples.append(Sample.of(pid, now / 3600))
                    file.write(json.dumps(asdict(samples[-1])) + "\n")
                    file.flush()
                async for _ in client.ask("What is happening?", stream="door", max_tokens=8):
                    pass
                asked += 1
                await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - began - now)))
    return samples, asked
