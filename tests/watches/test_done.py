"""What watches are for, from the outside: the command, a broker's subscriber, and a daemon that is killed twice in between."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from capture.image import decode_image
from streamer.cli.main import main
from streamer.server.auth import new_token, token_digest
from tests.forked import Forked
from tests.outputs.broker import BROKER, running, subscriber
from tests.ports import free_port
from tests.streamer.serving import eventually


@pytest.mark.nightly
@pytest.mark.skipif(BROKER is None, reason="needs mosquitto (apt-get install mosquitto)")
def test_a_banana_is_told_once_with_its_evidence_though_the_daemon_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opens the evidence has no token: the links that were told before the kill are all that is needed."""
    token = new_token()
    monkeypatch.setenv("STREAMER_TOKEN", token)
    port, file = free_port(), tmp_path / "demo.yaml"
    url = f"http://127.0.0.1:{port}"

    async def command(*arguments: str) -> Any:
        capsys.readouterr()
        assert await asyncio.to_thread(main, ["watch", *arguments, "--json", "--url", url]) == 0
        return json.loads(capsys.readouterr().out)

    async def started(client: httpx.AsyncClient) -> Forked:
        daemon = Forked(main, ["run", str(file)])
        async with asyncio.timeout(120):
            while True:
                try:
                    if (await client.get("/readyz")).status_code == 200:
                        return daemon
                except httpx.TransportError:
                    assert daemon.poll() is None, daemon.stderr.read()
                await asyncio.sleep(0.1)

    def killed(daemon: Forked) -> None:
        daemon.kill()
        daemon.wait(10)

    async def story(broker: int) -> float:
        facts = {
            "server": {
                "port": port,
                "tokens": [{"name": "me", "scopes": ["admin"], "digest": f"sha256:{token_digest(token)}"}],
            },
            "streams": [{"name": "demo", "source": "demo:", "start": 32, "fps": 5, "record": True}],
            "outputs": {"mqtt": [{"name": "home", "host": "127.0.0.1", "port": broker}]},
            "storage": {"folder": str(tmp_path / "state")},
        }
        file.write_text(yaml.safe_dump(facts))
        async with httpx.AsyncClient(base_url=url) as client, subscriber(broker) as (_, heard):
            daemon = await started(client)
            try:
                banana = ("banana", "Is there a banana?", "--stream", "demo", "--set", "clip_after=2")
                await command("add", *banana)
                killed(daemon)
                daemon = await started(client)
                await eventually(lambda: heard.of("/event"), 90)
                late = time.time()
                killed(daemon)
                daemon = await started(client)
                await eventually(lambda: any(b"watch.evidence" in each for each in heard.of("/event")), 90)
                told = [json.loads(each) for each in heard.of("/event")]
                before = [each for each in told if each["type"] == "watch.started" and each["captured_at"] < late]
                assert len({each["id"] for each in before}) == 1
                event = before[0]
                still, clip = await client.get(event["still"]), await client.get(event["clip"])
                assert (await client.get(event["still"].partition("?")[0])).status_code == 401
                assert decode_image(still.content, 640).std() > 10
                assert clip.status_code == 200 and b"ftyp" in clip.content[:16]
                await command("mark", event["id"], "right")
                listed = (await command("events"))["events"]
                assert [each["feedback"] for each in listed if each["id"] == event["id"]] == ["right"]
                (watch,) = (await command("list"))["watches"]
                assert watch["right"] == 1 and not watch["configured"]
                return late - float(event["captured_at"])
            finally:
                killed(daemon)

    with running(tmp_path) as broker:
        seconds = asyncio.run(story(broker.port))
    with capsys.disabled():
        print(f"heard {seconds:.2f} s after the capture of the frame that decided")
