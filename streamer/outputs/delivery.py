"""One output at work: its outbox, the shelf that keeps it, and the loop that empties it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from streamer.output_config import OutputConfig
from streamer.outputs.outbox import Entry, Outbox
from streamer.outputs.shelf import Shelf

log = logging.getLogger("streamer")
LOOK_SECONDS = 30.0
"""Seconds after which what waits is looked through for what is too old, though nothing happens."""
TELL_SECONDS = 60.0
"""Seconds between two lines of the log about what is thrown away."""


STOP_SECONDS = 1.5
"""Seconds that a target has to take its leave."""


class DeliveryError(Exception):
    """Why an event can't be delivered now, in one line without secrets; `slow` where trying soon again can't help."""

    def __init__(self, trouble: str, *, slow: bool = False) -> None:
        self.slow = slow
        super().__init__(trouble)


class Target(Protocol):
    """What an output delivers to."""

    kind: str
    address: str
    """Where it delivers to, without secrets."""

    async def run(self, delivery: Delivery) -> None:
        """Delivers until it is cancelled, or raises DeliveryError; it is run again when the outbox says so."""
        ...


@runtime_checkable
class Announcer(Protocol):
    """A target that shows what there is, beside events as they happen."""

    def watches(self, watches: Iterable[Mapping[str, Any]]) -> None:
        """All watches that there are now, whose events it is told."""
        ...

    def happened(self, event: Mapping[str, Any]) -> None:
        """An event has happened, which is delivered in its turn."""
        ...


@dataclass(frozen=True, slots=True)
class OutputStatus:
    """An output's figures. `discarded` counts events that were thrown away, by reason; `retry_s` is when it is tried again."""

    name: str
    kind: str
    waiting: int
    oldest_s: float | None
    delivered: int
    discarded: dict[str, int]
    failed_tries: int
    trouble: str | None
    retry_s: float | None


class Delivery:
    """Delivers to one target what is put into its outbox. Lives on one event loop."""

    def __init__(self, config: OutputConfig, target: Target, outbox: Outbox, shelf: Shelf | None) -> None:
        """`shelf` None keeps nothing beyond the process."""
        self.config, self.target, self.outbox, self._shelf = config, target, outbox, shelf
        self._news = asyncio.Event()
        self._untold, self._tell_at = 0, float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Delivers from now on, until `stop`."""
        self._trim()
        self._task = asyncio.create_task(self._run(), name=f"output {self.config.name}")

    async def stop(self) -> None:
        """Ends what is on its way; what had not arrived stays in the outbox."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=STOP_SECONDS)

    def put(self, id: str, body: bytes) -> None:
        """An event is to be delivered."""
        entry = self.outbox.put(id, body, time.time())
        if entry is not None and self._shelf is not None:
            self._shelf.add(self.config.name, entry)
        self._trim()
        self._news.set()

    def reached(self) -> None:
        """The target can be reached, as far as is known."""
        if self.outbox.trouble is not None:
            log.warning("output %s: reaches %s again", self.config.name, self.target.address)
        self.outbox.connect()

    async def drain(self, send: Callable[[Sequence[Entry]], Awaitable[None]], most: int = 1) -> None:
        """Hands events to `send`, in order and `most` at a time at most, for as long as it raises nothing.

        What `send` returns from has arrived.
        """
        while True:
            self._trim()
            entries = self.outbox.due(time.monotonic(), most)
            if not entries:
                await self._wait()
                continue
            await send(entries)
            self.reached()
            self.arrived(entries)

    def arrived(self, entries: Sequence[Entry]) -> None:
        """The next entries, in order, have arrived."""
        for entry in entries:
            self.outbox.deliver(entry)
        if entries and self._shelf is not None:
            self._shelf.remove(self.config.name, entries[-1].number)

    def status(self) -> OutputStatus:
        """Its figures now."""
        outbox, retry = self.outbox, self.outbox.retry_at - time.monotonic()
        return OutputStatus(
            self.config.name,
            self.target.kind,
            len(outbox),
            None if outbox.oldest is None else max(time.time() - outbox.oldest, 0.0),
            outbox.delivered,
            dict(outbox.discarded),
            outbox.failed_tries,
            outbox.trouble,
            max(retry, 0.0) if outbox.trouble is not None else None,
        )

    async def _run(self) -> None:
        name = self.config.name
        while True:
            while (rest := self.outbox.retry_at - time.monotonic()) > 0:
                await asyncio.sleep(min(rest, LOOK_SECONDS))
                self._trim()
            try:
                await self.target.run(self)
            except DeliveryError as error:
                trouble, slow = str(error), error.slow
            except Exception as error:  # whatever it is: nothing else may suffer for it, and it may go by
                log.error("output %s failed unforeseen", name, exc_info=error)
                trouble, slow = f"it failed unforeseen: {error!r}", True
            else:
                trouble, slow = "it ended by itself", True
            if self.outbox.fail(trouble, time.monotonic(), slow=slow):
                log.warning("output %s: %s; %d events wait, and are tried again", name, trouble, len(self.outbox))

    async def _wait(self) -> None:
        self._news.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), LOOK_SECONDS)

    def _trim(self) -> None:
        before = self.outbox.discarded.total()
        last = self.outbox.trim(time.time())
        if not last:
            return
        if self._shelf is not None:
            self._shelf.remove(self.config.name, last)
        gone, now = self.outbox.discarded.total() - before, time.monotonic()
        self._untold += gone
        if now >= self._tell_at:
            self._tell_at = now + TELL_SECONDS
            log.error(
                "output %s: %d events thrown away undelivered, as more than keep_events waited or they were older than keep_hours",
                self.config.name,
                self._untold,
            )
            self._untold = 0
