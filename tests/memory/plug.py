"""A real daemon that is killed at random moments and started again on the same folder, and what it has told its clients."""

from __future__ import annotations

import asyncio
import io
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import httpx
import numpy as np
import yaml
from PIL import Image

from streamer.client import AsyncClient, ClientError
from streamer.memory.recording import NOTES
from streamer.memory.segment import read_notes
from streamer.memory.snapshot import load
from tests.memory.disk import Disk
from tests.ports import free_port

STREAMS = 4
DAEMONS = """
import os, sys, tests.tiny
from streamer.cli.main import main

for _ in sys.stdin:
    if not (child := os.fork()):
        os.dup2(2, 1)
        os._exit(main(sys.argv[1:]))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Has everything imported, which takes seconds of a core, and for each line becomes a daemon; tells its pid, and that it has ended."""
QUESTION = "What number was shown?"
SEEN = 4
"""Frames that a picture is seen in."""
SLOWEST = 120.0
"""Seconds that a start may take on a machine that does much else."""


def jpeg(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=92)
    return out.getvalue()


@dataclass(frozen=True)
class Shown:
    """A number that the stream `door` was shown, answered rightly, and gone at `gone`, Unix seconds."""

    number: str
    gone: float


class Daemons:
    """Daemons one after another, each a fork of a process that has done nothing but import."""

    def __init__(self, config: Path, log: Path, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-c", DAEMONS, "run", str(config)]
        with log.open("ab") as told:
            self._server = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, env={**os.environ, **environment}
            )
        self._pid: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        with self._server as server:
            server.kill()

    def start(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(b"\n")
        self._server.stdin.flush()
        self._pid = self._told()

    @property
    def ended(self) -> bool:
        """Whether it has, by itself."""
        assert self._server.stdout is not None
        return bool(select.select([self._server.stdout], [], [], 0)[0])

    def kill(self) -> None:
        """Kills the daemon that runs, and waits until it is gone."""
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._pid = None
            self._told()

    def _told(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


class Plug:
    """A daemon with four streams that can be pulled out and put in again.

    `lost` are the seconds that a stream had been watched for since its newest snapshot, or since its start, when the daemon was
    killed; `asked_about` how many numbers that were shown before a snapshot, and still known just before the kill, were asked
    about after a start, `known` how many of those were answered rightly.
    """

    def __init__(self, folder: Path, seed: int, *, nano: bool, disk: Disk | None = None, failing: float = 0.0) -> None:
        """`disk` loses power with each kill; `failing` is the share of syncs that go wrong."""
        self.folder, self.state, self.port = folder, folder / "state", free_port()
        self.chance, self.disk, self.failing = random.Random(seed), disk, failing
        self.url = f"http://127.0.0.1:{self.port}"
        self.config, self.log = folder / "config.yaml", folder / "log"
        demo = {"source": "demo:", "fps": 2, "record": True, "keep_questions": True}
        model = {"threads": 1} if nano else {"name": "tiny", "random_weights": True, "threads": 1}
        streams = [{"name": f"s{n}", **demo} for n in range(STREAMS - 1)]
        config = {"server": {"port": self.port}, "model": model, "streams": streams}
        self.config.write_text(yaml.safe_dump({**config, "storage": {"folder": str(self.state)}}))
        self.lost: list[float] = []
        self.ready: list[float] = []
        self.rounds = self.rows = self.asked_about = self.known = self.writes_lost = self.unreadable = 0
        self.told: dict[str, dict[int, str]] = {}
        """By stream, the entries that a client was told of."""
        self.watches: set[str] = set()
        self.shown: Shown | None = None
        self.newest: dict[str, float] = {}
        self.saved_at: dict[str, float] = {}
        """By stream, up to when a client was told, just before the kill, that all is saved; and the longest interval it was told of."""
        self.interval = 0.0
        self.recorded: list[Path] = []
        self.killed = self.watched = 0.0
        self.daemons = Daemons(self.config, self.log, disk.environment if disk else {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.daemons.__exit__(kind, error, trace)

    async def up(self) -> AsyncClient:
        began = time.monotonic()
        self.daemons.start()
        while True:
            assert not self.daemons.ended, self.log.read_text()[-2000:]
            assert time.monotonic() - began < SLOWEST
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200:
                    self.ready.append(time.monotonic() - began)
                    return await AsyncClient(self.url).__aenter__()
            await asyncio.sleep(0.1)

    async def round(self, seconds: float | None, pictures: Sequence[tuple[str, bytes, bytes]] = ()) -> None:
        """Starts, looks at what is remembered, lets it watch and answer for a while, and kills it at a random moment.

        With None, the first: nothing is remembered yet, and it is killed as soon as every stream has a snapshot. `pictures` are
        shown to `door`, a number, a picture of it, and one in which it is gone, until one is answered rightly; then the
        `seconds` count from the first snapshot after that.
        """
        try:
            if self.disk is not None:
                self.disk.set(failing=self.failing if self.rounds else 0.0)  # a database must have been made
            client = await self.up()
            if self.disk is not None:
                self.disk.set(failing=self.failing)
            self.watched, before = time.time(), self.watched
            now = {each["name"]: each for each in await client.streams()}
            if self.rounds:
                assert "door" in now, "a stream that a client was told of was lost"
                self.remembered(now, before)
                self.recordings_are_readable()
                await self.rows_are_there()
                await self.fact_is_known(client)
            else:
                await client.attach("door", "push://door", keep_questions=True)
            others = [asyncio.create_task(self.asked(client, f"s{n}")) for n in range(2)]
            others.append(asyncio.create_task(self.make_rows()))
            if pictures:
                await self.show(client, pictures)
                others.append(asyncio.create_task(self.go_on(client, pictures[0][2])))
            names = ["door"] if self.shown else [f"s{n}" for n in range(STREAMS - 1)] if seconds is None else []
            await asyncio.wait_for(self.saved(client, names, self.shown.gone if self.shown else 0.0), SLOWEST)
            await asyncio.sleep(seconds or 0.0)
            if self.shown and (said := await self.answer(client)) != self.shown.number:
                print(
                    f"shown {self.shown.number}, answered {said!r} before the kill: the model forgot it",
                    file=sys.stderr,
                )
                self.shown = None
            asked, now = time.time(), {each["name"]: each for each in await client.streams()}
            ages = {name: each["saved_age_s"] for name, each in now.items()}
            self.saved_at = {name: asked - age for name, age in ages.items() if age is not None}
            self.interval = max(each["save_interval_s"] or 0.0 for each in now.values())
            self.killed = time.time()
        finally:
            self.daemons.kill()
        for each in others[2:]:
            each.cancel()
        for each in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(each, AssertionError):
                raise each
        self.rounds += 1
        if self.disk is not None:
            self.writes_lost += self.disk.lose_power(self.chance)
        self.check()

    async def saved(self, client: AsyncClient, names: Sequence[str], since: float) -> None:
        """Waits until each of these streams has a snapshot of what it saw after `since`, Unix seconds."""
        while names:
            ages = {each["name"]: each["saved_age_s"] for each in await client.streams()}
            if all(ages[name] is not None and time.time() - ages[name] > since for name in names):
                return
            await asyncio.sleep(0.1)

    def remembered(self, now: dict[str, Any], before: float) -> None:
        for name, each in now.items():
            if name == "door":
                continue  # which is shown something now and then
            assert each["resumes"], f"{name} began anew"
            self.lost.append(self.killed - max(self.newest[name], before))

    async def rows_are_there(self) -> None:
        """Every row that a client had been told of is told again."""
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as web:
            for stream, told in self.told.items():
                for id, text in told.items():
                    found = (
                        await web.get(f"/v1/streams/{stream}/timeline", params={"before": id + 1, "limit": 1})
                    ).json()
                    assert [(each["id"], each["text"]) for each in found["entries"]] == [(id, text)], (stream, id, text)
                    self.rows += 1
            there = {each["name"] for each in (await web.get("/v1/watches")).json()["watches"]}
            assert self.watches <= there, f"watches {self.watches - there} were lost"
        self.told.clear()

    async def make_rows(self) -> None:
        """Makes and lists rows of every kind until the daemon is killed."""
        number = 0
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as web:
            while True:
                await asyncio.sleep(self.chance.uniform(0.0, 0.5))
                name = f"w{self.rounds}-{number}"
                if not number:
                    for old in sorted(self.watches):
                        self.watches.discard(old)
                        assert (await web.delete(f"/v1/watches/{old}")).status_code == 204
                    made = await web.post(
                        "/v1/watches", json={"name": name, "question": "Has a dog appeared?", "stream": "door"}
                    )
                    assert made.status_code == 201, made.text
                    self.watches.add(name)
                number += 1
                for stream in ("s0", "s1", "door"):
                    listed = (await web.get(f"/v1/streams/{stream}/timeline", params={"limit": 20})).json()
                    told = self.told.setdefault(stream, {})
                    told.update((each["id"], each["text"]) for each in listed["entries"])

    async def asked(self, client: AsyncClient, stream: str) -> None:
        with suppress(ClientError):  # killed
            while True:
                async for _ in client.ask(
                    "What is happening?", stream=stream, max_tokens=self.chance.choice((2, 8, 64))
                ):
                    pass

    async def show(self, client: AsyncClient, pictures: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Shows numbers and takes them away, each picture until it was seen, until one is answered rightly."""
        for number, picture, empty in pictures:
            for shown in (empty, picture, empty):
                seen = await self.seen(client)
                while await self.seen(client) < seen + SEEN:
                    await client.push(shown, stream="door")
                    await asyncio.sleep(0.15)
            gone = time.time()
            if (said := await self.answer(client)) == number:
                self.shown = Shown(number, gone)
                return
            print(f"shown {number}, answered {said!r} while it ran", file=sys.stderr)

    async def seen(self, client: AsyncClient) -> int:
        """Frames of the door's."""
        (count,) = [each["frames_seen"] for each in await client.streams() if each["name"] == "door"]
        return int(count)

    async def go_on(self, client: AsyncClient, empty: bytes) -> None:
        """The door's picture, in which nothing is, until the daemon is killed."""
        with suppress(ClientError):
            while True:
                await asyncio.sleep(0.5)
                await client.push(empty, stream="door")

    async def answer(self, client: AsyncClient) -> str:
        return "".join([word async for word in client.ask(QUESTION, stream="door", max_tokens=12)]).strip()

    async def fact_is_known(self, client: AsyncClient) -> None:
        shown, self.shown = self.shown, None
        if shown is not None:
            assert self.newest["door"] > shown.gone, "a snapshot that a client was told of was lost"
            said = await self.answer(client)
            self.asked_about += 1
            self.known += said == shown.number
            print(f"shown {shown.number}, answered {said}", file=sys.stderr)

    def check(self) -> None:
        """Nothing in the folder can't be read; recordings are looked at after the next start, which removes empty ones."""
        self.newest.clear()
        for path in (self.state / "snapshots").glob("*/*.snapshot"):
            taken, _ = load(path)
            self.newest[taken.stream] = max(taken.wall, self.newest.get(taken.stream, 0.0))
        for name, wall in self.saved_at.items():
            assert self.newest[name] > wall - 0.01, f"{name} lost more than a client was told"
        self.recorded = sorted((self.state / "recordings").glob("*/*.mp4"))
        database = sqlite3.connect(self.state / "streamer.sqlite")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()

    def recordings_are_readable(self) -> None:
        for path in (each for each in self.recorded if each.exists()):
            try:
                assert read_notes(path) is not None, f"{path.with_suffix(NOTES)} can't be read"
                with av.open(str(path)) as file:
                    assert sum(packet.size > 0 for packet in file.demux(video=0)), f"{path} has no packet"
            except (AssertionError, IndexError, av.error.FFmpegError) as error:
                self.unreadable += 1
                print(f"{error} ({path.stat().st_size} bytes)", file=sys.stderr)
