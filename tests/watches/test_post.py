"""One watch before one stream: what it knows is of its question alone, and of a clock that may be set."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from capture import Frame
from streamer.watch_config import WatchConfig
from streamer.watches import post as posts
from streamer.watches.post import Post
from streamer.watches.watch import Event

FRAME = Frame(np.zeros((4, 4, 3), np.uint8), 0.0, 0.0, 0, "push://yard")
NOON = 1_764_000_000.0


def seen(
    looks: list[tuple[float, float]], kept: dict[str, Any] | None = None, **fields: Any
) -> tuple[list[Event], dict[str, Any]]:
    """What is told of looks (probability, seconds after noon), and what is known then."""
    told: list[Event] = []

    async def look() -> Post:
        config = WatchConfig(name="gate", streams=("yard",), **{"question": "Is it a dog?", **fields})
        post = Post(config, "yard", lambda post, event, frame: told.append(event), lambda post: None, kept)
        for probability, at in looks:
            post.see(probability, NOON + at, FRAME, 1)
        return post

    return told, json.loads(json.dumps(asyncio.run(look()).keep()))


def test_what_is_asked_otherwise_begins_anew_but_for_its_snooze_and_pause() -> None:
    """A watch that is true when its question becomes another tells of the new one, and does not tell that the old one ended."""
    (started,), known = seen([(0.9, 0.0)], when="both")
    assert started.kind == "watch.started"
    assert not seen([(0.9, 1.0)], known, when="both")[0], "a restart"
    assert [e.kind for e in seen([(0.9, 1.0)], known, question="Is it a cat?", when="both")[0]] == ["watch.started"]
    assert not seen([(0.1, 1.0)], known, question="Is it a cat?", when="both")[0]
    assert [e.kind for e in seen([(0.9, 1.0)], known, only=[0, 0, 0.5, 1])[0]] == ["watch.started"]
    resting = {**known, "snoozed_until": NOON + 60, "paused": True}
    told, still = seen([(0.9, 1.0), (0.9, 61.0)], resting, question="Is it a cat?")
    assert [event.decided - NOON for event in told] == [61.0] and still["paused"]


def test_nothing_is_held_through_a_restart() -> None:
    _, known = seen([(0.1, 0.0), (0.9, 1.0), (0.9, 3.0)], hold=5)
    (event,), _ = seen([(0.9, 60.0 + i) for i in range(10)], known, hold=5)
    assert (event.began - NOON, event.decided - NOON) == (60.0, 65.0)


def test_other_terms_go_on_with_what_is_known() -> None:
    _, known = seen([(0.1, 0.0), (0.9, 1.0)], cooldown=60)
    assert not seen([(0.9, 2.0)], known, rise=0.8, hold=1, when="both")[0]


@pytest.mark.parametrize("seconds", [-3_600.0, -30.0])
def test_a_clock_that_is_set_back_stops_nothing(seconds: float) -> None:
    """What must be so for two seconds is told after two, though the clock shows an earlier time than at the last look."""
    looks = [(0.1, 0.0), (0.1, 1.0), *((0.9, seconds + i / 2) for i in range(10))]
    (event,), known = seen(looks, hold=2)
    assert (event.began - NOON, event.decided - NOON) == (seconds, seconds + 2)
    assert not seen([(0.1, seconds + 5), (0.9, seconds + 6)], known, cooldown=60)[0]
    assert len(seen([(0.1, seconds + 5), (0.9, seconds + 70)], known, cooldown=60)[0]) == 1


def test_looks_are_slowed_down_where_there_is_no_time_and_not_by_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(posts, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))

    async def look(every: float) -> Post:
        config = WatchConfig(name="gate", streams=("yard",), question="Is it a dog?", every=every)
        post = Post(config, "yard", lambda *told: None, lambda post: None)
        for _ in range(4):
            clock[0] += 1.0
            post.see(0.1, NOON + clock[0], FRAME, 1)
        return post

    assert not asyncio.run(look(1.0)).view()["slowed"]
    slow = asyncio.run(look(0.5))
    assert slow.view()["slowed"]
    slow.paused = True
    assert not slow.view()["slowed"]
