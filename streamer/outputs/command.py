"""Commands: a program that is run for each event, which it reads from its standard input."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from streamer.output_config import CommandConfig
from streamer.outputs.delivery import Delivery, DeliveryError
from streamer.outputs.outbox import Entry

ENVIRONMENT = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Variables that the program is given; others may hold what is secret."""


class Command:
    """Runs a program, without a shell, in a group of processes of its own, and ends all of them when its time is over."""

    kind = "command"

    def __init__(self, config: CommandConfig) -> None:
        self._config = config
        self.address = config.command[0]

    async def run(self, delivery: Delivery) -> None:
        """See `Target`."""

        async def send(entries: Sequence[Entry]) -> None:
            for entry in entries:
                await self._once(entry.body)

        await delivery.drain(send)

    async def _once(self, event: bytes) -> None:
        """Raises DeliveryError."""
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._config.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise DeliveryError(f"{self.address} can't be run: {error.strerror}", slow=True) from None
        try:
            async with asyncio.timeout(self._config.timeout):
                await process.communicate(event)
        except TimeoutError:
            raise DeliveryError(
                f"{self.address} has not ended within {self._config.timeout:g} s and was killed"
            ) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            raise DeliveryError(f"{self.address} ended with {process.returncode}, not 0")
