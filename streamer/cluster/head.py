"""A fleet's head: hears engines, carries out what the placement decides, and knows who has which stream."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from streamer.cluster.config import REDIS, FleetConfig
from streamer.cluster.depot import depot
from streamer.cluster.directory import Directory, Known
from streamer.cluster.ears import Ears
from streamer.cluster.launch import Launched, Launcher
from streamer.cluster.orders import Orders
from streamer.cluster.placement import Placement
from streamer.cluster.redis_table import RedisTable
from streamer.cluster.room import Costs
from streamer.cluster.table import FileTable, Table, TableError
from streamer.config import ConfigError, StreamConfig, parse_config
from streamer.errors import AssistantError
from streamer.memory.folder import PRIVATE
from streamer.watch_config import WatchConfig

log = logging.getLogger("streamer.fleet")
PATIENCE = 1.5
"""Seconds that an engine may take to answer."""


class Head(Directory):
    """Engines, streams and watches of a fleet. Everything is called on one event loop."""

    def __init__(self, fleet: FleetConfig, launcher: Launcher) -> None:
        """Takes the table. Raises ConfigError."""
        super().__init__(fleet)
        self.launcher = launcher
        try:
            self.depot = depot(fleet.folder)
            if fleet.table is None:
                Path(fleet.folder).expanduser().mkdir(parents=True, exist_ok=True, mode=PRIVATE)
            self.table = _table(fleet)
            self.probe = secrets.token_hex(16)
            self.depot.begin(self.probe)
        except TableError as error:
            raise ConfigError([f"table: {error}"]) from None
        except OSError as error:
            raise ConfigError(
                [f"folder: {fleet.folder} can't be used ({error.strerror or error}): name one that is shared"]
            ) from None
        self.placement = Placement(fleet.lease)
        self.edition = 0
        self.known: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.orders: Orders = Orders(self)

    async def start(self) -> None:
        """Goes on with what the table knows, then with what is configured."""
        now = time.monotonic()
        self.watches = {name: WatchConfig.model_validate(each) for name, each in self.table.watches().items()}
        self.watches |= {each.name: each for each in self.fleet.watches}
        self.known = self.table.known()
        for name, facts in self.table.engines().items():
            if name in self.engines:
                at = self.engines[name].at = Launched(**facts["at"])
                self.placement.joined(name, Costs(*facts["costs"]), facts["slots"], now, self.labels(name))
                self.placement.drain(name, facts.get("draining", False))
                log.info("engine %s was at %s", name, at.url)
        self.placement.epoch = self.table.epoch
        for options, engine, epoch in self.table.streams():
            with suppress(ConfigError):
                config = parse_config({"streams": [options]}).streams[0]
                self.configs[config.name] = config
                self.placement.restored(self._wish(config), engine, epoch, now)
                self.orders.ordered[config.name] = epoch
        listed, named = self.table.listed(), {config.name for config in self.fleet.streams}
        for name in sorted(listed & self.configs.keys() - named):
            log.info("stream %s is no longer in the fleet's file: it is watched no more", name)
            self.detach(name)
        for config in self.fleet.streams:
            if config.name not in listed or self.configs.get(config.name) != config:
                self._keep_stream(config, listed=True)
            self._want(config)
        self.spawn(self.orders.run())
        ears = Ears(self)
        for known in self.engines.values():
            self.spawn(ears.look_after(known))

    async def stop(self, *, end: bool) -> None:
        """Stops, and with `end` its engines too."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if end:
            await asyncio.gather(*(self._end(known) for known in self.engines.values()))
        await self.client.aclose()
        self.table.close()
        self.launcher.close()

    # What may be asked

    async def do(self, what: str, told: Mapping[str, Any]) -> None:
        """See `Directory.do`."""
        match what:
            case "attach":
                self.attach(parse_config({"streams": [told["stream"]]}, "stream").streams[0])
            case "detach":
                self.detach(told["stream"])
            case "move":
                self.move(told["stream"], told["engine"])
            case "drain":
                self.drain(told["engine"], draining=told["draining"])
            case "watch":
                config = told["config"]
                self.watch(None if config is None else WatchConfig.model_validate(config), told["name"])
            case _:
                raise AssistantError("bad_option", f"Nobody knows how to {what!r}.")

    def attach(self, config: StreamConfig) -> None:
        """Has a stream watched. Raises AssistantError: stream_exists, and too_many_streams where there is no room."""
        if config.name in self.configs:
            raise AssistantError(
                "stream_exists", f"There is a stream {config.name!r} already: remove it or take another name."
            )
        wish, room = self._wish(config), self.placement.room
        if room.best(wish) is None and not any(
            each.wish.priority < wish.priority for each in self.placement.streams.values()
        ):
            raise AssistantError(
                "too_many_streams", f"There is no room for {config.name!r}: {self.placement.shortage(wish)}."
            )
        self._keep_stream(config, listed=False)
        self._want(config)

    def detach(self, name: str) -> None:
        """Raises AssistantError: unknown_stream."""
        self.check(name)
        self._keep(self.table.drop_stream, name)
        del self.configs[name]
        self.known.pop(name, None)
        self.orders.forget(name)
        self.placement.unwant(name, time.monotonic())
        self.orders.wake()

    def move(self, name: str, engine: str | None) -> None:
        """Raises AssistantError: unknown_stream, cannot_move."""
        self.check(name)
        if why := self.placement.move(name, engine, time.monotonic()):
            raise AssistantError("bad_option", f"Stream {name!r} can't be moved: {why}.")
        self.orders.wake()

    def drain(self, engine: str, *, draining: bool) -> None:
        """Empties an engine for as long as its process runs, or ends that. Raises AssistantError: bad_option, storage."""
        if engine not in self.placement.room.engines:
            there = ", ".join(self.placement.room.engines) or "none"
            raise AssistantError("bad_option", f"There is no engine {engine!r}; there are: {there}.")
        self._keep(lambda: self.table.keep_engine(engine, {**self.table.engines()[engine], "draining": draining}))
        self.placement.drain(engine, draining)
        self.orders.wake()

    def watch(self, config: WatchConfig | None, name: str) -> None:
        """Makes a watch, or with None removes it. Raises AssistantError: watch_exists, unknown_watch, unknown_stream."""
        if config is None:
            if name not in self.watches:
                there = ", ".join(self.watches) or "none"
                raise AssistantError("unknown_watch", f"There is no watch {name!r}; there are: {there}.")
            self._keep(self.table.keep_watch, name, None)
            del self.watches[name]
        else:
            if name in self.watches:
                raise AssistantError(
                    "watch_exists", f"There is a watch {name!r} already: remove it first, or choose another name."
                )
            for stream in config.streams:
                self.check(stream)
            self._keep(self.table.keep_watch, name, config.model_dump(mode="json", exclude_unset=True))
            self.watches[name] = config
        self.edition += 1
        for each in self.configs.values():
            self.placement.want(self._wish(each), time.monotonic())

    def view(self) -> dict[str, Any]:
        """See `Directory.view`."""
        now, engines = time.monotonic(), []
        for known in self.engines.values():
            there = self.placement.room.engines.get(known.name)
            engines.append(
                {
                    "name": known.name,
                    "state": "draining" if there and there.draining else "up" if there else "down",
                    "trouble": "" if there else known.trouble,
                    "url": known.at and known.at.url,
                    "node": known.at and known.at.node,
                    "pid": known.at and known.at.pid,
                    "streams": len(there.wishes) if there else 0,
                    "slots": there.slots if there else 0,
                    "load": round(there.load / 1000, 4) if there else 0.0,
                    "frame_ms": round(there.costs.frame_ms, 3) if there else None,
                    "lease_s": round(max(0.0, there.until - now), 3) if there else 0.0,
                    "labels": dict(self.fleet.names[known.name].labels),
                }
            )
        streams = [
            {
                "name": each.name,
                "state": each.state,
                "engine": each.engine,
                "epoch": each.epoch,
                "why": each.why,
                "priority": each.wish.priority,
            }
            for each in self.placement.streams.values()
        ]
        return {
            "engines": engines,
            "streams": streams,
            "moves": self.placement.moves,
            "moved": list(self.orders.moved)[-32:],
        }

    @property
    def over(self) -> str:
        return self.table.taken

    # Orders, and what comes of them

    async def _end(self, known: Known) -> None:
        if known.at is not None:
            with suppress(httpx.HTTPError, AssistantError, TableError):
                await self.ask(known, "end", {})
                self.table.keep_engine(known.name, None)

    async def ask(self, known: Known, what: str, told: Mapping[str, Any], seconds: float = PATIENCE) -> dict[str, Any]:
        """Says something to an engine. Raises httpx.HTTPError, and AssistantError for what it refuses."""
        if known.at is None:
            raise AssistantError("not_ready", known.trouble)
        reply = await self.client.post(
            f"{known.at.url}/fleet/{what}", json=told, headers=self.bearer(known), timeout=seconds
        )
        if reply.is_error:
            error = reply.json()["error"]
            raise AssistantError(error["code"], error["message"])
        return reply.json() if reply.content else {}

    def _keep(self, keep: Callable[..., None], *row: Any) -> None:
        """Raises AssistantError: storage."""
        try:
            keep(*row)
        except TableError as error:
            raise AssistantError("storage", f"The fleet's table can't be written now: {error}.") from None

    def _keep_stream(self, config: StreamConfig, *, listed: bool) -> None:
        """Raises AssistantError: storage."""
        self._keep(self.table.keep_stream, config.model_dump(mode="json", exclude_unset=True), listed)

    def _want(self, config: StreamConfig) -> None:
        self.configs[config.name] = config
        self.placement.want(self._wish(config), time.monotonic())
        self.orders.wake()

    def _wish(self, config: StreamConfig) -> Any:
        return self.fleet.wish(config, self.watches.values())

    def labels(self, name: str) -> frozenset[tuple[str, str]]:
        return frozenset(self.fleet.names[name].labels.items())

    def spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the fleet's head failed at something", exc_info=error)


def _table(fleet: FleetConfig) -> Table:
    """Raises TableError."""
    if fleet.table is not None and fleet.table.startswith(REDIS):
        return RedisTable(fleet.table)
    return FileTable(
        Path(fleet.table).expanduser() if fleet.table else Path(fleet.folder).expanduser() / "fleet.sqlite"
    )
