"""`watch.evidence`: told once of each clip that is whole, after a restart too, and never of one that is not there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from capture import Frame
from streamer.memory.store import Store
from streamer.watch_config import WatchConfig
from streamer.watches import kept, teller
from streamer.watches.event import WatchEvent
from streamer.watches.kept import Kept
from streamer.watches.post import Post
from streamer.watches.teller import Teller
from streamer.watches.watch import Event
from tests.streamer.serving import eventually


class Keeper:
    """Stands for what records: nothing, or all that is asked for."""

    def __init__(self, recorded: bool) -> None:
        self.asked: list[tuple[str, float, float]] = []
        self.timeline = SimpleNamespace(place=lambda at: 0, add=lambda *given, **named: None)
        self.recordings = SimpleNamespace(of=lambda *span: self.asked.append(span) or recorded)


async def told(
    store: Store | None,
    keeper: Keeper,
    do: Callable[[Teller, Post], Any],
    newest: str | None = None,
    after: float = 0.0,
    *,
    wanted: int,
) -> list[WatchEvent]:
    """What is told until a moment after so much of it was wanted."""
    heard: list[WatchEvent] = []
    config = WatchConfig(name="gate", streams=("yard",), question="Is it open?", clip_before=2, clip_after=after)
    stream: Any = SimpleNamespace(recorder=object(), config=SimpleNamespace(keep="all"), seen_until=None)
    posts: dict[tuple[str, str], Post] = {}
    telling = Teller({"yard": stream}, posts, asyncio.Semaphore(1))
    post = posts["gate", "yard"] = Post(config, "yard", telling.found, lambda post: None)
    telling.feed.callbacks.append(heard.append)
    telling.begin(keeper, Kept(store), newest, None)  # type: ignore[arg-type]
    do(telling, post)
    await telling.resume_clips()
    await eventually(lambda: len(heard) >= wanted)
    await asyncio.sleep(0.15)
    await telling.stop()
    return heard


def happens(telling: Teller, post: Post, at: float = 1_000.0) -> None:
    frame = Frame(np.zeros((4, 4, 3), np.uint8), 0.0, 0.0, 0, "push://yard")
    telling.found(post, Event("watch.started", at, at - 2.0, 0.9, False, True, 0.0), frame)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teller, "GROWS", 0.0)
    monkeypatch.setattr(kept, "PATIENCE", 60.0)  # the next life finds on the disk what was told, however slow that is


def test_a_clip_that_is_whole_is_told_with_the_values_of_its_event() -> None:
    keeper = Keeper(recorded=True)
    event, evidence = asyncio.run(told(None, keeper, happens, wanted=2))
    assert event.clip == "/v1/streams/yard/clip?from=996.000&to=1000.000&codec=h264"
    assert (evidence.type, evidence.about) == ("watch.evidence", event.id) and evidence.id > event.id
    same = ("watch", "stream", "captured_at", "began_at", "probability", "after", "still", "clip")
    assert all(getattr(evidence, key) == getattr(event, key) for key in same)
    assert keeper.asked == [("yard", 998.0, 1_000.0)]


def test_a_clip_that_was_not_recorded_is_not_told() -> None:
    events = asyncio.run(told(None, Keeper(recorded=False), happens, wanted=1))
    assert [event.type for event in events] == ["watch.started"]


def test_a_clip_that_was_not_whole_when_the_process_ended_is_told_once_by_the_next(tmp_path: Path) -> None:
    async def lives() -> list[list[str]]:
        store, keeper = Store(tmp_path), Keeper(recorded=True)
        first = await told(store, keeper, lambda *given: happens(*given, at=time.time()), after=60, wanted=1)
        # The next lives wait no minute more: their watch wants no more of the recording.
        rest = [await told(store, keeper, lambda *given: None, first[0].id, wanted=wanted) for wanted in (1, 0)]
        await asyncio.to_thread(store.close)
        return [[f"{event.type} {event.about == first[0].id}" for event in life] for life in (first, *rest)]

    assert asyncio.run(lives()) == [["watch.started False"], ["watch.evidence True"], []]
