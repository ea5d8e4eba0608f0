"""Events as they are told: plain data, and ids in the order of telling."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from streamer.memory.store import Store
from streamer.watches.event import EventIds, WatchEvent
from streamer.watches.kept import Kept

EVENT = WatchEvent(
    "event_0", "watch.started", "gate", "yard", "warning", "Is someone at the gate?", 1.5, 1.0, 0.93, False, True, 0.0,
    "/v1/watches/events/event_0/still.jpg",
)  # fmt: skip


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
