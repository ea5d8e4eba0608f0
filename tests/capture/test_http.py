"""What HTTP cameras and broadcasters send: stills, MJPEG however it is written, live playlists."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import State
from capture.sources.http import CameraAuth, Kind, kind_of
from capture.sources.jpegs import JpegStream
from tests.capture.lab import HASTY, Mjpeg, drawn, http_server, jpeg, wait_for, watching

pytestmark = pytest.mark.beside
JPEGS = [jpeg(drawn(n, 64, 48)) for n in range(4)]
THUMBNAILED = JPEGS[0][:2] + b"\xff\xe1" + (len(JPEGS[1]) + 2).to_bytes(2) + JPEGS[1] + JPEGS[0][2:]
"""A JPEG that holds another one in a segment of an application's, as EXIF does."""


class Snapshot(Mjpeg):
    """A camera that knows one still, `server.picture`, and tells by `server.asked` how it was asked for it."""

    def do_GET(self) -> None:  # noqa: N802
        server = self.server
        server.asked.append(
            (time.monotonic(), self.headers.get("If-None-Match"), self.headers.get("If-Modified-Since"))
        )  # type: ignore[attr-defined]
        challenge = server.guard(self.headers.get("Authorization", ""), self.path)  # type: ignore[attr-defined]
        if challenge:
            self.send_response(401)
            self.send_header("WWW-Authenticate", challenge)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = server.picture  # type: ignore[attr-defined]
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        same = server.tagged and self.headers.get("If-None-Match") == tag  # type: ignore[attr-defined]
        self.send_response(304 if same else 200)
        if server.tagged:  # type: ignore[attr-defined]
            self.send_header("ETag", tag)
        self.send_header("Content-Type", server.type)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0" if same else str(len(data)))
        self.end_headers()
        if not same:
            self.wfile.write(data)


def basic(authorization: str, path: str) -> str:
    told = "Basic " + base64.b64encode(b"ada:love/l@ce#%").decode()
    return "" if authorization == told else 'Basic realm="cam"'


def digest(authorization: str, path: str) -> str:
    """RFC 7616 with SHA-256, reckoned here anew."""
    said = dict(re.findall(r'(\w+)="?([^",]*)"?', authorization))

    def hashed(*parts: str) -> str:
        return hashlib.sha256(":".join(parts).encode()).hexdigest()

    if said:
        secret, request = hashed("ada", "cam", "love/l@ce#%"), hashed("GET", path)
        told = hashed(secret, "once", said["nc"], said["cnonce"], "auth", request)
        assert said["response"] == told
        return ""
    return 'Digest realm="cam", nonce="once", qop="auth", algorithm=SHA-256'


SNAPSHOT = {"type": "image/jpeg", "tagged": True, "guard": lambda authorization, path: ""}


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "image/jpg; charset=binary"])
def test_a_still_is_asked_for_again_and_again(kind: str) -> None:
    asked: list[tuple[float, str | None, str | None]] = []
    settings = SNAPSHOT | {"asked": asked, "picture": jpeg(drawn(0)), "type": kind}
    with http_server(Snapshot, **settings) as url, watching(f"{url}/cgi/snap?user=ada&pwd=sesame", fps=10.0) as watcher:
        watcher.until(State.LIVE)
        watcher.more(8)
        assert watcher.state is State.LIVE and watcher.source.status.reconnects == 0
    frames = watcher.frames()
    assert np.abs(frames[-1].pixels.astype(int) - drawn(0)).mean() < 3
    assert 0.07 < np.median(np.diff([at for at, _, _ in asked])) < 0.5, (
        "ten a second, which a busy machine may not hold"
    )
    assert asked[0][1] is None and all(tag for _, tag, _ in asked[1:]), "all but the first are conditional"
    assert "sesame" not in repr(watcher.told) and watcher.source.name.endswith("/cgi/snap?user=***&pwd=***")


@pytest.mark.parametrize("tagged", [True, False])
def test_a_still_that_does_not_change_is_frozen(tagged: bool) -> None:
    """Whether the server says so (304) or sends it again."""
    settings = SNAPSHOT | {"asked": [], "picture": jpeg(drawn(0)), "tagged": tagged}
    patience = replace(HASTY, frozen=0.5)
    with http_server(Snapshot, **settings) as url, watching(url, fps=20.0, patience=patience) as watcher:
        wait_for(lambda: watcher.source.status.frozen)
        assert watcher.state is State.LIVE


def test_a_slow_still_does_not_stall() -> None:
    """One picture in two seconds, where a second and a half of silence is a stall."""
    settings = SNAPSHOT | {"asked": [], "picture": jpeg(drawn(0))}
    with (
        http_server(Snapshot, **settings) as url,
        watching(url, fps=0.5, patience=replace(HASTY, open=30.0, stall=1.5, give_up=10.0)) as watcher,
    ):
        watcher.more(3)
    assert State.STALLED not in watcher.states and watcher.source.status.reconnects == 0


@pytest.mark.parametrize("guard", [basic, digest])
def test_a_still_with_a_user(guard: object) -> None:
    """The password has everything in it that must be percent-encoded; a wrong one is told."""
    settings = SNAPSHOT | {"asked": [], "picture": jpeg(drawn(0)), "guard": guard}
    with http_server(Snapshot, **settings) as url:
        told = url.replace("://", "://ada:love%2Fl%40ce%23%25@") + "/snap.jpg?x=1"
        with watching(told, fps=20.0) as watcher:
            watcher.more(3)
            assert watcher.state is State.LIVE
        with watching(url) as watcher:
            watcher.until(State.WAITING)
            assert "(401)" in watcher.source.status.reason


def test_credentials_go_to_no_other_host() -> None:
    flow = CameraAuth("camera", "ada", "lovelace").auth_flow(httpx.Request("GET", "http://elsewhere/"))
    assert "Authorization" not in next(flow).headers
    with pytest.raises(StopIteration):
        flow.send(httpx.Response(401, headers={"WWW-Authenticate": "Basic"}))


def test_a_damaged_still_is_counted_and_the_next_one_taken() -> None:
    settings = SNAPSHOT | {"asked": [], "picture": JPEGS[0]}
    with http_server(Snapshot, **settings) as url, watching(url, fps=20.0) as watcher:
        watcher.more(2)
    assert watcher.source.status.damaged == 0
    settings["picture"] = JPEGS[0][:300]
    with http_server(Snapshot, **settings) as url, watching(url, fps=20.0) as watcher:
        wait_for(lambda: watcher.source.status.damaged > 2)


class LoggedOut(Snapshot):
    """A camera whose login runs out: each answer is fine, and after four none is a picture."""

    def do_GET(self) -> None:  # noqa: N802
        if len(self.server.asked) > 3:  # type: ignore[attr-defined]
            self.server.picture = b"<!DOCTYPE html><title>Login</title>"  # type: ignore[attr-defined]
        super().do_GET()


def test_a_camera_that_sends_pictures_no_more_is_told() -> None:
    settings = SNAPSHOT | {"asked": [], "picture": JPEGS[0], "type": "text/html"}
    with http_server(LoggedOut, **settings) as url, watching(url, fps=20.0) as watcher:
        watcher.until(State.WAITING)
        assert "its answers are no pictures any more: The picture is of no kind" in watcher.reason(State.WAITING)
        wait_for(lambda: "there is a web page" in watcher.source.status.reason)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<!DOCTYPE html><title>Login</title>", "there is a web page"),
        (b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011">', r"DASH \(.mpd\)"),
        (b'{"error": "no such channel"}', "there is text, not a video"),
        (b'<?xml version="1.0"?>\n<ResponseStatus><statusCode>4</statusCode></ResponseStatus>', "there is a web page"),
        (base64.b64encode(JPEGS[0]), "there is text"),
        (b"", "the server's answer is empty"),
        (b"--x\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8\xff\r\n--x--", "ended without a whole JPEG"),
    ],
)
def test_what_is_no_video_is_told_by_name(body: bytes, said: str) -> None:
    settings = SNAPSHOT | {"asked": [], "picture": body, "type": "text/html"}
    with http_server(Snapshot, **settings) as url, watching(url) as watcher:
        watcher.until(State.WAITING)
        assert re.search(said, watcher.source.status.reason)


@pytest.mark.parametrize(
    ("content_type", "head", "kind"),
    [
        ("image/jpeg", JPEGS[0], Kind.STILL),
        ("text/plain", b"\x89PNG\r\n\x1a\n", Kind.STILL),
        ("multipart/x-mixed-replace;boundary=x", b"", Kind.MOTION),
        ('Multipart/X-Mixed-Replace; boundary="--x"', b"--x", Kind.MOTION),
        ("text/plain", b"--x\r\nContent-Type: image/jpg\r\n", Kind.MOTION),
        ("video/x-motion-jpeg", JPEGS[0], Kind.MOTION),
        ("text/plain", b"\xef\xbb\xbf#EXTM3U\n", Kind.PLAYLIST),
        ("application/dash+xml", b"", Kind.DASH),
        ("text/html", b"\n <HTML>", Kind.PAGE),
        ("video/mp2t", b"G@\x11\0", Kind.CONTAINER),
        ("", b"", Kind.NOTHING),
        ("text/plain", b"G@\x11\0" + b"text" * 100, Kind.CONTAINER),
        ("application/sdp", b"v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\n", Kind.CONTAINER),
        ("application/octet-stream", b"YUV4MPEG2 W64 H48 F25:1\nFRAME\n\x10\x10", Kind.CONTAINER),
    ],
)
def test_an_answer_is_known_by_what_it_holds(content_type: str, head: bytes, kind: Kind) -> None:
    assert kind_of(content_type, head) is kind


def part(data: bytes, boundary: str, length: bool = True, kind: str = "image/jpeg") -> bytes:
    fields = f"Content-Length: {len(data)}\r\n" if length else ""
    return f"{boundary}\r\nContent-Type: {kind}\r\n{fields}\r\n".encode() + data + b"\r\n"


WRITTEN = {
    "as meant": b"".join(part(data, "--frame") for data in JPEGS),
    "no lengths": b"".join(part(data, "--frame", length=False) for data in JPEGS),
    "no first boundary": b"".join(part(data, "--frame") for data in JPEGS)[len("--frame\r\n") :],
    "no boundary": b"".join(JPEGS),
    "image/jpg": b"".join(part(data, "--frame", kind="image/jpg") for data in JPEGS),
    "dashes": b"".join(part(data, "----frame--x") for data in JPEGS),
    "quotes": b"".join(part(data, '--"frame"', length=False) for data in JPEGS),
    "wrong lengths": b"".join(part(data, "--x").replace(b"Content-Length: ", b"Content-Length: 9") for data in JPEGS),
    "LF alone": b"".join(part(data, "--x", length=False).replace(b"\r\n", b"\n") for data in JPEGS),
    "no ends": b"".join(part(data[:-2], "--x", length=False) for data in JPEGS) + b"\xff\xd8\xff",
    "fill bytes": b"".join(part(data[:2] + b"\xff\xff" + data[2:], "--x") for data in JPEGS),
}


@pytest.mark.parametrize("name", WRITTEN)
@given(sizes=st.lists(st.integers(1, 900), min_size=1, max_size=8))
def test_pictures_are_found_however_they_are_framed(name: str, sizes: list[int]) -> None:
    data, at, found, stream = WRITTEN[name], 0, [], JpegStream()
    for n in range(len(data)):
        size = sizes[n % len(sizes)]
        found += stream.feed(data[at : at + size])
        at += size
        if at >= len(data):
            break
    expected = [each[:2] + b"\xff\xff" + each[2:] for each in JPEGS] if name == "fill bytes" else JPEGS
    if name == "no ends":
        assert [each.split(b"\r\n--x")[0].removesuffix(b"\xff\xd9").removesuffix(b"\r\n") for each in found] == [
            each[:-2] for each in JPEGS
        ]
    else:
        assert found == expected


def test_a_picture_comes_with_its_last_byte() -> None:
    """And not when the next one begins, which at 1 frame a second is a second later; a thumbnail's end is none."""
    stream = JpegStream()
    assert list(stream.feed(b"--x\r\n\r\n" + THUMBNAILED[:-1])) == []
    assert list(stream.feed(THUMBNAILED[-1:])) == [THUMBNAILED]


@given(
    st.lists(
        st.binary(max_size=40) | st.sampled_from([b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9", JPEGS[0]]), max_size=20
    )
)
def test_any_bytes_are_passed_over(pieces: list[bytes]) -> None:
    stream = JpegStream()
    for piece in pieces:
        for found in stream.feed(piece):
            assert found.startswith(b"\xff\xd8\xff") and found.endswith(b"\xff\xd9")
    stream.feed(b"\0" * 70_000)
    assert JPEGS[1] in [*stream.feed(b"\0" * 70_000), *stream.feed(JPEGS[1] * 2), *stream.feed(JPEGS[1])]


class Bare(Mjpeg):
    """Lacks the first boundary and all lengths, and quotes its boundary with dashes."""

    def do_GET(self) -> None:  # noqa: N802
        self.send_response(200)
        self.send_header("Content-Type", 'multipart/x-mixed-replace; boundary="--cam"')
        self.end_headers()
        try:
            for n in range(500):
                head = b"" if n == 0 else b"--cam\r\n"
                self.wfile.write(head + b"Content-Type: image/jpg\r\n\r\n" + JPEGS[n % 4] + b"\r\n")
                time.sleep(0.05)
        except OSError:
            pass


def test_mjpeg_as_cheap_cameras_write_it() -> None:
    with http_server(Bare) as url, watching(url) as watcher:
        watcher.more(8)
    assert watcher.source.status.damaged == 0
    assert np.abs(watcher.frames()[1].pixels.astype(int) - drawn(1, 64, 48)).mean() < 4


class Others(Bare):
    """A camera that never ends, and sends something else than JPEG."""

    def do_GET(self) -> None:  # noqa: N802
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=cam")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"--cam\r\nContent-Type: image/x\r\n\r\n" + self.server.picture + b"\r\n")  # type: ignore[attr-defined]
                time.sleep(0.05)
        except OSError:
            pass


@pytest.mark.parametrize("begin", [b"\x89PNG\r\n\x1a\n\0\0", b"RIFF\x10\0\0\0WEBPVP8 "])
def test_other_pictures_one_after_another_are_told_by_name(begin: bytes) -> None:
    with http_server(Others, picture=begin) as url, watching(url) as watcher:
        watcher.until(State.WAITING)
    assert "PNG or WebP after another" in watcher.reason(State.WAITING)


@pytest.mark.parametrize("blank", [b"\n", b"\r\n\r\n", b" \t"])
def test_a_blank_line_before_a_picture_is_passed_over(blank: bytes) -> None:
    sent = SNAPSHOT | {"asked": [], "picture": blank + jpeg(drawn(0))}
    with http_server(Snapshot, **sent) as url, watching(url, fps=10.0) as watcher:
        watcher.more(2)
    assert np.abs(watcher.frames()[-1].pixels.astype(int) - drawn(0)).mean() < 3
    assert kind_of("video/x-motion-jpeg", blank + jpeg(drawn(0))) is Kind.MOTION
