"""What the fault tests share: a healthy neighbour, a count of what is left over, and the recovery times."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capture import Patience
from tests.beside import NAME
from tests.capture.lab import Watcher, has_rtsp_server, loopback, render, rtsp, wait_for

__all__ = ["loopback", "rtsp"]

RECOVERIES: list[tuple[str, float]] = []


@pytest.fixture(scope="session")
def recovery() -> Callable[[float], None]:
    """Records how long a row took from healthy again to live again, in seconds; `pytest_terminal_summary` prints them."""

    def record(seconds: float) -> None:
        RECOVERIES.append((NAME.get().removeprefix("test_").replace("_", " "), seconds))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RECOVERIES:
        terminalreporter.section("recovery after faults, seconds from healthy to live, backoff included")
        for name, seconds in sorted(RECOVERIES):
            terminalreporter.write_line(f"{seconds:6.2f}  {name}")


def threads() -> list[str]:
    """All threads, but for those that a process keeps for good: one of tqdm's, and two at most that decode attached pictures."""
    kept = ("tqdm_monitor", "pictures_")
    return sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith(kept))


def descriptors() -> list[str]:
    """What this process holds open."""
    held = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            held.append(str(each.readlink()))
    return sorted(held)


@pytest.fixture(scope="session")
def quiet_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("neighbour") / "clip.mkv", 50, size=(160, 90))


@pytest.fixture(autouse=True, scope="module")
def neighbour(quiet_clip: Path, request: pytest.FixtureRequest) -> Iterator[Watcher]:
    """A healthy source beside those at fault: it goes on, and afterwards threads and descriptors are as before."""
    if has_rtsp_server():
        request.getfixturevalue("rtsp")  # it outlives the module, whichever of its tests is the first to want it
    threads_before, open_before = threads(), descriptors()
    healthy = Watcher(str(quiet_clip), loop=True, patience=Patience())
    wait_for(lambda: healthy.source.status.frames > 0)
    had, began = healthy.source.status.frames, time.monotonic()
    yield healthy
    status = healthy.source.status
    expected = 25 * (time.monotonic() - began)
    # A share, as its pace begins anew wherever a busy machine holds it up; and it is live to the end.
    assert status.state == "live" and status.reconnects == 0 and status.frames - had > 0.3 * expected - 5, status
    healthy.more(5)
    assert {*healthy.states} == {"connecting", "live"}
    healthy.source.stop()
    wait_for(lambda: len(threads()) <= len(threads_before), what=lambda: f"{threads()}, before {threads_before}")

    def left_over() -> bool:
        gc.collect()  # each time, as what is let go late may be in a cycle
        return len(descriptors()) > len(open_before)

    wait_for(lambda: not left_over(), what=lambda: f"open {descriptors()}, before {open_before}")
