"""Recordings of a fleet: brought and asked through its gateway, read by whichever engine has the least to do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamer.client import AsyncClient
from streamer.cluster.recordings import named_recording
from tests.cluster.test_fleet import clip, config, model, run, running
from tests.memory.test_indexes import film

assert clip and model
QUESTION = "Which number was shown?"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"messages": [{"content": [{"type": "video_url", "video_url": {"url": "recording:door"}}]}]}, "door"),
        ({"input": [{"content": [{"video_url": "recording:door"}]}]}, "door"),
        ({"messages": [{"content": "recording:door"}]}, None),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "recording:door"}}]}]}, None),
        ({"messages": 7}, None),
    ],
)
def test_a_video_names_a_recording_and_a_text_does_not(asked: Any, named: str | None) -> None:
    assert named_recording(asked) == named


def test_recordings_are_brought_listed_asked_and_removed_at_the_gateway(
    tmp_path: Path, model: Path, clip: Path
) -> None:
    film(tmp_path / "yard.mp4", 6)

    async def test() -> None:
        settings = config(tmp_path, model, clip, 1, engines=[{"name": "cpu", "count": 2}], lease=30)
        async with (
            running(tmp_path, settings, 2) as here,
            httpx.AsyncClient(base_url=here.url, timeout=60) as http,
            AsyncClient(here.url) as client,
        ):
            busy = here.fleet.head.owner("camera-0")
            assert busy is not None
            told = await client.index(tmp_path / "yard.mp4", fps=2)
            assert told["name"] == "yard"
            again = await client.index(tmp_path / "yard.mp4", fps=2)
            assert again["name"] == "yard-2"
            async with asyncio.timeout(60):
                while [each["state"] for each in await client.recordings()] != ["ready"] * 2:
                    await asyncio.sleep(0.1)
            listed = {each["name"]: each["engine"] for each in await client.recordings()}
            assert set(listed) == {"yard", "yard-2"} and set(listed.values()) == {
                next(name for name in here.fleet.head.engines if name != busy.name)
            }
            moments: list[dict[str, Any]] = []
            said = [each async for each in client.ask(QUESTION, recording="yard", moment=moments.append, max_tokens=3)]
            assert said and moments[-1]["recording"] == "yard"
            ids = [each["id"] for each in (await http.get("/v1/models")).json()["data"]]
            assert f"{model}/yard" in ids and f"{model}/camera-0" in ids
            video = {"type": "video_url", "video_url": {"url": "recording:yard"}}
            for name, content in (
                (f"{model}/yard", QUESTION),
                (str(model), [video, {"type": "text", "text": QUESTION}]),
            ):
                chat = {"model": name, "messages": [{"role": "user", "content": content}], "max_tokens": 3}
                reply = (await http.post("/v1/chat/completions", json=chat)).json()
                assert reply["choices"][0]["message"]["content"] == "".join(said)
                assert reply["moment"]["recording"] == "yard"
            cited = await http.get(reply["moment"]["moments"][0]["clip"])
            assert cited.headers["content-type"] == "video/mp4" and cited.content[4:8] == b"ftyp"
            await client.remove_recording("yard")
            assert (await http.get("/v1/recordings/yard")).status_code == 404
            refused = await http.post("/v1/recordings", json={"path": "/etc/passwd"})
            assert refused.status_code == 400 and "are not asked for a 'path'" in refused.json()["error"]["message"]
            refused = await http.post("/v1/recordings?name=x", content=b"#EXTM3U\n" + bytes(64))
            assert refused.status_code == 415

    run(test())
