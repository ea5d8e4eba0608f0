"""Who has which stream of a fleet, as its head decides it and its gateways know it."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from streamer.cluster.config import FleetConfig
from streamer.cluster.launch import Launched
from streamer.cluster.passes import head_pass, visitor_pass
from streamer.cluster.placement import Placement
from streamer.config import StreamConfig
from streamer.errors import AssistantError
from streamer.watch_config import WatchConfig

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


class Changes(Protocol):
    """What is told of streams that go from one engine to another."""

    confirmed: dict[str, int]
    """The epoch in which a stream's owner said that it has it."""
    moved: deque[dict[str, Any]]
    changed: asyncio.Event
    """Is set, and made anew, whenever somebody has another stream."""


class Directory(ABC):
    """Engines, streams and watches of a fleet. Everything is called on one event loop."""

    placement: Placement
    orders: Changes

    def __init__(self, fleet: FleetConfig) -> None:
        """Raises ConfigError."""
        self.fleet, self.secret = fleet, fleet.secret()
        self.engines = {name: Known(name) for name in fleet.names}
        self.configs: dict[str, StreamConfig] = {}
        self.watches: dict[str, WatchConfig] = {}
        self.client = httpx.AsyncClient(
            timeout=None, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64), trust_env=False
        )

    @abstractmethod
    async def start(self) -> None:
        """Knows what there is, from now on."""

    @abstractmethod
    async def stop(self, *, end: bool) -> None:
        """Stops, and with `end` the engines that are its own too."""

    @abstractmethod
    async def do(self, what: str, told: Mapping[str, Any]) -> None:
        """Has the head `attach`, `detach`, `move`, `drain` or `watch`. Raises AssistantError for what it refuses."""

    @abstractmethod
    def view(self) -> dict[str, Any]:
        """The fleet as plain data."""

    @property
    def over(self) -> str:
        """Why this can't go on; nothing while it can."""
        return ""

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
            self.check(stream)
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

    def check(self, name: str) -> None:
        """Raises AssistantError: unknown_stream."""
        if name not in self.configs:
            there = ", ".join(list(self.configs)[:10]) or "none"
            raise AssistantError("unknown_stream", f"There is no stream {name!r}; there are: {there}.")
