"""What an engine does with streams that are given to it: in one process, with the real assistant."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from streamer import Assistant, AssistantError, handover
from streamer.cluster.depot import Elsewhere, Mounted
from streamer.cluster.holder import Holder
from streamer.config import parse_config
from streamer.engine.pace import Pace
from streamer.engine.stream import captured_wall
from streamer.memory.snapshot import load
from tests.streamer.fed import picture
from tests.streamer.serving import eventually
from tests.tiny import TINY

EYES = {"name": "eyes", "source": "push://eyes"}
WATCH = {"name": "fire", "question": "Is there a fire?", "streams": ["eyes"], "when": "changes"}


def config(folder: Path) -> Any:
    limits = {"streams": 3, "answers": 2}
    return parse_config({"model": TINY, "limits": limits, "storage": {"folder": str(folder), "every": 3_600}})


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that differ, 25 a second."""
    file = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"  # type: ignore[attr-defined]
        for n in range(250):
            pixels = np.full((64, 64, 3), 60 * (n % 4), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))  # type: ignore[attr-defined]
        container.mux(stream.encode())  # type: ignore[attr-defined]
    return file


async def granted(holder: Holder, seconds: float = 50.0) -> dict[str, Any]:
    clock = (await holder.renew(None, None))["clock"]
    return await holder.renew(clock + seconds, None)


def test_a_stream_goes_from_one_engine_to_the_other_with_all_it_knows(tmp_path: Path) -> None:
    """And an order that comes too late, or without a lease, does nothing."""

    async def test() -> None:
        async with Assistant(config(tmp_path / "one")) as one, Assistant(config(tmp_path / "two")) as two:
            first, second = Holder(one, "one", 60.0, Mounted(tmp_path)), Holder(two, "two", 60.0, Mounted(tmp_path))
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
            holder = Holder(assistant, "one", 60.0, Mounted(tmp_path))
            holder.begin()
            old = await granted(holder)
            await holder.own(EYES, 1, None, {})
            assistant.push("eyes", picture(40))
            await eventually(lambda: assistant.streams()[0].frames_seen == 1)
            stream = assistant.stream("eyes")
            holder._until = time.monotonic()
            assistant.push("eyes", picture(200))
            time.sleep(0.2)
            assert stream.frames_seen == 1
            await eventually(lambda: assistant.names == [])
            assert holder.fenced == 1 and holder.epochs == {}
            assert (await holder.renew(old["clock"], None))["streams"] == {}
            assert not holder.lasts()
            await holder.renew(time.monotonic() + 90, None)
            assert not holder.lasts()  # nobody may grant so much
            await holder.stop()

    asyncio.run(asyncio.wait_for(test(), 100))


def test_an_answer_that_is_open_ends_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream has gone to another engine meanwhile; one that was asked just before that is not lost either."""
    monkeypatch.setattr(handover, "BEGUN_SECONDS", 30.0)  # in which a busy machine reads a question

    async def test() -> None:
        async with Assistant(config(tmp_path / "one")) as one, Assistant(config(tmp_path / "two")) as two:
            first, second = Holder(one, "one", 60.0, Mounted(tmp_path)), Holder(two, "two", 60.0, Mounted(tmp_path))
            for holder in (first, second):
                await granted(holder)
            await first.own(EYES, 1, None, {})
            one.push("eyes", picture(40))
            await eventually(lambda: one.streams()[0].frames_seen == 1)
            await asyncio.wrap_future(one.engine.set_pace(Pace(1.0, 1.0)))  # so slow that it is not over meanwhile
            began = one.ask("What is it?", stream="eyes", max_tokens=80)
            words = [await anext(began)]
            asked = one.ask("What is it?", stream="eyes", max_tokens=80)
            await first.release("eyes", 1, forget=False)
            assert one.names == [] and began.finish_reason is None
            await second.own(EYES, 2, "one", {})
            await asyncio.wrap_future(one.engine.set_pace(Pace(ceiling=1_000.0)))
            words += [each async for each in began]
            assert began.finish_reason in ("stop", "length") and began.error is None
            assert [each async for each in asked] and asked.finish_reason in ("stop", "length")

    asyncio.run(asyncio.wait_for(test(), 100))


def test_an_answer_whose_stream_has_gone_ends_with_the_lease(tmp_path: Path) -> None:
    """An engine that has no lease says nothing more, of what it has no more neither."""

    async def test() -> None:
        async with Assistant(config(tmp_path / "one")) as assistant:
            holder = Holder(assistant, "one", 60.0, Mounted(tmp_path))
            holder.begin()
            await granted(holder)
            await holder.own(EYES, 1, None, {})
            assistant.push("eyes", picture(40))
            await eventually(lambda: assistant.streams()[0].frames_seen == 1)
            await asyncio.wrap_future(assistant.engine.set_pace(Pace(1.0, 1.0)))
            answer = assistant.ask("What is it?", stream="eyes", max_tokens=400)
            await anext(answer)
            await holder.release("eyes", 1, forget=False)
            assert answer.finish_reason is None
            holder._until = time.monotonic()
            await eventually(lambda: answer.finish_reason == "cancelled")
            await holder.stop()

    asyncio.run(asyncio.wait_for(test(), 100))


def test_what_was_opened_beforehand_is_seen_from_where_the_other_left_off(tmp_path: Path, film: Path) -> None:
    """The camera is open in both, and one of them sees it: no frame that the first has seen is seen again."""
    camera = {"name": "eyes", "source": str(film), "loop": True}

    async def test() -> None:
        async with Assistant(config(tmp_path / "one")) as one, Assistant(config(tmp_path / "two")) as two:
            first, second = Holder(one, "one", 60.0, Mounted(tmp_path)), Holder(two, "two", 60.0, Mounted(tmp_path))
            for holder in (first, second):
                await granted(holder)
            await first.own(camera, 1, None, {})
            await eventually(lambda: one.streams()[0].frames_seen > 5)
            assert (await second.prepare(camera))["ready"]
            waiting = two._streams._prepared["eyes"]
            await eventually(lambda: waiting.source.status.frames > 5)
            assert two.names == [] and waiting.frames_seen == 0
            await first.release("eyes", 1, forget=False)
            last = one.archive and max(each.wall for each in one.keeper.snapshots.of("eyes"))  # type: ignore[union-attr]
            seen: list[float] = []
            saw = waiting.saw
            waiting.saw = lambda frames, now: (seen.extend(map(captured_wall, frames)), saw(frames, now))[1]  # type: ignore[method-assign]
            await second.own(camera, 2, "one", {})
            assert two.stream("eyes") is waiting and waiting.resumes == 1
            await eventually(lambda: len(seen) > 3)
            # A snapshot's name holds whole milliseconds, rounded: its frame may be somewhat before it.
            assert min(seen) > last - 0.001 and waiting.drops["seen elsewhere"] > 0
            assert (await second.prepare({**camera, "name": "gate"}))["ready"]
            await second._unprepare("gate")
            assert two._streams._prepared == {} and two.names == ["eyes"]
            assert not (await second.prepare({"name": "p", "source": "push://p"}))["ready"]

    asyncio.run(asyncio.wait_for(test(), 100))


def test_a_stream_goes_along_over_a_place_that_fsspec_reaches(tmp_path: Path) -> None:
    """Nothing of one engine's disk is seen by the other."""
    fsspec = pytest.importorskip("fsspec")
    place = f"memory://fleet-{tmp_path.name}"

    async def test() -> None:
        async with Assistant(config(tmp_path / "one")) as one, Assistant(config(tmp_path / "two")) as two:
            first, second = Holder(one, "one", 60.0, Elsewhere(place)), Holder(two, "two", 60.0, Elsewhere(place))
            for holder in (first, second):
                await granted(holder)
            await first.own(EYES, 1, None, {})
            for round_ in range(4):
                one.push("eyes", picture(40 * round_))
                await eventually(lambda: one.streams()[0].frames_seen > round_)  # noqa: B023
                await one.keeper.take([one.stream("eyes")])  # type: ignore[union-attr]
            memory = await asyncio.wrap_future(one.engine.call(one.engine.runner.copy(one.stream("eyes").slot)))
            await first.release("eyes", 1, forget=False)
            system, _ = fsspec.core.url_to_fs(place)
            assert len(system.ls(f"{place}/one/snapshots/eyes")) == 2, "the newest, and one before it"
            assert (await second.own(EYES, 2, "one", {}))["resumes"] == 1
            there = await asyncio.wrap_future(two.engine.call(two.engine.runner.copy(two.stream("eyes").slot)))
            assert all(torch.equal(part, there[name]) for name, part in memory.items())
            await first.release("eyes", 3, forget=True)
            assert system.ls(f"{place}/one/snapshots/eyes") == []

    asyncio.run(asyncio.wait_for(test(), 100))


def test_a_place_that_can_not_be_reached_is_told_in_one_line(tmp_path: Path) -> None:
    place = Elsewhere("nowhere://box/fleet")
    with pytest.raises(OSError, match="nowhere"):
        place.begin("x")
    mounted = Mounted(tmp_path / "shared")
    assert mounted.probe() == ""
    mounted.begin("x")
    assert mounted.probe() == "x"
