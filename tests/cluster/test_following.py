"""Gateways beside the head: what they know, what they bring it, and what happens while it is away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from streamer.cluster.following import Follower
from streamer.cluster.passes import gateway_pass, head_pass, is_gateway
from streamer.cluster.run import Door
from streamer.config import ConfigError
from streamer.errors import AssistantError
from tests.cluster.test_fleet import clip, config, model, run, running, until
from tests.cluster.test_gateway import fleet
from tests.cluster.test_moving import asking, heard

assert clip and model


def test_only_who_has_the_secret_follows(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    secret = made.head.secret

    async def test() -> None:
        transport = httpx.ASGITransport(made.gateway.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for token in ("", "x", gateway_pass(b"x" * 40), head_pass(secret, "gpu-0", "a")):
                headers = {"Authorization": f"Bearer {token}"}
                assert (await client.get("/fleet/state?now", headers=headers)).status_code == 401
                assert (await client.post("/fleet/do", json={}, headers=headers)).status_code == 401
            mine = {"Authorization": f"Bearer {gateway_pass(secret)}"}
            assert (await client.get("/fleet/state?now", headers=mine)).status_code == 200
            bad = await client.post("/fleet/do", json={"what": "dance", "told": {}}, headers=mine)
            assert bad.status_code == 400 and "dance" in bad.json()["error"]["message"]
        made.head.table.close()

    assert is_gateway(secret, f"Bearer {gateway_pass(secret)}") and not is_gateway(secret, gateway_pass(secret))
    asyncio.run(test())


def test_a_gateway_whose_head_is_away_says_so_and_needs_the_secret(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.head.table.close()

    async def test() -> None:
        follower = Follower(made.fleet, "http://127.0.0.1:9")
        with pytest.raises(AssistantError, match="head does not answer at http"):
            await follower.do("move", {"stream": "gate", "engine": None})
        door = Door(made.fleet, follower)
        transport = httpx.ASGITransport(door.gateway.app())
        await follower.start()
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            async with asyncio.timeout(20):
                while "the fleet's head does not answer" not in (await client.get("/readyz")).json().get("reason", ""):
                    await asyncio.sleep(0.02)
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.headers["retry-after"]) == (503, "2")
            assert (await client.get("/fleet/state")).status_code != 200, "nobody follows a follower"
        await follower.stop(end=True)

    asyncio.run(test())
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigError, match="secret_file"):
        Follower(made.fleet, "http://127.0.0.1:9")


@pytest.mark.slow
def test_a_gateway_asks_engines_itself_and_goes_on_where_the_head_is_gone(
    tmp_path: Path, model: Path, clip: Path
) -> None:
    async def test() -> None:
        settings = config(tmp_path, model, clip, 2, engines=[{"name": "cpu", "count": 2}], lease=30)
        async with running(tmp_path, settings, 2) as here:
            head = here.fleet.head
            door = Door(settings, Follower(settings, here.url))
            url = await door.start()
            await until(lambda: all(door.knows.owner(name) for name in head.configs), 60)
            await until(lambda: len({stream for _, _, stream in here.frames()}) == 2, 60)
            async with (
                httpx.AsyncClient(base_url=url, timeout=60) as http,
                connect(f"{url.replace('http', 'ws')}/v1/realtime?stream=camera-0", proxy=None) as client,
            ):
                await heard(client, "session.created")
                at = head.placement.streams["camera-0"].engine
                other = next(name for name in head.engines if name != at)
                moved = await http.post("/v1/fleet/move", json={"stream": "camera-0", "engine": other})
                assert moved.status_code == 200
                assert (await heard(client, "stream.resumed"))[-1]["engine"] == other
                added = await http.post(
                    "/v1/streams", json={"name": "yard", "source": str(clip), "fps": 1, "loop": True}
                )
                assert added.status_code == 201 and added.json()["engine"], added.text
                again = await http.post("/v1/streams", json={"name": "yard", "source": str(clip)})
                assert again.status_code == 409 and "stream_exists" in again.text
                assert (await http.post("/v1/fleet/move", json={"stream": "roof"})).status_code == 404
                assert (await http.delete("/v1/streams/yard")).status_code == 204 and "yard" not in head.configs
                watch = {"name": "fire", "question": "Is there a fire?", "streams": ["camera-0"]}
                assert (await http.post("/v1/watches", json=watch)).status_code == 201 and "fire" in head.watches
                head.watch(None, "fire")
                here.fleet._server.should_exit = True  # the head's door, not the head's engines
                await asyncio.wait(here.fleet._tasks[:1], timeout=20)
                for each in asking("What is there?", 4):
                    await client.send(each)
                told = await heard(client, "response.done")
                assert told[-1]["response"]["status"] in ("completed", "incomplete"), json.dumps(told[-1])
                gone = await http.post("/v1/fleet/move", json={"stream": "camera-0", "engine": at})
                assert gone.status_code == 503 and "head does not answer" in gone.text
                assert len((await http.get("/v1/streams")).json()["streams"]) == 2
            await door.stop()

    run(test())
