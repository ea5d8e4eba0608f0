"""Events as they are told: plain data, and ids in the order of telling."""

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from streamer.memory.store import Store
from streamer.watches import kept
from streamer.watches.event import EventIds, WatchEvent
from streamer.watches.kept import Kept
from streamer.watches.watch import State

EVENT = WatchEvent(
    "event_0", "watch.started", "gate", "yard", "warning", "Is someone at the gate?", 1.5, 1.0, 0.93, False, True, 0.0,
    "/v1/watches/events/event_0/still.jpg",
)  # fmt: skip


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told is on the disk, however slow that is."""
    monkeypatch.setattr(kept, "PATIENCE", 60.0)


def test_an_event_comes_back_from_its_json() -> None:
    assert WatchEvent.of(json.loads(json.dumps(EVENT.facts()))) == EVENT


def test_ids_sort_by_telling_though_the_clock_jumps_back_and_after_a_restart() -> None:
    ids = EventIds()
    told = [ids.next(now) for now in (1000.0, 1000.0, 1000.001, 10.0, 2_000_000_000.0)]
    told.append(EventIds(told[-1]).next(5.0))
    assert told == sorted(told) and len(set(told)) == 6
    assert {len(each) for each in told} == {32}


def test_what_is_counted_is_what_was_last_written(tmp_path: Path) -> None:
    async def story() -> None:
        store = Store(tmp_path)
        kept, ids = Kept(store), EventIds()
        event = WatchEvent(ids.next(1.0), "watch.started", "gate", "yard", "info", "Is it?", 1.0, 1.0, 0.9, False, True)
        assert await kept.counts() == {}
        await kept.tell(event, {}, None)
        await kept.tell(replace(event, id=ids.next(2.0), type="watch.evidence", about=event.id), {}, None)
        assert (await kept.counts())["gate"] == {"events": 1} and (await kept.counts())["gate"] == {"events": 1}
        await kept.judge(event.id, "right")
        assert (await kept.counts())["gate"] == {"events": 1, "right": 1}
        await kept.forget("yard", 0.0, 9.0)
        assert await kept.counts() == {}
        await asyncio.to_thread(store.close)

    asyncio.run(story())


def test_events_go_when_they_are_too_old_and_what_their_watch_knows_stays(tmp_path: Path) -> None:
    """A watch whose first look is an event has nothing else that says so: a kill right after must not have it told again."""

    async def story(store: Store | None) -> None:
        kept, ids = Kept(store, seconds=3_600), EventIds()
        for at in (1_000.0, 5_000.0):
            event = WatchEvent(ids.next(at), "watch.started", "gate", "yard", "info", "Is it?", at, at, 0.9, None, True)
            await kept.tell(event, asdict(State(belief=True, told=True, seen_at=at)), b"jpeg")
        assert [each["captured_at"] for each in await kept.after("")] == [1_000.0, 5_000.0]
        kept.trim(1_000.0 + 3_601)
        for now, left in ((None, [5_000.0]), (10_000.0, [])):
            if now is not None:
                kept.trim(now)
            if store is not None:
                await asyncio.wrap_future(store.write("SELECT 1", now=True))
                assert kept.load()[1]["gate", "yard"]["told"] is True
            assert [each["captured_at"] for each in await kept.after("")] == left
        assert await kept.find(event.id) is None and await kept.still(event.id) is None

    async def killed(store: Store) -> None:
        await asyncio.wrap_future(store.write("DELETE FROM watch_states", now=True))
        event = WatchEvent("event_1", "watch.started", "gate", "yard", "info", "Is it?", 1, 1, 0.9, None, True)
        await Kept(store).tell(event, asdict(State(told=True, seen_at=1.0)), None)
        await asyncio.wrap_future(store.write("DELETE FROM watch_states", now=True))
        assert Kept(store).load()[1]["gate", "yard"]["told"] is True and await Kept(store).find("event_1") == event

    asyncio.run(story(None))
    store = Store(tmp_path)
    asyncio.run(story(store))
    asyncio.run(killed(store))
    store.close()
