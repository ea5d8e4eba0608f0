"""The assistant for plain code, and the examples."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import pytest

from streamer import AssistantError, BlockingAssistant, parse_config
from streamer.watches.event import WatchEvent
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
        while assistant.newest_frame("eyes") is None:
            time.sleep(0.02)
        words = list(assistant.ask("What?", max_tokens=4))
        assert words
        answer = assistant.ask("What?", max_tokens=4)
        polled = ""
        while not answer.complete:
            polled += answer.poll()
            time.sleep(0.01)
        assert polled == "".join(words) and answer.poll() == "" and answer.text() == ""
        assert answer.finish_reason in ("length", "stop") and answer.error is None and answer.usage.completion_tokens
        cancelled = assistant.ask("What?", max_tokens=1000)
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
        unread = assistant.ask("What?", max_tokens=1000)
    assert unread.text() is not None and unread.finish_reason == "cancelled"
    assert threading.active_count() <= before + 1


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


def example(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_embedding_example_answers() -> None:
    assert len(example("examples/embed.py")) > 1, "words, and the line's end"


@pytest.mark.slow
def test_the_robot_never_waits_for_the_assistant() -> None:
    last = example("examples/robot.py", "4").strip().splitlines()[-1]
    found = re.fullmatch(
        r"120 ticks at 30 Hz, (\d+) frames seen; the assistant held the loop up for (\d+) ms at most", last
    )
    assert found and int(found[1]) > 20
    assert int(found[2]) < 400, "an answer takes longer than that"
