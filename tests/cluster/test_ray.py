"""A fleet whose engines are actors of a real Ray, on this machine: they start, one is killed, and what it had goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from streamer.cluster.run import Fleet
from tests.cluster.test_fleet import clip, config, model, until

pytest.importorskip("ray")
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]
assert clip and model


def test_engines_are_actors_and_one_that_is_killed_is_started_again(tmp_path: Path, model: Path, clip: Path) -> None:
    async def test() -> None:
        engines = [{"name": "cpu", "count": 2, "cpus": 1}]
        settings = config(tmp_path, model, clip, 6, ray={"address": "local"}, engines=engines)
        began = time.monotonic()
        fleet = Fleet(settings)
        try:
            await fleet.start()
            head = fleet.head
            await until(lambda: len(head.ready()) == 2 and all(head.owner(name) for name in head.configs), 240)
            print(f"two actors and six streams after {time.monotonic() - began:.1f} s")
            at = next(each for each in head.engines.values() if head.placement.room.engines[each.name].wishes)
            assert at.at is not None and at.at.pid != os.getpid()
            kept = tmp_path / "shared" / at.name / "snapshots"
            mine = len(head.placement.room.engines[at.name].wishes)
            await until(lambda: len({each.parent for each in kept.glob("*/*.snapshot")}) >= mine, 60)
            os.kill(at.at.pid, signal.SIGKILL)
            killed = time.monotonic()
            await until(lambda: not all(head.owner(name) for name in head.configs), 5)
            await until(lambda: all(head.owner(name) for name in head.configs), 30)
            print(f"an actor was killed: all six are back after {time.monotonic() - killed:.2f} s")
            assert all(each["memory"] == "goes on" for each in head.orders.moved), list(head.orders.moved)
            await until(lambda: len(head.ready()) == 2, 120)
        finally:
            await fleet.stop()

    asyncio.run(asyncio.wait_for(test(), 500))
