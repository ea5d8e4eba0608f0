"""Disks that are full, read-only, slow or gone, by a real file system under a real daemon: it watches and answers all the same."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml

from streamer.client import AsyncClient
from tests.memory.disk import Disk
from tests.ports import free_port

DAEMON = "import tests.tiny; from streamer.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
RATE = 25
WATCHED = 8.0
"""Seconds that each disk is looked at."""


def sh(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Mounted:
    """An ext4 of 48 MB in a file, which the kernel itself makes read-only at its first fault."""

    def __init__(self, place: Path) -> None:
        self.image, self.path = place / "image", place / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(48 * 2**20)
        sh("mkfs.ext4", "-q", "-O", "^has_journal", str(self.image))
        self.mount()

    def mount(self) -> None:
        sh("mount", "-o", "loop,errors=remount-ro", str(self.image), str(self.path))

    def fill(self) -> None:
        with suppress(OSError), (self.path / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def drain(self) -> None:
        (self.path / "filler").unlink()

    def break_it(self) -> None:
        loop = subprocess.run(["findmnt", "-no", "SOURCE", str(self.path)], check=True, capture_output=True, text=True)
        name = Path(loop.stdout.strip()).name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("broken on purpose")

    def mend(self) -> None:
        """As whoever keeps the machine does: what was on the disk is put onto another, in its place."""
        sh("umount", "-l", str(self.path))
        os.sync()
        self.image = shutil.copyfile(self.image, self.image.with_suffix(".mended"))
        subprocess.run(["fsck.ext4", "-fy", str(self.image)], check=False, capture_output=True)
        self.mount()

    def close(self) -> None:
        with suppress(subprocess.CalledProcessError):
            sh("umount", "-l", str(self.path))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    if os.geteuid() or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices, to mount a file system")
    made = Mounted(tmp_path)
    yield made
    made.close()


class Watched:
    """A daemon that watches 25 frames a second, records them and takes a snapshot every second, on a disk of ours."""

    def __init__(self, place: Path, state: Path, disk: Disk) -> None:
        self.port, self.log, config = free_port(), place / "log", place / "config.yaml"
        streams = [{"name": "door", "source": "demo:", "record": True, "keep_questions": True}]
        config.write_text(
            yaml.safe_dump(
                {
                    "server": {"port": self.port},
                    "model": {"name": "tiny", "random_weights": True, "threads": 1},
                    "streams": streams,
                    "storage": {"folder": str(state), "every": 1},
                }
            )
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DAEMON, "run", str(config)],
                stdout=log,
                stderr=log,
                env={**os.environ, **disk.environment},
            )
        self.url = f"http://127.0.0.1:{self.port}"
        self.web = httpx.Client(base_url=self.url, timeout=30)

    def eventually(self, true: Callable[[], object], what: str, seconds: float = 60.0) -> float:
        began = time.monotonic()
        while True:
            with suppress(httpx.HTTPError):
                if true():
                    return time.monotonic() - began
            assert time.monotonic() - began < seconds, f"{what}: {self.log.read_text()[-1500:]}"
            assert self.process.poll() is None
            time.sleep(0.1)

    def metric(self, name: str) -> float:
        lines = self.web.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    @property
    def fault(self) -> str | None:
        told: str | None = self.web.get("/readyz").json().get("storage")
        return told

    async def held(self, seconds: float) -> tuple[float, int, int, float]:
        """Watches a while: frames seen a second, frames dropped, questions answered, and the longest wait for a first word."""
        async with AsyncClient(self.url) as client:
            (before,) = await client.streams()
            began, answered, longest = time.monotonic(), 0, 0.0
            while time.monotonic() - began < seconds:
                asked = time.monotonic()
                first = True
                async for _ in client.ask("What is there?", max_tokens=8):
                    longest, first = max(longest, time.monotonic() - asked if first else 0.0), False
                answered += 1
                await asyncio.sleep(0.5)
            (after,) = await client.streams()
            seen = (after["frames_seen"] - before["frames_seen"]) / (time.monotonic() - began)
            return seen, sum(after["drops"].values()) - sum(before["drops"].values()), answered, longest

    def told(self) -> int:
        """Times that a fault was told."""
        return self.log.read_text().count("can be kept now") + self.log.read_text().count("can be recorded now")

    def saved(self) -> float:
        return self.metric("streamer_snapshots_total")

    def shown(self) -> bool:
        """Whether /metrics shows that something can't be kept."""
        return self.metric("streamer_storage_fault") + self.metric("streamer_recording_fault") > 0

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_whatever_the_disk_does_it_watches_and_answers(mounted: Mounted, tmp_path: Path) -> None:
    state = mounted.path / "state"
    disk = Disk(tmp_path, state)
    daemon = Watched(tmp_path, state, disk)
    cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "well": (lambda: None, lambda: None),
        "slow": (lambda: disk.set(slow=0.2), lambda: disk.set()),
        "no sync": (lambda: disk.set(failing=1.0), lambda: disk.set()),
        "full": (mounted.fill, mounted.drain),
        "removed": (lambda: shutil.rmtree(state), lambda: None),
        "read-only": (mounted.break_it, mounted.mend),
    }
    try:
        daemon.eventually(lambda: daemon.web.get("/readyz").status_code == 200, "it starts", 120)
        daemon.eventually(lambda: daemon.saved() >= 2, "snapshots are taken")
        for name, (begin, end) in cases.items():
            told, lasting = daemon.told(), name in ("no sync", "full", "read-only")
            begin()
            if lasting:
                daemon.eventually(lambda: daemon.fault and daemon.shown(), f"{name} is shown")
            seen, dropped, answered, longest = asyncio.run(daemon.held(WATCHED))
            shown = daemon.fault
            end()
            saved = daemon.saved()
            back = daemon.eventually(
                lambda saved=saved: daemon.fault is None and daemon.saved() > saved, f"{name} ends"
            )  # type: ignore[misc]
            lines = daemon.told() - told
            print(
                f"{name}: {seen:.1f} frames/s, {dropped} dropped, {answered} answered, first word after {longest * 1000:.0f} ms "
                f"at most, saved again after {back:.1f} s, told in {lines} lines: {shown}"
            )
            assert answered and (shown is not None) == lasting
            assert lines <= (0 if name in ("well", "slow") else 2), "once for what is kept, once for what is recorded"
    finally:
        daemon.close()
