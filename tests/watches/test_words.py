"""Watches whose answers are words or fill a schema: each new answer is told once, with the one before."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from capture import Frame
from streamer import Assistant
from streamer.config import parse_config
from streamer.watch_config import WatchConfig
from streamer.watches.event import WatchEvent
from streamer.watches.watches import Watches
from tests.watches.test_watches import demo

SCHEMA = {
    "type": "object",
    "properties": {"there": {"type": "boolean"}},
    "required": ["there"],
    "additionalProperties": False,
}


async def shown(
    watches: list[dict[str, Any]], parts: list[list[np.ndarray]], look: Callable[[Assistant], object] = lambda a: None
) -> list[WatchEvent]:
    """What is told while these pictures are shown, each part until every watch has looked at it twice."""
    config = {
        "model": {"threads": 1},
        "streams": [{"name": "yard", "source": "push://yard", "policy": "every", "deadline": 5}],
        "limits": {"streams": 1, "answers": 4},
        "watches": [{"streams": ["yard"], "when": "changes", "every": 0.05, **each} for each in watches],
    }
    heard: list[WatchEvent] = []
    async with Assistant(parse_config(config)) as assistant:
        assistant.watches.feed.callbacks.append(heard.append)
        at = itertools.count()
        for part in parts:
            since = time.time()
            for pixels in itertools.islice(itertools.cycle(part), 60):
                seen = assistant.streams()[0].frames_seen
                assistant.push("yard", pixels, next(at) * 0.2)
                while assistant.streams()[0].frames_seen == seen:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0.06)
                views = [stream for watch in await assistant.watches.all() for stream in watch["streams"]]
                if all(each["trouble"] or (each["seen_at"] or 0.0) > since + 0.5 for each in views):
                    break
        look(assistant)
    return heard


@pytest.fixture(scope="module")
def parts() -> list[list[np.ndarray]]:
    """Nothing, the number 42, nothing."""
    return [demo(15.4, 16.6), demo(18.5, 20.0), demo(15.4, 16.6)]


@pytest.mark.nightly
def test_words_and_schemas_tell_each_new_answer_with_the_one_before(parts: list[list[np.ndarray]]) -> None:
    watches = [
        {"name": "display", "question": "What number do you see?", "hold": 0.1},
        {"name": "form", "question": "Is there a number?", "format": SCHEMA},
    ]
    events = asyncio.run(shown(watches, parts))
    words = [(event.before, event.after) for event in events if event.watch == "display"]
    assert {event.type for event in events} == {"watch.changed"} and all(e.probability is None for e in events)
    assert [after for _, after in words] == ["42", words[0][0]] and words[1][0] == "42"
    told = [(event.before, event.after) for event in events if event.watch == "form"]
    assert all(isinstance(after, dict) and set(after) == {"there"} for _, after in told)
    assert all(a[1] == b[0] and a[1] != a[0] for a, b in itertools.pairwise(told))


@pytest.mark.nightly
def test_an_answer_too_long_for_its_form_is_told_as_trouble_and_no_event(parts: list[list[np.ndarray]]) -> None:
    form = {"type": "array", "items": {"type": "integer"}, "minItems": 60}
    found: list[Any] = []

    def look(assistant: Assistant) -> None:
        found.extend(each["trouble"] for each in assistant.watches.view("long", {})["streams"])

    events = asyncio.run(shown([{"name": "long", "question": "What do you see?", "format": form}], [parts[1]], look))
    assert not events and found == ["the answer was longer than 64 tokens"]


class Answered:
    """An answer that is complete."""

    def __init__(self, words: str, finish_reason: str = "stop", error: str | None = None) -> None:
        self.words, self.finish_reason, self.error = words, finish_reason, error

    async def text(self) -> str:
        return self.words


def test_what_is_asked_again_is_told_where_it_is_another_and_only_of_new_frames() -> None:
    """The loop that asks, before a model that says what it is told to."""
    there = [f'{{"there": {word}}}' for word in ("false", "false", "true", "true")]
    says = {"display": ["nothing", "42", "42.", "47"], "form": there}

    async def test() -> tuple[list[WatchEvent], list[str], Any]:
        asked: list[str] = []
        stream: Any = SimpleNamespace(
            newest=Frame(np.zeros((4, 4, 3), np.uint8), time.monotonic(), 0.0, 0, "push://yard"),
            opened=True, frames_seen=0, generation=1, config=SimpleNamespace(keep="all"), recorder=None, seen_until=None,
        )  # fmt: skip

        async def ask(question: Any, shown: Any) -> Any:
            name = "display" if question.format is None else "form"
            asked.append(name)
            turn = asked.count(name) - 1
            if turn == len(says[name]):
                return Answered("...", "length") if name == "form" else Answered("", "failed", "the model has gone")
            return Answered(says[name][turn])

        async def unasked(question: object) -> None:
            """Formats are compiled where somebody asks for a watch."""

        engine = SimpleNamespace(unwatch=lambda *given: None, executor=SimpleNamespace(answer_slots=2))
        watches = Watches(engine, {"yard": stream})  # type: ignore[arg-type]
        heard: list[WatchEvent] = []
        watches.feed.callbacks.append(heard.append)
        configs = [
            WatchConfig(
                name=name, streams=("yard",), question="What is there?", when="changes", every=0.05, format=form
            )
            for name, form in (("display", None), ("form", SCHEMA))
        ]
        await watches.begin(configs, None, lambda question: [], unasked, ask)
        for frames in range(1, 6):
            stream.frames_seen = frames
            while any(asked.count(name) < frames for name in says):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.15)  # no new frame: nothing is asked
        troubles = [watches.view(name, {})["streams"][0]["trouble"] for name in says]
        await watches.stop()
        return heard, asked, troubles

    heard, asked, troubles = asyncio.run(test())
    told = {name: [(event.before, event.after) for event in heard if event.watch == name] for name in says}
    assert told["display"] == [("nothing", "42"), ("42", "47")]
    assert told["form"] == [({"there": False}, {"there": True})]
    assert len(asked) == 10 and troubles == ["the model has gone", "the answer was longer than 64 tokens"]
