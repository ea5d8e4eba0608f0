"""Sources from real servers: RTSP, RTSPS, RTMP, HLS, MJPEG."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from capture import SourceError, State, open_source
from tests.capture.lab import (
    CALM,
    STEADY,
    Mjpeg,
    RtspServer,
    broadcasting,
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


@needs_rtsp
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp(transport: str, rtsp: RtspServer) -> None:
    with watching(rtsp.url("/live"), transport=transport, patience=CALM) as watcher:
        watcher.until(State.LIVE)
        watcher.more(40)
    frames = watcher.frames()
    assert watcher.states == [State.CONNECTING, State.LIVE, State.ENDED]
    assert frames[0].pixels.shape == (180, 320, 3)
    assert not any(frame.discontinuity for frame in frames)
    assert np.median([later.time - earlier.time for earlier, later in pairwise(frames)]) == pytest.approx(
        0.04, abs=0.01
    )
    assert all(later.time > earlier.time and later.captured >= earlier.captured for earlier, later in pairwise(frames))


@needs_rtsp
def test_rtsp_knows_the_wall_clock_once_the_server_told_it(rtsp: RtspServer) -> None:
    with watching(rtsp.url("/live")) as watcher:
        wait_for(lambda: bool(watcher.frames()) and watcher.frames()[-1].wall is not None)
        frame = watcher.frames()[-1]
        assert frame.wall == pytest.approx(time.time() - (time.monotonic() - frame.captured), abs=1.0)


@needs_rtsp
def test_rtsps_with_a_user(tmp_path: Path) -> None:
    with rtsp_server("ada:lovelace", certificate(tmp_path)) as server:
        with watching(server.url("/live", "rtsps", "ada:lovelace")) as watcher:
            watcher.until(State.LIVE)
            watcher.more(10)
        assert watcher.source.name == f"rtsps://***@127.0.0.1:{server.port}/live"
        assert watcher.frames()[0].source == watcher.source.name


@needs_rtsp
def test_a_password_of_signs() -> None:
    """Percent-encoded it is taken; as it is, the refusal tells how to write it. A scheme may be in capitals."""
    with rtsp_server("ada:l#o/v@e%?x") as server:
        with watching(server.url("/live", "RTSP", "ada:l%23o%2Fv%40e%25%3Fx"), patience=STEADY) as watcher:
            watcher.until(State.LIVE)
        with pytest.raises(SourceError, match="# as %23, / as %2F") as refusal:
            open_source(server.url("/live", "rtsp", "ada:l#o/v@e%?x"))
        assert "v@e" not in str(refusal.value) and "l#o" not in str(refusal.value)
        with watching(server.url("/live", "rtsp", "ada:other"), patience=STEADY) as watcher:
            watcher.until(State.WAITING)
            assert "refuses this user and password (401)" in watcher.source.status.reason


class Guarded(socketserver.StreamRequestHandler):
    """An RTSP server of one purpose: it asks every client for `server.challenge`."""

    def handle(self) -> None:
        while lines := list(iter(lambda: self.rfile.readline().strip(), b"")):
            number = next(line for line in lines if line.lower().startswith(b"cseq"))
            status = b"200 OK" if lines[0].startswith(b"OPTIONS") else b"401 Unauthorized"
            challenge = self.server.challenge.encode()  # type: ignore[attr-defined]
            self.wfile.write(b"RTSP/1.0 " + status + b"\r\n" + number + b"\r\n" + challenge + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("challenge", "said"),
    [
        ('WWW-Authenticate: Digest realm="IP Camera", nonce="a", algorithm="SHA-256"', "Digest with SHA-256 alone"),
        ('WWW-Authenticate: Digest realm="c", nonce="a"\r\nWWW-Authenticate: Digest realm="c", nonce="a", algorithm=SHA-256',
         "refuses this user"),
        ('WWW-Authenticate: Basic realm="c"', "refuses this user"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_rtsp_digests_that_are_not_spoken_are_told(challenge: str, said: str, address: str) -> None:
    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        daemon_threads = True

    try:
        server = Server((address, 0), Guarded)
    except OSError:
        pytest.skip("needs IPv6")
    server.challenge = challenge  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    host = f"[{address}]" if ":" in address else address
    with watching(f"rtsp://ada:lovelace@{host}:{server.server_address[1]}/1", patience=STEADY) as watcher:
        watcher.until(State.WAITING)
        assert said in watcher.source.status.reason and "lovelace" not in watcher.source.status.reason
    server.shutdown()
    server.server_close()


@needs_rtsp
def test_a_slow_camera_is_neither_stalled_nor_frozen(rtsp: RtspServer) -> None:
    """Two frames a second and a patience of a quarter of a second: its own pace counts."""
    with watching(rtsp.url("/slow"), patience=replace(STEADY, stall=0.25, frozen=1.0)) as watcher:
        watcher.more(6)  # of two or three that were held up and came together, its pace is not known
        told = len(watcher.told)
        watcher.more(4)
        assert watcher.state is State.LIVE and len(watcher.told) == told
        assert not watcher.source.status.frozen


def test_mjpeg_over_http() -> None:
    """Eight frames a second, where FFmpeg's made-up timestamps say twenty-five: arrival counts."""
    pictures = [jpeg(drawn(n)) for n in range(50)]
    sent: list[float] = []

    def picture(n: int) -> bytes:
        time.sleep(0.085)
        sent.append(time.monotonic())
        return pictures[n % 50]

    with (
        http_server(Mjpeg, picture=picture) as url,
        watching(url + "/stream?token=sesame", patience=CALM) as watcher,
    ):
        watcher.until(State.LIVE)
        watcher.more(20)
    frames = watcher.frames()
    assert "sesame" not in watcher.source.name
    steps = [later.time - earlier.time for earlier, later in pairwise(frames)]
    assert np.median(steps) == pytest.approx(np.median(np.diff(sent)), abs=0.03)
    assert not any(frame.discontinuity for frame in frames[1:])


@needs_rtsp
def test_a_frozen_picture_that_is_encoded_anew_is_told(rtsp: RtspServer) -> None:
    with watching(rtsp.url("/still"), patience=replace(CALM, frozen=1.0)) as watcher:
        wait_for(lambda: watcher.source.status.frozen)
        assert watcher.state is State.LIVE


def test_live_hls_plays_at_its_own_pace(tmp_path: Path) -> None:
    playlist = str(tmp_path / "live.m3u8")
    with (
        broadcasting(playlist, "hls", hls_time="0.5", hls_list_size="4", hls_flags="delete_segments"),
        serving_folder(tmp_path) as url,
    ):
        wait_for((tmp_path / "live.m3u8").exists)
        wait_for(lambda: (tmp_path / "live.m3u8").read_text().count("#EXTINF") >= 3)
        with watching(url + "/live.m3u8") as watcher:
            watcher.until(State.LIVE)
            watcher.more(60)
    frames = watcher.frames()[25:]
    steps = [later.captured - earlier.captured for earlier, later in pairwise(frames)]
    assert np.median(steps) == pytest.approx(0.04, abs=0.01)
    assert not any(frame.discontinuity for frame in frames)


def test_a_recording_over_http_ends(tmp_path: Path) -> None:
    render(tmp_path / "clip.mp4")
    with serving_folder(tmp_path) as url, watching(url + "/clip.mp4") as watcher:
        watcher.until(State.ENDED)
    frames = watcher.frames()
    assert len(frames) == 50
    steps = [later.captured - earlier.captured for earlier, later in pairwise(frames)]
    assert np.median(steps) == pytest.approx(0.04, abs=0.01)


def test_a_playlist_may_not_read_this_machines_files(tmp_path: Path) -> None:
    secret = render(tmp_path / "secret.ts")
    served = tmp_path / "served"
    served.mkdir()
    (served / "evil.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    )
    with serving_folder(served) as url, watching(url + "/evil.m3u8") as watcher:
        watcher.until(State.WAITING)
        assert watcher.source.status.frames == 0


def test_rtmp(tmp_path: Path) -> None:
    clip = render(tmp_path / "clip.mp4", 100)
    with rtmp_server(clip) as url, watching(url) as watcher:
        watcher.until(State.LIVE)
        watcher.more(30)
    assert watcher.frames()[0].pixels.shape == (180, 320, 3)
