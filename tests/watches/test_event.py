"""Events as they are told: plain data, and ids in the order of telling."""

import json

from streamer.watches.event import EventIds, WatchEvent

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
