"""Asking the past: the snapshot before a moment answers, and says which moment that was."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from streamer import Assistant, AssistantError
from streamer.client import AsyncClient, ClientError
from streamer.memory.moments import written
from tests.streamer.serving import Served, _served, eventually

from .test_restart import DOOR, answered, config, run, show


@asynccontextmanager
async def served(assistant: Assistant) -> AsyncIterator[Served]:
    async with _served(assistant, assistant.config, 0, 0) as server:
        yield server


def scenes() -> list[np.ndarray]:
    """The demo's picture at three moments that the nano describes unlike."""
    with av.open(str(CLIP)) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    return [frames[len(frames) * part // 7] for part in (1, 3, 5)]


CLIP = Path(__file__).parents[2] / "capture" / "clips" / "demo.mp4"


async def remembered(assistant: Assistant, seed: int | np.ndarray) -> tuple[float, str]:
    """Shows a picture, takes a snapshot; the moment of it, and what is answered live then."""
    await show(assistant, "door", seed)
    said = await answered(assistant, "door")
    keeper = assistant.keeper
    assert keeper is not None
    await keeper.take(assistant._streams.values())
    return keeper.snapshots.of("door")[-1].wall, said


@pytest.mark.slow
def test_the_past_answers_as_it_did_live(tmp_path: Path) -> None:
    async def test() -> None:
        nano = config(tmp_path, DOOR, model={"name": "nano", "threads": 1})
        async with Assistant(nano) as assistant:
            moments = [await remembered(assistant, scene) for scene in scenes()]
            assert len({said for _, said in moments}) > 1
        async with Assistant(nano) as assistant:
            keeper = assistant.keeper
            assert keeper is not None
            for kind, text in (("watch.van", "a van came"), ("question", "what is secret?")):
                keeper.timeline.add(kind, "door", text, place=keeper.timeline.place(moments[0][0] + 1))
            await asyncio.wrap_future(keeper.store.do(lambda: None))
            for wall, said in moments:
                answer = assistant.ask("What is there?", max_tokens=12, at=wall + 0.01)
                assert await answer.text() == said and answer.moment is not None
                facts = answer.moment.facts()
                assert facts["how"] == "exact" and facts["before_s"] == pytest.approx(0.01, abs=1e-3)
                cited = [(each["kind"], each["text"]) for each in facts["entries"]]
                assert wall != moments[0][0] or ("watch.van", "a van came") in cited
                assert "question" not in {kind for kind, _ in cited}
            late = assistant.ask("What is there?", max_tokens=12, at="now")
            assert await late.text() == moments[-1][1] and late.moment is not None
            assert late.moment.facts()["how"] == "nearest snapshot"
            history = (("Is it day?", "Yes."),)
            assert await assistant.ask("And now?", max_tokens=5, at=moments[0][0], history=history).text()

    run(test())


def test_a_damaged_moment_is_answered_from_the_one_before(tmp_path: Path) -> None:
    async def test() -> None:
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            first, second = [await remembered(assistant, seed) for seed in (1, 2)]
            keeper = assistant.keeper
            assert keeper is not None
            keeper.snapshots.of("door")[-1].path.write_bytes(b"torn")
            answer = assistant.ask("What is there?", max_tokens=12, at=second[0])
            assert await answer.text() == first[1] and answer.moment is not None
            assert answer.moment.reached == first[0]
            keeper.snapshots.of("door")[-1].path.write_bytes(b"torn too")
            broken = assistant.ask("What is there?", at=second[0])
            await broken.text()
            assert broken.finish_reason == "failed" and "no snapshot" in (broken.error or "")

    run(test())


def test_what_can_not_be_asked_is_refused_in_one_line(tmp_path: Path) -> None:
    async def test() -> None:
        def refused(assistant: Assistant, at: Any, code: str, *parts: str) -> None:
            with pytest.raises(AssistantError) as error:
                assistant.ask("What is there?", at=at)
            assert error.value.code == code and "\n" not in error.value.message
            for part in parts:
                assert part in error.value.message

        async with Assistant(config(tmp_path, DOOR)) as assistant:
            refused(assistant, "10 minutes ago", "not_remembered", "it has not begun")
            await remembered(assistant, 1)
            refused(assistant, "10 minutes ago", "not_remembered", "it begins at 20")
            refused(assistant, "at noon", "bad_moment", "'10 minutes ago'", "14:03")
            refused(assistant, time.time() + 60, "bad_moment", "in the future")
            refused(assistant, float("nan"), "bad_moment")
        async with Assistant(config(None, DOOR)) as assistant:
            refused(assistant, "now", "not_remembered", "storage.folder")

    run(test())


def test_answers_about_the_past_end_when_cancelled_and_are_few_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            await remembered(assistant, 1)
            answers = [assistant.ask("What is there?", max_tokens=20_000, at="now") for _ in range(6)]
            assert len(assistant._answers) == 6
            for answer in answers[:5]:
                answer.cancel()
            await eventually(lambda: all(answer.finish_reason == "cancelled" for answer in answers[:5]))
            answers[5].cancel()
            await asyncio.gather(*(answer.text() for answer in answers))
            assert not assistant._answers and assistant.keeper is not None and not assistant.keeper.past._tasks
            assert await assistant.ask("What is there?", max_tokens=3, at="now").text(), "every place is free again"

    run(test())


def test_the_wires_carry_the_moment_there_and_back(tmp_path: Path) -> None:
    """Realtime, chat completions, responses and the command line; a session that asks the present has none."""

    async def test() -> None:
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            wall, _ = await remembered(assistant, 1)
            async with served(assistant) as server:
                told: list[dict[str, Any]] = []
                async with AsyncClient(server.url) as client:
                    words = [
                        word async for word in client.ask("What?", at=written(wall), max_tokens=3, moment=told.append)
                    ]
                    assert words and told[0]["reached"] == written(wall) and told[0]["how"] == "exact"
                    told.clear()
                    assert [word async for word in client.ask("What?", max_tokens=3, moment=told.append)] and not told
                    with pytest.raises(ClientError) as error:
                        [word async for word in client.ask("What?", at="noonish")]
                    assert error.value.code == "bad_moment"
                body = {
                    "model": "tiny",
                    "messages": [{"role": "user", "content": "What?"}],
                    "max_tokens": 3,
                    "at": "now",
                }
                async with httpx.AsyncClient(base_url=server.url, timeout=60) as web:
                    whole = (await web.post("/v1/chat/completions", json=body)).json()
                    assert whole["moment"]["reached"] == written(wall)
                    parts = (await web.post("/v1/chat/completions", json={**body, "stream": True})).text
                    assert json.loads(parts.split("data: ")[1])["moment"]["how"] == "nearest snapshot"
                    body = {"model": "tiny", "input": "What?", "max_output_tokens": 3, "at": "now"}
                    whole = (await web.post("/v1/responses", json=body)).json()
                    assert whole["moment"]["reached"] == written(wall) and whole["output"]
                    parts = (await web.post("/v1/responses", json={**body, "stream": True})).text
                    assert json.loads(parts.split("data: ")[-1])["response"]["moment"]["how"] == "nearest snapshot"
                    early = await web.post("/v1/responses", json={**body, "at": "2 days ago"})
                    assert early.status_code == 404 and early.json()["error"]["code"] == "not_remembered"
                    body = {"model": "tiny", "messages": [{"role": "user", "content": "What?"}]}
                    early = await web.post("/v1/chat/completions", json={**body, "at": "2 days ago"})
                    assert early.status_code == 404 and early.json()["error"]["code"] == "not_remembered"
                command = [
                    sys.executable,
                    "-m",
                    "streamer.cli.main",
                    "ask",
                    "What?",
                    "--at",
                    "now",
                    "--max-tokens",
                    "3",
                ]
                made = await asyncio.create_subprocess_exec(
                    *command, "--url", server.url, "--json", stdout=asyncio.subprocess.PIPE
                )
                out, _ = await made.communicate()
                assert json.loads(out)["moment"]["reached"] == written(wall)

    run(test())
