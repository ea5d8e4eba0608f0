"""A daemon in a thread of its own (the real assistant with the nano model, the real server), and a way to speak to it."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from streamer.assistant import Assistant
from streamer.config import Config
from streamer.outputs.outputs import Outputs
from streamer.server.app import close_connections, create_app
from streamer.server.listening import listen, server_options

T = TypeVar("T")
CONFIG: dict[str, Any] = {
    "model": {"threads": 1, "random_weights": True},  # an untrained model talks until it is stopped
    "streams": [{"name": "demo", "source": "demo:", "fps": 2}],
    "answers": {"ceiling_tokens_per_second": 1000, "floor_tokens_per_second": 100},
    "limits": {"streams": 4, "answers": 4, "answer_tokens": 30_000},
}


class Served:
    """A server on a free port."""

    def __init__(self, app: Any, port: int, outputs: Outputs) -> None:
        self.app, self.port, self.outputs = app, port, outputs
        self.url = f"http://127.0.0.1:{port}"

    def connect(self, query: str = "", **options: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.port}/v1/realtime{query}", compression=None, proxy=None, **options)


class Daemon:
    """The assistant in its loop; as many servers as tests want in front of it."""

    def __init__(self, **sections: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.config = Config.model_validate({**CONFIG, **sections})
        self.assistant = self.run(self._start, 250)

    async def _start(self) -> Assistant:
        assistant = Assistant(self.config)
        await assistant.start()
        await self._seen(assistant)
        return assistant

    async def _seen(self, assistant: Assistant) -> None:
        while not all(status.frames_seen for status in assistant.streams()):
            await asyncio.sleep(0.02)

    def rest(self) -> None:
        """Watches nothing until `wake`: a daemon that many modules share costs those between them nothing."""
        for status in self.do(self.assistant.streams):
            self.run(partial(self.assistant.detach, status.name))

    def wake(self) -> None:
        """Watches what is configured, if it rested."""

        async def attach() -> None:
            if not self.assistant.streams():
                for stream in self.config.streams:
                    keys = stream.model_dump(exclude_unset=True, exclude={"name", "source"})
                    await self.assistant.attach(stream.name, stream.source, **keys)
            await self._seen(self.assistant)

        self.run(attach)

    def run(self, call: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Awaits `call()` in the daemon's loop."""

        async def work() -> Any:
            return await call()

        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(seconds)

    def do(self, call: Callable[[], T]) -> T:
        """Calls in the daemon's loop."""

        async def work() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(60)

    def stop(self) -> None:
        self.run(self.assistant.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    @contextmanager
    def served(self, *, send_buffer: int = 0, listen: int = 0, **sections: Any) -> Iterator[Served]:
        """A server of its own, with sections of configuration beside the daemon's."""
        config = Config.model_validate({**CONFIG, **sections})
        serving = _served(self.assistant, config, send_buffer, listen)
        server = self.run(serving.__aenter__)
        try:
            yield server
        finally:
            self.run(lambda: serving.__aexit__(None, None, None))

    @contextmanager
    def still(self, name: str) -> Iterator[None]:
        """A stream that is shown one picture and no more: whatever is asked of it, and when, is asked of the same state."""
        self.run(lambda: self.assistant.attach(name, f"push://{name}", policy="every"))
        self.do(lambda: self.assistant.push(name, np.full((48, 64, 3), 90, np.uint8), 0.0))
        wait_for(lambda: self.do(lambda: self.assistant.newest_frame(name)) is not None)
        try:
            yield
        finally:
            self.run(lambda: self.assistant.detach(name))

    @property
    def open_answers(self) -> int:
        return self.do(lambda: len(self.assistant._answers))


@asynccontextmanager
async def _served(assistant: Assistant, config: Config, send_buffer: int, port: int) -> AsyncIterator[Served]:
    outputs = Outputs(config.outputs)
    await outputs.start(None)
    app = create_app(assistant, config, outputs)
    server = uvicorn.Server(uvicorn.Config(app, **server_options(config)))
    # As the daemon's own: of a socket that names no protocol, each answer's body would wait 40 ms for its head's receipt.
    listener = listen(config.server.model_copy(update={"host": "127.0.0.1", "port": port}))
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    task = asyncio.create_task(server._serve([listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield Served(app, listener.getsockname()[1], outputs)
    finally:
        await close_connections(app)
        server.should_exit = True
        await task
        await outputs.stop()


async def send(client: ClientConnection, kind: str, **fields: Any) -> None:
    await client.send(json.dumps({"type": kind, **fields}))


async def receive(client: ClientConnection) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 60))
    return event


async def until(client: ClientConnection, kind: str) -> list[dict[str, Any]]:
    """Events up to the first of this kind, which is the last of the list."""
    events = [await receive(client)]
    while events[-1]["type"] != kind:
        events.append(await receive(client))
    return events


async def ask(client: ClientConnection, question: str = "What is there?", **response: Any) -> None:
    content = [{"type": "input_text", "text": question}]
    await send(client, "conversation.item.create", item={"type": "message", "role": "user", "content": content})
    await send(client, "response.create", response=response)


async def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Returns once `condition()` holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """`eventually`, for plain code."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)
