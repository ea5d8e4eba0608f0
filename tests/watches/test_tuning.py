"""Which threshold is proposed from what people said of a watch's events."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from streamer.cli.watch import tuning_lines
from streamer.memory.store import Store
from streamer.watches import kept as watch_kept
from streamer.watches.event import WatchEvent
from streamer.watches.kept import Kept
from streamer.watches.tuning import Judged, tune


def judged(right: list[float], false: list[float]) -> list[Judged]:
    return [Judged(p, True) for p in right] + [Judged(p, False) for p in false]


def test_a_threshold_between_false_alarms_and_right_events_is_proposed() -> None:
    found = tune("rise", 0.6, judged([0.97, 0.93, 0.99, 0.91], [0.62, 0.7, 0.84]))
    assert found.proposed == 0.85 and found.reason.startswith("3 of 3 false alarms would not be told, and 4 of 4")
    first, at = found.rows[0], next(row for row in found.rows if row.threshold == 0.75)
    assert (first.precision, first.recall) == (pytest.approx(4 / 7), 1.0)
    assert (at.right, at.false, at.precision) == (4, 1, 0.8)
    last = found.rows[-1]
    assert (last.threshold, last.precision, last.recall) == (0.99, 1.0, 0.25)


def test_of_ends_it_is_the_other_way_round() -> None:
    found = tune("fall", 0.4, judged([0.01, 0.03, 0.02], [0.38, 0.31, 0.2]))
    assert found.key == "fall" and found.proposed == 0.15 and all(row.threshold <= 0.4 for row in found.rows)


def test_where_nothing_is_gained_the_one_that_is_set_stays() -> None:
    found = tune("rise", 0.8, judged([0.82, 0.9, 0.99, 0.95], [0.97, 0.99, 0.985]))
    assert found.proposed == 0.8 and "no other" in found.reason
    assert [row.threshold for row in found.rows] == [0.8, 0.85, 0.9, 0.95, 0.98, 0.99]


@pytest.mark.parametrize(
    ("right", "false", "said"),
    [
        ([], [], "0 events are marked as right and 0 as false alarms; mark at least 3 of each"),
        ([0.9, 0.9], [0.7], "2 events are marked as right and 1 as false alarms"),
        ([0.9] * 9, [], "all 9 events that are marked were right"),
        ([0.9] * 9, [0.7], "of 9 right events and 1 false alarms, 3 of each are wanted"),
    ],
)
def test_too_little_feedback_is_told(right: list[float], false: list[float], said: str) -> None:
    found = tune("rise", 0.6, judged(right, false))
    assert found.proposed is None and said in found.reason


def test_the_table_names_what_is_set_and_what_is_proposed() -> None:
    found = tune("rise", 0.6, judged([0.97, 0.93, 0.99, 0.91], [0.62, 0.7, 0.84])).facts()
    lines = tuning_lines("gate", found)
    assert lines[1] == "0.6     4      3      0.57       1.00  now"
    assert "0.85    4      0      1.00       1.00  proposed" in lines and lines[-1].startswith(
        "set it with streamer watch set gate rise=0.85,"
    )


@pytest.mark.parametrize("keeps", [False, True])
def test_what_was_said_is_read_by_watch_and_kind(tmp_path: Path, keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_kept, "PATIENCE", 60.0)

    async def test() -> list[Judged]:
        store = Store(tmp_path) if keeps else None
        kept = Kept(store)
        told = [("a", "watch.started", 0.9, "right"), ("a", "watch.started", 0.7, "false_alarm")]
        told += [
            ("a", "watch.started", 0.8, None),
            ("a", "watch.ended", 0.1, "right"),
            ("b", "watch.started", 0.9, "right"),
        ]
        for i, (watch, kind, p, said) in enumerate(told):
            id = f"event_{i:026d}"
            event = WatchEvent(id, kind, watch, "yard", "info", "?", float(i), float(i), p, False, True)  # type: ignore[arg-type]
            await kept.tell(event, {"seen_at": None}, None)
            await kept.judge(id, said)  # type: ignore[arg-type]
        found = await kept.judged("a", "watch.started")
        if store is not None:
            await asyncio.to_thread(store.close)
        return found

    assert asyncio.run(test()) == [Judged(0.9, True), Judged(0.7, False)]
