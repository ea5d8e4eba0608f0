"""A fleet's head: hears engines, carries out what the placement decides, and knows who has which stream."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from streamer.cluster.alike import PROBE
from streamer.cluster.config import REDIS, FleetConfig
from streamer.cluster.ears import Ears
from streamer.cluster.launch import Launched, Launcher
from streamer.cluster.orders import Orders
from streamer.cluster.passes import head_pass, visitor_pass
from streamer.cluster.placement import Placement
from streamer.cluster.redis_table import RedisTable
from streamer.cluster.room import Costs
from streamer.cluster.table import FileTable, Table, TableError
from streamer.config import ConfigError, StreamConfig, parse_config
from streamer.errors import AssistantError
from streamer.watch_config import WatchConfig

log = logging.getLogger("streamer.fleet")
PATIENCE = 1.5
"""Seconds that an engine may take to answer."""
AT_ONCE = 8
"""Orders that one engine carries out at once."""


@dataclass(slots=True)
class Known:
    """An engine as the head knows it. `clock` is its own, when it was last heard; `heard` the head's then."""

    name: str
    at: Launched | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    clock: float | None = None
    heard: float = float("-inf")
    began: float = float("-inf")
    trouble: str = "it is being started"
    watches: int = -1
    """Which edition of the fleet's watches it has."""
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


class Head:
    """Engines, streams and watches of a fleet. Everything is called on one event loop."""

    def __init__(self, fleet: FleetConfig, launcher: Launcher) -> None:
        """Takes the table. Raises ConfigError."""
        self.fleet, self.secret = fleet, fleet.secret()
        self.launcher = launcher
        try:
            fleet.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.table = _table(fleet)
            self.probe = secrets.token_hex(16)
            (fleet.path / PROBE).write_text(self.probe)
        except TableError as error:
            raise ConfigError(
                [f"table: can't be used ({error}): another head may run; stop it, or name another"]
            ) from None
        except OSError as error:
            raise ConfigError(
                [f"folder: {fleet.folder} can't be used ({error.strerror}): name one that is shared"]
            ) from None
        self.placement = Placement(fleet.lease)
        self.engines = {name: Known(name) for name in fleet.names}
        self.configs: dict[str, StreamConfig] = {}
        self.watches: dict[str, WatchConfig] = {}
        self.edition = 0
        self.known: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.client = httpx.AsyncClient(
            timeout=None, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64), trust_env=False
        )
        self.orders = Orders(self)

    async def start(self) -> None:
        """Goes on with what the table knows, then with what is configured."""
        now = time.monotonic()
        self.watches = {name: WatchConfig.model_validate(each) for name, each in self.table.watches().items()}
        self.watches |= {each.name: each for each in self.fleet.watches}
        self.known = self.table.known()
        for name, facts in self.table.engines().items():
            if name in self.engines:
                at = self.engines[name].at = Launched(facts["url"], facts["incarnation"], facts["pid"], facts["node"])
                self.placement.joined(name, Costs(*facts["costs"]), facts["slots"], now, self.labels(name))
                log.info("engine %s was at %s", name, at.url)
        self.placement.epoch = self.table.epoch
        for options, engine, epoch in self.table.streams():
            with suppress(ConfigError):
                config = parse_config({"streams": [options]}).streams[0]
                self.configs[config.name] = config
                self.placement.restored(self._wish(config), engine, epoch, now)
                self.orders.ordered[config.name] = epoch
        for config in self.fleet.streams:
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
        self._want(config)

    def detach(self, name: str) -> None:
        """Raises AssistantError: unknown_stream."""
        self._check(name)
        self._keep(self.table.drop_stream, name)
        del self.configs[name]
        self.known.pop(name, None)
        self.orders.forget(name)
        self.placement.unwant(name, time.monotonic())
        self.orders.wake()

    def move(self, name: str, engine: str | None) -> None:
        """Raises AssistantError: unknown_stream, cannot_move."""
        self._check(name)
        if why := self.placement.move(name, engine, time.monotonic()):
            raise AssistantError("bad_option", f"Stream {name!r} can't be moved: {why}.")
        self.orders.wake()

    def drain(self, engine: str, *, draining: bool) -> None:
        """Raises AssistantError: bad_option."""
        if engine not in self.placement.room.engines:
            there = ", ".join(self.placement.room.engines) or "none"
            raise AssistantError("bad_option", f"There is no engine {engine!r}; there are: {there}.")
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
                self._check(stream)
            self._keep(self.table.keep_watch, name, config.model_dump(mode="json", exclude_unset=True))
            self.watches[name] = config
        self.edition += 1
        for each in self.configs.values():
            self.placement.want(self._wish(each), time.monotonic())

    def owner(self, stream: str) -> Known | None:
        """Who has a stream for sure, and does not let it go just now."""
        placed = self.placement.streams.get(stream)
        if placed is None or placed.state != "owned" or self.orders.confirmed.get(stream) != placed.epoch:
            return None
        return self.engines.get(placed.engine or "")

    async def found(self, stream: str, seconds: float) -> Known:
        """Its owner, waited for. Raises AssistantError: unknown_stream, not_ready."""
        end = time.monotonic() + seconds
        while True:
            self._check(stream)
            if (owner := self.owner(stream)) is not None and owner.at is not None:
                return owner
            left = end - time.monotonic()
            if left <= 0:
                placed = self.placement.streams[stream]
                raise AssistantError(
                    "not_ready", f"Stream {stream!r} is watched by no engine now: {placed.why or placed.state}."
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self.orders.changed.wait(), left)

    def ready(self) -> list[Known]:
        """Engines that may be asked."""
        return [
            known
            for known in self.engines.values()
            if known.at is not None and known.name in self.placement.room.engines
        ]

    def bearer(self, known: Known, visitor: Any = None) -> dict[str, str]:
        """The header that lets the head in at an engine, or a visitor of the gateway."""
        assert known.at is not None
        if visitor is None:
            token = head_pass(self.secret, known.name, known.at.incarnation)
        else:
            token = visitor_pass(
                self.secret, known.name, known.at.incarnation, visitor.name, visitor.scopes, visitor.expires
            )
        return {"Authorization": f"Bearer {token}"}

    def view(self) -> dict[str, Any]:
        """The fleet as plain data."""
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

    def _want(self, config: StreamConfig) -> None:
        if self.configs.get(config.name) != config:
            self._keep(self.table.keep_stream, config.model_dump(mode="json", exclude_unset=True))
        self.configs[config.name] = config
        self.placement.want(self._wish(config), time.monotonic())
        self.orders.wake()

    def _wish(self, config: StreamConfig) -> Any:
        return self.fleet.wish(config, self.watches.values())

    def labels(self, name: str) -> frozenset[tuple[str, str]]:
        return frozenset(self.fleet.names[name].labels.items())

    def _check(self, name: str) -> None:
        if name not in self.configs:
            there = ", ".join(list(self.configs)[:10]) or "none"
            raise AssistantError("unknown_stream", f"There is no stream {name!r}; there are: {there}.")

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
    return FileTable(Path(fleet.table).expanduser() if fleet.table else fleet.path / "fleet.sqlite")
