"""How soon watches tell: `python -m tests.watches.measure [--events 60] [--watches 1] [--hold 0]`.

A daemon with the nano watches one camera, a program's pictures at 25 frames a second, in which things of the demo clip come
and go; a websocket and a subscriber at a real broker hear of them. Told is the time from an event's first frame to its message,
and where it went: until the frame that decided, until its look had ended, and from there to the websocket and to the subscriber.

With `--steady SECONDS` nothing is to be told: how often watches are looked at beside 25 frames a second is counted, and frames
that are lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from streamer import Assistant
from streamer.config import parse_config
from streamer.daemon import join
from streamer.outputs.outputs import Outputs
from tests.outputs.broker import running, subscriber
from tests.streamer.serving import _served, receive, send, until

DEMO = Path(__file__).parents[2] / "capture/clips/demo.mp4"
RATE = 25
SHOWN, GONE = 1.8, 1.5
"""Seconds that a thing is to be seen, and not to be."""
QUESTIONS = (
    "Is there a banana?",
    "Is there a dog?",
    "Is there a red circle?",
    "Is there a blue square?",
    "Is there a star?",
)


def clip(begin: float, end: float) -> list[np.ndarray]:
    """Frames of the demo, uint8 [360, 640, 3]."""
    with av.open(str(DEMO)) as file:
        file.seek(int(begin * 1e6))
        out = []
        for frame in file.decode(video=0):
            if frame.time >= end:
                return out
            if frame.time >= begin:
                out.append(frame.to_ndarray(format="rgb24"))
    return out


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


class Camera:
    """Pushes pictures in time; a picture's capture is when it is pushed."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant, self.began, self.count = assistant, time.monotonic(), 0

    async def show(self, pictures: Sequence[np.ndarray], seconds: float) -> float:
        """Shows pictures, to and fro, for so long; returns the Unix time of the first."""
        first = 0.0
        for i in range(round(seconds * RATE)):
            await asyncio.sleep(max(0.0, self.began + self.count / RATE - time.monotonic()))
            at = i % (2 * len(pictures) - 2)
            self.assistant.push("yard", pictures[min(at, 2 * len(pictures) - 2 - at)], self.count / RATE)
            first = first or time.time()
            self.count += 1
        return first


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    watches = [
        {"name": f"w{i}", "streams": ["yard"], "question": QUESTIONS[i % len(QUESTIONS)], "hold": options.hold}
        | {"every": options.every}
        for i in range(options.watches)
    ]
    with running(folder) as broker:
        told = {"name": "broker", "host": "127.0.0.1", "port": broker.port}
        config = parse_config(
            {
                "server": {"port": 0},
                "streams": [{"name": "yard", "source": "push://yard"}],
                "watches": watches,
                "limits": {"streams": 1, "answers": 8},
                "storage": {"folder": str(folder / "state")},
                "outputs": {"mqtt": [told]},
            }
        )
        async with Assistant(config) as assistant, subscriber(broker.port) as (_, heard):
            outputs = Outputs(config.outputs)
            join(assistant.watches, outputs)
            await outputs.start(None if assistant.keeper is None else assistant.keeper.store)
            async with _served(assistant, config, 0, 0) as server, server.connect() as client:
                await send(client, "watch.subscribe")
                await until(client, "watch.subscribed")
                empty, thing = clip(31.2, 32.0), clip(34.5, 37.5)
                camera = Camera(assistant)
                await camera.show(empty, 5.0)
                if options.steady:
                    figures = await steady(assistant, camera, [*thing, *empty], options.steady)
                else:
                    figures = await told_events(client, heard, camera, empty, thing, options.events)
                status = assistant.streams()[0]
                figures |= {"frames": camera.count, "frames seen": status.frames_seen, "drops": dict(status.drops)}
            await outputs.stop()
    return figures


async def steady(assistant: Assistant, camera: Camera, pictures: list[np.ndarray], seconds: float) -> dict[str, Any]:
    """Looks a second of each watch."""
    posts = list(assistant.watches._posts.values())
    counts = [0] * len(posts)
    for i, post in enumerate(posts):
        see = post.see

        def count(*given: Any, i: int = i, see: Any = see) -> None:
            counts[i] += 1
            see(*given)

        post.see = count  # type: ignore[method-assign]
    await camera.show(pictures, seconds)
    return {"seconds": seconds, "looks a second": [round(count / seconds, 2) for count in counts]}


async def told_events(
    client: Any, heard: Any, camera: Camera, empty: list[np.ndarray], thing: list[np.ndarray], events: int
) -> dict[str, Any]:
    """Seconds of each part of the way, by event."""
    websocket: list[tuple[float, dict[str, Any]]] = []
    mqtt: dict[str, float] = {}

    async def listen() -> None:
        while True:
            event = await receive(client)
            if event["type"] == "watch.started":
                websocket.append((time.time(), event))

    async def watch_broker() -> None:
        done = 0
        while True:
            for topic, payload in heard.messages[done:]:
                if topic.endswith("/event"):
                    mqtt[json.loads(payload)["id"]] = time.time()
            done = len(heard.messages)
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(listen()), asyncio.create_task(watch_broker())]
    firsts = []
    rng = np.random.default_rng(1)
    for _ in range(events):
        firsts.append(await camera.show(thing, SHOWN))
        await camera.show(empty, GONE + float(rng.uniform(0, 0.6)))
    await asyncio.sleep(1.0)
    for task in tasks:
        task.cancel()
    parts: dict[str, list[float]] = {"to the deciding frame": [], "to the websocket": [], "to the subscriber": []}
    missed = repeated = 0
    for i, first in enumerate(firsts):
        until_next = firsts[i + 1] if i + 1 < len(firsts) else float("inf")
        mine = [each for each in websocket if first - 0.05 <= each[1]["captured_at"] < until_next - 0.05]
        missed, repeated = missed + (not mine), repeated + max(0, len(mine) - 1)
        if mine:
            at, event = mine[0]
            parts["to the deciding frame"].append(event["captured_at"] - first)
            parts["to the websocket"].append(at - first)
            parts["to the subscriber"].append(mqtt.get(event["id"], float("inf")) - first)
    told = {
        name: {"p50": quantile(v, 0.5), "p95": quantile(v, 0.95), "max": max(v, default=0.0)}
        for name, v in parts.items()
    }
    return {"events": events, "missed": missed, "repeated": repeated} | told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=60)
    parser.add_argument("--watches", type=int, default=1)
    parser.add_argument("--every", type=float, default=0.5)
    parser.add_argument("--hold", type=float, default=0.0)
    parser.add_argument("--steady", type=float, default=0.0, metavar="SECONDS")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(parser.parse_args(), Path(folder))), indent=1))


if __name__ == "__main__":
    main()
