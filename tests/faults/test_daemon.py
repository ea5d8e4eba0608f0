"""Cameras of every kind through the whole daemon, from source to the answer at a websocket; and memory that survives what befalls them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from capture import Patience
from protocols.whip import SDP
from streamer import Assistant
from streamer.client import AsyncClient
from streamer.config import parse_config
from streamer.daemon import Daemon
from streamer.engine.stream import StreamStatus
from tests.capture.lab import (
    Mjpeg,
    RtspServer,
    broadcasting,
    drawn,
    http_server,
    jpeg,
    needs_rtsp,
    proxy,
    render,
    rtmp_server,
    rtsp_server,
    serving_folder,
    wait_for,
)
from tests.capture.publisher import Publisher
from tests.tiny import TINY

PROMISED = 5.0 + Patience().backoff_most * (1 + Patience().jitter)
"""Seconds within which a source must be live again after it is healthy, however long it flapped on a busy machine."""
LIMITS = {"streams": 12, "answers": 12, "visitor_answers": 12}


def daemon(
    work: Callable[[Assistant, AsyncClient], Awaitable[None]], *streams: dict[str, Any], model: dict[str, Any] = TINY
) -> None:
    """Runs `work` beside a whole daemon that watches these streams, and a client at its websocket."""

    async def run() -> None:
        configured = {"server": {"port": 0}, "streams": list(streams), "model": model, "limits": LIMITS}
        whole = Daemon(parse_config(configured))
        try:
            async with AsyncClient(await whole.start()) as client:
                await work(whole.assistant, client)
        finally:
            await whole.stop()

    asyncio.run(asyncio.wait_for(run(), 200))


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """What the daemon logs meanwhile."""
    lines: list[str] = []
    log, handler = logging.getLogger("streamer"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def status(assistant: Assistant, name: str) -> StreamStatus:
    return next(status for status in assistant.streams() if status.name == name)


async def until(true: Callable[[], bool], seconds: float = 60, what: Callable[[], object] = str) -> None:
    """Waits for something to be true; the seconds are for a machine that is busy with much else."""
    ending = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ending, f"not within {seconds:g} s: {what()}"
        await asyncio.sleep(0.02)


async def asked(assistant: Assistant, client: AsyncClient, name: str) -> None:
    """Waits until a stream has been seen for a while, and asks about it."""
    await until(lambda: status(assistant, name).frames_seen > 4, what=lambda: status(assistant, name))
    assert assistant.newest_frame(name) is not None
    async with AsyncClient(client.url, stream=name) as asker:
        assert "".join([words async for words in asker.ask("What is there?", max_tokens=3)])


@needs_rtsp
@pytest.mark.beside
@pytest.mark.usefixtures("loopback")
def test_every_kind_of_camera_is_watched_and_asked_about(tmp_path: Path, rtsp: RtspServer) -> None:
    pictures = [jpeg(drawn(n)) for n in range(50)]
    segments = tmp_path / "hls"
    segments.mkdir()
    clip = render(tmp_path / "clip.mp4", 100)
    with (
        http_server(Mjpeg, picture=lambda n: pictures[n % 50]) as mjpeg,
        broadcasting(str(segments / "live.m3u8"), "hls", hls_time="0.5"),
        serving_folder(segments) as hls,
        rtmp_server(clip) as rtmp,
        contextlib.closing(Publisher("H264")) as publisher,
    ):
        wait_for(lambda: (segments / "live.m3u8").exists() and "#EXTINF" in (segments / "live.m3u8").read_text())
        urls = {
            "file": (str(clip), {"loop": True}),
            "tcp": (rtsp.url("/live"), {}),
            "udp": (rtsp.url("/live"), {"transport": "udp"}),
            "mjpeg": (mjpeg, {}),
            "hls": (hls + "/live.m3u8", {}),
            "rtmp": (rtmp, {}),
            "whip": ("whip://whip", {}),
            "push": ("push://push", {}),
            "socket": ("push://socket", {}),
            "demo": ("demo:", {}),
        }

        async def work(assistant: Assistant, client: AsyncClient) -> None:
            def publish(offer: str) -> str:
                answer = httpx.post(f"{client.url}/whip/whip", content=offer, headers={"Content-Type": SDP}, timeout=60)
                assert answer.status_code == 201, answer.text
                return answer.text

            async def push() -> None:
                for n in range(10_000):
                    assistant.push("push", drawn(n), n / 5)
                    await client.push(pictures[n % 50], stream="socket", timestamp=n / 5)
                    await asyncio.sleep(0.2)

            pushing = asyncio.create_task(push())
            await asyncio.to_thread(publisher.publish, publish)
            await asyncio.gather(*(asked(assistant, client, name) for name in urls))
            pushing.cancel()

        streams = [{"name": name, "source": url, "fps": 2, **more} for name, (url, more) in urls.items()]
        daemon(work, *streams, model={"threads": 1})


@needs_rtsp
@pytest.mark.beside
def test_memory_survives_reboot_stall_and_a_change_of_resolution(rtsp: RtspServer) -> None:
    """The stream's memory is never begun anew, its time goes on, and each change of state is told."""
    told: list[str] = []
    with rtsp_server(width=480, height=360) as after, proxy(rtsp.port) as between, logged() as lines:

        async def work(assistant: Assistant, client: AsyncClient) -> None:
            await asked(assistant, client, "door")
            subscription, before = assistant.subscribe("door"), Counter(assistant.source_changes()["door"])
            lines.clear()

            async def listen() -> None:
                async for event in subscription:
                    if event.type == "stream.status":
                        told.append(event.facts["state"])

            listening = asyncio.create_task(listen())
            first = assistant.newest_frame("door")
            between.hushed = True
            await until(lambda: "stalled" in told)
            between.hushed = False
            await until(lambda: status(assistant, "door").state == "live")
            between.upstream = after.port
            between.cut()
            await until(lambda: "waiting" in told)  # which it is for a moment alone
            await until(lambda: status(assistant, "door").width == 480)
            seen = status(assistant, "door").frames_seen
            await until(lambda: status(assistant, "door").frames_seen > seen + 10)
            await asked(assistant, client, "door")
            now, last = status(assistant, "door"), assistant.newest_frame("door")
            assert now.generation == 1 and now.reconnects == 1
            assert first is not None and last is not None
            assert last.time - first.time == pytest.approx(last.captured - first.captured, abs=1)
            counted = Counter(assistant.source_changes()["door"]) - before
            assert counted == Counter(told[1:]), "each change is counted as often as it is told"
            changes = [line.split()[3] for line in lines if line.startswith("stream door is ")]
            assert changes == told[1:], "and logged once"
            subscription.close()
            listening.cancel()

        url = f"rtsp://127.0.0.1:{between.port}/live"
        daemon(work, {"name": "door", "source": url, "fps": 10, "stall_after": 5})
    assert told[0] == "live" and [state for state in told if state != "connecting"][1:] == [
        "stalled",
        "live",
        "waiting",
        "live",
    ]


def test_forty_streams_of_which_ten_flap_in_one_daemon() -> None:
    """Threads stay bounded, the healthy thirty go on, and the flapping ten are live as soon as they are steady."""
    steady = threading.Event()
    picture = jpeg(drawn(0, 160, 90))
    served = {"n": 0}

    def calm(n: int) -> bytes:
        steady.wait(0.3)
        return picture

    def flap(n: int) -> bytes:
        served["n"] += 1
        if not steady.is_set() and n >= 3:
            raise OSError("flaps")
        steady.wait(0.2)
        return picture

    with http_server(Mjpeg, picture=calm) as url, http_server(Mjpeg, picture=flap) as other:
        streams = [{"name": f"calm-{n}", "source": f"{url}/{n}", "fps": 1} for n in range(30)]
        streams += [{"name": f"flap-{n}", "source": f"{other}/{n}", "fps": 1} for n in range(10)]

        async def run() -> None:
            configured = {
                "streams": streams,
                "model": TINY,
                "limits": {"streams": 40, "answers": 2, "admission": "slots"},
            }
            async with Assistant(parse_config(configured)) as assistant:

                def all_live(kind: str) -> bool:
                    return all(each.state == "live" for each in assistant.streams() if each.name.startswith(kind))

                await until(lambda: all_live("calm") and all(each.frames_seen for each in assistant.streams()), 60)
                await asyncio.gather(
                    until(lambda: all(status(assistant, f"flap-{n}").reconnects >= 2 for n in range(10))),
                    until(lambda: status(assistant, "calm-7").frames_seen > 4),
                )
                answer = assistant.ask("What is there?", stream="calm-7", max_tokens=3)
                await answer.text()
                assert answer.finish_reason in ("length", "stop")
                assert all_live("calm") and threading.active_count() < 40 + 10 + 60
                steady.set()
                await until(lambda: all_live("flap"), 3 * PROMISED)  # forty streams, and other tests beside
                assert all(each.generation == 1 for each in assistant.streams())

        asyncio.run(asyncio.wait_for(run(), 200))
