"""What the assistant still knows when it starts again."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamer import Assistant, AssistantError
from streamer.config import parse_config
from streamer.memory import keeper as keeping
from streamer.memory import store as storing
from streamer.server.metrics import Metrics
from streamer.server.views import health_view
from streamer.watches.event import WatchEvent
from streamer.watches.watch import State
from tests.streamer.fed import picture
from tests.streamer.serving import eventually
from tests.tiny import TINY


def config(folder: Path | None, *streams: dict[str, Any], model: Any = TINY, **storage: Any) -> Any:
    kept = {"folder": None if folder is None else str(folder), **storage}
    limits = {"streams": 3, "answers": 2}
    return parse_config({"streams": streams, "model": model, "limits": limits, "storage": kept})


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 200))


def test_streams_added_while_running_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with Assistant(config(tmp_path)) as assistant:
            await assistant.attach("door", "push://door", fps=5)
            await assistant.attach("gone", "push://gone")
            await assistant.attach("secret", "push://secret", keep="nothing")
            await assistant.detach("gone")
            with pytest.raises(AssistantError) as error:
                await Assistant(config(tmp_path)).start()
            assert error.value.code == "storage" and "in use by process" in error.value.message
        async with Assistant(config(tmp_path)) as assistant:
            assert [(each.name, each.source) for each in assistant.streams()] == [("door", "push://door")]
        async with Assistant(config(tmp_path, {"name": "door", "source": "push://other"})) as assistant:
            assert [each.source for each in assistant.streams()] == ["push://other"]
        async with Assistant(config(tmp_path)) as assistant:
            assert not assistant.streams(), "what is configured takes the place of what was added, for good"

    run(test())


def test_nothing_is_kept_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    async def test() -> None:
        async with Assistant(config(None)) as assistant:
            await assistant.attach("door", "push://door")

    run(test())
    assert not list(tmp_path.iterdir())


def test_what_was_kept_before_nothing_was_to_be_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "streamer")
    logging.getLogger("streamer").propagate = True

    async def test() -> None:
        async with Assistant(config(tmp_path, {**DOOR, "keep": "nothing"})) as assistant:
            await show(assistant, "door", 1)
        assert not caplog.records
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            await show(assistant, "door", 1)
        for told in (True, False):
            async with Assistant(config(tmp_path, {**DOOR, "keep": "nothing"})) as assistant:
                assert ("remove it with streamer forget door" in caplog.text) is told
                await assistant.forget("door")
            caplog.clear()

    run(test())


async def show(assistant: Assistant, name: str, *shown: int | np.ndarray) -> None:
    """Shows pictures one after the other, each seen before the next; a number stands for noise of its own."""
    for each in shown:
        seen = status(assistant, name).frames_seen
        assistant.push(name, picture(each) if isinstance(each, int) else each, seen / 2)
        while status(assistant, name).frames_seen == seen:
            await asyncio.sleep(0.01)


def status(assistant: Assistant, name: str) -> Any:
    return next(each for each in assistant.streams() if each.name == name)


async def state(assistant: Assistant, name: str) -> Any:
    engine = assistant.engine
    kept = await asyncio.wrap_future(engine.call(lambda: engine.runner.snapshot(engine.executor.streams[name].slot)))
    return {part: tensor.clone() for part, tensor in kept.items()}


async def answered(assistant: Assistant, name: str, **options: Any) -> str:
    return await assistant.ask("What is there?", stream=name, max_tokens=12, **options).text()


DOOR = {"name": "door", "source": "push://door", "policy": "every"}


def test_a_stream_goes_on_with_what_it_remembers(tmp_path: Path) -> None:
    async def test() -> None:
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            assert not status(assistant, "door").resumes
            await show(assistant, "door", 1, 2, 3)
            before, said = await state(assistant, "door"), await answered(assistant, "door")
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            after = await state(assistant, "door")
            assert all(torch.equal(part, after[name]) for name, part in before.items())
            assert await answered(assistant, "door") == said, "before anything new was seen"
            now = status(assistant, "door")
            assert (now.resumes, now.generation, now.frames_seen) == (1, 1, 0) and 0 <= now.saved_age_s < 60
            stream = assistant._streams["door"]
            await show(assistant, "door", 1)
            moved = stream.moment(stream.newest) if stream.newest else 0.0  # its source begins at 0 again
            assert 1.0 < moved < 60, "its time goes on after the gap"
            assert (await state(assistant, "door"))["length"] > before["length"]
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            assert status(assistant, "door").resumes == 2
            await assistant.detach("door")
            await assistant.attach("door", "push://door")
            assert not status(assistant, "door").resumes, "whoever removes a stream has it forget"

    run(test())


def test_a_stream_keeps_its_memory_under_another_name_only_when_asked(tmp_path: Path) -> None:
    async def begin(*streams: dict[str, Any]) -> list[int]:
        async with Assistant(config(tmp_path, *streams)) as assistant:
            return [each.resumes for each in assistant.streams()]

    async def test() -> None:
        at = time.time()
        event = WatchEvent("event_1", "watch.started", "fruit", "door", "info", "Is it?", at, at, 0.9, None, True)
        state = asdict(State(belief=True, told=True, seen_at=at))
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            await show(assistant, "door", 1)
            await assistant.watches.add("meter", "What do you see?", when="changes", every=60)
            clip = replace(event, id="event_2", clip="/v1/streams/door/clip?from=1.000&to=2.000")
            for each in (event, clip):
                await assistant.watches.kept.tell(each, state, b"jpeg")
        assert await begin({"name": "gate", "source": "push://door"}) == [0]
        assert await begin({"name": "door", "source": "push://other"}) == [0]
        assert await begin({"name": "door", "source": "push://other", "memory_of": "door"}) == [1]
        renamed = {"name": "gate", "source": "push://door", "memory_of": "door"}
        async with Assistant(config(tmp_path, renamed)) as assistant:
            assert status(assistant, "gate").resumes == 1
            happened = await assistant.archive.timeline("gate", search="live")
            assert happened and not await assistant.archive.timeline("door"), "its timeline goes along"
            kept = assistant.watches.kept
            first, second = (
                WatchEvent.of({k: v for k, v in e.items() if k != "feedback"}) for e in await kept.after("")
            )
            assert first == replace(event, stream="gate"), "and what watches told of it"
            assert second.clip == "/v1/streams/gate/clip?from=1.000&to=2.000"
            assert kept.load()[1]["fruit", "gate"]["told"] is True
            assert [each["stream"] for each in assistant.watches.view("meter", {})["streams"]] == ["gate"]
        assert await begin(renamed) == [1]
        assert await begin({**DOOR, "keep": "nothing"}) == [0]
        assert await begin(DOOR) == [1]

    run(test())


def test_what_can_not_be_gone_on_with_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streamer")
    logging.getLogger("streamer").propagate = True

    async def test() -> None:
        async with Assistant(config(tmp_path, DOOR, every=60)) as assistant:  # no other snapshots than these two
            await show(assistant, "door", 1)
            assert assistant.keeper is not None
            await assistant.keeper.take(assistant._streams.values())
            await show(assistant, "door", 2, 3)
        first, last = sorted((tmp_path / "snapshots" / "door").iterdir())
        last.write_bytes(last.read_bytes()[:-100])
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            assert assistant.keeper is not None and assistant.keeper.snapshots.damaged == 1
            assert status(assistant, "door").resumes == 1 and not last.exists() and first.exists()
        other = config(tmp_path, DOOR).model_copy(
            update={"model": config(None).model.model_copy(update={"position_horizon": 9.0})}
        )
        async with Assistant(other) as assistant:
            assert (
                status(assistant, "door").resumes == 0
                and assistant.keeper is not None
                and assistant.keeper.refused == 1
            )

    run(test())
    told = [record.message for record in caplog.records if "memory" in record.message or "damaged" in record.message]
    assert len(told) == 3 and not any("\n" in each for each in told)
    assert "is damaged" in told[0] and "goes on with its memory" in told[1] and "begins anew" in told[2]


def test_a_change_of_configuration_keeps_what_is_remembered(tmp_path: Path) -> None:
    async def test() -> None:
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            await show(assistant, "door", 1, 2)
            before = await state(assistant, "door")
            lines = await assistant.reload(config(tmp_path, {**DOOR, "fps": 5}))
            assert lines == ["stream door was changed and goes on with its memory"]
            after = await state(assistant, "door")
            assert all(torch.equal(part, after[name]) for name, part in before.items())

    run(test())


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching and answering go on, the fault is shown, and saving resumes by itself."""
    monkeypatch.setattr(storing, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(keeping, "LOOK_SECONDS", 0.02)
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def test() -> None:
        async with Assistant(config(tmp_path, DOOR, every=0.05)) as assistant:
            keeper = assistant.keeper
            assert keeper is not None
            await show(assistant, "door", 1)
            await eventually(lambda: keeper.snapshots.of("door"))
            monkeypatch.setattr(os, "fsync", full)
            await show(assistant, "door", 2)
            await eventually(lambda: keeper.store.fault)
            await show(assistant, "door", 3)
            assert await answered(assistant, "door")
            assert "No space left" in health_view(assistant)["storage"] and health_view(assistant)["status"] == "ok"
            assert "streamer_storage_fault 1" in Metrics().text(assistant)
            assert [each.wall for each in keeper.snapshots.of("door")] and keeper.snapshots.written == 1
            monkeypatch.setattr(os, "fsync", real)
            await eventually(lambda: keeper.store.fault is None and keeper.snapshots.written >= 2)
            assert "storage" not in health_view(assistant) and keeper.store.faults == 1
            tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-gone"))  # at once: it is written to meanwhile
            await show(assistant, "door", 4)
            await eventually(lambda: keeper.store.faults == 2 and keeper.store.fault is None)
            await show(assistant, "door", 5)
            await eventually(lambda: list(tmp_path.glob("snapshots/door/*.snapshot")))

    run(test())
