"""A week on a clock of numbers: what is kept stays within its budgets, and nobody waits for what is removed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from streamer.memory.recording import Recordings, Segment
from streamer.memory.retention import DAY, HOUR, MINUTE
from streamer.memory.segment import NOTES
from streamer.memory.snapshot import Taken
from streamer.memory.snapshots import Snapshots
from streamer.memory.store import Store
from streamer.memory.timeline import Timeline, Wanted

from .test_restart import run

BEGAN = 1_800_000_000.0
STREAMS = ("door", "gate", "hall", "yard")
SNAPSHOTS, TIMELINE, RECORDINGS, HOURS = 8_000_000, 40_000_000, 200_000_000, 72.0
STATE = {"memory": torch.zeros(4_000)}
MOST_WAITED = 0.05
"""Seconds that a row or a reader may wait for what is removed."""


def taken(stream: str, wall: float) -> Taken:
    return Taken(stream, "push://x", wall, 0.0, 0.0, 1, 1, 0, "tiny", "f", "1")


def disk(path: Path) -> int:
    """Bytes that the files below a folder say they have."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


class Week:
    def __init__(self, path: Path) -> None:
        self.store = Store(path / "state")
        self.timeline = Timeline(self.store, TIMELINE, HOURS)
        self.snapshots = Snapshots(self.store.folder, SNAPSHOTS)
        self.recordings = Recordings(self.store.folder, RECORDINGS, HOURS)
        for stream in STREAMS:
            self.timeline.open(stream)
        self.chance = random.Random(3)
        self.waits: list[float] = []
        self.removing = False

    async def minute(self, now: float) -> None:
        for stream in STREAMS:
            for second in range(0, 60, 10):
                words = " ".join(
                    self.chance.choices(["red", "van", "dog", "gate", "person", "lorry", "cat", "left"], k=9)
                )
                place = self.timeline.place(now - 60 + second)
                self.timeline.add("note", stream, words, place=place, still=bytes(500 if second == 0 else 0) or None)
        for stream in STREAMS:
            done = self.store.do(lambda s=stream: self.snapshots.write(taken(s, now), STATE, now))  # type: ignore[misc]
            await asyncio.wrap_future(done)
        if int(now) % 600 == 0:
            for stream in STREAMS:
                self.segment(stream, now)

    def segment(self, stream: str, now: float) -> None:
        """Ten minutes of a camera's video, of which there is but the size."""
        number = self.recordings.next_number(stream)
        path = self.recordings.folder.place("recordings", stream) / f"{number:010d}-{round(now * 1000)}.mp4"
        path.with_suffix(NOTES).touch()
        with path.open("wb") as file:
            file.truncate(1_000_000)
        self.recordings.add(stream, Segment(number, now - 600, now, 1_000_000, path))
        self.recordings.thin(now)

    async def others(self) -> None:
        """Somebody who lists what happened and waits for a row, one after the other, while the rest goes on."""
        while True:
            began = time.perf_counter()
            await asyncio.to_thread(self.timeline.entries, Wanted("door"), 8)
            read = time.perf_counter()
            await asyncio.wrap_future(self.store.write("DELETE FROM outbox WHERE FALSE", now=True))
            if self.removing:
                self.waits += [read - began, time.perf_counter() - read]
            await asyncio.sleep(0.001)

    async def trim(self, now: float) -> int:
        asking = asyncio.create_task(self.others())
        self.removing = True
        try:
            return await self.timeline.trim(now)
        finally:
            self.removing = False
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking

    def close(self) -> None:
        self.recordings.close()
        self.store.close()


async def lived(week: Week, days: float, told: Callable[[str], Any]) -> int:
    gone, largest = 0, 0
    for minute in range(1, round(days * DAY / MINUTE) + 1):
        now = BEGAN + minute * MINUTE
        await week.minute(now)
        if minute % 30 == 0:
            gone += await week.trim(now)
            database = week.store.folder.database.stat().st_size
            largest = max(largest, database)
            assert week.snapshots.size <= SNAPSHOTS and week.recordings.size <= RECORDINGS
            assert week.timeline._bytes <= TIMELINE and database <= TIMELINE + 8 * 2**20
        if minute % 1_440 == 0:
            kept = {kind: disk(week.store.folder.path / kind) for kind in ("snapshots", "recordings")}
            waits = sorted(week.waits) or [0.0]
            told(
                f"day {minute // 1_440}: {kept} bytes, database {largest} at most, {gone} entries gone, "
                f"others waited {waits[len(waits) // 2] * 1e3:.1f} ms, {waits[-1] * 1e3:.1f} ms at most of {len(waits)}"
            )
    return gone


def judge(week: Week, days: float) -> None:
    now = BEGAN + days * DAY
    for stream in STREAMS:
        oldest = week.timeline.entries(Wanted(stream), 10**6)[-1]
        assert now - oldest.wall < HOURS * HOUR + HOUR
        walls = [each.wall for each in week.snapshots.of(stream)]
        assert len(walls) < 400 and len(walls) == len(list(week.snapshots.of(stream)[0].path.parent.iterdir()))
    files = list((week.store.folder.path / "recordings").rglob("*.mp4"))
    assert sum(each.stat().st_size for each in files) == week.recordings.size <= RECORDINGS


@pytest.mark.nightly
@pytest.mark.timeout(1_800)
def test_a_week_stays_within_its_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # of 40,000 snapshots; rows wait for the disk as ever

    async def test() -> None:
        week = Week(tmp_path)
        assert await lived(week, 7.0, print) > 0
        judge(week, 7.0)
        waits = sorted(week.waits)
        assert waits[len(waits) * 99 // 100] < MOST_WAITED
        week.close()

    asyncio.run(test())


def test_half_an_hour_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.memory.test_week.TIMELINE", 100_000)

    async def test() -> None:
        week = Week(tmp_path)
        assert await lived(week, 30 / 1_440, print) > 0
        judge(week, 30 / 1_440)
        week.close()

    run(test())
