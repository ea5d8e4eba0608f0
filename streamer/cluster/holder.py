"""What an engine holds of a fleet: streams that were given to it, each in an epoch, for as long as its lease lasts."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from streamer.assistant import Assistant
from streamer.cluster.depot import Depot
from streamer.config import ConfigError, StreamConfig, parse_config
from streamer.errors import AssistantError
from streamer.fields import NAME
from streamer.watch_config import WatchConfig

log = logging.getLogger("streamer.fleet")
PREPARE_SECONDS = 5.0
"""How long a source that is opened beforehand may take to bring a picture; it is closed again after as long unless its stream came."""
LOOK_SECONDS = 0.02
"""How often it is looked whether the lease has run out."""


class Holder:
    """Streams of one engine. Everything but `lasts` is called on the assistant's event loop.

    Args:
        lease: seconds that a lease may last at most from when it is heard of.
        place: where engines leave snapshots for one another.
    """

    def __init__(self, assistant: Assistant, name: str, lease: float, place: Depot) -> None:
        self._assistant, self.name, self._lease, self._depot = assistant, name, lease, place
        self._until = float("-inf")
        self.epochs: dict[str, int] = {}
        """The streams that are held."""
        self._seen: dict[str, int] = {}
        """The highest epoch that was heard of, by stream: what is older comes too late, or a second time."""
        self._told: dict[str, dict[str, dict[str, Any]]] = {}
        self._busy: dict[str, asyncio.Lock] = {}
        self._fencing: asyncio.Task[None] | None = None
        self.fenced = 0
        self._attended = False
        self._acted = False
        """Whether the lease lasted when that was looked at last."""
        self._expiring: dict[str, asyncio.TimerHandle] = {}
        self._capacity: float | None = None
        self._measuring: asyncio.Future[tuple[float, float]] | None = None
        assistant.handover.lease(self.lasts)

    def begin(self) -> None:
        """Gives streams up by its own clock from now on, once the lease runs out."""
        self._fencing = asyncio.create_task(self._fence())

    async def stop(self) -> None:
        if self._fencing is not None:
            self._fencing.cancel()

    def lasts(self) -> bool:
        """Whether the lease lasts."""
        return time.monotonic() < self._until

    async def renew(self, until: float | None, watches: Any) -> dict[str, Any]:
        """Takes a lease that lasts `until` a time on this engine's own clock, and tells what is to be known of it.

        The time is reckoned from one that the engine told before, so that a message that was long on its way, or comes a second
        time, renews nothing. `watches` are all of the fleet's; None leaves them as they are.
        """
        if not self._attended and self._assistant.keeper is not None:
            self._attended = True
            self._depot.attend(self._assistant.keeper.snapshots, self.name)
        now = time.monotonic()
        if until is not None and until <= now + self._lease:
            self._until = max(self._until, until)
        if watches is not None and self._assistant.ready:
            self._watch(watches)
        assistant = self._assistant
        token = look = 0.0
        if assistant.ready:
            await self._measure()
            seconds = assistant.engine.step_seconds
            token, look = (_mean(seconds[kind]) for kind in ("decode", "looks"))
        return {
            "clock": now,
            "wall": time.time(),
            "ready": assistant.ready,
            "trouble": assistant.trouble,
            "streams": dict(self.epochs) if self.lasts() else {},
            "slots": assistant.config.limits.streams,
            "frames_per_s": self._capacity,
            "token_ms": token * 1000,
            "look_ms": look * 1000,
            "state_bytes": assistant.model.state_bytes if assistant.ready else None,
            "watched": self._news(),
            "epoch": max(self._seen.values(), default=0),
        }

    async def _measure(self) -> None:
        """Asks the engine what it has time for; only the first time its step is waited for, as a lease can't wait."""
        if self._measuring is None or self._capacity is None:
            self._measuring = self._measuring or asyncio.wrap_future(self._assistant.engine.load())
            if self._capacity is None:
                self._capacity, _ = await asyncio.shield(self._measuring)
        elif self._measuring.done():
            self._capacity, _ = self._measuring.result()
            self._measuring = None

    async def own(self, options: Mapping[str, Any], epoch: int, before: str | None, watched: Any) -> dict[str, Any]:
        """Watches a stream from now on, with the newest snapshot that the engine `before` left of it.

        Raises AssistantError: no_lease, stale_epoch, and as `Assistant.attach`.
        """
        config = _stream(options)
        name = config.name
        async with self._busy.setdefault(name, asyncio.Lock()):
            self._check(name)
            if self.epochs.get(name) == epoch:
                return await self._status(name)  # the same order, said again
            if epoch <= self._seen.get(name, 0):
                raise AssistantError(
                    "stale_epoch", f"Stream {name!r} was given in epoch {self._seen[name]}, {epoch} is over."
                )
            self._seen[name] = epoch
            if name in self.epochs:
                await self._let_go(name)
            await self._adopt(config, before)
            self._assistant.watches.resume(name, watched or {})
            if (timer := self._expiring.pop(name, None)) is not None:
                timer.cancel()
            await self._assistant.handover.take_over(config)
            self.epochs[name] = epoch
            if not self.lasts():
                await self._let_go(name)
                self._check(name)
            log.info("stream %s is watched here, in epoch %d", name, epoch)
            return await self._status(name)

    async def release(self, name: str, epoch: int, *, forget: bool) -> dict[str, Any]:
        """Lets a stream go, with a snapshot unless it is to be forgotten; says what watches know of it.

        Raises AssistantError: stale_epoch.
        """
        async with self._busy.setdefault(name, asyncio.Lock()):
            held = self.epochs.get(name)
            if held is not None and held != epoch:
                raise AssistantError("stale_epoch", f"Stream {name!r} is held in epoch {held}, not {epoch}.")
            self._seen[name] = max(self._seen.get(name, 0), epoch)
            watched: dict[str, Any] = {}
            if held is not None:
                if forget:
                    del self.epochs[name]
                    await self._assistant.detach(name)
                elif self.lasts():
                    with suppress(AssistantError):
                        await self._assistant.handover.hand_over(name)
                    self.epochs.pop(name, None)
                else:
                    await self._let_go(name)
                # Last, as what a look found meanwhile would else be told once more by the next one.
                watched = self._assistant.watches.carried(name)
            elif forget and self._assistant.keeper is not None:
                await self._assistant.keeper.forget(name)
            self._busy.pop(name, None)
            return {"watched": watched}

    async def _adopt(self, config: StreamConfig, before: str | None) -> None:
        """Puts the newest snapshot that another engine has of a stream in the place of what is kept here."""
        keeper, name = self._assistant.keeper, config.name
        if keeper is None or config.keep == "nothing" or before in (None, self.name):
            return
        if not re.fullmatch(NAME, str(before)):
            raise AssistantError("bad_option", f"{str(before)[:40]!r} is no engine's name.")

        def adopt() -> None:
            old = keeper.snapshots.of(name)
            if self._depot.adopt(keeper.snapshots, name, str(before)) is not None:
                keeper.snapshots.forget_some(name, old)

        try:
            await asyncio.wrap_future(keeper.store.do(adopt))
        except OSError as error:
            log.error("stream %s: the memory that engine %s left can't be taken along: %s", name, before, error)

    async def prepare(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Opens the source of a stream that another engine still has and that is to come here; whether it brings pictures.

        Raises AssistantError: no_lease, bad_option, bad_source.
        """
        config = _stream(options)
        name = config.name
        self._check(name)
        ready = await self._assistant.handover.prepare(config, PREPARE_SECONDS)
        if ready:
            self._expiring[name] = asyncio.get_running_loop().call_later(
                2 * PREPARE_SECONDS, lambda: asyncio.ensure_future(self._unprepare(name))
            )
        return {"ready": ready}

    async def _unprepare(self, name: str) -> None:
        self._expiring.pop(name, None)
        await self._assistant.handover.unprepare(name)

    async def _let_go(self, name: str) -> None:
        self.epochs.pop(name, None)
        with suppress(AssistantError):
            await self._assistant.handover.let_go(name)

    async def _fence(self) -> None:
        """Gives up all streams when the lease has run out; the engine sees no frame from that instant on."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            acted, self._acted = self._acted, self.lasts()
            if self._acted:
                continue
            if acted:
                self._assistant.handover.hush()
            if self.epochs:
                self.fenced += 1
                log.warning(
                    "the lease has run out, nothing is heard of the fleet's head: %d streams are given up",
                    len(self.epochs),
                )
                await asyncio.gather(*(self._let_go(name) for name in tuple(self.epochs)))

    def _check(self, name: str) -> None:
        if not self.lasts():
            raise AssistantError("no_lease", f"Engine {self.name!r} has no lease: stream {name!r} is not taken.")

    async def _status(self, name: str) -> dict[str, Any]:
        stream = self._assistant.stream(name)
        return {"resumes": stream.resumes, "saved_wall": stream.saved_wall}

    def _watch(self, fields: Any) -> None:
        configs = [WatchConfig.model_validate(each) for each in fields]
        now = self._assistant.config.watches
        if tuple(configs) != now:
            self._assistant.watches.renew(now, configs)
            self._assistant.config = self._assistant.config.model_copy(update={"watches": tuple(configs)})

    def _news(self) -> dict[str, Any]:
        """What watches know of the streams that are held, where it is other than was told last."""
        known = {name: self._assistant.watches.carried(name) for name in self.epochs}
        news = {name: states for name, states in known.items() if states != self._told.get(name)}
        self._told = known
        return news


def _stream(options: Mapping[str, Any]) -> StreamConfig:
    """Raises AssistantError: bad_option."""
    try:
        return parse_config({"streams": [options]}, "stream").streams[0]
    except ConfigError as error:
        raise AssistantError("bad_option", f"The stream is refused: {'; '.join(error.problems)}.") from None


def _mean(values: Any) -> float:
    some = list(values)[-64:]
    return sum(some) / len(some) if some else 0.0
