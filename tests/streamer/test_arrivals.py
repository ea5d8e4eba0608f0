"""From a frame's arrival to the model's state, of every frame: a camera on a socket, the real daemon with the nano, nothing beside it."""

from __future__ import annotations

import asyncio
import io
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capture import Frame
from streamer.config import parse_config
from streamer.daemon import Daemon
from streamer.engine.stream import Stream
from tests.capture.lab import http_server

DEADLINE = 0.2
BITS = 10
Pause = Iterator[tuple[float, int]]
"""Seconds until the next picture, and its number: a picture with the number of the one before is the same."""


def drawn(number: int) -> bytes:
    """A JPEG of 640x480 that has its number in it, as bars."""
    bars = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8) * 255
    pixels = np.repeat(np.repeat(bars, 64)[None, :, None], 480, axis=0).repeat(3, axis=2)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=90)
    return data.getvalue()


def read(frame: Frame) -> int:
    """The number in a picture."""
    _, width = frame.pixels.shape[:2]
    row = frame.pixels[frame.pixels.shape[0] // 2, :, 0]
    return sum(int(row[width * (2 * bit + 1) // (2 * BITS)] > 127) << bit for bit in range(BITS))


class Camera(BaseHTTPRequestHandler):
    """Sends pictures at the times of the server's `pace`, and notes in its `sent` when each new one was about to be."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        sent: dict[int, float] = self.server.sent  # type: ignore[attr-defined]
        due = time.monotonic()
        with suppress(OSError):
            for pause, number in self.server.pace:  # type: ignore[attr-defined]
                due += pause
                time.sleep(max(0.0, due - time.monotonic()))
                data = drawn(number)
                length = f"Content-Length: {len(data)}\r\n" if self.server.measured else ""  # type: ignore[attr-defined]
                sent.setdefault(number, time.monotonic())
                self.wfile.write(f"--frame\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode() + data + b"\r\n")
        with suppress(OSError):
            while not self.server.stopping:  # type: ignore[attr-defined]
                time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        pass


def steady(rate: float, count: int) -> Pause:
    for number in range(count):
        yield 1 / rate, number


def bursty(bursts: int) -> Pause:
    """One to four pictures at 25 a second, after one to four seconds."""
    chance, number = random.Random(22), 0
    for _ in range(bursts):
        for i in range(chance.randint(1, 4)):
            yield 0.04 if i else chance.uniform(1, 4), number
            number += 1


def changing(changes: int) -> Pause:
    """A scene at 5 pictures a second that changes every two to six seconds."""
    chance = random.Random(22)
    for number in range(changes):
        for _ in range(chance.randint(10, 30)):
            yield 0.2, number


GATE = {"change": 4, "change_floor": 0.1}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "pace", "options", "measured"),
    [
        ("0.2 a second", lambda: steady(0.2, 12), {}, True),
        ("0.2 a second, without lengths", lambda: steady(0.2, 8), {}, False),
        ("1 a second", lambda: steady(1, 40), {}, True),
        ("5 a second", lambda: steady(5, 200), {}, True),
        ("25 a second", lambda: steady(25, 1000), {}, True),
        ("bursts", lambda: bursty(25), {}, True),
        ("changes", lambda: changing(20), GATE, True),
    ],
)
def test_every_frame_is_in_the_state_within_its_deadline(
    name: str, pace: Any, options: dict[str, Any], measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, float] = {}
    saw = Stream.saw

    def noted(stream: Stream, frames: tuple[Frame, ...], now: float) -> None:
        for frame in frames:
            seen.setdefault(read(frame), now)
        saw(stream, frames, now)

    monkeypatch.setattr(Stream, "saw", noted)
    sent: dict[int, float] = {}

    async def story(url: str) -> dict[str, int]:
        door = {"name": "door", "source": url, "deadline": DEADLINE, **options}
        daemon = Daemon(parse_config({"server": {"port": 0}, "streams": [door]}))
        await daemon.start()
        try:
            numbers = {number for _, number in pace()}
            async with asyncio.timeout(200):
                while sent.keys() != numbers:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            (status,) = daemon.assistant.streams()
            return status.drops
        finally:
            await daemon.stop()

    with http_server(Camera, pace=pace(), sent=sent, measured=measured) as url:
        drops = asyncio.run(story(url))
    taken = sorted(seen[number] - when for number, when in sent.items() if number in seen)
    p99 = taken[int(0.99 * len(taken))]
    told = f"median {taken[len(taken) // 2] * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, longest {taken[-1] * 1e3:.0f} ms"
    print(f"\n{name}: {len(taken)} of {len(sent)} frames: {told}; drops {drops}; load {os.getloadavg()[0]:.1f}")
    assert len(taken) == len(sent) and p99 <= DEADLINE
