"""What a client on another machine may attach."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from capture import Source, SourceOptions, open_source
from capture.network import policy as guard
from streamer.config import Config, ConfigError, parse_config
from streamer.engine import stream
from streamer.outputs.outputs import Outputs
from streamer.server.app import create_app
from tests.streamer.serving import CONFIG, Daemon, Served


def attach(
    daemon: Daemon, source: str, address: str, body: dict[str, Any] | None = None, **server: Any
) -> httpx.Response:
    """POSTs a source as if from `address`, and detaches what was attached."""
    config = Config.model_validate({**CONFIG, "server": server})
    transport = httpx.ASGITransport(
        create_app(daemon.assistant, config, Outputs(config.outputs)), client=(address, 4711)
    )

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            response = await client.post("/v1/streams", json={"name": "door", "source": source, **(body or {})})
            if response.status_code == 201:
                await client.delete("/v1/streams/door")
            return response

    response = daemon.run(post)
    assert isinstance(response, httpx.Response)
    return response


@pytest.mark.parametrize(
    "source", ["/etc/passwd", "rtsp://127.0.0.1:9/1", "http://169.254.169.254/latest", "camera://0"]
)
def test_a_remote_client_may_not_name_what_is_private(daemon: Daemon, source: str) -> None:
    response = attach(daemon, source, "203.0.113.5")
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["code"] == "bad_source" and "allow private sources" in error["message"]


@pytest.mark.parametrize("address", ["127.0.0.1", "203.0.113.5"])
def test_a_source_of_no_sensible_length_is_refused_at_once(daemon: Daemon, address: str) -> None:
    began = time.monotonic()
    error = attach(daemon, "http://camera.example/" + "?pass" * 100_000, address).json()["error"]
    assert error["code"] == "bad_source" and "has 500,022 characters: 2,048 are the most" in error["message"]
    assert time.monotonic() - began < 5


def test_who_sits_at_this_machine_or_is_allowed_to_may(daemon: Daemon) -> None:
    assert attach(daemon, "rtsp://127.0.0.1:9/1", "127.0.0.1").status_code == 201
    assert attach(daemon, "rtsp://127.0.0.1:9/1", "203.0.113.5", private_sources=True).status_code == 201
    assert attach(daemon, "push://door", "203.0.113.5").status_code == 201


def test_what_a_remote_client_attaches_is_held_to_public_hosts(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its host turns out to be elsewhere later, and whatever the client says."""
    monkeypatch.setattr(guard, "resolve", lambda host: ["93.184.216.34"])
    opened: list[SourceOptions] = []

    def note(url: str, options: SourceOptions) -> Source:
        opened.append(options)
        return open_source("push://door", options)

    monkeypatch.setattr(stream, "open_source", note)
    for address, body in (("203.0.113.5", {}), ("203.0.113.5", {"public_only": False}), ("127.0.0.1", {})):
        assert attach(daemon, "rtsp://camera.example/1", address, body).status_code == 201
    assert [options.public_only for options in opened] == [True, True, False]


def test_the_websockets_own_client_is_local(server: Served) -> None:
    async def run() -> str:
        async with server.connect() as socket:
            await socket.send(json.dumps({"type": "stream.attach", "stream": "door", "source": "rtsp://127.0.0.1:9/1"}))
            await socket.send(json.dumps({"type": "stream.detach", "stream": "door"}))
            while True:
                message = json.loads(await socket.recv())
                if message["type"] in ("stream.attached", "error"):
                    return str(message["type"])

    assert asyncio.run(asyncio.wait_for(run(), 200)) == "stream.attached"


def test_turn_servers_are_configured() -> None:
    turn = {"urls": ["turn:turn.example:3478"], "username": "ada", "credential": "lovelace"}
    config = parse_config({"webrtc": {"ice_servers": [turn]}})
    assert config.webrtc.ice_servers[0].urls == ("turn:turn.example:3478",)
    assert "lovelace" not in repr(config)
    with pytest.raises(ConfigError, match=r"ice_servers\[0\].urls"):
        parse_config({"webrtc": {"ice_servers": [{"urls": ["turn.example"]}]}})
