"""The assistant for plain code, and the examples."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import pytest

from streamer import AssistantError, BlockingAssistant, parse_config
from streamer.watches.event import WatchEvent
from tests.forked import Forked, script
from tests.streamer.serving import wait_for
from tests.tiny import TINY

from .fed import picture

ROOT = Path(__file__).parents[2]
CONFIG = parse_config(
    {
        "streams": [{"name": "eyes", "source": "push://eyes"}],
        "model": TINY,
        "limits": {"streams": 2, "answers": 2},
    }
)


def went(assistant: BlockingAssistant) -> int:
    """Frames of the first stream that were seen or dropped."""
    status = assistant.streams()[0]
    return status.frames_seen + sum(status.drops.values())


def test_an_assistant_out_of_its_block_says_so() -> None:
    assistant = BlockingAssistant(CONFIG)
    with pytest.raises(AssistantError, match="use it in a 'with' block"):
        assistant.ask("What?")
    with assistant:
        assert assistant.watches() == []
        with pytest.raises(AssistantError, match="make a new one"):
            assistant.__enter__()
    with pytest.raises(AssistantError, match="use it in a 'with' block"):
        assistant.ask("What?")
    with pytest.raises(AssistantError, match="make a new one"):
        assistant.__enter__()


def test_a_mapping_is_no_configuration_yet() -> None:
    with pytest.raises(TypeError, match=r"config is a dict: make a Config of it with streamer\.parse_config"):
        BlockingAssistant({"streams": []})  # type: ignore[arg-type]


def test_plain_code_watches_and_asks() -> None:
    before = threading.active_count()
    with BlockingAssistant(CONFIG) as assistant:
        with pytest.raises(AssistantError):
            assistant.ask("What?")
        for past in (lambda: assistant.timeline("eyes"), lambda: assistant.still("eyes", "now")):
            with pytest.raises(AssistantError, match=r"storage\.folder"):
                past()
        for i in range(4):
            assistant.push("eyes", picture(i), i / 10)
            time.sleep(0.1)
        wait_for(lambda: went(assistant) == 4)  # so that both answers are of the same state
        words = list(assistant.ask("What?", max_tokens=4))
        assert words
        answer = assistant.ask("What?", max_tokens=4)
        polled = ""
        while not answer.complete:
            polled += answer.poll()
            time.sleep(0.01)
        assert polled == "".join(words) and answer.poll() == "" and answer.text() == ""
        assert answer.finish_reason in ("length", "stop") and answer.error is None and answer.usage.completion_tokens
        cancelled = assistant.ask("What?", max_tokens=20_000)
        cancelled.cancel()
        cancelled.text()
        assert cancelled.finish_reason == "cancelled"
        told: SimpleQueue[WatchEvent] = SimpleQueue()
        assistant.on_event(told.put)
        assistant.add_watch("words", "What is there?", when="changes", every=60)
        post = assistant._assistant.watches._posts["words", "eyes"]
        for said in ("nothing", "a dog"):
            assistant._portal.call(post.see, said, time.time(), assistant.newest_frame("eyes"), 1)
        event = told.get()
        assistant.mark(event.id, "false_alarm")
        assert event.type == "watch.changed" and (assistant.event_still(event.id) or b"").startswith(b"\xff\xd8")
        assert [each["false_alarms"] for each in assistant.watches()] == [1]
        assistant.remove_watch("words")
        assistant.attach("demo", "demo:")
        assert [status.name for status in assistant.streams()] == ["eyes", "demo"]
        assistant.detach("demo")
        unread = assistant.ask("What?", max_tokens=20_000)
    assert unread.text() is not None and unread.finish_reason == "cancelled"
    wait_for(lambda: threading.active_count() <= before)


@pytest.mark.parametrize(
    ("door", "streams"),
    [("/nowhere.mp4", 2), ("demo:", 1)],
    ids=["before the engine is there", "with the engine there"],
)
def test_what_can_not_start_leaves_nothing_behind(door: str, streams: int) -> None:
    sources = [{"name": "demo", "source": "demo:"}, {"name": "door", "source": door}]
    config = parse_config({"streams": sources, "model": TINY, "limits": {"streams": 2, "answers": 2}})
    limits = config.limits.model_copy(update={"streams": streams})
    before = set(threading.enumerate())
    with pytest.raises(AssistantError), BlockingAssistant(config.model_copy(update={"limits": limits})):
        pass
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name in ("assistant", "engine")]


def test_nothing_that_a_control_loop_calls_waits_for_the_engine() -> None:
    """As it is busy for as long as the loop goes on, whatever waited for it would never return."""
    held, done = threading.Event(), threading.Event()
    with BlockingAssistant(CONFIG) as assistant:
        assistant.push("eyes", picture(0), 0.0)
        while assistant.newest_frame("eyes") is None:
            time.sleep(0.02)
        busy = assistant._assistant.engine.call(lambda: (held.set(), done.wait(60)))
        assert held.wait(60)
        answer = assistant.ask("What?", max_tokens=4)
        for tick in range(1, 10):
            assistant.push("eyes", picture(tick), tick / 30)
            assert assistant.newest_frame("eyes") is not None and assistant.streams()
            assert answer.poll() == "" and not answer.complete
        answer.cancel()
        assert not busy.done()
        done.set()
        answer.text()
        words = assistant.ask("What?", max_tokens=4).text()
        assert words and busy.result()[1]


def example(name: str, *arguments: str) -> str:
    with Forked(script, [str(ROOT / "examples" / name), *arguments]) as process:
        out, told = process.communicate(200)
    assert process.returncode == 0, told
    return out


def test_the_embedding_example_answers() -> None:
    assert len(example("embed.py")) > 1, "words, and the line's end"


@pytest.mark.slow
def test_the_robots_example_goes_round_and_sees() -> None:
    last = example("robot.py", "4").strip().splitlines()[-1]
    found = re.fullmatch(
        r"120 ticks at 30 Hz, (\d+) frames seen; the assistant held the loop up for \d+ ms at most", last
    )
    assert found and int(found[1]) > 0
