"""The daemon's life in fast forward: streams come and go, questions are asked and cancelled, and nothing is left behind."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamer import Assistant, AssistantError
from streamer.cli.bench import resident_bytes
from streamer.config import parse_config
from tests.tiny import TINY

WARM_CYCLES = 3
ALLOWED_BYTES = 16 * 2**20


@dataclass
class Sample:
    resident: int
    threads: int
    descriptors: int


def sample() -> Sample:
    """What is held, without what glibc's allocator keeps for later in each thread's arena: on a busy machine that comes and goes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return Sample(resident_bytes(), threading.active_count(), len(list(Path("/proc/self/fd").iterdir())))


async def cycle(assistant: Assistant, number: int) -> None:
    """One visitor: a stream of its own, a listener, answers that end in every way."""
    name = f"visitor-{number}"
    await assistant.attach(name, "demo:")
    listener = assistant.subscribe(name)
    async with asyncio.timeout(60):
        while not assistant.newest_frame(name):
            await asyncio.sleep(0.05)
    answers = [assistant.ask("What is happening?", stream=name, max_tokens=6, seed=number) for _ in range(4)]
    answers.append(assistant.ask("What is there?", stream="door", max_tokens=200))
    with pytest.raises(AssistantError):
        assistant.ask("", stream=name)
    answers[1].cancel()
    await answers[0].text()
    threads = list(assistant._streams[name].source.threads)
    await assistant.detach(name)
    answers[-1].cancel()
    for answer in answers:
        await answer.text()
        assert answer.finish_reason in ("stop", "length", "cancelled", "failed")
    listener.close()
    # A stream is gone before the thread that decoded its last picture is, and what that holds.
    async with asyncio.timeout(60):
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_nothing_grows(soak_seconds: float) -> None:
    async def soak() -> list[Sample]:
        config = parse_config(
            {
                "streams": [{"name": "door", "source": "demo:"}],
                "model": TINY,
                "limits": {"streams": 2, "answers": 2, "waiting_questions": 4},
            }
        )
        samples = []
        # The loop's pool has all of its threads from the beginning; else it makes the last ones when the machine is busy.
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.02) for _ in range(32)))
        async with Assistant(config) as assistant:
            async with asyncio.timeout(60):
                while not assistant.newest_frame("door"):
                    await asyncio.sleep(0.05)
            end, number = time.monotonic() + soak_seconds, 0
            while time.monotonic() < end or number < 3 * WARM_CYCLES:
                await cycle(assistant, number)
                number += 1
                if number > WARM_CYCLES:
                    samples.append(sample())
            assert not assistant._answers and not assistant.news.subscriptions
            assert len(assistant.engine.executor.free_answers) == 2 and len(assistant.engine.executor.free_streams) == 1
        return samples

    samples = asyncio.run(soak())
    third = max(1, len(samples) // 3)
    early, late = samples[:third], samples[-third:]
    grown = statistics.median(s.resident for s in late) - statistics.median(s.resident for s in early)
    print(f"{len(samples)} visits on {os.cpu_count()} cores: {grown / 2**20:+.1f} MiB")
    assert grown < ALLOWED_BYTES
    assert max(s.threads for s in late) <= max(s.threads for s in early)
    assert max(s.descriptors for s in late) <= max(s.descriptors for s in early) + 1
