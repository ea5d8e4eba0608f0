"""Publishing over WHIP: real HTTP, ICE, DTLS and SRTP on loopback, into the real assistant."""

import asyncio

import aioice.ice
import httpx
import pytest

from protocols.whip import FRAGMENT, SDP
from streamer.server import whip as publishing
from tests.capture.publisher import Publisher
from tests.streamer.serving import Daemon, Served, wait_for


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """aioice leaves loopback out, which may be all there is; and a busy machine answers later than encoders wait."""
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])
    monkeypatch.setattr(publishing, "ANSWER_SECONDS", 60.0)


class Encoder:
    """A publisher that speaks WHIP."""

    def __init__(self, url: str) -> None:
        self.url, self.peer = url, Publisher()
        self.response: httpx.Response | None = None
        self.peer.publish(self.exchange)

    def exchange(self, offer: str) -> str:
        self.response = httpx.post(self.url, content=offer, headers={"Content-Type": SDP}, timeout=60)
        assert self.response.status_code == 201, self.response.text
        return self.response.text

    @property
    def session(self) -> str:
        assert self.response is not None
        return str(httpx.URL(self.url).join(self.response.headers["location"]))


def seen(daemon: Daemon, name: str) -> int:
    return next((each.frames_seen for each in daemon.do(daemon.assistant.streams) if each.name == name), -1)


def test_published_stream_is_seen_and_ends_with_its_session(server: Served, daemon: Daemon) -> None:
    encoder = Encoder(f"{server.url}/whip/webcam")
    try:
        assert encoder.response is not None and encoder.response.headers["content-type"] == SDP
        assert encoder.response.headers["etag"]
        wait_for(lambda: seen(daemon, "webcam") > 5)
        body = {"model": "nano/webcam", "max_tokens": 2, "messages": [{"role": "user", "content": "What?"}]}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        headers = {"Content-Type": FRAGMENT}
        assert httpx.patch(encoder.session, content="a=end-of-candidates\r\n", headers=headers).status_code == 204
        assert httpx.get(encoder.session).status_code == 405
        assert httpx.delete(encoder.session).status_code == 200
        assert seen(daemon, "webcam") == -1
        assert httpx.delete(encoder.session).status_code == 404
    finally:
        encoder.peer.close()


def test_publisher_that_vanishes_leaves_a_stream_that_waits_a_while(
    server: Served, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "GRACE_SECONDS", 0.5)
    encoder = Encoder(f"{server.url}/whip/webcam")
    wait_for(lambda: seen(daemon, "webcam") > 5)
    encoder.peer.close()
    wait_for(lambda: httpx.delete(encoder.session).status_code == 404)
    wait_for(lambda: seen(daemon, "webcam") == -1)


def test_what_can_not_be_published(server: Served, daemon: Daemon) -> None:
    def post(name: str, body: str, kind: str = SDP) -> tuple[int, str]:
        response = httpx.post(f"{server.url}/whip/{name}", content=body, headers={"Content-Type": kind}, timeout=60)
        return response.status_code, response.json()["error"]["code"]

    options = httpx.options(f"{server.url}/whip/webcam")
    assert options.status_code == 204 and options.headers["accept-post"] == SDP
    assert post("webcam", "{}", "application/json") == (415, "unsupported_media_type")
    assert post("webcam", "hello") == (400, "invalid_sdp")
    peer = Publisher()
    offer = asyncio.run_coroutine_threadsafe(peer.offer(), peer.loop).result(60)
    peer.close()
    assert post("demo", offer) == (409, "stream_exists")
    assert post("webcam", offer.replace("VP8", "VP9")) == (406, "unsupported_codec")
    assert seen(daemon, "webcam") == -1
