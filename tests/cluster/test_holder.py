"""What an engine does with streams that are given to it: in one process, with the real assistant."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from streamer import Assistant, AssistantError
from streamer.cluster.holder import Holder
from streamer.config import parse_config
from streamer.memory.snapshot import load
from tests.streamer.fed import picture
from tests.streamer.serving import eventually
from tests.tiny import TINY

EYES = {"name": "eyes", "source": "push://eyes"}
WATCH = {"name": "fire", "question": "Is there a fire?", "streams": ["eyes"], "when": "changes"}


def config(folder: Path) -> Any:
    limits = {"streams": 3, "answers": 2}
    return parse_config({"model": TINY, "limits": limits, "storage": {"folder": str(folder), "every": 3_600}})


async def granted(holder: Holder, seconds: float = 50.0) -> dict[str, Any]:
    clock = (await holder.renew(None, None))["clock"]
    return await holder.renew(clock + seconds, None)


def test_a_stream_goes_from_one_engine_to_the_other_with_all_it_knows(tmp_path: Path) -> None:
    """And an order that comes too late, or without a lease, does nothing."""

    async def test() -> None:
        async with Assistant(config(tmp_path / "one")) as one, Assistant(config(tmp_path / "two")) as two:
            first, second = Holder(one, "one", 60.0, tmp_path), Holder(two, "two", 60.0, tmp_path)
            with pytest.raises(AssistantError) as refused:
                await first.own(EYES, 1, None, {})
            assert refused.value.code == "no_lease"
            for holder in (first, second):
                await granted(holder)
                await holder.renew(None, [WATCH])
            await first.own(EYES, 1, None, {})
            for shade in range(4):
                one.push("eyes", picture(40 * shade))
                await eventually(lambda: one.streams()[0].frames_seen > shade)  # noqa: B023
            memory = await asyncio.wrap_future(one.engine.call(one.engine.runner.copy(one.stream("eyes").slot)))
            one.watches.pause("fire")
            carried = (await first.release("eyes", 1, forget=False))["watched"]
            assert one.names == [] and first.epochs == {}
            with pytest.raises(AssistantError) as stale:
                await first.own(EYES, 1, None, {})
            assert stale.value.code == "stale_epoch"
            told = await second.own(EYES, 2, "one", carried)
            assert (await two.watches.one("fire"))["paused"], "what a watch knows goes along"
            assert told["resumes"] == 1 and second.epochs == {"eyes": 2}
            slot = two.stream("eyes").slot
            there = await asyncio.wrap_future(two.engine.call(two.engine.runner.copy(slot)))
            assert memory.keys() == there.keys() and all(
                torch.equal(part, there[name]) for name, part in memory.items()
            )
            kept = sorted((tmp_path / "two" / "snapshots" / "eyes").iterdir())
            assert len(kept) == 1 and load(kept[0])[0].stream == "eyes"
            assert await second.own(EYES, 2, "one", {})  # the same, said again
            with pytest.raises(AssistantError):
                await second.release("eyes", 1, forget=False)

    asyncio.run(asyncio.wait_for(test(), 100))


def test_an_engine_whose_lease_has_run_out_sees_nothing_more(tmp_path: Path) -> None:
    """Not from the instant on, whoever else has the loop; then it lets go. A grant that comes late renews nothing."""

    async def test() -> None:
        async with Assistant(config(tmp_path / "one")) as assistant:
            holder = Holder(assistant, "one", 1.0, tmp_path)
            holder.begin()
            old = await granted(holder, 0.4)
            await holder.own(EYES, 1, None, {})
            assistant.push("eyes", picture(40))
            await eventually(lambda: assistant.streams()[0].frames_seen == 1)
            stream = assistant.stream("eyes")
            time.sleep(0.5)
            assistant.push("eyes", picture(200))
            time.sleep(0.2)
            assert stream.frames_seen == 1
            await eventually(lambda: assistant.names == [])
            assert holder.fenced == 1 and holder.epochs == {}
            assert (await holder.renew(old["clock"] + 0.4, None))["streams"] == {}
            assert not holder.lasts()
            await holder.renew(time.monotonic() + 60, None)
            assert not holder.lasts()  # nobody may grant so much
            await holder.stop()

    asyncio.run(asyncio.wait_for(test(), 100))
