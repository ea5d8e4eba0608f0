"""A broker: one connection, over which events are told, states stand, and Home Assistant learns of both."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

from aiomqtt import Client, Message, MqttCodeError, MqttError, ProtocolVersion, Will
from paho.mqtt.reasoncodes import ReasonCode

from streamer.errors import AssistantError
from streamer.output_config import MqttConfig
from streamer.outputs.board import OFFLINE, ONLINE, Board
from streamer.outputs.delivery import Delivery, DeliveryError
from streamer.outputs.outbox import Entry

log = logging.getLogger("streamer")
LIBRARY = logging.getLogger("streamer.mqtt")
LIBRARY.setLevel(logging.CRITICAL)  # what it would say is told once, by the delivery
PATIENCE = 10.0
"""Seconds within which the broker must have answered, or confirmed one more of what it was sent."""
AT_ONCE = 16
"""Events that are on their way to the broker before the first of them is confirmed."""
WITHHELD_SECONDS = 3_600.0
"""Seconds for which pictures are not sent that a broker is too small for, before it is tried whether it has been mended."""
REFUSED = frozenset({134, 135})
"""Reasons of MQTT 5, as which the library gives those of 3.1.1 too: bad user name or password, not authorized."""
MOST_SNOOZE = 86_400.0


class Mqtt:
    """Keeps a connection to a broker for as long as there is one.

    Args:
        still: the JPEG that decided the event of an id, or None where it is gone.
        snooze: silences a watch for so many seconds. Raises AssistantError where there is none.
    """

    kind = "mqtt"

    def __init__(
        self,
        config: MqttConfig,
        still: Callable[[str], Awaitable[bytes | None]],
        snooze: Callable[[str, float], None],
    ) -> None:
        self._config, self._still, self._snooze = config, still, snooze
        self.port = config.port or (8883 if config.tls else 1883)
        self.address = f"mqtt{'s' if config.tls else ''}://{config.host}:{self.port}"
        self._board = Board(config)
        self._news = asyncio.Event()
        self._showing = self._lost_with = 0
        """Bytes of the picture that is on its way, and of the one that was when the last connection was lost; 0 for none."""
        self._confirmed = 0
        """Publications that the broker has confirmed."""
        self._warned = False
        self._refused: str | None = None
        """Why the broker does not take what is published, as far as it says so."""
        self._too_large: tuple[int, float] | None = None
        """Pictures of so many bytes are not sent until then, on the monotonic clock."""

    def watches(self, watches: Iterable[Mapping[str, Any]]) -> None:
        """All watches that there are now."""
        self._board.watches(watches)
        self._news.set()

    def happened(self, event: Mapping[str, Any]) -> None:
        """An event changes a state, which is told whether or not events before it still wait."""
        self._board.happened(event)
        self._news.set()

    async def run(self, delivery: Delivery) -> None:
        """See `Target`."""
        try:
            async with await self._client() as client:
                await self._connected(client, delivery)
        except MqttError as error:
            refused = (
                isinstance(error, MqttCodeError) and isinstance(error.rc, ReasonCode) and error.rc.value in REFUSED
            )
            if refused:
                raise DeliveryError(
                    f"{self.address} refuses its username and password: set those that the broker knows", slow=True
                ) from None
            raise DeliveryError(self._lost(error)) from None

    def _lost(self, error: MqttError) -> str:
        """Why there is no connection; one that is lost twice in a row while a picture is sent is lost by its size."""
        size, before = self._showing, self._lost_with
        self._showing, self._lost_with = 0, size
        if not size:
            return f"{self.address} can't be reached: {error or 'it has closed the connection'}"
        if not before:
            return f"{self.address} can't be reached since it was sent a picture of {size} bytes"
        self._too_large = min(size, before), time.monotonic() + WITHHELD_SECONDS
        return (
            f"{self.address} takes no picture of {size} bytes: raise its max_packet_size (or message_size_limit), "
            f"or set stills to false; events go on, without pictures of that size for {WITHHELD_SECONDS / 3600:g} h"
        )

    async def _client(self) -> Client:
        config, context = self._config, None
        if config.tls:
            try:
                context = await asyncio.to_thread(ssl.create_default_context, cafile=config.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise DeliveryError(f"ca_file {config.ca_file} can't be read: {error}", slow=True) from None
        client = Client(
            config.host,
            self.port,
            username=config.username,
            password=config.password,
            protocol=ProtocolVersion.V5 if config.version == "5" else ProtocolVersion.V311,
            will=Will(self._board.status, OFFLINE, qos=1, retain=True),
            tls_context=context,
            timeout=PATIENCE,
            keepalive=30,
            max_queued_incoming_messages=1_000,
            logger=LIBRARY,
        )
        client.pending_calls_threshold = 2 * AT_ONCE
        self._refused = None
        paho = client._client  # what a broker of version 5 says of a publication, aiomqtt passes over
        confirmed: Any = paho.on_publish

        def published(paho: Any, data: Any, number: int, reason: ReasonCode, properties: Any) -> None:
            self._confirmed += 1
            if reason.is_failure:
                self._refused = str(reason)
            if confirmed is not None:
                confirmed(paho, data, number, reason, properties)

        paho.on_publish = published
        return client

    async def _connected(self, client: Client, delivery: Delivery) -> None:
        board = self._board
        for topic in (*board.retained, board.status):
            await client.subscribe(topic, qos=1)
        silent = asyncio.get_running_loop().call_later(PATIENCE, self._warn)
        if self._config.commands:
            await client.subscribe(board.snooze("+"), qos=1)
        await client.publish(board.status, ONLINE, qos=1, retain=True)
        delivery.reached()
        board.forget_told()
        self._news.set()

        async def send(entries: Sequence[Entry]) -> None:
            await self._tell(client, delivery, entries)

        tasks = [
            asyncio.create_task(self._read(client, silent)),
            asyncio.create_task(self._keep(client)),
            asyncio.create_task(delivery.drain(send, AT_ONCE)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            silent.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(MqttError):
                await client.publish(board.status, OFFLINE, qos=1, retain=True, timeout=1.0)

    def _warn(self) -> None:
        """The broker has not shown its own availability to this output: of version 3.1.1 it may confirm what it throws away."""
        if not self._warned and self._config.version == "3.1.1":
            self._warned = True
            log.warning(
                "output %s: %s confirms what is published below %s/ and shows none of it: unless its rules only forbid to read "
                'there, it throws events away; with version "5" it would say so',
                self._config.name,
                self.address,
                self._config.topic,
            )

    async def _publish(self, client: Client, topic: str, payload: bytes | str, *, retain: bool = False) -> None:
        await self._confirmed_by(client.publish(topic, payload, qos=1, retain=retain, timeout=math.inf))

    async def _confirmed_by(self, asked: Awaitable[Any]) -> None:
        """Returns once it is, however slowly the broker gets there. Raises MqttError where it confirms nothing more."""
        sending = asyncio.ensure_future(asked)
        try:
            while not sending.done():
                before = self._confirmed
                await asyncio.wait([sending], timeout=PATIENCE)
                if not sending.done() and self._confirmed == before:
                    raise MqttError(f"it has confirmed nothing for {PATIENCE:g} s")
            sending.result()
        finally:
            sending.cancel()

    async def _tell(self, client: Client, delivery: Delivery, entries: Sequence[Entry]) -> None:
        """Publishes events, in order, and the stills of those that have one.

        Where the connection is lost meanwhile, those that were confirmed have arrived.
        """
        board = self._board
        events = [json.loads(entry.body) for entry in entries]
        sent = [
            asyncio.ensure_future(self._publish(client, board.event(event["watch"], event["stream"]), entry.body))
            for event, entry in zip(events, entries, strict=True)
        ]
        try:
            await asyncio.gather(*sent)
        except BaseException:
            came = sum(1 for _ in takewhile(_ended_well, sent)) if self._refused is None else 0
            delivery.arrived(entries[:came])
            for each in sent:
                each.cancel()
            raise
        if self._refused is not None:
            raise DeliveryError(
                f"{self.address} does not take what is published below {self._config.topic}/: {self._refused.lower()}",
                slow=True,
            )
        for event in events if self._config.stills else ():
            picture = None if event["still"] is None else await self._still(event["id"])
            if picture is not None:
                board.put(board.still(event["stream"]), picture)
                self._news.set()

    async def _keep(self, client: Client) -> None:
        """Tells the broker what is to stand there, as it changes."""
        while True:
            self._news.clear()
            while (wanted := self._board.next()) is not None:
                topic, payload = wanted
                size = len(payload) if self._board.shows(topic) else 0
                if not self._withheld(size):
                    self._showing = size
                    await self._publish(client, topic, payload, retain=True)
                    self._showing = 0
                    if size >= self._lost_with:
                        self._lost_with = 0
                self._board.told(topic, payload)
            await self._news.wait()

    def _withheld(self, size: int) -> bool:
        return self._too_large is not None and size >= self._too_large[0] and time.monotonic() < self._too_large[1]

    async def _read(self, client: Client, silent: asyncio.TimerHandle) -> None:
        """Takes back what was left at the broker, until all of that has come, and follows commands."""
        board, sweeping = self._board, True
        async for message in client.messages:
            topic = str(message.topic)
            if topic == board.status:
                if not message.retain:
                    silent.cancel()
                if message.payload == OFFLINE:  # the last will of a connection that was lost before this one
                    await self._publish(client, board.status, ONLINE, retain=True)
                elif sweeping and not message.retain and board.known:
                    sweeping = False
                    await self._confirmed_by(client.unsubscribe(board.retained, timeout=math.inf))
            elif (watch := board.snoozed(topic)) is not None:
                self._command(watch, message)
            elif sweeping and message.payload:
                board.found(topic)
                self._news.set()

    def _command(self, watch: str, message: Message) -> None:
        """What asks for no number of seconds, or stood there before, is no command."""
        try:
            seconds = float(message.payload)
            if message.retain or not 0 <= seconds <= MOST_SNOOZE:
                raise ValueError("it is retained, or no number of seconds up to a day")
            self._snooze(watch, seconds)
        except (ValueError, TypeError, AssistantError) as error:
            log.warning("output %s: a command to snooze %s is not followed: %s", self._config.name, watch[:64], error)


def _ended_well(task: asyncio.Future[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
