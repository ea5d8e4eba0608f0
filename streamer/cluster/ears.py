"""How a fleet's head hears its engines: it starts them, renews their leases, and notices when one is no more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import httpx

from streamer.cluster.alike import Model, unlike
from streamer.cluster.room import Costs
from streamer.cluster.table import TableError
from streamer.errors import AssistantError

if TYPE_CHECKING:
    from streamer.cluster.directory import Known
    from streamer.cluster.head import Head

log = logging.getLogger("streamer.fleet")
HEAR_SECONDS = 0.4
"""How often engines are heard."""
CONNECT_SECONDS = 1.0
AGAIN_SECONDS = (1.0, 30.0)
"""Before an engine that did not start is started again: at first, and at most."""
SOUND_SECONDS = 30.0
"""An engine that ran for so long is started at once when it dies."""
RETRY_SECONDS = 5.0


class Ears:
    """Looks after each engine for as long as the head runs."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._model: Model | None = None
        """Name and fingerprint, which all engines' models must have."""

    async def look_after(self, known: Known) -> None:
        """Starts an engine, hears it, and starts it again when it is no more."""
        wait, most = AGAIN_SECONDS
        while True:
            if known.at is None:
                try:
                    known.at = await self._head.launcher.start(known.name)
                    known.clock, known.watches, known.began = None, -1, time.monotonic()
                    known.trouble = "its model is being loaded"
                except AssistantError as error:
                    known.trouble = error.message
                    log.error("%s", error.message)
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, most)
                    continue
            first = known.clock is None  # only the next word can renew a lease, which may be about to run out
            try:
                await self._hear(known)
            except httpx.TransportError as error:
                known.trouble = f"it does not answer ({error or type(error).__name__})"
                if await self._dead(known):
                    self._gone(known, "its process is gone")
                    wait = AGAIN_SECONDS[0] if time.monotonic() - known.began > SOUND_SECONDS else min(2 * wait, most)
                    await asyncio.sleep(wait)
                    continue
            except TableError as error:
                log.error("the fleet's table can't be written: %s", error)
            except (httpx.HTTPError, AssistantError, KeyError, ValueError) as error:
                known.trouble = f"it does not answer ({error or type(error).__name__})"
            if not first or known.clock is None:
                await asyncio.sleep(HEAR_SECONDS)

    async def _dead(self, known: Known) -> bool:
        """Whether an engine is to be begun anew: its process is seen to be gone, or is another machine's where nobody listens any more.

        Of the latter that is not certain, as a router may refuse a connection for it: first its lease must have run out.
        """
        at = known.at
        if at is None or at.here:
            return at is not None and at.gone
        return known.name not in self._head.placement.room.engines and await _nobody_listens(at.url)

    async def _hear(self, known: Known) -> None:
        """Renews an engine's lease, by its own clock, and takes what it tells."""
        grant = None
        holds = self._head.table.holds()  # a head that may have been replaced grants nothing
        if known.clock is not None and holds and self._head.placement.renewed(known.name, known.heard):
            grant = known.clock + self._head.fleet.lease
        edition = self._head.edition
        watches = None
        if known.watches != edition:
            watches = [each.model_dump(mode="json", exclude_unset=True) for each in self._head.watches.values()]
        asked = time.monotonic()
        facts = await self._head.ask(known, "lease", {"until": grant, "watches": watches})
        known.clock, known.heard, known.facts = facts["clock"], time.monotonic(), facts
        # Where the table was lost with its head: what engines have heard of is over.
        self._head.placement.epoch = max(self._head.placement.epoch, facts["epoch"])
        if not facts["ready"]:
            known.trouble = facts["trouble"] or "its model is being loaded"
            return
        known.watches = edition if watches is not None else known.watches
        costs = Costs(1000 / facts["frames_per_s"], facts["look_ms"], facts["token_ms"])
        if known.name not in self._head.placement.room.engines:
            if not facts["streams"]:
                await self._welcome(known, costs, facts)
            return
        known.trouble = ""
        self._head.placement.measured(known.name, costs)
        if facts["watched"]:
            self._head.known |= facts["watched"]
            self._head.table.know(facts["watched"])
        if grant is None:
            return
        for stream, epoch in [
            (each, self._head.placement.streams[each].epoch)
            for each in self._head.placement.room.engines[known.name].wishes
        ]:
            placed = self._head.placement.streams[stream]
            if placed.state != "owned" or placed.engine != known.name or self._head.orders.ordered.get(stream) != epoch:
                continue
            if (stream, epoch) in self._head.orders.carrying:
                continue
            if facts["streams"].get(stream) == epoch:
                self._head.orders.confirm(stream, epoch, None)
            elif self._head.orders.since.get(stream, 0.0) < asked:
                self._head.spawn(self._head.orders.reclaim(known, stream, epoch))

    async def _welcome(self, known: Known, costs: Costs, facts: Mapping[str, Any]) -> None:
        """Takes an engine that is ready among those that are given streams, unless it can't be one of them."""
        assert known.at is not None
        hello = await self._head.ask(known, "hello", {})
        known.trouble = unlike(hello, self._head.probe, self._head.depot.shown(), self._model, time.time())
        if not known.trouble:
            self._model = hello["model"], hello["fingerprint"]
            at, before = asdict(known.at), self._head.table.engines().get(known.name, {})
            # The same process, whose lease had run out: it is still being emptied. A new one is one that was updated.
            draining = before.get("at") == at and before.get("draining", False)
            measured = [costs.frame_ms, costs.look_ms, costs.token_ms]
            row = {"at": at, "costs": measured, "slots": facts["slots"], "draining": draining}
            self._head.table.keep_engine(known.name, row)
            self._head.placement.joined(known.name, costs, facts["slots"], known.heard, self._head.labels(known.name))
            self._head.placement.drain(known.name, draining)
            self._head.orders.wake()
            log.info("engine %s is there: %.1f ms a frame, %d slots", known.name, costs.frame_ms, facts["slots"])
            return
        log.error("engine %s is given no streams: %s", known.name, known.trouble)
        await asyncio.sleep(RETRY_SECONDS)

    def _gone(self, known: Known, why: str) -> None:
        log.error("engine %s: %s", known.name, why)
        known.at, known.clock, known.trouble = None, None, f"{why}, it is started again"
        self._head.orders.miss_all(known.name)
        self._head.placement.gone(known.name, time.monotonic())
        self._head.orders.wake()
        with suppress(TableError):  # an engine that is remembered for nothing is found to be gone by the next head
            self._head.table.keep_engine(known.name, None)


async def _nobody_listens(url: str) -> bool:
    """Whether it is said, by an engine's machine or on the way there, that its port is closed."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_SECONDS)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False
