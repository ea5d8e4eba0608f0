"""The fleet's door while no engine is there yet, and who is let in."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from streamer.cluster.config import parse_fleet
from streamer.cluster.ears import Ears
from streamer.cluster.launch import Launched
from streamer.cluster.passes import link_key
from streamer.cluster.processes import began, machine
from streamer.cluster.room import Costs
from streamer.cluster.run import Fleet
from streamer.config import ConfigError
from streamer.errors import AssistantError
from streamer.server.auth import token_digest
from streamer.watches.links import Links
from tests.ports import free_port

TOKEN = "str_0123456789abcdefghij"


class NoEngines:
    """Begins none."""

    async def start(self, name: str) -> Launched:
        raise AssistantError("engine_failed", f"Engine {name!r} has no GPU.")

    def close(self) -> None: ...


def fleet(folder: Path, **more: Any) -> Fleet:
    (folder / "secret").write_text("s" * 40)
    data = {
        "secret_file": str(folder / "secret"),
        "folder": str(folder / "shared"),
        "engines": [{"name": "gpu", "count": 2}],
    }
    return Fleet(parse_fleet({**data, **more}, "fleet.yaml"), NoEngines())


def ask(fleet: Fleet, test: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        await fleet.head.start()
        await asyncio.sleep(0.1)
        transport = httpx.ASGITransport(fleet.gateway.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await test(client)
        await fleet.head.stop(end=False)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_gateway_without_engines_says_why_and_when_to_come_again(tmp_path: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "2")
        assert "Engine 'gpu-0' has no GPU." in ready.json()["reason"]
        asked = await client.post("/v1/streams", json={"name": "yard", "source": "demo:"})
        assert asked.status_code == 503 and "retry-after" in asked.headers
        listed = (await client.get("/v1/streams")).json()["streams"]
        assert [(each["name"], each["state"]) for each in listed] == [("gate", "waiting")]
        assert "no engine is there: start one" in listed[0]["reason"]
        view = (await client.get("/v1/fleet")).json()
        assert [each["state"] for each in view["engines"]] == ["down", "down"]
        assert (await client.get("/")).status_code == 200
        assert (await client.post("/v1/fleet/move", json={"stream": "gate"})).status_code == 400
        drained = await client.post("/v1/fleet/drain", json={"engine": "gpu-7"})
        assert drained.status_code == 400 and "there are: none" in drained.json()["error"]["message"]
        assert (await client.get("/metrics")).text.count("streamer_fleet_streams_waiting 1") == 1

    ask(fleet(tmp_path, streams=[{"name": "gate", "source": "demo:"}]), test)


def test_tokens_are_asked_for_at_the_gateway(tmp_path: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/fleet")).status_code == 401
        viewer = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/v1/fleet", headers=viewer)).status_code == 200
        assert (await client.post("/v1/fleet/drain", json={"engine": "gpu-0"}, headers=viewer)).status_code == 403
        assert (await client.delete("/v1/streams/gate", headers=viewer)).status_code == 403

        for key, status in ((link_key(made.head.secret), 404), (bytes(32), 401)):
            link = Links(key, 0, 0).signed("/v1/watches/events/event_1/still.jpg", time.time() + 60)
            assert (await client.get(link, headers={"Host": "elsewhere"})).status_code == status
            assert (await client.post(link)).status_code == 401

    tokens = [{"name": "viewer", "scopes": ["view"], "digest": f"sha256:{token_digest(TOKEN)}"}]
    made = fleet(tmp_path, server={"tokens": tokens})
    ask(made, test)


def test_where_no_websocket_is_the_right_address_is_told(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    browser = TestClient(made.gateway.app())
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        browser.websocket_connect("/v1/nowhere", headers={"Host": "127.0.0.1"}),
    ):
        pass
    assert denied.value.status_code == 404 and "use /v1/realtime" in denied.value.text
    made.head.table.close()


def test_a_head_starts_without_torch() -> None:
    """It takes seconds to import, within which leases run out."""
    code = (
        "import sys, streamer.cluster.run; print([each for each in ('torch', 'ray', 'redis') if each in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_one_head_has_the_table(tmp_path: Path) -> None:
    first = fleet(tmp_path)
    with pytest.raises(ConfigError, match="another head may run"):
        fleet(tmp_path)
    first.head.table.close()


@pytest.mark.parametrize("where", ["", "another machine"])
def test_that_nobody_answers_does_not_prove_that_nobody_sees(tmp_path: Path, where: str) -> None:
    """On the way to an engine a router may refuse a connection: what the engine has stays its own for as long as its lease lasts."""

    async def test() -> None:
        made = fleet(tmp_path, lease=1, engines=[{"name": "gpu"}])
        head = made.head
        url = f"http://127.0.0.1:{free_port()}"
        head.engines["gpu-0"].at = Launched(url, "a", os.getpid(), "box", where or machine(), began(os.getpid()))
        now = time.monotonic()
        head.placement.joined("gpu-0", Costs(10.0), 4, now)
        ears = asyncio.create_task(Ears(head).look_after(head.engines["gpu-0"]))
        while not head.engines["gpu-0"].trouble.startswith("it does not answer"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert "gpu-0" in head.placement.room.engines or time.monotonic() > now + 1
        head.placement.gone("gpu-0", time.monotonic())
        if where:  # its lease is over by then: another may be begun
            while head.engines["gpu-0"].at is not None:
                await asyncio.sleep(0.01)
        ears.cancel()
        head.table.close()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_process_of_this_machine_is_seen_to_be_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    at = Launched("http://127.0.0.1:1", "a", child.pid, "box", machine(), began(child.pid))
    assert at.here and not at.gone
    child.kill()
    while not at.gone:  # as a zombie too
        time.sleep(0.01)
    child.wait()
    assert at.gone and not Launched("http://127.0.0.1:1", "a", child.pid, "box", "elsewhere", at.began).gone
