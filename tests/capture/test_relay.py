"""Sources that remote clients named reach public hosts alone: through redirects, playlists, and names that change their address."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from capture import SourceError, SourceOptions, State, open_source
from capture.network import policy as guard
from tests.capture.lab import (
    CALM,
    Folder,
    RtspServer,
    Server,
    certificate,
    drawn,
    http_server,
    jpeg,
    needs_rtsp,
    render,
    rtmp_server,
    rtsp_server,
    serving_folder,
    wait_for,
    watching,
)

pytestmark = pytest.mark.beside
PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.9"
"""Of this machine's own addresses one stands for the world here."""


@pytest.fixture(autouse=True, scope="module")
def world() -> Iterator[None]:
    """What names resolve to, one address after another; the last one stays."""
    names = {"camera.example": [PUBLIC], "cellar.example": [PRIVATE], "moving.example": [PUBLIC, PRIVATE]}

    def resolve(host: str) -> list[str]:
        known = names.get(host, [host])
        return [known.pop(0) if len(known) > 1 else known[0]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "resolve", resolve)
        patch.setattr(guard, "is_public", lambda address: address == PUBLIC)
        patch.delenv("no_proxy", raising=False)
        yield


class Cellar:
    """A server at the private address, which nobody may reach."""

    def __init__(self) -> None:
        self.listener = socket.create_server((PRIVATE, 0))
        self.port: int = self.listener.getsockname()[1]
        self.visits = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self.listener.accept()
                self.visits += 1
                visitor.close()


@pytest.fixture
def cellar() -> Iterator[Cellar]:
    private = Cellar()
    yield private
    private.listener.shutdown(socket.SHUT_RDWR)
    private.listener.close()


def named(url: str, host: str = "camera.example") -> str:
    return url.replace(PUBLIC, host)


def test_a_still(tmp_path: Path) -> None:
    """Each of its requests goes through the relay anew, which refuses a private host as ever."""
    (tmp_path / "snap.jpg").write_bytes(jpeg(drawn(0)))
    options = {"public_only": True, "patience": CALM}
    with serving_folder(tmp_path) as url, watching(named(url) + "/snap.jpg", fps=20.0, **options) as watcher:
        watcher.more(5)
        assert watcher.source.status.reconnects == 0
    with watching(named(url).replace("camera", "cellar") + "/snap.jpg", **options) as watcher:
        watcher.until(State.WAITING)
        assert "is at the private address" in watcher.source.status.reason


def test_http(tmp_path: Path) -> None:
    render(tmp_path / "clip.mp4", 25)
    with serving_folder(tmp_path) as url, watching(named(url) + "/clip.mp4", public_only=True) as watcher:
        watcher.until(State.ENDED)
    assert len(watcher.frames()) == 25


def test_https(tmp_path: Path) -> None:
    render(tmp_path / "clip.mp4", 25)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    server = Server((PUBLIC, 0), Folder)
    vars(server).update(folder=tmp_path)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        with watching(f"https://camera.example:{server.server_port}/clip.mp4", public_only=True) as watcher:
            watcher.until(State.ENDED)
        assert len(watcher.frames()) == 25
    finally:
        server.shutdown()
        server.server_close()


def test_hls_by_relative_and_absolute_names(tmp_path: Path) -> None:
    render(tmp_path / "a.ts", 25, format="mpegts")
    render(tmp_path / "b.ts", 25, format="mpegts", times=lambda n: n + 25)
    with serving_folder(tmp_path) as url:
        (tmp_path / "list.m3u8").write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.ts\n#EXTINF:1,\n{named(url)}/b.ts\n#EXT-X-ENDLIST\n"
        )
        with watching(named(url) + "/list.m3u8", public_only=True) as watcher:
            watcher.until(State.ENDED)
    assert len(watcher.frames()) == 50


class Onward(BaseHTTPRequestHandler):
    """Sends its clients on to the server's `target`."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.server.target)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", [PRIVATE, "cellar.example"])
def test_a_redirect_to_a_private_host(cellar: Cellar, host: str, scheme: str) -> None:
    target = f"{scheme}://{host}:{cellar.port}/clip.mp4"
    with http_server(Onward, target=target) as url, watching(named(url), public_only=True) as watcher:
        watcher.until(State.WAITING)
        assert f"is at the private address {PRIVATE}" in watcher.source.status.reason
    assert cellar.visits == 0


def test_a_redirect_is_followed_where_it_may_be(cellar: Cellar) -> None:
    with http_server(Onward, target=f"http://{PRIVATE}:{cellar.port}/") as url, watching(url):
        wait_for(lambda: cellar.visits > 0)


PLAYLISTS = {
    "segment": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{0}/a.ts\n#EXT-X-ENDLIST\n",
    "variant": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{0}/a.m3u8\n",
    "key": '#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-KEY:METHOD=AES-128,URI="{0}/k"\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n',
    "session description": "v=0\no=- 0 0 IN IP4 127.0.0.9\ns=-\nc=IN IP4 127.0.0.9\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_that_names_a_private_host(tmp_path: Path, cellar: Cellar, name: str) -> None:
    render(tmp_path / "a.ts", 25, format="mpegts")
    (tmp_path / "list.m3u8").write_text(PLAYLISTS[name].format(f"http://{PRIVATE}:{cellar.port}"))
    with serving_folder(tmp_path) as url, watching(named(url) + "/list.m3u8", public_only=True) as watcher:
        watcher.until(State.WAITING)
        assert watcher.source.status.frames == 0
        if name != "session description":
            assert f"is at the private address {PRIVATE}" in watcher.source.status.reason
    assert cellar.visits == 0


def test_a_name_that_changes_its_address_once_it_was_judged(cellar: Cellar) -> None:
    guard.refuse_private("http://moving.example/")
    with watching(f"http://moving.example:{cellar.port}/clip.mp4", public_only=True) as watcher:
        watcher.until(State.WAITING)
        assert f"is at the private address {PRIVATE}" in watcher.source.status.reason
    assert cellar.visits == 0


@needs_rtsp
def test_rtsp(rtsp: RtspServer) -> None:
    with watching(named(rtsp.url("/live")), public_only=True) as watcher:
        watcher.more(10)
    assert watcher.source.name == named(rtsp.url("/live"))


@needs_rtsp
def test_rtsps_with_a_user(tmp_path: Path) -> None:
    with (
        rtsp_server("ada:lovelace", certificate(tmp_path)) as server,
        watching(named(server.url("/live", "rtsps", "ada:lovelace")), public_only=True) as watcher,
    ):
        watcher.more(10)


def test_rtmp(tmp_path: Path) -> None:
    clip = render(tmp_path / "clip.mp4", 100)
    with rtmp_server(clip) as url, watching(named(url), public_only=True) as watcher:
        watcher.more(10)


class Switch:
    """An RTSP server that sends its clients on to another one."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.listener = socket.create_server((PUBLIC, 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self.listener.accept()
                with visitor:
                    request = visitor.recv(4096).decode()
                    number = next((line for line in request.splitlines() if line.startswith("CSeq")), "CSeq: 1")
                    for part in self.reply.format(number):
                        visitor.sendall(part.encode())
                    visitor.settimeout(1)
                    visitor.recv(4096)


@pytest.mark.parametrize(
    "reply",
    ["RTSP/1.0 302 Elsewhere\r\n{0}\r\nLocation: URL\r\n\r\n", "RT\rSP/1.0 \t +0301\r\n{0}\r\nlocation: URL\r\n\r\n"],
    ids=["plain", "devious"],
)
@pytest.mark.parametrize("public_only", [True, False])
def test_an_rtsp_redirect(cellar: Cellar, reply: str, public_only: bool) -> None:
    switch = Switch(reply.replace("URL", f"rtsp://{PRIVATE}:{cellar.port}/live"))
    with watching(f"rtsp://{PUBLIC}:{switch.port}/live", public_only=public_only) as watcher:
        if public_only:
            watcher.until(State.WAITING)
            assert "sends its clients on to another one" in watcher.source.status.reason
        else:
            wait_for(lambda: cellar.visits > 0)
    assert public_only == (cellar.visits == 0)
    switch.listener.close()


def test_what_can_not_be_held_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="choose transport tcp"):
        open_source("rtsp://camera.example/1", SourceOptions(public_only=True, transport="udp"))
    monkeypatch.setenv("no_proxy", "cellar.example")
    with pytest.raises(SourceError, match="without that variable"):
        open_source("http://camera.example/1", SourceOptions(public_only=True))
