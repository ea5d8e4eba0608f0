"""What was told to be forgotten is gone: files, later snapshots that have seen it, and what the stream remembers."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import httpx
import pytest

from streamer import Assistant, AssistantError
from streamer.cli.main import main
from streamer.memory.moments import written
from tests.streamer.serving import eventually

from .test_past import remembered, served
from .test_restart import DOOR, config, run, show, status


def test_a_span_is_forgotten_with_every_later_snapshot(tmp_path: Path) -> None:
    async def test() -> None:
        async with Assistant(config(tmp_path, DOOR, every=60)) as assistant:  # snapshots are counted
            walls = [(await remembered(assistant, seed))[0] for seed in (1, 2, 3)]
            keeper = assistant.keeper
            assert keeper is not None
            async with served(assistant) as server, httpx.AsyncClient(base_url=server.url, timeout=60) as web:
                where = "/v1/streams/door/memory"
                bad = await web.delete(where, params={"from": "noonish"})
                assert bad.status_code == 400 and bad.json()["error"]["code"] == "bad_moment"
                assert (await web.delete("/v1/streams/gate/memory")).status_code == 404
                assert (await web.delete(where, params={"keep_memory": "maybe"})).status_code == 400
                assert len(keeper.snapshots.of("door")) == 3, "what is refused takes nothing away"

                span = {"from": written(walls[1]), "to": written(walls[1]), "keep_memory": "true"}
                gone = (await web.delete(where, params=span)).json()
                assert gone["snapshots"] == 2 and "it keeps" in gone["memory"]
                assert [each.wall for each in keeper.snapshots.of("door")] == walls[:1]
                assert assistant._streams["door"].opened

                command = [sys.executable, "-m", "streamer.cli.main", "forget", "door", "--json", "--url", server.url]
                made = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
                gone = json.loads((await made.communicate())[0])
                assert gone["snapshots"] == 1 and "begins anew" in gone["memory"]
            assert not list(tmp_path.rglob("*.snapshot")) and status(assistant, "door").saved_age_s is None
            with pytest.raises(AssistantError) as error:
                assistant.ask("What was there?")
            assert error.value.code == "no_frames"
            await show(assistant, "door", 4)
            assert status(assistant, "door").generation == 2
        async with Assistant(config(tmp_path, DOOR)) as assistant:
            assert status(assistant, "door").resumes == 1, "what was seen since is kept again"
            assert status(assistant, "door").generation == 2

    run(test())


def test_what_is_kept_of_a_stream_that_is_gone_is_listed_forgotten_and_outlived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        gate = {"name": "gate", "source": "push://gate"}
        async with Assistant(config(tmp_path, DOOR, gate)) as assistant:
            for name in ("door", "gate"):
                await show(assistant, name, 1)
        async with Assistant(config(tmp_path, gate)) as assistant, served(assistant) as server:

            async def told(*arguments: str) -> str:
                assert await asyncio.to_thread(main, ["forget", *arguments, "--url", server.url]) == 0
                return capsys.readouterr().out

            assert (await told()).splitlines()[0].startswith("door (watched no more): 1 snapshots, newest 20")
            assert "door: 1 snapshots" in await told("door") and not list(tmp_path.rglob("door/*.snapshot"))
            assert [line.split(":")[0] for line in (await told()).splitlines()] == ["gate"]
            async with httpx.AsyncClient(base_url=server.url) as web:
                assert (await web.delete("/v1/streams/door/memory")).status_code == 404
        monkeypatch.setattr("streamer.memory.keeper.TRIM_SECONDS", 0.02)
        async with Assistant(config(tmp_path, DOOR, timeline_hours=1e-6)) as assistant:
            await show(assistant, "door", 1)
            await eventually(lambda: not list(tmp_path.rglob("gate/*.snapshot")))
        assert list(tmp_path.rglob("door/*.snapshot")), "of one that is watched they stay"

    run(test())
