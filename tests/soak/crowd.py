"""What a crowd of websocket clients costs: `python -m tests.soak.crowd [--idle N] [--asking N] [--seconds S]`.

A daemon in a process of its own watches the demo clip while clients connect, ask, read slowly and flood. In that process
an answer's text is the moment at which the engine spoke it, so that a client can tell how long the server took to bring
it. Prints one JSON object; keys carry their units.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from streamer.client import AsyncClient

QUESTION = {
    "type": "response.create",
    "response": {
        "conversation": "none",
        "max_output_tokens": 16,
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is there?"}]}],
    },
}


def serve() -> None:
    """The daemon, whose answers are moments."""
    from streamer.config import parse_config
    from streamer.daemon import run
    from streamer.engine.answer import Answer

    spoke = Answer.spoke
    Answer.spoke = lambda self, text, tokens: spoke(self, f"{time.monotonic():.6f} ", tokens)  # type: ignore[method-assign]
    config = parse_config(
        {
            "server": {"port": 0},
            "model": {"threads": 1, "random_weights": True},  # an untrained model talks until it is stopped
            "streams": [{"name": "demo", "source": "demo:"}],
            "limits": {
                "answers": 8,
                "waiting_questions": 1_000,
                "visitor_connections": 10_000,
                "visitor_answers": 1_000,
                "visitor_questions_per_minute": 1_000_000,
            },
        }
    )
    sys.exit(run(config))


class Crowd:
    """The daemon's process and the clients around it."""

    def __init__(self) -> None:
        command = [sys.executable, "-u", "-m", "tests.soak.crowd", "--serve"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if "ready at" in line)
        self.url = line.split("ready at ")[1].strip()

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    async def open(self) -> ClientConnection:
        client = await connect(self.url.replace("http", "ws") + "/v1/realtime", compression=None, proxy=None)
        await client.recv()
        return client

    async def rate(self, seconds: float) -> float:
        """Frames a second that are seen in the next `seconds`."""
        async with AsyncClient(self.url) as client:
            before, began = (await client.streams())[0]["frames_seen"], time.monotonic()
            await asyncio.sleep(seconds)
            return float(((await client.streams())[0]["frames_seen"] - before) / (time.monotonic() - began))


async def ask(client: ClientConnection, delays: list[float]) -> float:
    """Asks once; returns the seconds to the first word, and adds how long each word was on its way."""
    began, first = time.monotonic(), 0.0
    await client.send(json.dumps(QUESTION))
    while True:
        event = json.loads(await client.recv())
        if event["type"] == "response.output_text.delta":
            now = time.monotonic()
            first = first or now - began
            delays += [now - float(moment) for moment in event["delta"].split()]
        elif event["type"] == "response.done":
            return first
        elif event["type"] == "error":
            raise RuntimeError(event["error"]["message"])


async def asker(client: ClientConnection, end: float, firsts: list[float], delays: list[float]) -> int:
    """Asks until the time is over; returns how many answers came."""
    answers = 0
    while time.monotonic() < end:
        firsts.append(await ask(client, delays))
        answers += 1
    return answers


async def flooder(port: int, end: float) -> int:
    """Sends what is refused as fast as it is taken, and reads what comes; returns how many refusals came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    body = b'{"type": "no.such.event"}'
    frame = b"\x81" + bytes([0x80 | len(body)]) + bytes(4) + body
    refusals = 0

    async def read() -> None:
        nonlocal refusals
        while data := await reader.read(65_536):
            refusals += data.count(b"unknown_event")

    async def write() -> None:
        while True:
            writer.write(frame * 1_000)
            await writer.drain()

    both = asyncio.gather(read(), write())
    await asyncio.sleep(end - time.monotonic())
    both.cancel()
    await asyncio.gather(both, return_exceptions=True)
    writer.transport.abort()
    return refusals


async def measure(idle: int, asking: int, seconds: float) -> dict[str, Any]:
    crowd = Crowd()
    facts: dict[str, Any] = {"idle_clients": idle, "asking_clients": asking}
    try:
        async with AsyncClient(crowd.url) as client:
            while (await client.streams())[0]["frames_seen"] < 100:
                await asyncio.sleep(0.2)
        facts["frames_per_second_alone"] = await crowd.rate(seconds)

        one = await crowd.open()
        delays: list[float] = []
        for _ in range(20):
            await ask(one, delays)
        facts |= spread("token_added_ms", delays)

        before = crowd.resident_bytes()
        idlers = [await crowd.open() for _ in range(idle)]
        facts["resident_bytes_a_client"] = round((crowd.resident_bytes() - before) / max(idle, 1))
        facts["frames_per_second_with_idle_clients"] = await crowd.rate(seconds)

        askers = [await crowd.open() for _ in range(asking)]
        firsts, delays, end = [], [], time.monotonic() + seconds * 3
        asked = asyncio.gather(*(asyncio.create_task(asker(client, end, firsts, delays)) for client in askers))
        facts["frames_per_second_with_askers"] = await crowd.rate(seconds * 2)
        answers = await asked
        facts |= {
            "answers": sum(answers),
            "fewest_answers_a_client": min(answers),
            "most_answers_a_client": max(answers),
        }
        facts |= spread("first_token_ms_with_askers", firsts)
        facts |= spread("token_added_ms_with_askers", delays)

        slow = await crowd.open()
        slow.transport.pause_reading()
        for _ in range(4):
            await slow.send(json.dumps({**QUESTION, "response": {**QUESTION["response"], "max_output_tokens": 1_000}}))
        port = int(crowd.url.rsplit(":", 1)[1])
        firsts, delays, end = [], [], time.monotonic() + seconds
        flood = asyncio.gather(flooder(port, end), flooder(port, end))
        honest = asyncio.create_task(asker(one, end, firsts, delays))
        facts["frames_per_second_with_flooders"] = await crowd.rate(seconds * 0.8)
        facts["refused_messages_per_second"] = round(sum(await flood) / seconds)
        facts["honest_answers_beside_flooders"] = await honest
        facts |= spread("honest_first_token_ms_beside_flooders", firsts)
        for client in (*idlers, *askers, one):
            client.transport.abort()
    except ConnectionClosed as error:
        facts["failed"] = str(error)
    finally:
        crowd.process.terminate()
        facts["daemon_exit"] = crowd.process.wait(10)
    return facts


def spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile, in milliseconds."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100)
    return {f"{name}_p50": round(1000 * cuts[49], 2), f"{name}_p99": round(1000 * cuts[98], 2)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=1_000)
    parser.add_argument("--asking", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    print(json.dumps(asyncio.run(measure(options.idle, options.asking, options.seconds)), indent=2))
