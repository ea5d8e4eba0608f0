"""Small things that strangers send: each is the client's mistake, and none of them is a traceback."""

from __future__ import annotations

import asyncio
import io
import logging
import socket
import tempfile
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import httpx
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from capture.network import policy
from streamer.server import attachments
from tests.streamer.serving import Daemon, Served, eventually, wait_for

CLIP = Path(__file__).parents[1] / "clips" / "small.mp4"


@pytest.mark.parametrize(
    "head",
    [b"POST /v1/chat/completions", b"POST /v1/streams", b"POST /whip/door"],
)
def test_a_body_that_is_given_up_is_no_fault_of_ours(
    server: Served, caplog: pytest.LogCaptureFixture, head: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            head + b' HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/sdp\r\nContent-Length: 900\r\n\r\n{"a":'
        )
        wait_for(lambda: len(server.app.state.crowd) == 1)
    wait_for(lambda: not len(server.app.state.crowd))
    assert httpx.get(f"{server.url}/healthz", timeout=60).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "address",
    [
        "http://[",
        "http://[::1",
        "https://a b/",
        "http://\x00/",
        "data:",
        "data:,",
        "ftp://x/",
        "http://:99999999/",
        "//",
    ],
)
def test_an_address_that_is_none_is_refused(daemon: Daemon, address: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "What?"}]
    body = {"model": "nano", "max_tokens": 1, "messages": [{"role": "user", "content": parts}]}
    with daemon.served(server={"media_domains": ["x", "a"]}) as server:
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert reply.status_code == 400, reply.text


@pytest.mark.parametrize(
    "path", ["/" + "a" * 300, "/" + "a/" * 3_000, "/%00", "/x%00y/z", "/%ff", "/" + "%2e%2e%2f" * 9, "/~", "/*"]
)
def test_a_path_that_no_file_can_have_is_not_found(server: Served, path: str) -> None:
    url = httpx.URL(server.url).copy_with(raw_path=path.encode())
    for method in ("GET", "HEAD"):
        reply = httpx.request(method, url, timeout=60)
        assert reply.status_code == 404 and len(reply.content) < 1_000
    assert "nothing is here" in httpx.get(url, timeout=60).json()["error"]["message"]


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999", "[1]", '"soon"', "true"])
@pytest.mark.parametrize("key", ["start", "fps", "deadline"])
def test_numbers_that_are_none_are_refused_by_name(server: Served, key: str, value: str) -> None:
    body = f'{{"name": "odd", "source": "demo:", "{key}": {value}}}'
    reply = httpx.post(f"{server.url}/v1/streams", content=body, timeout=60)
    assert reply.status_code == 400 and key in reply.json()["error"]["message"]


def test_where_no_websocket_is_the_right_address_is_told(daemon: Daemon) -> None:
    with daemon.served(server={"root_path": "/cam"}) as server, pytest.raises(InvalidStatus) as error:
        connect(f"ws://127.0.0.1:{server.port}/cam/v1/chat").close()
    assert error.value.response.status_code == 404
    assert b"no websocket at /cam/v1/chat: use /cam/v1/realtime" in error.value.response.body


def test_names_whose_servers_are_silent_hold_up_nobody_else(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads for all that is read off the loop."""
    over = threading.Event()

    def silent(host: str) -> NoReturn:
        over.wait(60)
        raise OSError

    url = "https://s.example/a.png"
    picture = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What?"}]
    with daemon.served(server={"proxies": ["127.0.0.1"], "media_domains": ["s.example"]}) as server:

        async def story() -> None:
            elsewhere = {"X-Forwarded-For": "203.0.113.9"}
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                asked = [
                    asyncio.create_task(client.post(path, json=body, headers=elsewhere))
                    for path, body in [
                        *(("/v1/streams", {"name": f"s{n}", "source": f"rtsp://s{n}.example/1"}) for n in range(40)),
                        ("/v1/outputs", {"name": "hook", "url": "https://s.example/hook"}),
                        ("/v1/responses", {"model": "nano", "input": [{"role": "user", "content": picture}]}),
                    ]
                ]
                await eventually(lambda: sum(each.name == "lookup" for each in threading.enumerate()) == len(asked))
                assert (await client.get("/v1/streams/demo/frame.jpg")).status_code == 200
                for reply in await asyncio.gather(*asked):
                    assert reply.status_code == 400 and "within 0.5 s" in reply.json()["error"]["message"], reply.text

        monkeypatch.setattr(policy, "LOOKUP_SECONDS", 0.5)
        monkeypatch.setattr(policy, "resolve", silent)
        monkeypatch.setattr(attachments, "resolve", silent)
        try:
            asyncio.run(story())
        finally:
            over.set()
    wait_for(lambda: not any(each.name == "lookup" for each in threading.enumerate()))


def test_memory_returns_after_pictures_that_are_bombs(server: Served) -> None:
    """Each is 50 MB of pixels in 50 kB: several at once; what they took is given back."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def attack(side: int) -> int:
        with io.BytesIO() as file:
            Image.new("RGB", (side, side), "red").save(file, "PNG")
            picture = "data:image/png;base64," + b64encode(file.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "What?"}]
        body = {"model": "nano", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
        return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code

    with ThreadPoolExecutor(6) as clients:
        # Small ones first, at once: the model is traced for so many answers, which stays.
        assert 200 in set(clients.map(attack, [600] * 6)) <= {200, 429, 503}
        before = resident()
        assert 200 in set(clients.map(attack, [4096] * 6)) <= {200, 429, 503}
    wait_for(lambda: resident() < before + 40e6)


def test_no_room_for_a_video_is_a_line_and_a_503(
    server: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    video = {
        "type": "video_url",
        "video_url": {"url": f"data:video/mp4;base64,{b64encode(CLIP.read_bytes()).decode()}"},
    }
    content = [video, {"type": "text", "text": "What?"}]
    body = {"model": "nano", "messages": [{"role": "user", "content": content}]}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "no_storage" and reply.headers["retry-after"]
    (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "TMPDIR" in line.getMessage() and not line.exc_info
