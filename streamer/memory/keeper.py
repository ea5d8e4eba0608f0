"""Keeps what outlasts the process, for the assistant, which calls it on its event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from streamer.config import ConfigError, StreamConfig, parse_config
from streamer.errors import AssistantError
from streamer.memory.folder import FolderError
from streamer.memory.store import Store, StoreError

log = logging.getLogger("streamer")
PATIENCE = 2.0
"""Seconds that a client waits for the disk before it is told that its stream is watched, though it is not kept yet."""


class Keeper:
    """What is kept of streams."""

    def __init__(self, folder: str) -> None:
        """Takes the state folder; waits for the disk. Raises AssistantError: storage."""
        self._added: dict[str, str] = {}
        try:
            self.store = Store(Path(folder).expanduser(), self._write_again)
        except FolderError as error:
            raise AssistantError("storage", f"{error}.") from None
        self._added = dict(self.store.read("SELECT name, config FROM streams ORDER BY added, name"))

    def close(self) -> None:
        """Writes what waits; waits for the disk, about two seconds at most."""
        self.store.close()

    async def attach_added(self, there: Collection[str], attach: Callable[[StreamConfig], Awaitable[Any]]) -> None:
        """Watches the streams again that were added while the daemon ran; one that can't be is told, and tried the next time.

        What is configured by now, and so `there`, takes the place of what was added.
        """
        for name, options in list(self._added.items()):
            if name in there:
                await self.remove(name)
                continue
            try:
                await attach(parse_config({"streams": [json.loads(options)]}, f"stream {name}").streams[0])
            except (AssistantError, ConfigError) as error:
                log.warning("stream %s, which was added while the daemon ran, can't be watched now: %s", name, error)

    async def add(self, config: StreamConfig) -> None:
        """A stream was added: once this returns it is watched after a restart too, unless the disk is at fault."""
        if config.keep == "nothing":
            return
        self._added[config.name] = json.dumps(config.model_dump(mode="json", exclude_unset=True))
        await self._kept(self._write(config.name))

    async def remove(self, name: str) -> None:
        """A stream was removed, and is not watched after a restart."""
        if self._added.pop(name, None) is not None:
            await self._kept(self.store.write("DELETE FROM streams WHERE name = ?", (name,), now=True))

    def _write(self, name: str) -> Future[int]:
        row = (name, self._added[name], time.time())
        return self.store.write("INSERT OR REPLACE INTO streams VALUES (?, ?, ?)", row, now=True)

    def _write_again(self) -> None:
        for name in tuple(self._added):
            self._write(name)

    async def _kept(self, row: Future[int]) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(row)), PATIENCE)
        except (StoreError, TimeoutError) as error:
            log.warning("a change of streams is not kept yet: %s", self.store.fault or error or "the disk is slow")
