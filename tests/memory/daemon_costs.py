"""What memory costs a daemon, beside one without it: `python -m tests.memory.measure --daemon` prints a line each.

For a machine that does nothing else: a real daemon with the demo clip at 25 frames a second, as `streamer run` starts it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

from streamer.client import AsyncClient
from tests.ports import free_port

MOMENTS = 20
SLOWEST = 120.0


class Costs:
    """A daemon's, whose state is kept below `place`; `model` is that section of its configuration."""

    def __init__(self, place: Path, model: dict[str, Any]) -> None:
        self.place, self.model, self.port = place, model, free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self, *, memory: bool, replay: float = 0.01) -> Iterator[float]:
        """A daemon that is ready, and the seconds that this took."""
        config = self.place / "config.yaml"
        demo = {"name": "door", "source": "demo:", "record": memory}
        storage = {"storage": {"folder": str(self.place / "state"), "replay": replay}} if memory else {}
        config.write_text(
            yaml.safe_dump({"server": {"port": self.port}, "model": self.model, "streams": [demo], **storage})
        )
        command = [sys.executable, "-m", "streamer.cli.main", "run", str(config)]
        with (self.place / "log").open("ab") as log:
            began = time.monotonic()
            daemon = subprocess.Popen(
                [*command, *([] if memory else ["--stateless"])], stdout=log, stderr=log, env=dict(os.environ)
            )
        with daemon:
            try:
                while not self._ready():
                    assert daemon.poll() is None and time.monotonic() - began < SLOWEST, (
                        self.place / "log"
                    ).read_text()
                    time.sleep(0.01)
                yield time.monotonic() - began
            finally:
                daemon.kill()

    def _ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        async with AsyncClient(self.url) as client:
            yield client

    async def resume(self, starts: int) -> None:
        """How long a start takes with what is remembered, and without."""
        with self.running(memory=True):
            await asyncio.sleep(12)
        took: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(starts):
            for memory in (False, True):
                with self.running(memory=memory) as ready:
                    took[memory].append(ready)
                    async with self.client() as client:
                        (door,) = await client.streams()
                    assert bool(door["resumes"]) == memory
        without, with_it = statistics.median(took[False]), statistics.median(took[True])
        print(
            f"resume: ready {with_it - without:+.2f} s after a start without memory (median {with_it:.2f} and {without:.2f} s, "
            f"worst {max(took[True]):.2f} and {max(took[False]):.2f} s, {starts} starts each)",
            flush=True,
        )

    async def cost_and_rewind(self, seconds: float) -> None:
        """Which frames are lost while all is kept, and how soon the past answers without replay."""
        with self.running(memory=True):
            await asyncio.sleep(10)
            async with self.client() as client:
                before, began = (await client.streams())[0], time.monotonic()
                kept, recorded = (
                    self._metric("streamer_snapshots_total"),
                    self._metric("streamer_recordings_kept_bytes"),
                )
                await asyncio.sleep(seconds)
                after, passed = (await client.streams())[0], time.monotonic() - began
                kept = self._metric("streamer_snapshots_total") - kept
                recorded = (self._metric("streamer_recordings_kept_bytes") - recorded) / 1e6
                self._tell(before, after, passed, f"{kept:g} snapshots and {recorded:.1f} MB recorded")
                first = [await self._first(client, 1 + n * (seconds - 1) / MOMENTS) for n in range(MOMENTS)]
                live = [await self._first(client, None) for _ in range(MOMENTS)]
        print(
            f"rewind: first token after {statistics.median(first) * 1e3:.0f} ms, {max(first) * 1e3:.0f} ms at most of {MOMENTS} "
            f"moments of {seconds:.0f} s (live {statistics.median(live) * 1e3:.0f} and {max(live) * 1e3:.0f} ms)",
            flush=True,
        )
        with self.running(memory=False):
            await asyncio.sleep(10)
            async with self.client() as client:
                before, began = (await client.streams())[0], time.monotonic()
                await asyncio.sleep(seconds)
                self._tell(before, (await client.streams())[0], time.monotonic() - began, "nothing kept")

    def _tell(self, before: dict[str, Any], after: dict[str, Any], passed: float, kept: str) -> None:
        dropped = {why: n - before["drops"].get(why, 0) for why, n in after["drops"].items()}
        seen = after["frames_seen"] - before["frames_seen"]
        print(
            f"cost: {seen / passed:.2f} frames/s seen of {(after['frames_in'] - before['frames_in']) / passed:.2f} in {passed:.0f} s, "
            f"{sum(dropped.values())} dropped {dropped or ''}, {kept}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )

    async def _first(self, client: AsyncClient, ago: float | None) -> float:
        began = time.perf_counter()
        at = None if ago is None else f"{ago:.0f} seconds ago"
        async for _ in client.ask("What number was shown?", at=at, max_tokens=8):
            return time.perf_counter() - began
        raise AssertionError("nothing was said")

    def _metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


async def print_costs(place: Path, seconds: float, starts: int, model: dict[str, Any]) -> None:
    costs = Costs(place, model)
    if starts:
        await costs.resume(starts)
    await costs.cost_and_rewind(seconds)
