"""What HTTP cameras and broadcasters send: stills, MJPEG however it is written, live playlists."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import State
from capture.sources.hls import Broadcast, Playlist, Variant, nearest, read_playlist
from capture.sources.http import CameraAuth, Kind, kind_of
from capture.sources.jpegs import JpegStream
from tests.capture.lab import HASTY, Folder, Mjpeg, drawn, http_server, jpeg, render, serving_folder, wait_for, watching

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
    assert np.median(np.diff([at for at, _, _ in asked])) == pytest.approx(0.1, abs=0.03)
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
    """One picture in two seconds, where half a second of silence is a stall."""
    settings = SNAPSHOT | {"asked": [], "picture": jpeg(drawn(0))}
    with (
        http_server(Snapshot, **settings) as url,
        watching(url, fps=0.5, patience=replace(HASTY, stall=0.4, give_up=0.4)) as watcher,
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


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<!DOCTYPE html><title>Login</title>", "there is a web page"),
        (b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011">', r"DASH \(.mpd\)"),
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
        ("video/mp2t", b"G@", Kind.CONTAINER),
        ("", b"", Kind.CONTAINER),
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


MASTER = """#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="x",URI="sound.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=100000,CODECS="mp4a.40.2"
sound.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=200000,RESOLUTION=160x90,CODECS="avc1.4d400d,mp4a.40.2"
low.m3u8
#EXT-X-STREAM-INF:RESOLUTION=1280x720,BANDWIDTH=3000000
//cdn.example/high.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=1000000,RESOLUTION=640x360
mid/mid.m3u8?t=1
"""


def test_the_nearest_of_a_masters_sizes_is_taken() -> None:
    variants = read_playlist(MASTER, "http://host/live/master.m3u8").variants
    assert variants[0] == Variant("http://host/live/low.m3u8", 200000, 160) and len(variants) == 3
    assert nearest(variants, 640).url == "http://host/live/mid/mid.m3u8?t=1"
    assert nearest(variants, 161).longer_side == 640
    assert nearest(variants, 4000).url == "http://cdn.example/high.m3u8"


def test_playlists_are_read_whatever_else_they_hold() -> None:
    text = (
        "#EXTM3U\n#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES\n#EXT-X-MEDIA-SEQUENCE:7\n#EXT-X-MAP:URI=\"i.mp4\"\n"
        "#EXTINF:2.002,no desc\na.m4s\n#EXT-X-DISCONTINUITY\n#EXTINF:2\nb.m4s\n#EXT-X-PART:DURATION=0.3,URI=\"c0.m4s\"\n"
    )  # fmt: skip
    playlist = read_playlist(text, "http://x/")
    told = {"segments": ("http://x/a.m4s", "http://x/b.m4s"), "formats": ("fMP4", "fMP4")}
    assert playlist == Playlist(7, (2.002, 2.0), **told) and playlist.end == 9
    assert read_playlist(text + "#EXT-X-ENDLIST", "").ended


@given(st.text(max_size=300) | st.lists(st.sampled_from(MASTER.splitlines()), max_size=20).map("\n".join))
def test_any_text_is_some_playlist(text: str) -> None:
    read_playlist(text, "http://host/")


def playing(broadcast: Broadcast, began: float, seconds: float) -> None:
    for n in range(int(seconds * 10)):
        broadcast.picture(began + n / 10)


def test_a_broadcast_goes_on_where_it_broke_off() -> None:
    cast = Broadcast()
    assert cast.join(Playlist(10, (2.0,) * 6)) == 4, "near its end"
    playing(cast, 100.0, 6.0)
    assert cast.join(Playlist(12, (2.0,) * 7)) == 5, "segments 14 to 16 were played"
    assert cast.join(Playlist(12, (2.0,) * 7)) == 5, "nothing came in between"
    playing(cast, 106.0, 1.0)
    assert cast.join(Playlist(10, (2.0,) * 9)) == 7, "half of 17 was played"
    playing(cast, 106.0, 4.0)
    assert cast.join(Playlist(10, (2.0,) * 9, ended=True)) is None, "it is over"
    assert cast.join(Playlist(10, (2.0,) * 11, ended=True)) == 9, "it went on a little, and is over"


def test_a_broadcast_whose_timestamps_jump_is_not_begun_again() -> None:
    cast = Broadcast()
    cast.join(Playlist(0, (2.0,) * 4))
    playing(cast, 5_000.0, 2.0)
    playing(cast, 3.0, 2.0)
    assert cast.join(Playlist(0, (2.0,) * 6)) == 4


def test_a_new_broadcast_or_one_far_ahead_is_joined_near_its_end() -> None:
    cast = Broadcast()
    cast.join(Playlist(500, (2.0,) * 4))
    playing(cast, 5_000.0, 4.0)
    assert cast.join(Playlist(0, (2.0,) * 6)) == 4 and cast.reached is None
    playing(cast, 1.0, 4.0)
    assert cast.join(Playlist(0, (2.0,) * 60)) == 58
    assert cast.join(Playlist(100, (2.0,) * 3)) == 0, "what it was at is there no more"


class Broadcaster(Folder):
    """Serves a folder, and what was asked for is noted in `server.asked`; while `server.down` is set it has a fault."""

    def do_GET(self) -> None:  # noqa: N802
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if self.server.down.is_set():  # type: ignore[attr-defined]
            self.send_error(503)
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve segments of half a second, whose square moves from picture to picture."""
    folder = tmp_path_factory.mktemp("hls")
    options = {"hls_time": "0.5", "hls_list_size": "0", "hls_segment_filename": f"{folder}/%02d.ts"}
    render(folder / "vod.m3u8", 60, fps=10, format="hls", options=options, key=5)
    return folder


def announce(folder: Path, count: int, *, ended: bool = False) -> None:
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-PLAYLIST-TYPE:EVENT\n#EXT-X-MEDIA-SEQUENCE:0\n"
    text += "".join(f"#EXTINF:0.5,\n{n:02}.ts\n" for n in range(count)) + "#EXT-X-ENDLIST\n" * ended
    (folder / "new").write_text(text)
    (folder / "new").rename(folder / "live.m3u8")


def growing(folder: Path, down: threading.Event, faulty: range) -> Iterator[None]:
    """Each step is half a second of a broadcast, which has a fault while it is at one of `faulty`."""
    for count in range(5, 13):
        announce(folder, count)
        (down.set if count in faulty else down.clear)()
        yield
    announce(folder, 12, ended=True)


@pytest.mark.parametrize("faulty", [range(0), range(7, 10)], ids=["sound", "interrupted"])
def test_a_broadcast_is_seen_once_and_ends(segments: Path, faulty: range, tmp_path: Path) -> None:
    down, asked = threading.Event(), []
    folder = shutil.copytree(segments, tmp_path / "broadcast")
    steps = growing(folder, down, faulty)
    next(steps)
    over = threading.Event()

    def grow() -> None:
        while next(steps, over) is not over:
            over.wait(0.5)

    with http_server(Broadcaster, folder=folder, down=down, asked=asked) as url:
        with watching(url + "/live.m3u8") as watcher:
            growth = threading.Thread(target=grow, daemon=True)
            growth.start()
            watcher.until(State.ENDED)
            assert watcher.source.status.reason == "the broadcast is over"
            assert (watcher.source.status.reconnects > 0) == bool(faulty)
        growth.join(5)
    squares = [int(frame.pixels[60].mean(axis=1).argmax()) // 4 for frame in watcher.frames()]
    assert 15 <= squares[0] <= 30, "near the end of what there was"
    assert squares == list(range(squares[0], 60)), "each picture once"


def test_a_recordings_playlist_plays_from_its_beginning(segments: Path) -> None:
    with serving_folder(segments) as url, watching(url + "/vod.m3u8") as watcher:
        watcher.until(State.ENDED)
    assert watcher.source.status.reason == "it played to its end"
    assert len(watcher.frames()) == 60


def test_segments_that_are_not_there_are_told(segments: Path, tmp_path: Path) -> None:
    """FFmpeg would look for one after the other for ever, or say that there is no video."""
    announce(tmp_path, 8)
    (tmp_path / "vod.m3u8").write_text((segments / "vod.m3u8").read_text())
    for name in ("vod.m3u8", "live.m3u8"):
        with serving_folder(tmp_path) as url, watching(f"{url}/{name}") as watcher:
            watcher.until(State.WAITING)
            assert "the server answers 404 to http" in (said := watcher.source.status.reason) and ".ts" in said


@pytest.mark.parametrize("first", ["00.ts", "part.m4s"])
def test_a_recording_of_two_formats_is_refused_by_name(tmp_path: Path, first: str) -> None:
    """FFmpeg would pass over half of it without a word."""
    fragmented, plain = '#EXT-X-MAP:URI="init.mp4"\n#EXTINF:0.5,\npart.m4s\n', "#EXTINF:0.5,\n00.ts\n"
    both = plain + "#EXT-X-DISCONTINUITY\n" + fragmented if first == "00.ts" else fragmented + plain
    (tmp_path / "mixed.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n{both}#EXT-X-ENDLIST\n")
    with serving_folder(tmp_path) as url, watching(f"{url}/mixed.m3u8") as watcher:
        watcher.until(State.ENDED)
        assert "partly TS and partly fMP4" in watcher.source.status.reason


@pytest.mark.parametrize("blank", [b"\n", b"\r\n\r\n", b" \t"])
def test_a_blank_line_before_a_picture_is_passed_over(blank: bytes) -> None:
    sent = SNAPSHOT | {"asked": [], "picture": blank + jpeg(drawn(0))}
    with http_server(Snapshot, **sent) as url, watching(url, fps=10.0) as watcher:
        watcher.more(2)
    assert np.abs(watcher.frames()[-1].pixels.astype(int) - drawn(0)).mean() < 3
    assert kind_of("video/x-motion-jpeg", blank + jpeg(drawn(0))) is Kind.MOTION


def test_only_the_size_that_is_needed_is_fetched(segments: Path, tmp_path: Path) -> None:
    (segments / "master.m3u8").write_text(
        "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1,RESOLUTION=64x36\nsmall.m3u8\n"
        "#EXT-X-STREAM-INF:BANDWIDTH=9,RESOLUTION=320x180\nvod.m3u8\n"
    )  # fmt: skip
    asked: list[str] = []
    with (
        http_server(Broadcaster, folder=segments, down=threading.Event(), asked=asked) as url,
        watching(url + "/master.m3u8", largest_side=300) as watcher,
    ):
        watcher.more(3)
    assert "/small.m3u8" not in asked and "/vod.m3u8" in asked
