"""A stream moves while somebody talks about it at the gateway: what was begun ends, what is asked next goes to the other engine."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from streamer.cli.main import main
from tests.cluster.test_fleet import clip, config, model, run, running, until

pytestmark = pytest.mark.slow
assert clip and model


async def heard(client: ClientConnection, kind: str, **facts: Any) -> list[dict[str, Any]]:
    """What comes until an event of a kind, that included."""
    out: list[dict[str, Any]] = []
    async with asyncio.timeout(100):
        while not out or out[-1]["type"] != kind:
            out.append(json.loads(await client.recv()))
            assert out[-1]["type"] != "error", out[-1]
    return out


def asking(text: str, tokens: int) -> list[str]:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    create = {"type": "conversation.item.create", "item": item}
    return [json.dumps(create), json.dumps({"type": "response.create", "response": {"max_output_tokens": tokens}})]


def test_a_move_under_an_open_answer_and_what_the_gateway_shows_of_it(
    tmp_path: Path, model: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def cli(*said: str) -> str:
        assert await asyncio.to_thread(main, ["fleet", *said]) == 0
        return capsys.readouterr().out

    async def test() -> None:
        settings = config(tmp_path, model, clip, 2, engines=[{"name": "cpu", "count": 2}], lease=30)
        async with running(tmp_path, settings, 2) as here, httpx.AsyncClient(base_url=here.url, timeout=60) as http:
            head = here.fleet.head
            await until(lambda: len({stream for _, _, stream in here.frames()}) == 2, 60)
            first = head.placement.streams["camera-0"].engine
            other = next(name for name in head.engines if name != first)
            async with connect(f"{here.url.replace('http', 'ws')}/v1/realtime?stream=camera-0", proxy=None) as client:
                await heard(client, "session.created")
                for each in asking("What is there?", 60):
                    await client.send(each)
                said = await heard(client, "response.output_text.delta")
                assert f"{other}" in await cli("move", "camera-0", other, "--url", here.url)
                told = await heard(client, "response.done")
                resumed = [each for each in told if each["type"] == "stream.resumed"]
                if not resumed:
                    resumed = (await heard(client, "stream.resumed"))[-1:]
                done = next(each for each in told if each["type"] == "response.done")["response"]
                assert done["status"] in ("completed", "incomplete"), done
                assert resumed[0]["engine"] == other and resumed[0]["unseen_s"] is not None
                for each in asking("And now?", 4):
                    await client.send(each)
                more = await heard(client, "response.done")
                assert more[-1]["response"]["status"] in ("completed", "incomplete")
                kinds = [each["type"] for each in said + told + more]
                assert kinds.count("conversation.item.added") == 4, "what the gateway told the next engine is no news"
                assert "session.updated" not in kinds
            moved = head.orders.moved[-1]
            assert (moved["from"], moved["to"], moved["memory"]) == (first, other, "goes on")
            assert here.never_two_owners() >= 1
            assert len(head.placement.room.engines[other].wishes) >= 1

            drained = json.loads(await cli("drain", other, "--url", here.url, "--json"))
            assert {each["name"]: each["state"] for each in drained["engines"]}[other] == "draining"
            await until(lambda: not head.placement.room.engines[other].wishes and here.owned == 2, 60)
            head.placement.gone(other, time.monotonic())  # as where it was not heard of for a while
            await until(lambda: other in head.placement.room.engines, 60)
            assert f"{other:<16} draining" in await cli("status", "--url", here.url)
            await cli("drain", other, "--end", "--url", here.url)

            listed: list[dict[str, Any]] = [{"frames_seen": 0}]
            async with asyncio.timeout(60):  # whatever came by a move is a stream anew there, of a frame a second
                while not all(each["frames_seen"] for each in listed):
                    await asyncio.sleep(0.05)
                    listed = (await http.get("/v1/streams")).json()["streams"]
            assert {each["engine"] for each in listed} == {first}
            asked = {"model": f"{model}/camera-1", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 3}
            reply = (await http.post("/v1/chat/completions", json=asked)).json()
            assert reply["choices"][0]["finish_reason"] in ("stop", "length")
            assert (await http.get("/v1/streams/camera-1/frame.jpg")).headers["content-type"] == "image/jpeg"
            whip = await http.post("/whip/camera-1", content=b"v=0\r\n", headers={"Content-Type": "application/sdp"})
            assert whip.status_code in (400, 409), "its engine says what is wrong with it"
            text = (await http.get("/metrics")).text
            assert "streamer_fleet_frames_seen_total" in text and f'engine="{first}"' in text
            watch = {"name": "fire", "question": "Is there a fire?", "streams": ["camera-0"]}
            assert (await http.post("/v1/watches", json=watch)).status_code == 201
            async with asyncio.timeout(60):
                while not (found := (await http.get("/v1/watches")).json()["watches"]) or not found[0]["streams"]:
                    await asyncio.sleep(0.05)
            assert [each["stream"] for each in found[0]["streams"]] == ["camera-0"]
            assert (await http.delete("/v1/watches/fire")).status_code == 204
            at = head.engines[first].at
            assert at is not None
            for headers in ({}, {"Authorization": "Bearer x"}, head.bearer(head.engines[other])):
                refused = await http.post(f"{at.url}/fleet/lease", json={}, headers=headers)
                assert refused.status_code == 401, "an engine takes the head's word alone, and only for itself"
            assert (await http.get(f"{at.url}/v1/streams")).status_code == 401

    run(test())
