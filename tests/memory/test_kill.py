"""Pull the plug and it still knows: the real daemon, killed at random moments and started again on the same state folder.

`python -m tests.memory.test_kill 100` kills so many times and prints what was lost.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer.client import AsyncClient, ClientError
from streamer.memory.snapshot import load

MOST_LOST = 10.0
"""Seconds of memory that a kill may cost, with a snapshot every 5 s."""
STREAMS = 4


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


class Plug:
    """A daemon with four streams that can be pulled out and put in again."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance, self.port = folder, chance, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / "config.yaml"
        demo = {"source": "demo:", "fps": 2}
        self.config.write_text(
            yaml.safe_dump(
                {
                    "server": {"port": self.port},
                    "model": {"threads": 1},
                    "streams": [{"name": f"s{n}", **demo} for n in range(STREAMS - 1)],
                    "storage": {"folder": str(folder / "state")},
                }
            )
        )
        self.lost: list[float] = []
        """Seconds that a stream had been watched for since its last snapshot, or since its start, when the daemon was killed."""
        self.ready: list[float] = []
        self.added: set[str] = set()

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "streamer.cli.main", "run", str(self.config)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    async def up(self, daemon: subprocess.Popen[bytes]) -> AsyncClient:
        began = time.monotonic()
        while True:
            assert daemon.poll() is None, daemon.stderr.read().decode() if daemon.stderr else ""
            try:
                client = await AsyncClient(self.url).__aenter__()
            except ClientError:
                await asyncio.sleep(0.1)
                continue
            try:
                if len(await client.streams()) >= STREAMS - (not self.added):
                    self.ready.append(time.monotonic() - began)
                    return client
            except ClientError:
                pass
            await client.__aexit__(None, None, None)
            await asyncio.sleep(0.1)

    async def round(self, seconds: float | None) -> None:
        """Starts, looks at what is remembered, lets it watch and answer for a while, and kills it at a random moment.

        With None, the first: nothing is remembered yet, and it is killed as soon as every stream has a snapshot.
        """
        with self.start() as daemon:
            try:
                client = await self.up(daemon)
                now = {each["name"]: each for each in await client.streams()}
                assert self.added <= now.keys(), "a stream that a client was told of was lost"
                if seconds is not None:
                    for name, each in now.items():
                        assert each["resumes"], f"{name} began anew"
                        self.lost.append(self.killed - max(self.newest[name], self.watched))
                self.watched = time.time()
                if not self.added:
                    await client.attach("added", "demo:", fps=2)
                    self.added.add("added")
                open_answers = [asyncio.create_task(self.asked(client, f"s{n}")) for n in range(2)]
                if seconds is not None:
                    await asyncio.sleep(seconds)
                else:
                    while not all(each["saved_age_s"] is not None for each in await client.streams()):
                        await asyncio.sleep(0.1)
                daemon.send_signal(signal.SIGKILL)
                self.killed = time.time()
                await asyncio.gather(*open_answers)
            finally:
                daemon.kill()
        self.check()

    async def asked(self, client: AsyncClient, stream: str) -> None:
        try:
            while True:
                async for _ in client.ask("What is happening?", stream=stream):
                    pass
        except ClientError:
            pass  # killed

    def check(self) -> None:
        """Nothing in the folder can't be read."""
        self.newest: dict[str, float] = {}
        for place in (self.folder / "state" / "snapshots").iterdir():
            for path in place.glob("*.snapshot"):
                taken, _ = load(path)
                self.newest[taken.stream] = max(taken.wall, self.newest.get(taken.stream, 0.0))
        database = sqlite3.connect(self.folder / "state" / "streamer.sqlite")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()


async def pull(folder: Path, kills: int, seed: int = 1) -> Plug:
    chance = random.Random(seed)
    plug = Plug(folder, chance)
    await plug.round(None)
    for n in range(kills - 1):
        await plug.round(chance.uniform(0.0, 11.0) if kills > 2 else 6.0)
        print(f"kill {n + 2}: lost {max(plug.lost[-STREAMS:]):.1f} s", file=sys.stderr)
    return plug


@pytest.mark.slow
def test_two_kills_cost_less_than_ten_seconds(tmp_path: Path) -> None:
    plug = asyncio.run(asyncio.wait_for(pull(tmp_path, 2), 280))
    assert len(plug.lost) == STREAMS and max(plug.lost) < MOST_LOST


def main(kills: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        plug = asyncio.run(pull(Path(folder), kills))
    lost = sorted(plug.lost)
    return {
        "kills": kills,
        "most_lost_s": lost[-1],
        "median_lost_s": lost[len(lost) // 2],
        "most_ready_s": max(plug.ready),
    }


if __name__ == "__main__":
    print(main(int(sys.argv[1])))
