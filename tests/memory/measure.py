"""What a large timeline costs: `python -m tests.memory.measure` prints how long searches, lists and densities of 1,000,000 entries take.

With `--daemon` what memory costs a daemon instead: its start, its frames, and how soon the past answers.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from streamer.memory.store import Store
from streamer.memory.timeline import Timeline, Wanted
from tests.memory.daemon_costs import print_costs

WORDS = [f"word{number}" for number in range(5_000)]
THINGS = ("van", "dog", "bicycle", "parcel", "gate", "person", "cat", "lorry")
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
BEGAN = 1_800_000_000.0
APART = 2.6
"""Seconds between two entries: a million are 30 days."""


def fill(timeline: Timeline, store: Store, count: int) -> None:
    """Eight streams' notes of ten words, of which the frequent ones follow Zipf's law."""
    draw = random.Random(7)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(WORDS) + 1)))
    texts = (
        f"A {draw.choice(COLOURS)} {draw.choice(THINGS)} {' '.join(draw.choices(WORDS, cum_weights=weights, k=8))}."
        for _ in range(count)
    )
    database = store._database  # past the queue, which commits 256 rows at once, as live entries come
    for begins in range(0, count, 50_000):
        rows = []
        for number, text in zip(range(begins, min(begins + 50_000, count)), texts, strict=False):
            place = timeline.place(BEGAN + number * APART)
            rows.append((place.id, place.at, place.wall, f"door{number % 8}", text))

        def write(rows: list[tuple[int, float, float, str, str]] = rows) -> None:
            database.execute("BEGIN")
            sql = "INSERT INTO entries VALUES (?, ?, ?, NULL, ?, 'note', NULL, ?, '{}', NULL, 600)"
            database.executemany(sql, rows)
            database.execute("COMMIT")

        store.do(write).result(600)
    timeline.add("note", "door0", "A banana lies on the table.", place=timeline.place(BEGAN + count * APART / 3))
    store.write("DELETE FROM entries WHERE FALSE", now=True).result(60)


def timed(name: str, do: Callable[[], object], times: int = 20) -> None:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        do()
        took.append((time.perf_counter() - began) * 1_000)
    print(f"{name:58} median {statistics.median(took):7.1f} ms, worst {max(took):7.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--daemon", action="store_true")
    parser.add_argument("--seconds", type=float, default=120.0, help="that the daemon is watched for")
    parser.add_argument("--starts", type=int, default=5, help="of the daemon, with memory and without")
    parser.add_argument("--model", type=json.loads, default={}, help="the daemon's section `model`, JSON")
    options = parser.parse_args()
    count = options.entries
    with tempfile.TemporaryDirectory() as folder:
        if options.daemon:
            return asyncio.run(print_costs(Path(folder), options.seconds, options.starts, options.model))
        store = Store(Path(folder) / "state")
        timeline = Timeline(store, 10**12, 10**6)
        for number in range(8):
            timeline.open(f"door{number}")
        began = time.perf_counter()
        fill(timeline, store, count)
        size = store.folder.database.stat().st_size
        print(f"{count} entries in {time.perf_counter() - began:.0f} s, {size / count:.0f} bytes each on the disk")
        end = BEGAN + count * APART
        searches = {
            "a rare word": "banana",
            "a frequent word": "word0",
            "two words": "red van",
            "a beginning of words": "bi*",
            "one word without another": "van NOT red",
            "words that never stand together": '"van red"',
        }
        for name, search in searches.items():
            timed(f"search for {name}", lambda s=search: timeline.entries(Wanted("door0", search=s), 100))
        day = Wanted("door0", end - 86_400 * 20, end - 86_400 * 19, search="red van")
        timed("search for two words in a day", lambda: timeline.entries(day, 100))
        timed("list of the newest 100", lambda: timeline.entries(Wanted("door0"), 100))
        timed("list of 100 of a day", lambda: timeline.entries(Wanted("door0", day.since, day.until), 100))
        timed("density of a day in 200 parts", lambda: timeline.density(Wanted("door0", day.since, day.until), 200))
        timed("density of all 30 days", lambda: timeline.density(Wanted("door0", BEGAN, end), 200), 5)

        longest = 0.0

        async def others() -> None:
            """Rows that somebody waits for, one after the other."""
            nonlocal longest
            while True:
                began = time.perf_counter()
                await asyncio.wrap_future(store.write("DELETE FROM outbox WHERE FALSE", now=True))
                longest = max(longest, time.perf_counter() - began)
                await asyncio.sleep(0.002)

        async def forgotten() -> None:
            waiting = asyncio.create_task(others())
            gone = await timeline.forget("door0", day.since, day.until)
            waiting.cancel()
            print(f"{gone} entries are forgotten; another's row waited {longest * 1_000:.0f} ms at most")

        timed("to forget a day", lambda: asyncio.run(forgotten()), 1)
        store.close()


if __name__ == "__main__":
    main()
