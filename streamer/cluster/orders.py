"""How a fleet's head carries out what the placement orders: each is said until it is done, refused, or of no use any more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx

from streamer.cluster.placement import Order, Own, Release
from streamer.cluster.table import TableError
from streamer.errors import AssistantError

if TYPE_CHECKING:
    from streamer.cluster.directory import Known
    from streamer.cluster.head import Head

log = logging.getLogger("streamer.fleet")
TURN_SECONDS = 0.05
"""How often it is looked what has become due by time alone."""
PATIENCE = 30.0
"""Seconds that an engine may take to do what it is told."""
PREPARE_SECONDS = 8.0
"""Seconds that the next engine may take to open a camera; a stream moves without it then."""
AGAIN_SECONDS = 0.1
KEPT_MOVES = 256


class Orders:
    """Turns the placement, and knows of each stream what its owner said. Everything is called on the head's event loop."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self.confirmed: dict[str, int] = {}
        """The epoch in which a stream's owner said that it has it."""
        self.since: dict[str, float] = {}
        """When it said so."""
        self.ordered: dict[str, int] = {}
        """The epoch that a stream's owner was told of last."""
        self.carrying: set[tuple[str, int]] = set()
        self.moved: deque[dict[str, Any]] = deque(maxlen=KEPT_MOVES)
        self.changed = asyncio.Event()
        """Is set, and made anew, whenever somebody has another stream."""
        self._lost: dict[str, tuple[float, str | None]] = {}
        """Since when, Unix seconds, a stream is seen by nobody, and who saw it last."""
        self._due = asyncio.Event()

    def wake(self) -> None:
        """Something has happened that the placement is to answer at once."""
        self._due.set()

    async def run(self) -> None:
        """Gives orders until it is cancelled."""
        head, placement = self._head, self._head.placement
        while True:
            self._due.clear()
            there = set(placement.room.engines)
            orders = placement.turn(time.monotonic())
            for name in there - set(placement.room.engines):
                log.error(
                    "engine %s has not been heard of for %.1f s: its streams are given to others",
                    name,
                    head.fleet.lease,
                )
                head.engines[name].trouble = "it has not been heard of"
                self.miss_all(name)
            if orders:
                await self._keep([(each.stream, each.engine, each.epoch) for each in orders if isinstance(each, Own)])
                for order in orders:
                    self.carrying.add((order.stream, order.epoch))
                    self.ordered[order.stream] = order.epoch
                    head.spawn(self._carry_out(order))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), TURN_SECONDS)

    async def _keep(self, owners: list[tuple[str, str, int]]) -> None:
        """Has the table know owners before these are told; nobody is told anything while it can't."""
        told = False
        while owners:
            try:
                return await asyncio.to_thread(self._head.table.own, owners)
            except TableError as error:
                if not told:
                    log.error("no stream is given to anybody until the table can be written: %s", error)
                told = True
                await asyncio.sleep(AGAIN_SECONDS)

    async def _carry_out(self, order: Order) -> None:
        known, own = self._head.engines[order.engine], isinstance(order, Own)
        at = known.at
        try:
            if isinstance(order, Release):
                await self._prepare(order)
            async with known.slots:
                while self._head.placement.stands(order) and known.at is at:
                    try:
                        if isinstance(order, Own):
                            await self._own(known, order)
                        else:
                            await self._release(known, order)
                        return
                    except httpx.HTTPError:
                        await asyncio.sleep(AGAIN_SECONDS)
                    except AssistantError as error:
                        if own and error.code != "no_lease":
                            log.warning(
                                "engine %s does not take stream %s: %s", order.engine, order.stream, error.message
                            )
                            self._head.placement.refused(order.stream, order.epoch, error.message, time.monotonic())
                            return
                        await asyncio.sleep(AGAIN_SECONDS)
        finally:
            self.carrying.discard((order.stream, order.epoch))
            self.wake()

    async def _own(self, known: Known, order: Own) -> None:
        head = self._head
        told = {
            "stream": head.configs[order.stream].model_dump(mode="json", exclude_unset=True),
            "epoch": order.epoch, "before": order.before, "watched": head.known.get(order.stream),
        }  # fmt: skip
        self.confirm(order.stream, order.epoch, await head.ask(known, "own", told, PATIENCE))

    async def _release(self, known: Known, order: Release) -> None:
        head = self._head
        self.miss(order.stream)
        told = {"stream": order.stream, "epoch": order.epoch, "forget": order.forget}
        reply = await head.ask(known, "release", told, PATIENCE)
        if reply["watched"] and order.stream in head.configs:
            head.known[order.stream] = reply["watched"]
            await self._know(order.stream)
        head.placement.released(order.stream, order.epoch, time.monotonic())

    async def _know(self, stream: str) -> None:
        """Keeps what watches know of a stream, so that another head does not have them tell it again."""
        with suppress(TableError):  # the next engine is told all the same
            await asyncio.to_thread(self._head.table.know, {stream: self._head.known[stream]})

    async def _prepare(self, order: Release) -> None:
        """Has the next engine open the camera while this one still sees it, so that nothing is missed for that."""
        head, placed = self._head, self._head.placement.streams.get(order.stream)
        if order.forget or placed is None or placed.target is None or order.stream not in head.configs:
            return
        told = {"stream": head.configs[order.stream].model_dump(mode="json", exclude_unset=True)}
        with suppress(httpx.HTTPError, AssistantError):
            await head.ask(head.engines[placed.target], "prepare", told, PREPARE_SECONDS)

    def confirm(self, stream: str, epoch: int, reply: Mapping[str, Any] | None) -> None:
        """An engine says that it has a stream; `reply` is what it told when it was given it."""
        if self.confirmed.get(stream) == epoch:
            return
        self.confirmed[stream], self.since[stream] = epoch, time.monotonic()
        placed, now = self._head.placement.streams[stream], time.time()
        since, before = self._lost.pop(stream, (None, None))
        if since is not None and reply is not None:
            self.moved.append(
                {"stream": stream, "from": before, "to": placed.engine, "epoch": epoch, "at": now, "unseen_s": round(now - since, 3),
                 "gap_s": round(now - (reply.get("saved_wall") or since), 3),
                 "memory": "goes on" if reply.get("resumes") else "begins anew"}
            )  # fmt: skip
            log.info(
                "stream %s went from engine %s to engine %s, unseen for %.2f s",
                *(stream, before, placed.engine, now - since),
            )
        self._tell()

    def miss(self, stream: str) -> None:
        """Nobody sees a stream from now on."""
        placed = self._head.placement.streams.get(stream)
        if self.confirmed.pop(stream, None) is not None and placed is not None:
            self._lost.setdefault(stream, (time.time(), placed.engine))
            self._tell()

    def miss_all(self, engine: str) -> None:
        """An engine sees nothing any more."""
        for placed in self._head.placement.streams.values():
            if placed.engine == engine:
                self.miss(placed.name)

    def forget(self, stream: str) -> None:
        """A stream is not to be watched any more."""
        self._lost.pop(stream, None)

    async def reclaim(self, known: Known, stream: str, epoch: int) -> None:
        """An engine has not what it was given: it is told to let go of it for good, so that what is still on its way does nothing."""
        self.miss(stream)
        self.carrying.add((stream, epoch))
        try:
            await self._head.ask(known, "release", {"stream": stream, "epoch": epoch, "forget": False}, PATIENCE)
            self._head.placement.lost(stream, epoch, time.monotonic())
        except (httpx.HTTPError, AssistantError) as error:
            log.warning("stream %s can't be taken from engine %s: %s", stream, known.name, error)
        finally:
            self.carrying.discard((stream, epoch))
            self.wake()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
