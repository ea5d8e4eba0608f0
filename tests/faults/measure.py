"""What sources cost: `python -m tests.faults.measure` prints opening times, CPU of decoding, and what flapping leaves behind."""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from capture import Patience, State
from tests.capture.lab import (
    Mjpeg,
    Watcher,
    broadcasting,
    drawn,
    http_server,
    jpeg,
    render,
    rtmp_server,
    rtsp_server,
    serving_folder,
    wait_for,
)

CLIP = Path(__file__).parents[2] / "capture" / "clips" / "demo.mp4"


def opened(url: str, **options: object) -> float:
    """Seconds from start to the first picture, the median of five."""
    took = []
    for _ in range(5):
        began = time.monotonic()
        watcher = Watcher(url, **options)  # type: ignore[arg-type]
        watcher.until(State.LIVE, 30)
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


def decoding(folder: Path, seconds: float) -> None:
    large = folder / "large.mp4"
    with av.open(str(CLIP)) as source, av.open(str(large), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for frame in source.decode(video=0):
            if frame.pts is not None and frame.time > 8:
                break
            scaled = frame.reformat(width=1920, height=1080)
            scaled.pts, scaled.time_base = round(frame.time * 25), Fraction(1, 25)
            target.mux(stream.encode(scaled))
        target.mux(stream.encode())
    for name, path in (("720p", CLIP), ("1080p", large)):
        for fps in (None, 5):
            watcher = Watcher(str(path), loop=True, capacity=1, fps=fps)
            watcher.until(State.LIVE)
            cpu, began, had = time.process_time(), time.monotonic(), watcher.source.status.frames
            time.sleep(seconds)
            spent, passed = time.process_time() - cpu, time.monotonic() - began
            frames = watcher.source.status.frames - had
            watcher.source.stop()
            print(
                f"decoding {name} at {frames / passed:.0f} frames/s, {'all' if fps is None else fps} converted a second: "
                f"{100 * spent / passed:.1f} % of a core, {1000 * spent / frames:.2f} ms a frame"
            )


def held() -> tuple[float, int, int]:
    """Resident MB, threads and descriptors of this process."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resident, threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def flapping(seconds: float) -> None:
    """Twenty sources that lose their connection after every few pictures, and a healthy one."""
    picture = jpeg(drawn(0, 160, 90))

    def flap(n: int) -> bytes:
        if n > 2:
            raise OSError("flaps")
        return picture

    patience = Patience(backoff=0.05, backoff_most=0.1)
    with http_server(Mjpeg, picture=flap) as url:
        watchers = [Watcher(f"{url}/{n}", capacity=1, patience=patience) for n in range(20)]
        rows = []
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(seconds / 20)
            for watcher in watchers:
                watcher.told.clear()
            rows.append((sum(watcher.source.status.reconnects for watcher in watchers), *held()))
        for watcher in watchers:
            watcher.source.stop(5)
    half = np.array(rows[len(rows) // 4 :], float)
    slope = [np.polyfit(half[:, 0], half[:, column], 1)[0] * 1000 for column in (1, 2, 3)]
    print(
        f"flapping: {rows[-1][0]} reconnects in {seconds:g} s; MB, threads, descriptors: {rows[0][1:]}, {rows[-1][1:]}"
    )
    print(
        f"flapping: for a thousand reconnects {slope[0]:+.3f} MB, {slope[1]:+.2f} threads, {slope[2]:+.2f} descriptors"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--flapping-seconds", type=float, default=120)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        opening(Path(folder))
        decoding(Path(folder), arguments.seconds)
    flapping(arguments.flapping_seconds)


if __name__ == "__main__":
    main()
