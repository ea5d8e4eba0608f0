"""The public API with the real model, the packaged clip and the real clock."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from sys import maxsize
from typing import Any

import pytest
import torch

import model.serving.runner
from model.serving.capacity import Capacity
from streamer import Assistant, AssistantError, StreamEvent, StreamStatus
from streamer.admission import reading_processes
from streamer.config import parse_config
from streamer.engine.stream import Stream
from streamer.events import Subscription
from tests.tiny import TINY

from .fed import picture

DEMO = {"name": "demo", "source": "demo:"}


def config(**keys: Any) -> Any:
    limits = {"streams": 2, "answers": 2, "waiting_questions": 2, "question_tokens": 200}
    return parse_config({"streams": [DEMO], "model": TINY, "limits": limits, **keys})


async def first_frame(assistant: Assistant, name: str = "demo") -> None:
    async with asyncio.timeout(60):
        while not any(status.name == name and status.frames_seen for status in assistant.streams()):
            await asyncio.sleep(0.02)


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 200))


def refused(error: pytest.ExceptionInfo[AssistantError], code: str, *parts: str) -> None:
    assert error.value.code == code
    for part in parts:
        assert part in error.value.message
    assert "\n" not in error.value.message


def test_many_streams_on_many_cores_are_decoded_beside_the_daemon() -> None:
    assert [reading_processes(None, streams, 16) for streams in (1, 3, 4, 100)] == [0, 0, 14, 14]
    assert [reading_processes(None, 100, cores) for cores in (1, 2, 4, 8)] == [0, 0, 0, 6]
    assert reading_processes(0, 100, 16) == 0 and reading_processes(2, 1, 1) == 2


def test_memory_too_small_for_the_slots_is_told_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start() -> pytest.ExceptionInfo[AssistantError]:
        with pytest.raises(AssistantError) as error:
            await Assistant(config()).start()
        return error

    free = 3
    monkeypatch.setattr(model.serving.runner, "capacity", lambda device, each: Capacity(free * each, each))
    mend = "Lower limits.streams (2) and limits.answers (2) to 3 together"
    refused(asyncio.run(start()), "no_memory", "Model tiny: 4 slots of", "are missing; 3 of them fit", mend)
    free = 1
    refused(asyncio.run(start()), "no_memory", "1 of them fit", "choose a smaller model")

    def exhausted(device: object, each: int) -> Capacity:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it.")

    monkeypatch.setattr(model.serving.runner, "capacity", exhausted)
    refused(asyncio.run(start()), "no_memory", "Tried to allocate 2 GiB", "lower limits.streams")

    class OutOfResources(Exception):  # noqa: N818 — as Triton calls it, which only comes with a GPU
        """Of a card whose programs have less than kernels take."""

    def cramped(device: object, each: int) -> Capacity:
        lack = (
            "out of resource: shared memory, Required: 168968, Hardware limit: 101376. Reducing block sizes may help."
        )
        raise OutOfResources(lack)

    monkeypatch.setattr(model.serving.runner, "capacity", cramped)
    told = "can't run on this card (shared memory, Required: 168968, Hardware limit: 101376): its kernels"
    refused(asyncio.run(start()), "no_device", told, "model.device to cpu")


def test_a_stream_beyond_memory_is_refused_with_what_would_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        limits = {"streams": 1, "answers": 1}
        async with Assistant(config(limits=limits)) as assistant:
            monkeypatch.setattr(model.serving.runner, "capacity", lambda device, each: Capacity(0, each))
            with pytest.raises(AssistantError) as error:
                await assistant.attach("second", "demo:")
            each = f"1 of {assistant.model.state_bytes / 1e6:.1f} MB is missing"
            refused(error, "too_many_streams", "All 1 slots", each, "detach a stream", "lower limits.answers")

    run(test())


def test_a_clip_is_watched_and_asked_about() -> None:
    async def test() -> None:
        assistant = Assistant(config())
        assert not assistant.ready
        with pytest.raises(AssistantError) as early:
            assistant.ask("What?")
        refused(early, "not_ready", "being loaded")
        async with assistant:
            assert assistant.ready and assistant.trouble is None
            assert assistant.model.name == "tiny" and assistant.model.state_bytes > 0
            await first_frame(assistant)
            answers = [assistant.ask("What is happening?", max_tokens=5) for _ in range(3)]
            assert len({answer.id for answer in answers}) == 3
            for answer in answers:
                text = await answer.text()
                assert answer.finish_reason in ("length", "stop") and answer.stream == "demo"
                assert answer.usage.prompt_tokens > 5 and 0 < answer.usage.completion_tokens <= 5
                assert answer.usage.first_token_s is not None and answer.usage.seconds is not None
                assert text == text.strip("\ufffd") or text
            status = assistant.streams()[0]
            assert (status.name, status.source, status.state) == ("demo", "demo:", "live")
            assert status.lag_s is not None and status.width and status.height and status.generation == 1
            frame = assistant.newest_frame("demo")
            assert frame is not None and frame.pixels.shape[2] == 3
        assert not assistant.ready and assistant.streams() == []

    run(test())


def test_an_assistant_runs_once() -> None:
    async def twice() -> None:
        assistant = Assistant(config())
        async with assistant:
            pass
        with pytest.raises(AssistantError, match="make a new one"):
            await assistant.start()

    asyncio.run(twice())


def test_what_does_not_fit_is_refused_by_name() -> None:
    async def test() -> None:
        async with Assistant(config()) as assistant:
            await first_frame(assistant)
            with pytest.raises(AssistantError) as error:
                assistant.ask("  \n")
            refused(error, "empty_question")
            with pytest.raises(AssistantError) as error:
                assistant.ask("What?", stream="door")
            refused(error, "unknown_stream", "'door'", "demo")
            with pytest.raises(AssistantError) as error:
                assistant.ask("What? " * 500)
            refused(error, "question_too_long", "200 are allowed", "limits.question_tokens")
            began = time.thread_time()
            for history in ([("é🙂" * 2_000_000, "no")], [("What?", "é🙂" * 2_000_000)]):
                with pytest.raises(AssistantError) as error:
                    assistant.ask("What?", history=history)
                refused(error, "question_too_long", "characters", "limits.question_tokens")
            assert time.thread_time() - began < 1, "what is far too long is refused before it is read"
            with pytest.raises(AssistantError) as error:
                assistant.ask("What?", temperature=-1)
            refused(error, "bad_sampling", "-1")
            with pytest.raises(AssistantError) as error:
                await assistant.attach("demo", "demo:")
            refused(error, "stream_exists")
            with pytest.raises(AssistantError) as error:
                await assistant.attach("door", "/nowhere/door.mp4")
            refused(error, "bad_source", "/nowhere/door.mp4")
            with pytest.raises(AssistantError) as error:
                await assistant.attach("door", "demo:", fps="25fps")
            refused(error, "bad_option", "fps: '25fps'", "write 25")
            with pytest.raises(AssistantError) as error:
                await assistant.detach("door")
            refused(error, "unknown_stream")

            await assistant.attach("second", "demo:")
            with pytest.raises(AssistantError) as error:
                await assistant.attach("third", "demo:")
            refused(error, "too_many_streams", "All 2 slots", "limits.streams: free memory holds")
            with pytest.raises(AssistantError) as error:
                assistant.ask("What?")
            refused(error, "unknown_stream", "demo, second")
            await assistant.detach("second")
            await assistant.attach("third", "demo:")
            await assistant.detach("third")

            answers = [assistant.ask("What?", max_tokens=20_000) for _ in range(4)]
            with pytest.raises(AssistantError) as error:
                assistant.ask("What?")
            refused(error, "too_many_answers", "2 answers are open", "limits.waiting_questions")
            for answer in answers:
                answer.cancel()
            for answer in answers:
                await answer.text()
                assert answer.finish_reason == "cancelled"
            again = assistant.ask("What?", max_tokens=1)
            await again.text()
            assert again.finish_reason in ("length", "stop")

    run(test())


def test_a_stream_that_the_device_has_no_time_for_is_refused_where_that_is_wanted() -> None:
    async def test() -> None:
        limits = {"streams": 2, "answers": 2, "admission": "measured"}
        async with Assistant(config(streams=[], limits=limits)) as assistant:
            assistant.engine.scheduler.capacity = lambda: 33.0  # type: ignore[method-assign]
            await assistant.attach("left", "demo:")
            with pytest.raises(AssistantError) as error:
                await assistant.attach("right", "demo:")
            refused(error, "too_many_frames", "sees 33", "bring 25", "17 are missing", "limits.admission")
            await assistant.attach("right", "demo:", fps=5)
            assert len(assistant.streams()) == 2

    run(test())


def test_a_stream_is_written_by_the_engine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    writers: dict[str, set[str]] = {}
    write = Stream.__setattr__

    def noted(stream: Stream, field: str, value: object) -> None:
        if field in vars(stream):
            writers.setdefault(field, set()).add(threading.current_thread().name)
        write(stream, field, value)

    monkeypatch.setattr(Stream, "__setattr__", noted)

    async def test() -> None:
        async with Assistant(config()) as assistant:
            await first_frame(assistant)
            await assistant.reload(config(streams=[{"name": "demo", "source": "demo:", "priority": 5}]))
            changes = assistant.source_changes()["demo"]
            assert changes["connecting"] == changes["live"] == 1

    run(test())
    assert writers.pop("config") == {"MainThread"}
    assert {"slot", "opened", "frames_seen", "newest", "terms"} <= writers.keys()
    assert all(threads == {"engine"} for threads in writers.values()), writers


def test_an_attaching_that_is_given_up_leaves_nothing() -> None:
    async def test() -> None:
        async with Assistant(config()) as assistant:
            slots = assistant.engine.executor
            for turns in range(30):
                attaching = asyncio.create_task(assistant.attach("door", "demo:"))
                if turns == 29:  # as soon as it has a slot
                    while slots.free_streams and not attaching.done():
                        await asyncio.sleep(0)
                for _ in range(turns % 29):
                    await asyncio.sleep(0.001)
                attaching.cancel()
                with suppress(asyncio.CancelledError):
                    await attaching
                if any(status.name == "door" for status in assistant.streams()):
                    await assistant.detach("door")
            free = assistant.engine.call(lambda: len(slots.free_streams))
            assert await asyncio.wrap_future(free) == 1
            await assistant.attach("door", "demo:")
            await first_frame(assistant, "door")

    run(test())


def test_stopping_mid_answer_cancels_it_at_once() -> None:
    async def test() -> None:
        assistant = Assistant(config())
        await assistant.start()
        await first_frame(assistant)
        speaking = assistant.ask("What?", max_tokens=20_000)
        waiting = [assistant.ask("What?", max_tokens=20_000) for _ in range(3)]
        await anext(speaking)
        listener = assistant.subscribe()
        began = time.monotonic()
        await assistant.stop()
        assert time.monotonic() - began < 20, "at once, on a busy machine"
        for answer in [speaking, *waiting]:
            await answer.text()
            assert answer.finish_reason == "cancelled"
        assert [event async for event in listener]
        with pytest.raises(AssistantError):
            assistant.ask("What?")

    run(test())


def test_a_stream_that_has_shown_nothing_says_why() -> None:
    async def test() -> None:
        door = {"name": "door", "source": "rtsp://user:secret@127.0.0.1:1/door"}
        async with Assistant(config(streams=[door])) as assistant:
            news = assistant.subscribe("door")
            async with asyncio.timeout(60):
                async for event in news:
                    if event.type == "stream.status" and event.facts["state"] == "waiting":
                        break
            assert "refused" in event.facts["reason"] and "secret" not in str(event)
            with pytest.raises(AssistantError) as error:
                assistant.ask("What?")
            refused(error, "no_frames", "waiting", "refused")
            assert "secret" not in error.value.message and "secret" not in str(assistant.streams())

    run(test())


def test_drops_are_told_and_counted() -> None:
    async def test() -> None:
        slow = [{"name": name, "source": "demo:"} for name in ("left", "right")]
        async with Assistant(config(streams=slow)) as assistant:
            await first_frame(assistant, "left")
            news = assistant.subscribe("left")
            see = assistant.engine.runner.launch
            steps = [time.monotonic()]

            def slower(*step: Any) -> list[bool]:
                time.sleep(0.15)
                done = see(*step)
                steps.append(time.monotonic())
                return done

            assistant.engine.runner.launch = slower  # type: ignore[method-assign]
            told: dict[str, int] = {}
            async with asyncio.timeout(60):
                async for event in news:
                    assert event.stream == "left"
                    if event.type == "stream.dropped":
                        for reason, count in event.facts["dropped"].items():
                            told[reason] = told.get(reason, 0) + count
                        if sum(told.values()) > 20:
                            break
            assert set(told) <= {"overload", "stale", "rate"}
            status = assistant.streams()[0]
            assert sum(status.drops.values()) >= sum(told.values()) > 20
            longest = max(end - begin for begin, end in pairwise(steps))
            assert status.lag_s is not None and status.lag_s < max(1.5, 5 * longest), "however slow a busy machine is"

    run(test())


def untold(streams: list[StreamStatus]) -> list[int]:
    """Frames of each stream that came in, and of which nothing else is told."""
    return [
        each.frames_in - each.frames_seen - each.frames_thinned - each.frames_unchanged - sum(each.drops.values())
        for each in streams
    ]


def test_pushed_frames_are_watched() -> None:
    async def test() -> None:
        async with Assistant(config(streams=[{"name": "door", "source": "push://door"}])) as assistant:
            with pytest.raises(AssistantError) as error:
                assistant.ask("What?")
            refused(error, "no_frames", "connecting")
            for i in range(6):
                assistant.push("door", picture(i), i / 10)
                await asyncio.sleep(0.1)
            await first_frame(assistant, "door")
            began = time.monotonic()
            answer = assistant.ask("What?", max_tokens=2)
            assert 0 < assistant.oldest_question_s <= time.monotonic() - began
            await answer.text()
            assert assistant.oldest_question_s == 0
            with pytest.raises(AssistantError) as error:
                assistant.push("door", picture(0)[..., 0])
            refused(error, "bad_frame", "uint8 [height, width, 3]")
            with pytest.raises(AssistantError) as error:
                assistant.push("yard", picture(0))
            refused(error, "unknown_stream")
            await assistant.attach("demo", "demo:", fps=5, deadline=10)  # what a busy machine drops is not the question
            with pytest.raises(AssistantError) as error:
                assistant.push("demo", picture(0))
            refused(error, "bad_source", "demo:")
            async with asyncio.timeout(60):
                while (status := assistant.streams()[1]).frames_seen < 4:
                    await asyncio.sleep(0.02)
            assert status.frames_thinned > status.frames_seen and not sum(status.drops.values())
            waiting = [maxsize]
            async with asyncio.timeout(60):
                while max(waiting) > 2 * assistant.model.frames_per_step:
                    # On the engine's thread, as nothing that came in before is seen or dropped meanwhile.
                    waiting = await asyncio.wrap_future(assistant.engine.call(lambda: untold(assistant.streams())))
                    assert min(waiting) >= 0

    run(test())


def test_a_step_that_never_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.assistant.STUCK_SECONDS", 0.3)
    monkeypatch.setattr("streamer.assistant.TELL_SECONDS", 0.1)

    async def test() -> None:
        async with Assistant(config()) as assistant:
            await first_frame(assistant)
            see = assistant.engine.runner.launch
            assistant.engine.runner.launch = lambda *step: (time.sleep(1), see(*step))[1]  # type: ignore[method-assign]
            async with asyncio.timeout(60):
                while assistant.ready:
                    await asyncio.sleep(0.05)
            assert assistant.trouble is not None and "0.3 s" in assistant.trouble
            assistant.engine.runner.launch = see  # type: ignore[method-assign]
            async with asyncio.timeout(60):
                while not assistant.ready:
                    await asyncio.sleep(0.05)

    run(test())


def test_an_engine_that_fails_begins_again_and_says_so_and_then_gives_up() -> None:
    async def test() -> None:
        async with Assistant(config()) as assistant:
            await first_frame(assistant)
            news = assistant.subscribe()
            answer = assistant.ask("What?", max_tokens=20_000)
            await anext(answer)
            assistant.engine.scheduler.decide = None  # type: ignore[assignment, method-assign]
            await answer.text()
            assert answer.finish_reason == "failed" and "begins again" in str(answer.error)
            assert not assistant.ready and "begins again" in str(assistant.trouble)
            async with asyncio.timeout(60):
                async for event in news:
                    if event.type == "stream.reset":
                        break
                assert "the engine failed" in event.facts["reason"]
                while not assistant.ready or assistant.streams()[0].generation < 2:
                    await asyncio.sleep(0.05)
            again = assistant.ask("What?", max_tokens=2)
            await again.text()
            assert again.finish_reason in ("length", "stop")

            assistant.engine.scheduler.decide = None  # type: ignore[assignment, method-assign]
            async with asyncio.timeout(60):
                while assistant.engine.alive:
                    await asyncio.sleep(0.02)
            assert not assistant.ready and "the engine failed" in str(assistant.trouble)
            with pytest.raises(AssistantError) as error:
                assistant.ask("What?")
            refused(error, "not_ready", "the engine failed")
            with pytest.raises(AssistantError) as error:
                await assistant.attach("door", "demo:")
            refused(error, "not_ready", "the engine failed")

    run(test())


def test_a_new_configuration_is_applied_as_far_as_it_can_be() -> None:
    async def test() -> None:
        async with Assistant(config()) as assistant:
            await first_frame(assistant)
            assert await assistant.reload(config()) == ["nothing changed"]

            lines = await assistant.reload(config(streams=[{**DEMO, "priority": 5}]))
            assert lines == ["stream demo has priority 5 and deadline 0.2 s now"]
            assert assistant.streams()[0].generation == 1, "its memory is kept"
            assert assistant.engine.scheduler._streams["demo"].terms.priority == 5

            lines = await assistant.reload(config(streams=[{**DEMO, "fps": 5}, {"name": "door", "source": "demo:"}]))
            assert lines == ["stream demo was changed and begins again", "stream door was added"]
            await first_frame(assistant, "door")

            lines = await assistant.reload(
                config(
                    streams=[DEMO, {"name": "door", "source": "/nowhere.mp4"}],
                    model={**TINY, "threads": 2},
                    answers={"max_tokens": 3, "ceiling_tokens_per_second": 50},
                )
            )
            assert lines[0] == "model changed: start the daemon again for it"
            assert any("/nowhere.mp4" in line and "goes on as it was" in line for line in lines)
            assert [(stream.name, stream.source) for stream in assistant.streams()] == [
                ("door", "demo:"),
                ("demo", "demo:"),
            ]
            assert assistant.config.model.threads == 1
            assert assistant.engine.scheduler.pace.ceiling == 50
            await first_frame(assistant)
            answer = assistant.ask("What?", stream="demo")
            await answer.text()
            assert answer.usage.completion_tokens <= 3
            assert await assistant.reload(config(streams=[])) != []
            assert assistant.streams() == []

    run(test())


async def collected(events: AsyncIterator[StreamEvent], count: int) -> list[StreamEvent]:
    return [await anext(events) for _ in range(count)]


def test_a_slow_listener_gets_fewer_fuller_events() -> None:
    async def test() -> None:
        closed: list[Subscription] = []
        listener = Subscription(None, closed.append)
        for i in range(1000):
            listener.put(StreamEvent("stream.status", "a", {"state": str(i)}))
            listener.put(StreamEvent("stream.dropped", "a", {"dropped": {"overload": 1}, "dropped_in_all": i + 1}))
            listener.put(StreamEvent("stream.dropped", "b", {"dropped": {"rate": 2}, "dropped_in_all": 2 * i + 2}))
            listener.put(StreamEvent("stream.reset", "a", {"reason": "NaN", "resets": 1}))
        events = {(event.type, event.stream): event.facts for event in await collected(listener, 4)}
        assert events["stream.status", "a"] == {"state": "999"}
        assert events["stream.dropped", "a"] == {"dropped": {"overload": 1000}, "dropped_in_all": 1000}
        assert events["stream.dropped", "b"] == {"dropped": {"rate": 2000}, "dropped_in_all": 2000}
        assert events["stream.reset", "a"] == {"reason": "NaN", "resets": 1000}
        listener.close()
        assert closed == [listener] and [event async for event in listener] == []

    run(test())


def test_a_subscription_hears_its_own_stream_alone() -> None:
    async def test() -> None:
        listener = Subscription("a", lambda it: None)
        listener.put(StreamEvent("stream.status", "b", {}))
        listener.put(StreamEvent("stream.status", "a", {}))
        listener.close()
        assert [event.stream async for event in listener] == ["a"]

    run(test())
