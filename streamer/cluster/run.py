"""The head and its gateway in one process: what `streamer fleet` runs."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn

from streamer.cluster.config import FleetConfig
from streamer.cluster.directory import Directory
from streamer.cluster.following import Follower
from streamer.cluster.gateway import Gateway
from streamer.cluster.head import Head
from streamer.cluster.launch import Launcher, launcher
from streamer.config import Config, ConfigError
from streamer.logs import about, output_aside
from streamer.server.listening import DaemonError, Server, listen, server_options, url_of
from streamer.systemd import notify

REVOKE_SECONDS = 1.0


class Door:
    """A gateway's port, and what it knows of the fleet. Everything lives on the event loop that calls `start`."""

    def __init__(self, fleet: FleetConfig, knows: Directory) -> None:
        """Raises ConfigError."""
        self.fleet, self.knows = fleet, knows
        self.gateway = Gateway(knows)
        self._app = self.gateway.app()
        config = Config.model_validate({"server": fleet.server})
        self._server = Server(uvicorn.Config(self._app, lifespan="off", **server_options(config)))
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> str:
        """Takes the port, begins engines; returns the URL. Raises DaemonError."""
        listener = listen(self.fleet.server)
        self._tasks = [asyncio.create_task(self._server.serve([listener])), asyncio.create_task(self._revoke())]
        await self.knows.start()
        return url_of(listener, self.fleet.server)

    async def stop(self, *, end: bool = True) -> None:
        """Closes what is open and ends the engines; without `end` these go on for whoever is the next head."""
        self._server.should_exit = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.gateway.close(), 1.0)
        await self.knows.stop(end=end)
        await asyncio.wait(self._tasks, timeout=0.5)
        for task in self._tasks:
            task.cancel()

    async def _revoke(self) -> None:
        while True:
            await asyncio.sleep(REVOKE_SECONDS)
            await self.gateway.revoke()


class Fleet(Door):
    """A head behind its gateway's port."""

    def __init__(self, fleet: FleetConfig, engines: Launcher | None = None) -> None:
        """`engines` begins them; unset, as the configuration says. Raises ConfigError."""
        self.head = Head(fleet, engines or launcher(fleet))
        super().__init__(fleet, self.head)


def run(fleet: FleetConfig, announce: Callable[[str], None] = lambda url: None, follows: str | None = None) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit code. With `follows` it is a gateway alone, of the head at that URL."""
    about(node=os.uname().nodename)
    with output_aside():
        return asyncio.run(_run(fleet, announce, follows))


async def _run(config: FleetConfig, announce: Callable[[str], None], follows: str | None) -> int:
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    try:
        door: Door = Fleet(config) if follows is None else Door(config, Follower(config, follows))
        url = await door.start()
    except (ConfigError, DaemonError) as error:
        print(f"streamer: {error}", file=sys.stderr)
        return 1
    what = (
        f"{len(config.names)} engines, {len(door.knows.configs)} streams"
        if follows is None
        else f"a gateway of {follows}"
    )
    print(f"streamer's fleet is at {url}: {what}", flush=True)
    announce(url)
    gc.freeze()  # what was imported stays: to look through it for cycles would hold up what passes through
    notify("READY=1")
    while not asked.is_set() and not door.knows.over:
        with suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), REVOKE_SECONDS)
    notify("STOPPING=1")
    if taken := door.knows.over:
        print(f"streamer: {taken}: this one stops, the engines go on", file=sys.stderr)
    await door.stop(end=not taken)
    return 1 if taken else 0
