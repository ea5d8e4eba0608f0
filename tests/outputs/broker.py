"""A real broker (mosquitto) on loopback, and a client that hears what is said there."""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from aiomqtt import Client, MqttError

from tests.ports import free_port

BROKER = shutil.which("mosquitto") or ("/usr/sbin/mosquitto" if Path("/usr/sbin/mosquitto").exists() else None)


class Broker:
    """mosquitto, which keeps nothing beyond its process unless its `folder` is told to."""

    def __init__(self, folder: Path, lines: str = "allow_anonymous true") -> None:
        self.port = free_port()
        self._file = folder / "mosquitto.conf"
        self.write(lines)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, lines: str) -> None:
        """What it is started with from now on."""
        self._file.write_text(f"listener {self.port} 127.0.0.1\nuser root\n{lines}\n")

    def start(self) -> None:
        assert BROKER is not None
        self.process = subprocess.Popen([BROKER, "-c", self._file], stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@contextmanager
def running(folder: Path, lines: str = "allow_anonymous true") -> Iterator[Broker]:
    broker = Broker(folder, lines)
    broker.start()
    try:
        yield broker
    finally:
        broker.signal(signal.SIGCONT)
        broker.kill()


@asynccontextmanager
async def slowed(port: int, bytes_a_second: float, opened: asyncio.Event | None = None) -> AsyncIterator[int]:
    """A way to a broker on which what is sent there takes its time; yields its port. Whoever comes while it is not `opened` is refused."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int, rest: float) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(most):
                await asyncio.sleep(rest * len(data))
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if opened is not None and not opened.is_set():
                raise ConnectionRefusedError
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            return writer.close()
        await asyncio.gather(carry(reader, back, 64, 1 / bytes_a_second), carry(there, writer, 65_536, 0.0))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=256)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Heard:
    """What a subscriber has heard: each message, and by topic the last one, with whether it was retained."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.last: dict[str, bytes] = {}
        self.retained: set[str] = set()

    def of(self, end: str) -> list[bytes]:
        return [payload for topic, payload in self.messages if topic.endswith(end)]


@asynccontextmanager
async def subscriber(port: int, **options: Any) -> AsyncIterator[tuple[Client, Heard]]:
    """A client that hears everything; waits for the broker to be there."""
    heard = Heard()
    async with asyncio.timeout(30):
        while True:
            client = Client("127.0.0.1", port, **options)
            try:
                await client.__aenter__()
                break
            except MqttError:
                await asyncio.sleep(0.02)
    await client.subscribe("#", qos=1)

    async def hear() -> None:
        with suppress(MqttError):
            async for message in client.messages:
                topic, payload = str(message.topic), message.payload
                assert isinstance(payload, bytes)
                heard.messages.append((topic, payload))
                heard.last[topic] = payload
                if message.retain:
                    heard.retained.add(topic)

    task = asyncio.create_task(hear())
    try:
        yield client, heard
    finally:
        task.cancel()
        with suppress(MqttError):
            await client.__aexit__(None, None, None)
