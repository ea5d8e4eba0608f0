"""The demo clip: what `streamer run` proposes to ask about it, asked of a daemon with the shipped weights while it plays."""

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from capture.sources.demo import demo_truth
from model.world.make_demo import scene, truth
from model.world.render import Assets
from streamer.cli.run import demo_questions
from streamer.client import AsyncClient
from streamer.config import parse_config
from streamer.daemon import Daemon

TIMES = (4.0, 12.0, 20.0)
"""Seconds of the clip at which all questions are asked."""


def right(question: dict[str, Any], begin: float, end: float) -> list[str]:
    """The answers that are right at some time from `begin` to `end` seconds of the clip."""
    return [str(span["answer"]) for span in question["answers"] if span["from"] <= end and begin <= span["to"]]


def test_the_truth_beside_the_clip_is_its_script() -> None:
    assert demo_truth() == truth(scene(Assets.load().gallery))


def test_answers_change_as_the_clip_goes_on() -> None:
    for question in demo_truth()["questions"]:
        spans = question["answers"]
        assert all(a["to"] <= b["from"] for a, b in pairwise(spans))
    answers = [[right(question, at, at + 2.5) for question in demo_truth()["questions"]] for at in TIMES]
    assert all(len(each) == 1 for at in answers for each in at), "no question has two answers while all are asked"
    assert len({str(at) for at in answers}) == len(TIMES)


def test_questions_are_proposed_as_commands() -> None:
    lines = demo_questions("demo", "http://127.0.0.1:9/")
    assert '  streamer ask "What do you see?" --url http://127.0.0.1:9/' in lines
    assert len(lines) == 1 + len(demo_truth()["questions"])


async def answer(daemon: Daemon, client: AsyncClient, question: dict[str, Any]) -> tuple[float, str, str, list[str]]:
    begin, asked = daemon.assistant.newest_frame("demo"), time.monotonic()
    assert begin is not None
    said = "".join([word async for word in client.ask(question["question"])])
    return begin.time, question["question"], said, right(question, begin.time, begin.time + time.monotonic() - asked)


async def answers_while_it_plays() -> list[tuple[float, str, str, list[str]]]:
    """Second, question, answer and right answers."""
    streams = [{"name": "demo", "source": "demo:"}]
    daemon = Daemon(parse_config({"server": {"port": 0}, "streams": streams}, "demo"))
    found = []
    async with asyncio.timeout(200):
        url = await daemon.start()
        try:
            async with AsyncExitStack() as stack:
                # Of each connection four answers may be open.
                questions = demo_truth()["questions"]
                clients = [await stack.enter_async_context(AsyncClient(url, stream="demo")) for _ in questions]
                for at in TIMES:
                    while (frame := daemon.assistant.newest_frame("demo")) is None or frame.time < at:
                        await asyncio.sleep(0.05)
                    # All at once: one after the other, on a busy machine, they would be asked where the clip's truth changes.
                    found += await asyncio.gather(*map(partial(answer, daemon), clients, questions))
        finally:
            await daemon.stop()
    return found


@pytest.mark.slow
def test_the_nano_is_right_at_three_times_of_the_clip() -> None:
    found = asyncio.run(answers_while_it_plays())
    assert len(found) == len(TIMES) * len(demo_truth()["questions"])
    wrong = [f"{at:.1f} s: {asked} {said!r}, not {wanted!r}" for at, asked, said, wanted in found if said not in wanted]
    assert not wrong
