"""Outputs that run for a test; and a web server that webhooks are delivered to, which answers as it is told."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from streamer.config import parse_config
from streamer.memory.store import Store
from streamer.outputs.outputs import Outputs


def configured(kind: str, **options: Any) -> Outputs:
    """Outputs with one of a kind: `webhooks` or `mqtt`."""
    return Outputs(parse_config({"outputs": {kind: [options]}}).outputs)


@asynccontextmanager
async def started(made: Outputs, folder: Path | None = None) -> AsyncIterator[Outputs]:
    """Runs outputs, which keep what waits in the folder where there is one."""
    store = None if folder is None else Store(folder)
    await made.start(store)
    try:
        yield made
    finally:
        await made.stop()
        if store is not None:
            await asyncio.to_thread(store.close, 60)  # all that waits is written, however slow the disk


class Receiver:
    """Takes each POST as `answers` say, the last of them for ever: a status, or None to hang."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers) or [204]
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.accepted: list[dict[str, Any]] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.requests.append(({**headers, ":path": head[0].split()[1]}, body))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    await reader.read()
                    break
                if 200 <= answer < 300:
                    self.accepted.append(json.loads(body))
                moved = "Location: http://127.0.0.1:1/elsewhere\r\n" if 300 <= answer < 400 else ""
                writer.write(f"HTTP/1.1 {answer} Told\r\n{moved}Content-Length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()


@asynccontextmanager
async def received(receiver: Receiver, port: int = 0) -> AsyncIterator[Receiver]:
    """The receiver, listening; what it has open is cut off at the end."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await receiver.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", port, family=socket.AF_INET)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def happened(number: int, **fields: Any) -> dict[str, Any]:
    """An event as watches tell it; ids sort as their numbers do."""
    return {
        "id": f"event_{number:026d}",
        "type": "watch.started",
        "watch": "gate",
        "stream": "yard",
        "severity": "warning",
        "question": "Is someone at the gate?",
        "captured_at": 1_764_000_000.0 + number,
        "began_at": 1_764_000_000.0 + number,
        "probability": 0.93,
        "before": False,
        "after": True,
        "gap": 0.0,
        "still": None,
        "clip": None,
        **fields,
    }
