"""What many sources cost a thread that computes beside them: a measure, no test.

    python -m tests.capture.crowd --sources 0 10 40 100 [--fps 2] [--readers 2] [--switch 0.0005]

The thread stands for the engine's: a step is `CALLS` small calls of torch, each of which gives the interpreter's lock away and
must have it back, and then a wait of `DEVICE` seconds, as for a device. It asks for nothing else, so what a step takes more than
without sources is what they cost it. Where cores are short it waits for these too: `lock` is what is left of a step without that
(by the kernel's accounts), without its own work and without `DEVICE`, and so the wait for the interpreter. The sources are small
files at 25 frames a second, read by the real readers, whose frames are taken as the engine takes them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path

import torch

from capture import Mailbox, SourceOptions, open_source
from tests.capture.lab import render

CALLS, DEVICE = 400, 0.02


def step(one: torch.Tensor, other: torch.Tensor) -> None:
    for _ in range(CALLS):
        torch.add(one, 1.0, out=other)
    time.sleep(DEVICE)


def scheduled() -> float:
    """Seconds that this thread ran, or could have run but for others on its core."""
    return sum(map(int, Path("/proc/thread-self/schedstat").read_text().split()[:2])) / 1e9


def cpu_seconds() -> tuple[float, float]:
    """Of this process, and of those that it started."""
    ticks = os.sysconf("SC_CLK_TCK")
    own, others = time.process_time(), 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            others += int(fields[11]) + int(fields[12])
    return own, others / ticks


def measured(clips: list[Path], count: int, options: SourceOptions, seconds: float) -> str:
    mailboxes = [Mailbox(8, most_bytes=24 * 2**20) for _ in range(count)]
    sources = [open_source(str(clip), options) for clip in islice(cycle(clips), count)]
    for source, mailbox in zip(sources, mailboxes, strict=True):
        source.start(mailbox, lambda status: None)
    deadline = time.monotonic() + 60
    while not all(mailbox.received for mailbox in mailboxes) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    steps: list[float] = []
    ages: list[float] = []
    waits: list[float] = []
    over = threading.Event()
    dropped = sum(mailbox.dropped for mailbox in mailboxes)

    def engine() -> None:
        one, other = torch.zeros(256), torch.zeros(256)
        while not over.is_set():
            began, busy = time.monotonic(), scheduled()
            step(one, other)
            steps.append(time.monotonic() - began)
            waits.append(max(steps[-1] - (scheduled() - busy) - DEVICE, 0.0))
            now = time.monotonic()
            for mailbox in mailboxes:
                if waiting := len(mailbox):
                    ages.extend(now - frame.captured for frame in mailbox.take(waiting))

    thread = threading.Thread(target=engine)
    own, others = cpu_seconds()
    thread.start()
    time.sleep(seconds)
    over.set()
    thread.join()
    own, others = (after - before for after, before in zip(cpu_seconds(), (own, others), strict=True))
    lost = sum(mailbox.dropped for mailbox in mailboxes) - dropped
    for source in sources:
        threading.Thread(target=source.stop, daemon=True).start()
    share = {"step": steps, "lock": waits, "age of a frame": ages}
    told = [f"{name} {spread(values)} ms" for name, values in share.items()]
    cores = f"cores {own / seconds:.2f} here {others / seconds:.2f} in readers"
    counts = f"{len(steps)} steps, {len(ages) / seconds:.1f} frames/s, {lost} dropped"
    return ", ".join([f"{count:4} sources: {counts}", *told, cores, f"load {os.getloadavg()[0]:.1f}"])


def spread(seconds: list[float]) -> str:
    ordered = sorted(1000 * each for each in seconds) or [0.0]
    return f"{statistics.median(ordered):.1f}/{ordered[int(0.99 * len(ordered))]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sources", type=int, nargs="+", default=[0, 10, 40, 100])
    parser.add_argument("--fps", type=float)
    parser.add_argument("--switch", type=float)
    parser.add_argument("--readers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=8.0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.switch:
        sys.setswitchinterval(chosen.switch)
    given = {"readers": chosen.readers} if chosen.readers else {}
    options = SourceOptions(loop=True, fps=chosen.fps, **given)
    with tempfile.TemporaryDirectory() as folder:
        clips = [render(Path(folder) / f"{n}.mp4", 250, size=(160, 90), key=50) for n in range(4)]
        print(f"switch interval {sys.getswitchinterval():g} s, fps {chosen.fps}, readers {chosen.readers}", flush=True)
        for count in chosen.sources:
            print(measured(clips, count, options, chosen.seconds), flush=True)
            time.sleep(2.5)


if __name__ == "__main__":
    main()
