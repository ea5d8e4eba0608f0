"""What sources cost: `python -m tests.faults.measure` prints opening times, CPU of decoding, age of frames, what flapping leaves."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import multiprocessing
import os
import tempfile
import threading
import time
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np

from capture import Patience, State
from streamer import Assistant, parse_config
from tests.capture.lab import (
    Mjpeg,
    Watcher,
    broadcasting,
    drawn,
    http_server,
    jpeg,
    proxy,
    render,
    rtmp_server,
    rtsp_server,
    serving_folder,
    stop_all,
    wait_for,
)

CLIP = Path(__file__).parents[1] / "clips" / "small.mp4"


def opened(url: str, **options: object) -> float:
    """Seconds from start to the first picture, the median of five."""
    took = []
    for _ in range(5):
        began = time.monotonic()
        watcher = Watcher(url, **options)  # type: ignore[arg-type]
        watcher.until(State.LIVE)
        took.append(time.monotonic() - began)
        watcher.source.stop(5)
    return float(np.median(took))


def opening(folder: Path) -> None:
    picture = jpeg(drawn(0))
    clip = render(folder / "clip.mp4", 100)
    with rtsp_server() as rtsp, http_server(Mjpeg, picture=lambda n: picture) as mjpeg:
        print(f"open, file:       {opened(str(clip)):.2f} s")
        print(f"open, RTSP, TCP:  {opened(rtsp.url('/live')):.2f} s")
        print(f"open, RTSP, UDP:  {opened(rtsp.url('/live'), transport='udp'):.2f} s")
        print(f"open, MJPEG:      {opened(mjpeg):.2f} s")
    with broadcasting(str(folder / "live.m3u8"), "hls", hls_time="1"), serving_folder(folder) as hls:
        wait_for(lambda: (folder / "live.m3u8").exists() and (folder / "live.m3u8").read_text().count("#EXTINF") > 2)
        print(f"open, HLS of 1 s: {opened(hls + '/live.m3u8'):.2f} s")
    took = []
    for _ in range(3):
        with rtmp_server(clip) as rtmp:
            time.sleep(0.5)
            began = time.monotonic()
            watcher = Watcher(rtmp)
            watcher.until(State.LIVE)
            took.append(time.monotonic() - began)
            watcher.source.stop(5)
    print(f"open, RTMP:       {np.median(took):.2f} s")


def enlarged(path: Path, width: int, height: int) -> Path:
    """Eight seconds of the demo clip at another size."""
    with av.open(str(CLIP)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in source.decode(video=0):
            if frame.pts is not None and frame.time > 8:
                break
            scaled = frame.reformat(width=width, height=height)
            scaled.pts, scaled.time_base = round(frame.time * 25), Fraction(1, 25)
            target.mux(stream.encode(scaled))
        target.mux(stream.encode())
    return path


def decoding(folder: Path, seconds: float, hwaccel: str) -> None:
    for name, width, height in (("720p", 1280, 720), ("1080p", 1920, 1080)):
        path = enlarged(folder / f"{name}.mp4", width, height)
        for fps in (None, 5):
            watcher = Watcher(str(path), loop=True, capacity=1, fps=fps, hwaccel=hwaccel)
            watcher.until(State.LIVE)
            cpu, began, had = time.process_time(), time.monotonic(), watcher.source.status.frames
            time.sleep(seconds)
            spent, passed = time.process_time() - cpu, time.monotonic() - began
            frames = watcher.source.status.frames - had
            watcher.source.stop()
            print(
                f"decoding ({hwaccel}) {name} at {frames / passed:.0f} frames/s, {'all' if fps is None else fps} converted a second: "
                f"{100 * spent / passed:.1f} % of a core, {1000 * spent / frames:.2f} ms a frame"
            )


async def aged(url: str, seconds: float, **options: object) -> None:
    """How old the oldest frame of a step was each time when it came into the nano's state."""
    configured = {"streams": [{"name": "door", "source": url, **options}], "model": {"threads": 1}}
    async with Assistant(parse_config(configured)) as assistant:
        ages = []
        while assistant.streams()[0].frames_seen < 50:
            await asyncio.sleep(0.1)
        had, began = assistant.streams()[0].frames_seen, time.monotonic()
        while time.monotonic() - began < seconds:
            await asyncio.sleep(0.03)
            ages.append(1000 * (assistant.streams()[0].lag_s or 0))
        rate = (assistant.streams()[0].frames_seen - had) / seconds
        middle, late = np.quantile(ages, (0.5, 0.99))
        drops = sum(assistant.streams()[0].drops.values())
    print(
        f"age in the state at {rate:.1f} frames/s {options}: p50 {middle:.0f}, p99 {late:.0f} ms; {drops} frames dropped"
    )


def ageing(seconds: float) -> None:
    with rtsp_server() as rtsp:
        for transport in ("tcp", "udp"):
            asyncio.run(aged(rtsp.url("/large"), seconds, transport=transport))


def held() -> tuple[float, int, int]:
    """Resident MB, threads and descriptors of this process."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resident, threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def kept() -> tuple[float, int, int]:
    """`held`, after glibc has given back what is free."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return held()


def flap(tell: Connection) -> None:
    """Servers in a process of their own: MJPEG that hangs up after three pictures, RTSP that is cut every two seconds."""
    picture = jpeg(drawn(0, 160, 90))

    def few(n: int) -> bytes:
        if n > 2:
            raise OSError("flaps")
        return picture

    with http_server(Mjpeg, picture=few) as url, rtsp_server() as rtsp, proxy(rtsp.port) as between:
        tell.send((url, f"rtsp://127.0.0.1:{between.port}/live"))
        while not tell.poll(2):
            between.cut()


def flapping(seconds: float) -> None:
    """Twenty MJPEG sources and four RTSP ones that lose their connection all the time; what that leaves behind in this process."""
    here, there = multiprocessing.Pipe()
    servers = multiprocessing.get_context("spawn").Process(target=flap, args=(there,))
    servers.start()
    url, rtsp = here.recv()
    patience = Patience(backoff=0.05, backoff_most=0.1)
    urls = [f"{url}/{n}" for n in range(20)] + [rtsp] * 4
    watchers = [Watcher(each, capacity=1, patience=patience) for each in urls]
    rows = []
    began = time.monotonic()
    time.sleep(min(30, seconds / 4))
    early = kept()
    while time.monotonic() - began < seconds:
        time.sleep(1)
        for watcher in watchers:
            watcher.told.clear()
            watcher.mailbox.take(len(watcher.mailbox))
        reconnects = sum(watcher.source.status.reconnects for watcher in watchers)
        rows.append((time.monotonic() - began, reconnects, *held()))
    late = kept()
    stop_all(watchers)
    here.send("enough")
    servers.join()
    settled = np.array(rows[len(rows) // 4 :], float)
    print(
        f"flapping: {rows[-1][1]} reconnects in {seconds:g} s, {watchers[-1].source.status.reconnects} of one RTSP source"
    )
    for column, name in ((2, "MB"), (3, "threads"), (4, "descriptors")):
        values = settled[:, column]
        hourly = np.polyfit(settled[:, 0], values, 1)[0] * 3600
        thousand = np.polyfit(settled[:, 1], values, 1)[0] * 1000
        print(
            f"flapping, {name}: {values.min():.1f} to {values.max():.1f}; {hourly:+.2f} an hour, "
            f"{thousand:+.3f} for a thousand reconnects"
        )
    print(f"flapping, free memory given back: MB, threads, descriptors {early} early, {late} late, {kept()} afterwards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--flapping-seconds", type=float, default=120)
    parser.add_argument("--only", choices=("opening", "decoding", "ageing", "flapping"))
    parser.add_argument("--hwaccel", choices=("none", "cuda"), default="none", help="what decodes (default: the CPU)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only in (None, "opening"):
            opening(Path(folder))
        if arguments.only in (None, "decoding"):
            decoding(Path(folder), arguments.seconds, arguments.hwaccel)
    if arguments.only in (None, "ageing"):
        ageing(arguments.seconds)
    if arguments.only in (None, "flapping"):
        flapping(arguments.flapping_seconds)


if __name__ == "__main__":
    main()
