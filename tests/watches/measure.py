"""How soon watches tell: `python -m tests.watches.measure [--events 60] [--cameras 1] [--watches 1] [--hold 0] [--device cuda]`.

A daemon with the nano watches cameras, a program's pictures at 25 frames a second each, in which things of the demo clip come
and go; a websocket and a subscriber at a real broker (where mosquitto is) hear of them. Told is the time from an event's first
frame to its message, and where it went: until the frame that decided, to the websocket and to the subscriber.

With `--steady SECONDS` nothing is to be told: how often watches are looked at beside 25 frames a second is counted, and frames
that are lost. With `--parts` two watches ask the same of the left half, in which the banana is, and of the right one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

from streamer import Assistant
from streamer.config import parse_config
from streamer.daemon import join
from streamer.outputs.outputs import Outputs
from tests.outputs.broker import BROKER, Heard, running, subscriber
from tests.streamer.serving import _served, send, until

DEMO = Path(__file__).parents[2] / "capture/clips/demo.mp4"
RATE = 25
SHOWN, GONE = 1.8, 1.5
"""Seconds that a thing is to be seen, and not to be."""
SETTLE = 5.0
"""Seconds of each camera before anything is counted."""
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

    def __init__(self, assistant: Assistant, name: str, after: float) -> None:
        self.assistant, self.name, self.began, self.count = assistant, name, time.monotonic() + after, 0

    async def show(self, pictures: Sequence[np.ndarray], seconds: float) -> float:
        """Shows pictures, to and fro, for so long; returns the Unix time of the first."""
        first = 0.0
        for i in range(round(seconds * RATE)):
            await asyncio.sleep(max(0.0, self.began + self.count / RATE - time.monotonic()))
            at = i % (2 * len(pictures) - 2)
            self.assistant.push(self.name, pictures[min(at, 2 * len(pictures) - 2 - at)], self.count / RATE)
            first = first or time.time()
            self.count += 1
        return first

    async def events(
        self, number: int, empty: Sequence[np.ndarray], thing: Sequence[np.ndarray], seed: int
    ) -> list[float]:
        """Shows a thing so many times, and none between; returns the Unix times of their first frames."""
        rng, firsts = np.random.default_rng(seed), []
        for _ in range(number):
            firsts.append(await self.show(thing, SHOWN))
            await self.show(empty, GONE + float(rng.uniform(0, 0.6)))
        return firsts


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    names = [f"yard-{n}" for n in range(options.cameras)]
    usual = {"streams": names, "hold": options.hold, "every": options.every}
    watches = [{"name": f"w{i}", "question": QUESTIONS[i % len(QUESTIONS)], **usual} for i in range(options.watches)]
    if options.parts:
        halves = {"left": [0, 0, 0.5, 1], "right": [0.5, 0, 1, 1]}
        watches = [{"name": name, "question": QUESTIONS[0], "only": half, **usual} for name, half in halves.items()]
    model: dict[str, Any] = {"device": options.device}
    if options.device == "cuda":
        model["dtype"] = "bfloat16"
    data: dict[str, Any] = {
        "server": {"port": 0},
        "model": model,
        "streams": [{"name": name, "source": f"push://{name}"} for name in names],
        "watches": watches,
        "limits": {"streams": len(names), "answers": 8},
        "storage": {"folder": str(folder / "state")},
    }
    async with AsyncExitStack() as stack:
        heard = None
        if BROKER is not None:
            broker = stack.enter_context(running(folder))
            data["outputs"] = {"mqtt": [{"name": "broker", "host": "127.0.0.1", "port": broker.port}]}
        config = parse_config(data)
        assistant = await stack.enter_async_context(Assistant(config))
        if BROKER is not None:
            _, heard = await stack.enter_async_context(subscriber(broker.port))
        outputs = Outputs(config.outputs)
        join(assistant.watches, outputs)
        await outputs.start(None if assistant.keeper is None else assistant.keeper.store)
        stack.push_async_callback(outputs.stop)
        server = await stack.enter_async_context(_served(assistant, config, 0, 0))
        client = await stack.enter_async_context(server.connect())
        await send(client, "watch.subscribe")
        await until(client, "watch.subscribed")
        empty, thing = clip(31.2, 32.0), clip(34.5, 37.5)
        # One after another, as cameras are that nobody has set to the same clock.
        cameras = [Camera(assistant, name, n / RATE / len(names)) for n, name in enumerate(names)]
        await asyncio.gather(*(camera.show(empty, SETTLE) for camera in cameras))
        if options.parts:
            figures = await seen_in_parts(assistant, cameras, empty, clip(34.5, 35.6))
        elif options.steady:
            figures = await steady(assistant, cameras, [*thing, *empty], options.steady)
        else:
            figures = await told_events(client, heard, cameras, empty, thing, options.events)
        figures["frames"] = sum(camera.count for camera in cameras)
        figures["frames seen"] = sum(status.frames_seen for status in assistant.streams())
        figures["drops"] = dict(sum((Counter(status.drops) for status in assistant.streams()), Counter[str]()))
    return figures


async def seen_in_parts(
    assistant: Assistant, cameras: Sequence[Camera], empty: Sequence[np.ndarray], thing: Sequence[np.ndarray]
) -> dict[str, Any]:
    """What each watch saw of each camera, from 0 to 1 by look, without the thing and with it."""
    found: dict[str, list[float]] = {}
    for post in assistant.watches._posts.values():

        def keep(value: Any, *given: Any, name: str = f"{post.config.name} {post.stream}", see: Any = post.see) -> None:
            found.setdefault(name, []).append(round(value, 3))
            see(value, *given)

        post.see = keep  # type: ignore[method-assign]
    figures: dict[str, Any] = {}
    for name, pictures in (("without", empty), ("with", thing)):
        await asyncio.gather(*(camera.show(pictures, 2 * SHOWN) for camera in cameras))
        figures[name] = dict(found)
        found.clear()
    return figures


async def steady(
    assistant: Assistant, cameras: Sequence[Camera], pictures: list[np.ndarray], seconds: float
) -> dict[str, Any]:
    """Looks a second of each watch and camera."""
    posts = list(assistant.watches._posts.values())
    counts = [0] * len(posts)
    for i, post in enumerate(posts):
        see = post.see

        def count(*given: Any, i: int = i, see: Any = see) -> None:
            counts[i] += 1
            see(*given)

        post.see = count  # type: ignore[method-assign]
    await asyncio.gather(*(camera.show(pictures, seconds) for camera in cameras))
    return {"seconds": seconds, "looks a second": [round(count / seconds, 2) for count in counts]}


async def told_events(
    client: Any,
    heard: Heard | None,
    cameras: Sequence[Camera],
    empty: Sequence[np.ndarray],
    thing: Sequence[np.ndarray],
    events: int,
) -> dict[str, Any]:
    """Seconds of each part of the way, by event; `events` of all cameras together."""
    websocket: list[tuple[float, dict[str, Any]]] = []
    mqtt: dict[str, float] = {}

    async def listen() -> None:
        while True:
            event = json.loads(await client.recv())
            if event["type"] == "watch.started":
                websocket.append((time.time(), event))

    async def watch_broker(heard: Heard) -> None:
        done = 0
        while True:
            for topic, payload in heard.messages[done:]:
                if topic.endswith("/event"):
                    mqtt[json.loads(payload)["id"]] = time.time()
            done = len(heard.messages)
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(listen())]
    if heard is not None:
        tasks.append(asyncio.create_task(watch_broker(heard)))
    each_has = [events // len(cameras) + (n < events % len(cameras)) for n in range(len(cameras))]
    shown = [
        camera.events(number, empty, thing, 1 + n)
        for n, (camera, number) in enumerate(zip(cameras, each_has, strict=True))
    ]
    firsts = await asyncio.gather(*shown)
    await asyncio.sleep(1.0)
    for task in tasks:
        task.cancel()
    parts: dict[str, list[float]] = {"to the deciding frame": [], "to the websocket": []}
    if heard is not None:
        parts["to the subscriber"] = []
    missed = repeated = 0
    for camera, began in zip(cameras, firsts, strict=True):
        for first, until_next in pairwise([*began, float("inf")]):
            mine = [
                each
                for each in websocket
                if each[1]["stream"] == camera.name and first - 0.05 <= each[1]["captured_at"] < until_next - 0.05
            ]
            missed, repeated = missed + (not mine), repeated + max(0, len(mine) - 1)
            if mine:
                at, event = mine[0]
                parts["to the deciding frame"].append(event["captured_at"] - first)
                parts["to the websocket"].append(at - first)
                if heard is not None:
                    parts["to the subscriber"].append(mqtt.get(event["id"], float("inf")) - first)
    told = {
        name: {"p50": quantile(v, 0.5), "p95": quantile(v, 0.95), "max": max(v, default=0.0)}
        for name, v in parts.items()
    }
    return {"cameras": len(cameras), "events": events, "missed": missed, "repeated": repeated} | told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=60)
    parser.add_argument("--watches", type=int, default=1)
    parser.add_argument("--every", type=float, default=0.5)
    parser.add_argument("--hold", type=float, default=0.0)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--steady", type=float, default=0.0, metavar="SECONDS")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(parser.parse_args(), Path(folder))), indent=1))


if __name__ == "__main__":
    main()
