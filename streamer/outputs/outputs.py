"""All outputs: each event is handed to those that its watch names, and they come and go while the daemon runs."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from streamer.errors import AssistantError
from streamer.memory.store import Store, StoreError
from streamer.output_config import CommandConfig, MqttConfig, OutputConfig, OutputsConfig, WebhookConfig
from streamer.outputs.command import Command
from streamer.outputs.delivery import Announcer, Delivery, OutputStatus, Target
from streamer.outputs.feed import Feed, FeedEvent
from streamer.outputs.outbox import Outbox
from streamer.outputs.shelf import Shelf
from streamer.outputs.webhook import Webhook

log = logging.getLogger("streamer")
Still = Callable[[str], Awaitable[bytes | None]]
Snooze = Callable[[str, float], None]
MOST_ADDED = 64
"""Outputs that may be added while the daemon runs."""


class Outputs:
    """Where events go. Everything is called on one event loop."""

    def __init__(self, config: OutputsConfig) -> None:
        self.feed = Feed()
        self._config = config
        self._added: dict[str, WebhookConfig] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._watches: list[Mapping[str, Any]] | None = None
        self._wanted: dict[str, frozenset[str] | None] = {}
        self.still: Still = _no_still
        """Fetches the picture that decided an event, as JPEG, by the event's id."""
        self.snooze: Snooze = _no_watch
        """Silences a watch for so many seconds, when a broker asks for it. Raises AssistantError."""
        self._store: Store | None = None
        self._shelf: Shelf | None = None
        self._writing: asyncio.Task[None] | None = None
        self._early: list[Mapping[str, Any]] | None = []

    async def start(self, store: Store | None, told: Sequence[Mapping[str, Any]] = ()) -> None:
        """Delivers from now on, first what waited when the process ended; `store` None keeps nothing beyond it.

        `told` are the newest KEPT events that there were, for those who come back to the feed.
        """
        kept = {}
        if store is not None:
            self._store, self._shelf = store, Shelf(store)
            kept = await asyncio.to_thread(self._shelf.load)
            rows = await asyncio.to_thread(store.read, "SELECT name, config FROM outputs ORDER BY added, name")
            self._added = {name: WebhookConfig.model_validate_json(options) for name, options in rows}
            self._writing = asyncio.create_task(self._shelf.run(), name="outbox")
        for config in self._config.all:
            await self._replace(config.name)
        for config in (*self._config.all, *self._added.values()):
            self._begin(config, Outbox(config.keep_events, config.keep_hours * 3_600, kept.pop(config.name, ())))
        for name, entries in kept.items():
            self._forget(name, len(entries))
        early, self._early = self._early or [], None
        soon = {event["id"] for event in early}
        self.feed.begin([_fed(event, _body(event)) for event in told if event["id"] not in soon])
        for event in early:
            self.publish(event)

    async def stop(self) -> None:
        """Ends what is on its way; what has not arrived is kept, as far as the disk takes it."""
        await asyncio.gather(*(delivery.stop() for delivery in self._deliveries.values()))
        if self._writing is not None and self._shelf is not None:
            self._writing.cancel()
            with suppress(asyncio.CancelledError):
                await self._writing
            with suppress(TimeoutError):
                await asyncio.wait_for(self._shelf.flush(), 1.0)

    @property
    def names(self) -> list[str]:
        """Every output's name."""
        return list(self._deliveries)

    def status(self) -> list[OutputStatus]:
        """Every output's figures."""
        return [delivery.status() for delivery in self._deliveries.values()]

    def address(self, name: str) -> str:
        """Where an output delivers to, without secrets."""
        return self._deliveries[name].target.address

    def publish(self, event: Mapping[str, Any]) -> None:
        """An event of a watch, as plain JSON data: it is on its way once this returns, which it does at once."""
        if self._early is not None:
            self._early.append(event)
            return
        body = _body(event)
        self.feed.put(_fed(event, body))
        wanted = self._wanted.get(event["watch"])
        for name, delivery in self._deliveries.items():
            if wanted is None or name in wanted:
                delivery.put(event["id"], body)
                if isinstance(delivery.target, Announcer):
                    delivery.target.happened(event)

    def watches_changed(self, watches: Iterable[Mapping[str, Any]]) -> None:
        """All watches that there are now, or another state of one.

        Each has its `name`, `streams`, `when`, and may have `format` (a JSON schema), `outputs` (names of those that are told;
        None is all) and `states` (by stream, what is so now).
        """
        self._watches = list(watches)
        self._wanted = {each["name"]: _names(each.get("outputs")) for each in self._watches}
        for delivery in self._deliveries.values():
            self._announce(delivery)

    # Outputs that come and go

    async def add(self, config: WebhookConfig) -> OutputStatus:
        """Delivers to one more webhook, after a restart too. Raises AssistantError: not_ready, output_exists, too_many_outputs."""
        self._check_begun()
        if config.name in self._deliveries:
            raise AssistantError(
                "output_exists", f"There is an output {config.name!r} already: remove it or take another name."
            )
        if len(self._added) >= MOST_ADDED:
            raise AssistantError("too_many_outputs", f"{MOST_ADDED} outputs have been added already: remove one.")
        self._added[config.name] = config
        self._begin(config, Outbox(config.keep_events, config.keep_hours * 3_600))
        row = (config.name, config.model_dump_json(exclude_unset=True), time.time())
        await self._write("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?)", row)
        return self._deliveries[config.name].status()

    async def remove(self, name: str) -> None:
        """Delivers no more to one that was added; what waits for it is gone. Raises AssistantError: not_ready, unknown_output."""
        self._check_begun()
        if name not in self._added:
            known = ", ".join(self._added) or "none"
            raise AssistantError(
                "unknown_output",
                f"There is no output {name!r} that was added while the daemon runs; there are: {known}.",
            )
        del self._added[name]
        await self._end(name)
        await self._write("DELETE FROM outputs WHERE name = ?", (name,))

    async def reload(self, config: OutputsConfig) -> list[str]:
        """Takes a changed configuration; an output that changed goes on with what waits for it. A line for each that did."""
        old, new = ({each.name: each for each in one.all} for one in (self._config, config))
        self._config, lines = config, []
        for name in old.keys() - new.keys():
            await self._end(name)
            lines.append(f"output {name} was removed")
        for name, wanted in new.items():
            if old.get(name) == wanted:
                continue
            await self._replace(name)
            before = self._deliveries.get(name)
            outbox = Outbox(wanted.keep_events, wanted.keep_hours * 3_600)
            if before is not None:
                await before.stop()
                outbox = before.outbox
                outbox.bound(wanted.keep_events, wanted.keep_hours * 3_600)
            self._begin(wanted, outbox)
            lines.append(f"output {name} was {'added' if before is None else 'changed'}")
        return lines

    def _check_begun(self) -> None:
        if self._early is not None:
            raise AssistantError("not_ready", "The model is being loaded: outputs can be changed in a moment.")

    async def _replace(self, name: str) -> None:
        """An output that is configured takes the place of one that was added, which is not to come back when it is removed."""
        if self._added.pop(name, None) is not None:
            await self._write("DELETE FROM outputs WHERE name = ?", (name,))

    def _begin(self, config: OutputConfig, outbox: Outbox) -> None:
        delivery = Delivery(config, self._target(config), outbox, self._shelf)
        self._deliveries[config.name] = delivery
        self._announce(delivery)
        delivery.start()

    def _announce(self, delivery: Delivery) -> None:
        name, target = delivery.config.name, delivery.target
        if self._watches is not None and isinstance(target, Announcer):
            target.watches([each for each in self._watches if (each.get("outputs") is None or name in each["outputs"])])

    def _target(self, config: OutputConfig) -> Target:
        match config:
            case WebhookConfig():
                return Webhook(config)
            case CommandConfig():
                return Command(config)
            case MqttConfig():
                from streamer.outputs.mqtt import (
                    Mqtt,
                )  # here, as few have a broker, and its library takes long to import

                return Mqtt(config, self.still, self.snooze)
            case _:
                raise TypeError(f"{type(config).__name__} is no output")

    async def _end(self, name: str) -> None:
        delivery = self._deliveries.pop(name)
        await delivery.stop()
        self._forget(name, len(delivery.outbox))

    def _forget(self, name: str, waiting: int) -> None:
        if waiting:
            log.warning("output %s is no more: %d events that waited for it were thrown away", name, waiting)
        if self._shelf is not None:
            self._shelf.forget(name)

    async def _write(self, sql: str, values: tuple[Any, ...]) -> None:
        if self._store is None:
            return
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._store.write(sql, values, now=True)), 2.0)
        except (StoreError, TimeoutError) as error:
            log.warning("a change of outputs is not kept yet: %s", error or "the disk is slow")


async def _no_still(event: str) -> bytes | None:
    return None


def _no_watch(watch: str, seconds: float) -> None:
    raise AssistantError("unknown_watch", f"There is no watch {watch!r}; there are: none.")


def _body(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _fed(event: Mapping[str, Any], body: bytes) -> FeedEvent:
    return FeedEvent(event["id"], event["type"], event["watch"], event["stream"], body)


def _names(outputs: Collection[str] | None) -> frozenset[str] | None:
    return None if outputs is None else frozenset(outputs)
