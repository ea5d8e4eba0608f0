"""Other pages, other names, other proxies: what a browser may be made to do, and who is believed about whom."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route

from streamer.config import ConfigError, parse_config
from streamer.server.auth import Gate
from streamer.server.errors import RequestError
from streamer.server.listening import server_options
from streamer.server.page import own_names
from tests.streamer.serving import Daemon, Served


def code(gate: Gate, **headers: str) -> str:
    try:
        gate.check({name.replace("_", "-"): value for name, value in headers.items()})
    except RequestError as error:
        return error.code
    return "ok"


def test_a_name_that_was_pointed_here_opens_no_door(server: Served) -> None:
    """DNS rebinding: such a page's requests are of its own origin to the browser, and name it as host."""
    doors = {
        re.sub(r"{\w+(:\w+)?}", "demo", route.path): min(route.methods or ())
        for route in server.app.routes
        if isinstance(route, Route)
    } | dict.fromkeys(("/", "/app.js", "/v1/nothing"), "GET")
    assert len(doors) > 25
    with httpx.Client(base_url=server.url, headers={"Host": "evil.example"}, timeout=60) as client:
        for path, method in doors.items():
            query = "?signature=x&until=9999999999" if method == "GET" else ""
            assert client.request(method, path + query).status_code == 403, (method, path)


@pytest.mark.parametrize("path", [b"/v1/realtime", b"/elsewhere"])
def test_a_name_that_was_pointed_here_opens_no_websocket(server: Served, path: bytes) -> None:
    async def story() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"GET " + path + b" HTTP/1.1\r\nHost: evil.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        status = int((await reader.readline()).split()[1])
        writer.close()
        return status

    assert asyncio.run(story()) == 403


def test_bound_to_the_lan_without_tokens_only_own_names_are_answered() -> None:
    """However the daemon is reached, and whatever it is called there, a foreign name is refused."""
    gate = Gate([], ["https://cam.example"], names=own_names("box.lan"))
    for host in (
        "10.0.0.5:8765",
        "[fd00::5]:8765",
        "localhost",
        "box.lan:8765",
        "BOX.LAN",
        "cam.example",
        *own_names("box.lan"),
    ):
        assert code(gate, host=host) == "ok", host
    for host in ("evil.example", "10.0.0.5.evil.example", "localhost.evil.example", "box.lan.evil.example:8765"):
        assert code(gate, host=host) == "forbidden", host


@given(st.text(st.characters(codec="latin-1"), max_size=40))
def test_any_host_and_any_origin_is_answered_or_refused(text: str) -> None:
    for gate in (Gate([]), Gate([], ["https://cam.example"])):
        assert code(gate, host=text) in ("ok", "forbidden", "invalid_request")
        assert code(gate, host="127.0.0.1", origin=text) == "forbidden"


@pytest.mark.parametrize(
    "host", ["", "a b", "[::1", "::1", "[::1]x", "a:b:c", "a@b", "a/b", "x" * 300, "a:999999", "[", "é"]
)
def test_a_host_that_is_none_is_a_mistake_of_the_client(server: Served, host: str) -> None:
    reply = httpx.get(f"{server.url}/healthz", headers={"Host": host.encode("latin-1")}, timeout=60)
    assert reply.status_code == 400


@pytest.mark.parametrize(
    "origin", ["null", "http://[", "http://", "javascript:alert(1)", "http://a b", "http://127.0.0.1@x", "é"]
)
def test_an_origin_that_is_none_is_refused(server: Served, origin: str) -> None:
    headers = {"Origin": origin.encode("latin-1")}
    assert httpx.get(f"{server.url}/v1/streams", headers=headers, timeout=60).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_picture_that_another_page_shows_is_refused(server: Served, site: str) -> None:
    for name in ("frame.jpg", "video.mjpeg"):
        address = f"{server.url}/v1/streams/demo/{name}"
        image = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        assert httpx.get(address, headers=image, timeout=60).status_code == 403
        framed = image | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
        assert httpx.get(address, headers=framed, timeout=60).status_code == 403
        own = image | {"Sec-Fetch-Site": "same-origin"}
        followed = image | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        for headers in (own, followed, {}):
            with httpx.stream("GET", address, headers=headers, timeout=60) as reply:
                assert reply.status_code == 200
                assert reply.headers["cross-origin-resource-policy"] == "same-origin"


def test_an_allowed_page_may_show_pictures_that_it_asks_for_by_its_origin(daemon: Daemon) -> None:
    with daemon.served(server={"origins": ["https://cam.example"]}) as server:
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": "https://cam.example"}
        reply = httpx.get(f"{server.url}/v1/streams/demo/frame.jpg", headers=headers, timeout=60)
        assert reply.status_code == 200


@pytest.mark.parametrize("name", ["Forwarded", "Via", "X-Forwarded-For", "X-Real-IP"])
def test_who_comes_through_a_proxy_comes_from_elsewhere(name: str) -> None:
    """Else whoever a proxy on this machine lets in could attach this machine's own cameras."""
    gate = Gate([])
    assert gate.admit({"host": "localhost", name.lower(): "127.0.0.1"}, "127.0.0.1").remote
    assert not gate.admit({"host": "localhost"}, "127.0.0.1").remote


@pytest.mark.parametrize(
    ("proxies", "seen"), [([], "127.0.0.1"), (["127.0.0.0/8"], "192.0.2.7"), (["192.0.2.1"], "127.0.0.1")]
)
def test_x_forwarded_for_is_believed_of_named_proxies_alone(
    daemon: Daemon, proxies: list[str], seen: str, caplog: pytest.LogCaptureFixture
) -> None:
    with daemon.served(server={"proxies": proxies}) as server, caplog.at_level("INFO", "streamer"):
        headers = {"X-Forwarded-For": "203.0.113.9, 192.0.2.7", "Origin": "http://evil.example"}
        assert httpx.get(f"{server.url}/healthz", headers=headers, timeout=60).status_code == 403
    assert f"to {seen}:" in caplog.text
    assert "203.0.113.9" not in caplog.text, "what a client claims of itself is never believed"


def test_a_proxy_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"server.proxies\[0\].*write 10.0.0.2"):
        parse_config({"server": {"proxies": ["nginx.lan"]}})


def test_options_name_the_proxies_that_are_believed() -> None:
    options = server_options(parse_config({"server": {"proxies": ["10.0.0.0/8"]}}))
    assert options["proxy_headers"] is True and options["forwarded_allow_ips"] == ["10.0.0.0/8"]
    assert server_options(parse_config({}))["proxy_headers"] is False
