"""How a fleet's head hears its engines: it starts them, renews their leases, and notices when one is no more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from streamer.cluster.engine import streamer_version
from streamer.cluster.room import Costs
from streamer.errors import AssistantError

if TYPE_CHECKING:
    from streamer.cluster.head import Head, Known

log = logging.getLogger("streamer.fleet")
HEAR_SECONDS = 0.4
"""How often engines are heard."""
CONNECT_SECONDS = 1.0
AGAIN_SECONDS = (1.0, 30.0)
"""Before an engine that did not start is started again: at first, and at most."""
SOUND_SECONDS = 30.0
"""An engine that ran for so long is started at once when it dies."""
CLOCK_SECONDS = 5.0
"""How far an engine's time of day may be from the head's: gaps are told by it."""
RETRY_SECONDS = 5.0


class Ears:
    """Looks after each engine for as long as the head runs."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._model: tuple[str, str] | None = None
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
            try:
                await self._hear(known)
            except httpx.ConnectError:
                if await _nobody_listens(known.at.url):
                    self._gone(known, "its process is gone")
                    wait = AGAIN_SECONDS[0] if time.monotonic() - known.began > SOUND_SECONDS else min(2 * wait, most)
                    await asyncio.sleep(wait)
                    continue
            except (httpx.HTTPError, AssistantError, KeyError, ValueError) as error:
                known.trouble = f"it does not answer ({error or type(error).__name__})"
            await asyncio.sleep(HEAR_SECONDS)

    async def _hear(self, known: Known) -> None:
        """Renews an engine's lease, by its own clock, and takes what it tells."""
        grant = None
        if known.clock is not None and self._head.placement.renewed(known.name, known.heard):
            grant = known.clock + self._head.fleet.lease
        edition = self._head.edition
        watches = None
        if known.watches != edition:
            watches = [each.model_dump(mode="json", exclude_unset=True) for each in self._head.watches.values()]
        asked = time.monotonic()
        facts = await self._head.ask(known, "lease", {"until": grant, "watches": watches})
        known.clock, known.heard, known.facts = facts["clock"], time.monotonic(), facts
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
            if placed.state != "owned" or placed.engine != known.name or self._head.ordered.get(stream) != epoch:
                continue
            if (stream, epoch) in self._head.carrying:
                continue
            if facts["streams"].get(stream) == epoch:
                self._head.confirm(stream, epoch, None)
            elif self._head.since.get(stream, 0.0) < asked:
                self._head.miss(stream)
                self._head.carrying.add((stream, epoch))
                self._head.spawn(self._reclaim(known, stream, epoch))

    async def _welcome(self, known: Known, costs: Costs, facts: Mapping[str, Any]) -> None:
        """Takes an engine that is ready among those that are given streams, unless it can't be one of them."""
        assert known.at is not None
        hello = await self._head.ask(known, "hello", {})
        model = hello["model"], hello["fingerprint"]
        apart = abs(hello["wall"] - time.time())
        if hello["version"] != streamer_version():
            known.trouble = f"it is streamer {hello['version']}, this is {streamer_version()}: install the same on both"
        elif hello["probe"] != self._head.probe:
            known.trouble = f"{self._head.fleet.path} is not the same folder there as here: mount it on every machine"
        elif apart > CLOCK_SECONDS:
            known.trouble = f"its clock differs by {apart:.0f} s from this machine's: set both by NTP"
        elif self._model not in (None, model):
            known.trouble = (
                f"its model is {model[0]} ({model[1][:8]}), the others' another: no stream could go on there"
            )
        else:
            self._model, known.trouble = model, ""
            self._head.table.keep_engine(
                known.name,
                {
                    "url": known.at.url, "incarnation": known.at.incarnation, "pid": known.at.pid, "node": known.at.node,
                    "costs": [costs.frame_ms, costs.look_ms, costs.token_ms], "slots": facts["slots"],
                },
            )  # fmt: skip
            self._head.placement.joined(known.name, costs, facts["slots"], known.heard, self._head.labels(known.name))
            log.info("engine %s is there: %.1f ms a frame, %d slots", known.name, costs.frame_ms, facts["slots"])
            return
        log.error("engine %s is given no streams: %s", known.name, known.trouble)
        await asyncio.sleep(RETRY_SECONDS)

    def _gone(self, known: Known, why: str) -> None:
        log.error("engine %s: %s", known.name, why)
        known.at, known.clock, known.trouble = None, None, f"{why}, it is started again"
        self._head.miss_all(known.name)
        self._head.placement.gone(known.name, time.monotonic())
        self._head.table.keep_engine(known.name, None)

    async def _reclaim(self, known: Known, stream: str, epoch: int) -> None:
        """An engine has not what it was given: it is told to let go of it for good, so that what is still on its way does nothing."""
        try:
            await self._head.ask(known, "release", {"stream": stream, "epoch": epoch, "forget": False}, 30.0)
            self._head.placement.lost(stream, epoch, time.monotonic())
        except (httpx.HTTPError, AssistantError) as error:
            log.warning("stream %s can't be taken from engine %s: %s", stream, known.name, error)
        finally:
            self._head.carrying.discard((stream, epoch))


async def _nobody_listens(url: str) -> bool:
    """Whether an engine's machine says that its port is closed: the process is gone then, and with it all that it did."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_SECONDS)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False
