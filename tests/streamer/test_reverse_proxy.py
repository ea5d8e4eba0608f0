"""The daemon behind a real nginx, below a prefix and under another name."""

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from protocols.whip import SDP
from tests.ports import free_port
from tests.streamer.serving import Daemon, ask, receive, until, wait_for

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
NAMED = {"Host": "cam.example", "Origin": "http://cam.example"}

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx (apt-get install nginx-light)")


@pytest.fixture(scope="module")
def proxied(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy's address, with the prefix."""
    assert NGINX is not None
    folder = tmp_path_factory.mktemp("nginx")
    port = free_port()
    server = {"root_path": "/cam", "origins": ["http://cam.example"], "proxies": ["127.0.0.1"]}
    with daemon.served(server=server) as served:
        text = Path(__file__).with_name("nginx.conf").read_text()
        for word, value in (("FOLDER", folder), ("PORT", port), ("DAEMON", served.port)):
            text = text.replace(word, str(value))
        (folder / "conf").write_text(text)
        with subprocess.Popen([NGINX, "-e", str(folder / "error.log"), "-c", str(folder / "conf")]) as process:
            try:
                wait_for(lambda: process.poll() is not None or socket.socket().connect_ex(("127.0.0.1", port)) == 0)
                yield f"http://127.0.0.1:{port}/cam"
            finally:
                process.terminate()


def test_every_kind_of_request_comes_through(proxied: str) -> None:
    with httpx.Client(headers=NAMED, timeout=60) as http:
        assert http.get(f"{proxied}/").status_code == 200 and "streamer" in http.get(f"{proxied}/").text.lower()
        asked = {"model": "nano", "input": "What?", "max_output_tokens": 2, "stream": True}
        streamed = http.post(f"{proxied}/v1/responses", json=asked)
        assert streamed.status_code == 200 and "response.output_text.delta" in streamed.text
        assert "use POST /cam/v1/responses" in http.post(f"{proxied}/responses").json()["error"]["message"]
        assert http.head(f"{proxied}/healthz").status_code == 200
    # Another Host, HTTP/1.0, and the prefix left on.
    assert httpx.get(f"{proxied}/v1/streams", timeout=60).json()["streams"][0]["name"] == "demo"


def test_newer_doors_come_through(proxied: str) -> None:
    with httpx.Client(headers=NAMED, timeout=60) as http:
        for path, status in (
            ("v1/watches", 200),
            ("v1/watches/events", 200),
            ("v1/outputs", 200),
            ("v1/streams/demo/timeline", 404),  # nothing is kept here
            ("v1/streams/demo/clip?from=now", 404),
        ):
            assert http.get(f"{proxied}/{path}").status_code == status, path
        with http.stream("GET", f"{proxied}/v1/events") as events:
            assert next(events.iter_lines()) == "retry: 2000"
        assert "use GET /cam/v1/events" in http.get(f"{proxied}/events").json()["error"]["message"]
        hook = {"name": "hook", "url": "http://127.0.0.1:1/"}
        refused = http.post(f"{proxied}/v1/outputs", json=hook)
        assert refused.status_code == 400 and "private address" in refused.text, "who comes through a proxy is not here"
        offered = http.post(f"{proxied}/whip/door", content="v=0", headers={"Content-Type": SDP})
        assert offered.status_code == 400 and offered.json()["error"]["message"], "an offer comes as far as to us"


def test_a_websocket_comes_through(proxied: str) -> None:
    async def story() -> None:
        address = proxied.replace("http", "ws", 1) + "/v1/realtime"
        async with connect(address, compression=None, proxy=None, origin="http://cam.example") as client:  # type: ignore[arg-type]
            assert (await receive(client))["type"] == "session.created"
            await ask(client, max_output_tokens=1)
            assert json.dumps((await until(client, "response.done"))[-1])

    asyncio.run(story())


def test_a_foreign_page_is_refused_behind_a_proxy_too(proxied: str) -> None:
    response = httpx.get(f"{proxied}/v1/models", headers={**NAMED, "Origin": "http://evil.example"}, timeout=60)
    assert response.status_code == 403
