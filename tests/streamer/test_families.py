"""A daemon with a model of the second family: its rate, its thoughts, and how it answers unless asked otherwise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from protocols.question import Question
from streamer import Assistant, AssistantError, parse_config
from streamer.prompt import settled
from tests.tiny import TINY
from tests.tiny_qwen import TINY_QWEN


async def seen(assistant: Assistant, frames: int) -> None:
    """Until a stream has been seen for so many frames."""
    async with asyncio.timeout(100):
        while assistant.streams()[0].frames_seen < frames:
            await asyncio.sleep(0.02)


def started(model: dict[str, Any]) -> Assistant:
    """A stream as the model suits it, and one as is asked for."""
    door = {"name": "door", "source": "demo:", "deadline": 10}  # what a busy machine drops is not the question
    streams = [door, {"name": "yard", "source": "demo:", "fps": 5}]
    return Assistant(parse_config({"streams": streams, "model": model, "limits": {"streams": 2, "answers": 1}}))


def test_rate_and_thoughts() -> None:
    async def test() -> None:
        async with started(TINY_QWEN) as assistant:
            await seen(assistant, 4)
            door, yard = assistant.streams()
            assert (door.fps_limit, yard.fps_limit) == (2, 5)
            assert door.frames_thinned > 5 * door.frames_seen and not door.drops

            answer = assistant.ask("Who is there?", stream="door", thinking=6, max_tokens=20, seed=1)
            pieces = [thought async for thought, _ in answer.pieces()]
            assert pieces == sorted(pieces, reverse=True) and {True, False} == set(pieces)
            assert answer.usage.reasoning_tokens == 7 and answer.usage.completion_tokens <= 20
            plain = assistant.ask("Who is there?", stream="door", max_tokens=5)
            assert await plain.text() and plain.usage.reasoning_tokens == 0

            config, model = assistant.config, assistant.model.config
            usual, thinking = (settled(Question("Who?", thinking=most), "door", config, model) for most in (0, 6))
            cards = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5}
            assert usual.sampling.chosen() == cards
            assert thinking.sampling.chosen() == cards | {"temperature": 1.0, "top_p": 0.95}

    asyncio.run(test())


def test_a_model_that_does_not_think_says_so() -> None:
    async def test() -> None:
        async with started(TINY) as assistant:
            await seen(assistant, 1)
            assert assistant.streams()[0].fps_limit is None
            with pytest.raises(AssistantError, match="does not think before it answers: leave reasoning_effort out"):
                assistant.ask("Who is there?", stream="door", thinking=6)

    asyncio.run(test())
