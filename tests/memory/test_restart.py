"""What the assistant still knows when it starts again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from streamer import Assistant, AssistantError
from streamer.config import parse_config
from tests.tiny import TINY


def config(folder: Path | None, *streams: dict[str, Any], **storage: Any) -> Any:
    kept = {"folder": None if folder is None else str(folder), **storage}
    limits = {"streams": 3, "answers": 2}
    return parse_config({"streams": streams, "model": TINY, "limits": limits, "storage": kept})


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
