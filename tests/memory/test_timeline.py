"""What happened is kept with its times, found by words and span, and forgotten whole."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamer.memory import timeline as timelines
from streamer.memory.store import Store
from streamer.memory.timeline import SearchError, Timeline, Wanted

from .test_restart import run

HOUR = 3_600.0
NOON = 1_800_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state")
    yield store
    store.close()


def made(store: Store, budget: int = 10**9, hours: float = 10**5) -> Timeline:
    timeline = Timeline(store, budget, hours)
    for name in ("door", "door-2", "gate"):
        timeline.open(name)
    return timeline


def add(
    timeline: Timeline, text: str, wall: float = NOON, stream: str = "door", kind: str = "note", **more: Any
) -> Any:
    return timeline.add(kind, stream, text, place=timeline.place(wall), **more)


def settle(store: Store) -> None:
    """Waits until all rows are in the database."""
    store.write("DELETE FROM entries WHERE FALSE", now=True).result(60)


def texts(timeline: Timeline, stream: str = "door", limit: int = 100, **wanted: Any) -> list[str]:
    return [each.text for each in timeline.entries(Wanted(stream, **wanted), limit)]


def test_entries_are_found_by_words_span_and_kind(store: Store) -> None:
    timeline = made(store)
    add(timeline, "A red van stops at the café.", NOON, time=3.5, still=b"jpeg", data={"question": "What?"})
    add(timeline, "The van leaves.", NOON + 10)
    add(timeline, "live", NOON + 20, kind="state")
    add(timeline, "A red van, too.", NOON + 30, stream="door-2")
    settle(store)
    first = timeline.entries(Wanted("door", search="red van"), 10)
    assert [(each.text, each.wall, each.time, each.still) for each in first] == [
        ("A red van stops at the café.", NOON, 3.5, True)
    ]
    assert first[0].data == {"question": "What?"} and timeline.still("door", first[0].id) == b"jpeg"
    assert timeline.still("gate", first[0].id) is None, "a still is its own stream's"
    assert texts(timeline) == ["live", "The van leaves.", "A red van stops at the café."]
    assert texts(timeline, search="CAFE") and not texts(timeline, search="door"), "names are no words"
    assert texts(timeline, search="van", since=NOON + 1) == ["The van leaves."] == texts(timeline, search="van NOT red")
    assert texts(timeline, kinds=("state",)) == ["live"] and not texts(timeline, stream="gate")
    assert texts(timeline, until=NOON + 10, limit=1) == ["The van leaves."]
    newest = timeline.entries(Wanted("door"), 1)[0]
    assert [each.text for each in timeline.entries(Wanted("door"), 1, newest.id)] == ["The van leaves."]
    counts = timeline.density(Wanted("door", NOON, NOON + 20), 4)
    assert counts == {"note": [1, 0, 1, 0], "state": [0, 0, 0, 1]}
    assert timeline.density(Wanted("door", NOON, NOON + 20, search="van"), 1) == {"note": [2]}


def test_the_picture_of_what_was_told_is_there_before_it_is_written(store: Store) -> None:
    """Who hears of an entry asks for its picture at once, and rows wait for others."""
    timeline, disk = made(store), threading.Event()
    slow = store.do(lambda: disk.wait(30))
    asked: list[bytes | None] = []
    timeline.ears.add(lambda told: asked.append(timeline.still("door", told.id)))  # type: ignore[union-attr]
    entry = add(timeline, "A red van.", still=b"jpeg")
    assert timeline.still("door", entry) == b"jpeg" and timeline.still("gate", entry) is None
    assert asked == [b"jpeg"] and not timeline.entries(Wanted("door"), 9)
    disk.set()
    assert slow.result(30)
    settle(store)
    assert timeline.still("door", entry) == b"jpeg" and timeline.still("gate", entry) is None and not timeline._fresh


def test_other_visitors_questions_are_left_out(store: Store) -> None:
    timeline = made(store)
    add(timeline, "mine", kind="question", visitor="me")
    add(timeline, "yours", kind="question", visitor="you")
    add(timeline, "all see it")
    settle(store)
    assert texts(timeline, visitor="me") == ["all see it", "mine"]
    assert texts(timeline, visitor="me", search="yours OR mine") == ["mine"]
    assert sum(timeline.density(Wanted("door", NOON, NOON + 1, visitor="me"), 1)["question"]) == 1
    assert len(texts(timeline)) == 3


def test_the_density_is_what_counting_gives(store: Store) -> None:
    timeline, chance = made(store), random.Random(2)
    for _ in range(300):
        wall = NOON + chance.choice((chance.randrange(100), chance.uniform(-20, 120)))
        kind, visitor = chance.choice(("note", "question", "state")), chance.choice((None, "me", "you"))
        add(timeline, "x", wall, chance.choice(("door", "gate")), kind, visitor=visitor)
    settle(store)
    for visitor, kinds, without, buckets in (
        (None, (), None, 7),
        ("me", ("note", "state"), None, 100),
        ("you", (), "note", 1),
    ):
        wanted = Wanted("door", NOON, NOON + 100, kinds, visitor=visitor, without=without)
        counted: dict[str, list[int]] = {}
        for each in timeline.entries(wanted, 1_000):
            bucket = min(int((each.wall - NOON) * buckets / 100), buckets - 1)
            counted.setdefault(each.kind, [0] * buckets)[bucket] += 1
        assert timeline.density(wanted, buckets) == counted and len(counted) > 1


@pytest.mark.parametrize(
    "search", ['"open', "a AND", "NEAR(", "text:", "nothing : x", ") OR (a", "*", "  ", "a" * 300, "x\0) y"]
)
def test_a_search_that_is_none_is_refused_in_one_line(store: Store, search: str) -> None:
    timeline = made(store)
    with pytest.raises(SearchError) as error:
        timeline.entries(Wanted("door", search=search), 1)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_a_clock_that_jumps_back_changes_no_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = made(store)
    walls = [NOON, NOON + 10, NOON - HOUR, NOON - HOUR + 10, NOON + 20]
    late = timeline.place(NOON + 5)
    for number, wall in enumerate(walls):
        add(timeline, str(number), wall)
    timeline.add("question", "door", "asked first, answered last", place=late)
    settle(store)
    assert texts(timeline) == ["4", "3", "2", "1", "0", "asked first, answered last"]
    again = made(store)
    add(again, "5", NOON - 2 * HOUR)
    settle(store)
    assert texts(again)[:2] == ["5", "4"], "nor does a restart"
    assert [each.wall for each in again.entries(Wanted("door"), 3)] == [NOON - 2 * HOUR, NOON + 20, NOON - HOUR + 10]
    # What was put back is found by what the clock said then.
    assert texts(again, until=NOON - HOUR + 10) == ["5", "3", "2"]
    assert texts(again, since=NOON - HOUR, until=NOON) == ["3", "2", "0"]
    assert texts(again, since=NOON + 15, search="4 OR 5") == ["4"]


def test_what_is_forgotten_is_in_no_file(store: Store) -> None:
    async def test() -> None:
        timeline = made(store)
        for number in range(50):
            add(timeline, f"ordinary {number}", NOON + number)
        add(timeline, "xylophonist zebrawood", NOON + 100, still=b"\xff\xd8" + b"secretpicture" * 40)
        add(timeline, "xylophonist elsewhere", NOON + 100, stream="gate")
        await asyncio.to_thread(settle, store)

        def bytes_with(word: bytes) -> list[str]:
            files = [each for each in store.folder.path.rglob("*") if each.is_file()]
            return [each.name for each in files if word in each.read_bytes()]

        assert bytes_with(b"zebrawood") and bytes_with(b"secretpicture")
        assert await timeline.forget("door", NOON + 60, NOON + 200) == 1
        assert not bytes_with(b"zebrawood") and not bytes_with(b"secretpicture")
        assert not texts(timeline, search="zebrawood") and texts(timeline, "gate", search="xylophonist")
        assert await timeline.forget("door", float("-inf"), float("inf")) == 50 and not texts(timeline)
        timeline.shut("door")
        assert add(timeline, "after") is None
        check = sqlite3.connect(store.folder.database)
        check.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")  # raises where the index differs
        check.close()

    run(test())


def test_age_and_bytes_are_bounded_and_the_disk_gets_its_room_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timelines, "PAGES", 32)

    async def test() -> None:
        timeline = made(store, budget=400_000, hours=1.0)
        for number in range(2_000):
            add(
                timeline,
                f"number {number} " + "word " * 40,
                NOON + number * 2,
                still=bytes(1_000) if number % 4 == 0 else None,
            )
            if number % 500 == 499:
                await asyncio.to_thread(settle, store)
        await asyncio.wrap_future(store.checkpoint())
        full = store.folder.database.stat().st_size
        assert await timeline.trim(NOON + 4_000 + HOUR / 2) > 1_000
        left = await asyncio.to_thread(timeline.entries, Wanted("door"), 5_000)
        assert left[0].text.startswith("number 1999 ") and 100 < len(left) < 500
        assert left[-1].wall > NOON + 4_000 - HOUR / 2 and timeline._bytes <= 400_000
        store.do(lambda: store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()).result(60)
        size = store.folder.database.stat().st_size
        assert size < full and size < 400_000 + (timelines.PAGES + 20) * 4_096
        assert await timeline.trim(NOON + 10**6) == len(left) and not texts(timeline)

    run(test())


def test_long_texts_end_with_a_sign_that_says_so(store: Store) -> None:
    timeline = made(store)
    add(timeline, "x" * 20_000)
    settle(store)
    assert texts(timeline)[0] == "x" * (timelines.LONGEST_TEXT - 1) + "…"
    assert abs(time.time() - timeline.place().wall) < 5


def test_half_a_character_is_a_question_mark_and_all_else_is_kept(store: Store) -> None:
    """Names of files and what servers say may hold some."""
    timeline = made(store)
    add(timeline, "/data/door\udcff.mp4 is gone", data={"file": "door\udcff.mp4"})
    settle(store)
    (entry,) = timeline.entries(Wanted("door"), 9)
    assert entry.text == "/data/door?.mp4 is gone" and entry.data == {"file": "door?.mp4"}
    assert texts(timeline, search="gone") == [entry.text]
