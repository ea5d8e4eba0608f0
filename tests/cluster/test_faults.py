"""What a fleet of real engines goes through: two die at once, one is cut off the network and comes back, Redis dies and comes back.

From the log of every frame: no stream is ever seen in an epoch that is over, and none by two.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from streamer.cluster.launch import Launched, Processes
from streamer.cluster.run import Fleet
from tests.cluster.redis_server import REDIS, RedisServer
from tests.cluster.test_fleet import Running, clip, config, model, run, running, spread, until

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]
assert clip and model
STREAMS = 12


def sees_all(here: Running, since: float) -> bool:
    """Whether a frame of each stream has been seen from a moment on."""
    return {stream for at, _, stream in here.frames() if at > since} == set(here.fleet.head.configs)


def whole(here: Running) -> bool:
    return here.owned == len(here.fleet.head.configs)


def test_two_engines_that_die_at_once_leave_nothing_behind(tmp_path: Path, model: Path, clip: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, config(tmp_path, model, clip, STREAMS)) as here:
            await spread(here)
            await until(lambda: sees_all(here, time.monotonic() - 6), 60)
            for name in ("cpu-1", "cpu-2"):
                os.kill(here.pid(name), signal.SIGKILL)
            killed = time.monotonic()
            await until(lambda: not whole(here), 10)
            await until(lambda: whole(here), 60)
            took = time.monotonic() - killed
            await until(lambda: sees_all(here, killed + took), 60)
            print(f"two of four engines were killed at once: all {STREAMS} are owned again after {took:.2f} s; "
                  f"{here.never_two_owners()} changes of owner")  # fmt: skip

    run(test())


class Network:
    """A namespace with an engine in it, over a cable that can be cut."""

    def __init__(self, number: int) -> None:
        self.name, self.cable = f"fleet{number}", f"flt{number}"
        self.here, self.there = f"10.231.{number % 250}.1", f"10.231.{number % 250}.2"

    def __enter__(self) -> Network:
        self._ip("netns", "add", self.name)
        self._ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        self._ip("addr", "add", f"{self.here}/24", "dev", self.cable)
        self._ip("link", "set", self.cable, "up")
        self._ip("-n", self.name, "addr", "add", f"{self.there}/24", "dev", "eth0")
        for each in ("lo", "eth0"):
            self._ip("-n", self.name, "link", "set", each, "up")
        return self

    def __exit__(self, *error: object) -> None:
        self._ip("link", "del", self.cable)
        self._ip("netns", "del", self.name)

    def cut(self) -> None:
        self._ip("link", "set", self.cable, "down")

    def heal(self) -> None:
        self._ip("link", "set", self.cable, "up")

    @staticmethod
    def _ip(*what: str) -> None:
        subprocess.run(["ip", *what], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip")
    try:
        with Network(os.getpid() % 10_000) as network:
            yield network
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")


class Apart:
    """Begins cpu-1 in a namespace, the others here."""

    def __init__(self, settings: Any, network: Network, log: Path) -> None:
        command = (sys.executable, "-m", "tests.cluster.engine_logged", str(log))
        away = settings.model_copy(update={"engine": settings.engine.model_copy(update={"host": network.there})})
        self._here = Processes(settings, command)
        self._there = Processes(away, ("ip", "netns", "exec", network.name, *command))

    async def start(self, name: str) -> Launched:
        return await (self._there if name == "cpu-1" else self._here).start(name)

    def close(self) -> None: ...


def test_an_engine_that_is_cut_off_sees_nothing_more_and_comes_back(
    tmp_path: Path, model: Path, clip: Path, network: Network
) -> None:
    @asynccontextmanager
    async def apart() -> AsyncIterator[Running]:
        settings = config(tmp_path, model, clip, STREAMS, engines=[{"name": "cpu", "count": 2}])
        log = tmp_path / "frames"
        log.touch()
        fleet = Fleet(settings, Apart(settings, network, log))
        here = Running(fleet, await fleet.start(), log)
        pids: list[int] = []
        try:
            await until(lambda: len(fleet.head.ready()) == 2 and whole(here), 200)
            pids = [here.pid(name) for name in fleet.head.engines]
            yield here
        finally:
            await fleet.stop()
            await asyncio.sleep(2)
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    async def test() -> None:
        async with apart() as here:
            head = here.fleet.head
            for name in list(head.configs)[::2]:
                if head.placement.streams[name].engine != "cpu-1":
                    head.move(name, "cpu-1")
            await until(lambda: whole(here), 60)
            await until(lambda: sees_all(here, time.monotonic() - 6), 60)
            away = here.pid("cpu-1")
            mine = [each.name for each in head.placement.streams.values() if each.engine == "cpu-1"]
            assert mine
            network.cut()
            cut = time.monotonic()
            await until(lambda: any(head.owner(name) is None for name in mine), 30)
            gave_up = time.monotonic() - cut
            await until(lambda: whole(here), 60)
            took = time.monotonic() - cut
            await until(lambda: sees_all(here, cut + took), 60)
            assert not [row for row in here.rows() if row[1] == away and row[0] > cut + head.fleet.lease + 0.5]
            assert all(head.placement.streams[name].engine == "cpu-0" for name in mine)
            network.heal()
            healed = time.monotonic()
            await until(lambda: len(head.ready()) == 2, 60)
            back = time.monotonic() - healed
            assert here.pid("cpu-1") == away, "it is the same process, which was fenced"
            head.move(mine[0], "cpu-1")
            await until(lambda: any(row[1] == away and row[0] > healed for row in here.rows()), 60)
            print(f"cut off: given up after {gave_up:.2f} s, {len(mine)} streams owned again after {took:.2f} s; one of the fleet again "
                  f"{back:.2f} s after it was healed; {here.never_two_owners()} changes of owner")  # fmt: skip

    run(test())


@pytest.mark.skipif(REDIS is None, reason="needs redis-server (apt-get install redis-server)")
def test_redis_dies_and_comes_back_and_nobody_loses_a_stream(tmp_path: Path, model: Path, clip: Path) -> None:
    pytest.importorskip("redis")
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()

    async def test() -> None:
        settings = config(tmp_path, model, clip, STREAMS, table=server.url)
        async with running(tmp_path, settings) as here:
            head = here.fleet.head
            await spread(here)
            server.kill()
            killed = time.monotonic()
            await until(lambda: sees_all(here, killed + 2), 60)
            os.kill(here.pid("cpu-3"), signal.SIGKILL)
            await until(lambda: not whole(here), 10)
            await asyncio.sleep(1)
            assert not whole(here), "nobody is given a stream that the table does not know of"
            assert len(head.ready()) == 3
            server.start()
            began = time.monotonic()
            await until(lambda: whole(here), 60)
            took = time.monotonic() - began
            await until(lambda: sees_all(here, began + took), 60)
            server.kill()
            server.empty()
            server.start()
            head.move("camera-0", None)
            await until(lambda: whole(here), 60)
            print(f"Redis was killed for {began - killed:.1f} s, an engine meanwhile: all owned {took:.2f} s after it was back; "
                  f"{here.never_two_owners()} changes of owner")  # fmt: skip
        again = Fleet(settings)
        assert again.head.table.epoch >= STREAMS
        assert {each["name"] for each, _, _ in again.head.table.streams()} == set(head.configs)
        again.head.table.close()

    try:
        run(test())
    finally:
        server.close()
