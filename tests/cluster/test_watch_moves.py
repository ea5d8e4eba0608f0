"""A watch whose stream goes to and fro between engines in mid-event tells its beginning once and its end once, with the real nano."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from streamer import Assistant
from streamer.cluster.depot import Mounted
from streamer.cluster.holder import Holder
from streamer.config import parse_config
from tests.cluster.test_holder import granted
from tests.streamer.serving import eventually
from tests.watches.test_watches import BANANA, demo

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(300)]
YARD = {"name": "yard", "source": "push://yard", "policy": "every", "deadline": 5}
WATCH = {"name": "fruit", "question": BANANA, "streams": ["yard"], "every": 0.05, "when": "both"}


def config(folder: Path) -> Any:
    some = {"model": {"threads": 1}, "limits": {"streams": 1, "answers": 2}}
    return parse_config({**some, "storage": {"folder": str(folder), "every": 3_600}})


def test_what_is_seen_over_a_move_is_told_once(tmp_path: Path) -> None:
    without, banana = demo(31.0, 31.9), demo(34.5, 35.6)

    async def test() -> None:
        async with Assistant(config(tmp_path / "one")) as one, Assistant(config(tmp_path / "two")) as two:
            holders = [Holder(each, name, 300.0, Mounted(tmp_path)) for each, name in ((one, "one"), (two, "two"))]
            told: list[tuple[str, str]] = []
            for holder, each in zip(holders, (one, two), strict=True):
                await granted(holder, 250.0)
                await holder.renew(None, [WATCH])
                each.watches.feed.callbacks.append(lambda event, name=holder.name: told.append((name, event.type)))
            clock, epoch, at = 0.0, 1, 0

            async def show(pictures: list[Any]) -> None:
                nonlocal clock
                assistant = holders[at]._assistant
                for pixels in pictures:
                    seen, clock = assistant.streams()[0].frames_seen, clock + 0.2
                    assistant.push("yard", pixels, clock)
                    await eventually(lambda seen=seen: assistant.streams()[0].frames_seen > seen)
                    await asyncio.sleep(0.02)  # for its look

            async def move() -> None:
                nonlocal at, epoch
                carried = (await holders[at].release("yard", epoch, forget=False))["watched"]
                before, at, epoch = holders[at].name, 1 - at, epoch + 1
                await holders[at].own(YARD, epoch, before, carried)

            await holders[0].own(YARD, epoch, None, {})
            await show(without)
            for begin in range(0, len(banana), 2):
                await show(banana[begin : begin + 2])
                await move()
            for _ in range(6):
                await show(banana[-2:])
                await move()
            for begin in range(0, len(without), 2):
                await show(without[begin : begin + 2])
                await move()
            await show(without)
            assert [kind for _, kind in told] == ["watch.started", "watch.ended"], told

    asyncio.run(asyncio.wait_for(test(), 250))
