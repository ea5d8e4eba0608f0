"""The fault table: real servers, real files, deterministic damage. The stream's axis goes on, and it recovers by itself."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
import pytest

from capture import Patience, State
from capture.sources import camera as local
from capture.sources.webrtc import WhipSource
from tests.capture.lab import (
    CALM,
    HASTY,
    STEADY,
    Mjpeg,
    RtspServer,
    Watcher,
    drawn,
    http_server,
    jpeg,
    needs_rtsp,
    proxy,
    rtsp_server,
    stop_all,
    wait_for,
    watching,
)
from tests.capture.publisher import Publisher

pytestmark = pytest.mark.beside
PROMISED = 5.0 + HASTY.backoff_most * (1 + HASTY.jitter)
"""Seconds within which a source must be live again after it is healthy, on a machine that has time for it."""
BUSY = 3.0
"""Times as long as that may take beside other tests, which share two cores; `tests.faults.measure` shows what it takes alone."""
Record = Callable[[float], None]


def back(watcher: Watcher, record: Record, healthy: float | None = None) -> None:
    """Waits for the source to be live with new frames, and records how long that took."""
    began = time.monotonic() if healthy is None else healthy
    watcher.until(State.LIVE)
    watcher.more(1)
    took = time.monotonic() - began
    assert took <= BUSY * PROMISED
    record(took)


def sound_axis(watcher: Watcher, *, gaps: int | None = None) -> None:
    """Time never steps back, goes with this host's clock, and what interrupted it is marked."""
    frames = watcher.frames()
    assert all(later.time >= earlier.time for earlier, later in pairwise(frames))
    assert frames[-1].time - frames[0].time == pytest.approx(frames[-1].captured - frames[0].captured, abs=1.0)
    assert [frame.sequence for frame in frames] == sorted({frame.sequence for frame in frames})
    if gaps is not None:
        assert sum(frame.discontinuity for frame in frames) == gaps


@needs_rtsp
def test_silent_after_accept(rtsp: RtspServer, recovery: Record) -> None:
    with proxy(rtsp.port) as between:
        between.mute = True
        with watching(f"rtsp://127.0.0.1:{between.port}/live", patience=replace(HASTY, open=2.0)) as watcher:
            watcher.until(State.WAITING)
            assert re.search(r"no picture within \d+ s|silent", watcher.reason(State.WAITING))
            between.mute = False
            back(watcher, recovery)


@needs_rtsp
def test_refuses(recovery: Record) -> None:
    with rtsp_server() as server:
        server.stop()
        with watching(server.url("/live")) as watcher:
            watcher.until(State.WAITING)
            assert "the connection was refused" in watcher.source.status.reason
            server.start()
            back(watcher, recovery)


@needs_rtsp
def test_401(rtsp: RtspServer, recovery: Record) -> None:
    with (
        rtsp_server("ada:lovelace") as closed,
        proxy(closed.port) as between,
        watching(f"rtsp://ada:wrong@127.0.0.1:{between.port}/live", patience=STEADY) as watcher,
    ):
        watcher.until(State.WAITING)
        assert "user and password (401)" in watcher.source.status.reason
        assert "wrong" not in watcher.source.status.reason
        between.upstream = rtsp.port
        back(watcher, recovery)


@needs_rtsp
def test_404(rtsp: RtspServer) -> None:
    with watching(rtsp.url("/nothing"), patience=STEADY) as watcher:
        watcher.until(State.WAITING)
        assert "(404)" in watcher.source.status.reason


class Moody(Mjpeg):
    """Answers with `status` until that is 200."""

    def do_GET(self) -> None:  # noqa: N802
        if self.server.status != 200:  # type: ignore[attr-defined]
            self.send_error(self.server.status)  # type: ignore[attr-defined]
            return
        super().do_GET()


@pytest.mark.parametrize(("status", "said"), [(401, "(401)"), (403, "(403)"), (404, "(404)"), (503, "(5xx)")])
def test_http_status(status: int, said: str, recovery: Record) -> None:
    mood = {"status": status}
    picture = jpeg(drawn(0))

    class Server(Moody):
        def do_GET(self) -> None:  # noqa: N802
            self.server.status = mood["status"]  # type: ignore[attr-defined]
            super().do_GET()

    with http_server(Server, picture=lambda n: picture) as url, watching(url, patience=STEADY) as watcher:
        watcher.until(State.WAITING)
        assert said in watcher.source.status.reason
        mood["status"] = 200
        back(watcher, recovery)


@needs_rtsp
def test_reboots_in_mid_stream(recovery: Record) -> None:
    with rtsp_server() as server, watching(server.url("/live"), patience=STEADY) as watcher:
        watcher.more(20)
        server.stop()
        watcher.until(State.WAITING)
        server.start()
        back(watcher, recovery)
        watcher.more(10)
    sound_axis(watcher, gaps=1)
    assert watcher.source.status.reconnects >= 1 and watcher.source.status.gap > 0.2


@needs_rtsp
def test_half_open_connection(rtsp: RtspServer, recovery: Record) -> None:
    """The camera is gone without a FIN: stalled first, then given up. The old connection stays hushed for ever."""
    with proxy(rtsp.port) as between:
        with watching(f"rtsp://127.0.0.1:{between.port}/live") as watcher:
            watcher.more(10)
            between.hushed = True
            watcher.until(State.STALLED)
            assert "no frame for" in watcher.reason(State.STALLED)
            watcher.until(State.WAITING)
            between.hushed = False
            back(watcher, recovery)
            between.cut()
        sound_axis(watcher)


@needs_rtsp
def test_stalls_and_goes_on(rtsp: RtspServer, recovery: Record) -> None:
    """The network holds everything up for a while and then delivers: the connection is kept."""
    url = "rtsp://127.0.0.1:{}/live"
    with proxy(rtsp.port) as between, watching(url.format(between.port), patience=STEADY) as watcher:
        watcher.more(10)
        between.hushed = True
        watcher.until(State.STALLED)
        between.hushed = False
        back(watcher, recovery)
        assert watcher.source.status.reconnects == 0


def test_frozen_picture(recovery: Record) -> None:
    """The camera's picture stands still while it goes on sending."""
    pictures = [jpeg(drawn(n)) for n in range(50)]
    still = threading.Event()
    with (
        http_server(Mjpeg, picture=lambda n: pictures[0 if still.is_set() else n % 50]) as url,
        watching(url, patience=replace(CALM, frozen=1.0)) as watcher,
    ):
        watcher.more(20)
        still.set()
        wait_for(lambda: watcher.source.status.frozen)
        assert watcher.state is State.LIVE
        still.clear()
        recovery(wait_for(lambda: not watcher.source.status.frozen))
    assert [(status.state, status.frozen) for status in watcher.told] == [
        (State.CONNECTING, False),
        (State.LIVE, False),
        (State.LIVE, True),
        (State.LIVE, False),
        (State.ENDED, False),
    ]


@needs_rtsp
@pytest.mark.parametrize("change", [{"width": 640, "height": 480}, {"codec": "hevc"}], ids=["resolution", "codec"])
def test_change_of(change: dict[str, object], rtsp: RtspServer, recovery: Record) -> None:
    with rtsp_server(**change) as after, proxy(rtsp.port) as between:
        with watching(f"rtsp://127.0.0.1:{between.port}/live", patience=STEADY) as watcher:
            watcher.more(10)
            between.upstream = after.port
            healthy = time.monotonic()
            between.cut()
            watcher.been(State.WAITING)
            back(watcher, recovery, healthy)
            watcher.more(10)
        sound_axis(watcher, gaps=1)
    shape = (change.get("height", 180), change.get("width", 320), 3)
    assert watcher.frames()[-1].pixels.shape == shape


class Part(NamedTuple):
    """So many frames, the first at `first` seconds."""

    frames: int
    first: float
    codec: str = "libx264"
    size: tuple[int, int] = (320, 180)


class Transport(BaseHTTPRequestHandler):
    """A live MPEG transport stream of the server's `parts`; who connects again gets the part that is on.

    A source looks at what there is before FFmpeg opens it, and that look, however long it lasts, takes no part from what is on.
    """

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        began, sent = time.monotonic(), 0
        try:
            while self.server.parts:  # type: ignore[attr-defined]
                part: Part = self.server.parts[0]  # type: ignore[attr-defined]
                with av.open(
                    self.wfile, "w", format="mpegts", options={"copyts": "1", "mpegts_copyts": "1"}
                ) as container:
                    options = {"preset": "ultrafast", "tune": "zerolatency"}
                    if part.codec == "libx265":  # rows handed from thread to thread take seconds on a busy machine
                        options["x265-params"] = "pools=none:wpp=0:frame-threads=1"
                    stream = container.add_stream(part.codec, rate=25, options=options)
                    stream.width, stream.height, stream.pix_fmt = *part.size, "yuv420p"
                    stream.codec_context.gop_size, stream.codec_context.thread_count = 25, 1
                    for n in range(part.frames):
                        time.sleep(max(0.0, began + sent / 25 - time.monotonic()))
                        frame = av.VideoFrame.from_ndarray(drawn(sent, *part.size), format="rgb24")
                        frame.pts, frame.time_base = round(part.first * 25) + n, Fraction(1, 25)
                        container.mux(stream.encode(frame))
                        self.wfile.flush()
                        sent += 1
                if not self.headers["User-Agent"].startswith("Lavf"):
                    break
                self.server.parts.pop(0)  # type: ignore[attr-defined]
        except (OSError, av.error.FFmpegError):
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("parts", "marked"),
    [
        ([Part(25, 10.0), Part(200, 3610.0)], True),
        ([Part(25, 3610.0), Part(200, 10.0)], True),
        ([Part(275, 2**33 / 90_000 - 1)], False),
        ([Part(25, 10.0), Part(200, 10.0)], True),
    ],
    ids=["forward", "back", "wrap", "repeat"],
)
def test_timestamps_jump(parts: list[Part], marked: bool) -> None:
    """A wrap of the 33-bit clock is undone by the demuxer, which leaves nothing to mark."""
    with http_server(Transport, parts=[*parts]) as url, watching(url + "/live.ts", patience=CALM) as watcher:
        watcher.more(60)
        assert watcher.state is State.LIVE and watcher.source.status.reconnects == 0
    sound_axis(watcher)
    assert any(frame.discontinuity for frame in watcher.frames()) == marked


@pytest.mark.parametrize(
    ("after", "reconnects"),
    [(Part(500, 11.0, size=(640, 360)), 0), (Part(500, 11.0, "libx265"), 1)],
    ids=["resolution", "codec"],
)
def test_change_in_mid_connection_of(after: Part, reconnects: int, recovery: Record) -> None:
    """FFmpeg's decoders follow a change of resolution; after one of codec the connection must be a new one."""
    parts = [Part(25, 10.0), after]
    # CALM, as the camera's encoder shares this machine's cores.
    with http_server(Transport, parts=parts) as url, watching(url + "/live.ts", patience=CALM) as watcher:
        watcher.more(5)
        wait_for(lambda: parts[0] is after)
        began = time.monotonic()
        if reconnects:
            assert "codec" in watcher.been(State.WAITING)
            back(watcher, recovery, began)
        else:
            wait_for(lambda: watcher.source.status.height == after.size[1])
            recovery(time.monotonic() - began)
        watcher.more(10)
        assert watcher.state is State.LIVE and watcher.source.status.reconnects == reconnects
    sound_axis(watcher, gaps=reconnects)
    assert watcher.frames()[-1].pixels.shape == (after.size[1], after.size[0], 3)


class Raw(BaseHTTPRequestHandler):
    """A live H.264 stream without a container, and so without timestamps, at 50 frames a second, where FFmpeg makes up 25."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "video/h264")
        self.end_headers()
        encoder = av.CodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 320, 180, "yuv420p", Fraction(1, 25)
        encoder.options, encoder.thread_count = {"preset": "ultrafast", "tune": "zerolatency"}, 1
        encoder.gop_size = 10
        try:
            for n in range(300):
                frame = av.VideoFrame.from_ndarray(drawn(n), format="rgb24")
                frame.pts = n
                self.wfile.write(b"".join(bytes(packet) for packet in encoder.encode(frame)))
                time.sleep(0.02)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


def test_timestamps_missing() -> None:
    with http_server(Raw) as url, watching(url + "/raw.h264", patience=Patience()) as watcher:
        watcher.more(1)
        watcher.more(30)
    sound_axis(watcher, gaps=0)


def smeared(pixels: np.ndarray) -> float:
    """The share of a picture of a white ball on black that is neither: at most 0.00071 of 1,000 whole ones, 0.003 and more of others."""
    brightest = pixels.max(axis=2)
    return float(((brightest > 40) & (brightest < 200)).mean())


def whole_again(watcher: Watcher, key: int = 25) -> None:
    """Waits for a whole picture from one key frame to the next: what was under way when the damage ended may still come before."""
    begin = len(watcher.frames())

    def whole() -> bool:
        last = watcher.frames()[max(begin, len(watcher.seen) - key) :]
        return len(last) == key and all(smeared(frame.pixels) < 0.001 for frame in last)

    wait_for(whole, what=lambda: [round(smeared(frame.pixels), 5) for frame in watcher.frames()[begin:]])


@pytest.fixture(scope="module")
def fast() -> Iterator[RtspServer]:
    """A server of 50 larger pictures a second, so that damage soon meets enough packets."""
    with rtsp_server(width=640, height=360, rate=50, key=25) as server:
        yield server


def flipped(n: int, packet: bytes) -> bytes:
    if n % 10:
        return packet
    middle = len(packet) // 2
    return packet[:middle] + bytes([packet[middle] ^ 0x5A]) + packet[middle + 1 :]


def shortened(n: int, packet: bytes) -> bytes:
    return packet if n % 15 or len(packet) < 60 else packet[: 14 + (len(packet) - 14) // 2]


def lossy(percent: int) -> Callable[[int, bytes], bytes | None]:
    """Drops that share of packets, in a fixed order that looks like chance (a multiplicative hash)."""
    return lambda n, packet: None if n * 2654435761 % 2**32 < percent / 100 * 2**32 else packet


@needs_rtsp
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("damage", "loses"),
    [
        (flipped, False),
        (shortened, False),
        (lossy(1), True),
        (lossy(5), True),
        (lossy(20), True),
        (lambda n, packet: None if n == 100 else packet, True),
    ],
    ids=[
        "bit flips",
        "truncated NAL units",
        "RTP loss 1 %",
        "RTP loss 5 %",
        "RTP loss 20 %",
        "one packet lost for ever",
    ],
)
def test_damage(
    damage: Callable[[int, bytes], bytes | None], loses: bool, transport: str, fast: RtspServer, recovery: Record
) -> None:
    """Pictures keep coming while it lasts, and are whole again within a few key frames after it ends."""
    with proxy(fast.port) as between:
        url = f"rtsp://127.0.0.1:{between.port}/live"
        with watching(url, transport=transport, patience=STEADY) as watcher:
            watcher.more(5)
            begun = between.packets
            between.damage = lambda n, packet: damage(n - begun, packet)
            watcher.more(40)
            wait_for(lambda: between.packets > begun + 120)
            watcher.until(State.LIVE)
            between.damage = None
            back(watcher, recovery)
            whole_again(watcher)
            assert watcher.source.status.reconnects == 0
        sound_axis(watcher)
    assert (between.dropped > 0) == loses


@needs_rtsp
def test_joined_in_mid_gop(rtsp: RtspServer, recovery: Record) -> None:
    """The first key frame is missed, the next comes long after the deadline for opening; what is shown first is whole."""
    # After `open` a silence of `stall` ends the connection: a server beside other tests may be held up for seconds.
    patience = replace(HASTY, open=8.0, stall=8.0)
    with proxy(rtsp.port) as between:
        between.damage = lambda n, packet: None if n <= 12 else packet
        began = time.monotonic()
        with watching(f"rtsp://127.0.0.1:{between.port}/sparse", patience=patience) as watcher:
            back(watcher, recovery, began + 10)
            assert watcher.source.status.reconnects == 0 and between.dropped == 12
            first = watcher.frames()[0]
    assert first.captured - began > patience.open
    background = np.median(first.pixels.reshape(-1, 3), axis=0)
    assert np.all(background < 20), "grey stands for what was never received"


@needs_rtsp
def test_audio_only(rtsp: RtspServer) -> None:
    with watching(rtsp.url("/sound")) as watcher:
        watcher.until(State.WAITING)
        assert watcher.source.status.reason
        assert watcher.source.status.frames == 0


class FakeCamera:
    """OpenCV's camera as far as `camera://` uses it, with a plug that can be pulled."""

    CAP_PROP_BUFFERSIZE, INTER_AREA, COLOR_BGR2RGB = 38, 3, 4
    plugged = True

    def VideoCapture(self, number: int) -> FakeCamera:  # noqa: N802
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return self.plugged

    def set(self, *_: object) -> bool:
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.04)
        return (True, drawn(0)[..., ::-1]) if self.plugged else (False, None)

    def cvtColor(self, raw: np.ndarray, _: int) -> np.ndarray:  # noqa: N802
        return np.ascontiguousarray(raw[..., ::-1])

    def release(self) -> None:
        pass


def test_device_unplugged(recovery: Record) -> None:
    """Faked at OpenCV's boundary, as no camera is here."""
    camera = FakeCamera()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(local, "opencv", lambda: camera)
        watcher = stack.enter_context(watching("camera://0", patience=CALM))
        watcher.more(10)
        camera.plugged = False
        watcher.until(State.WAITING)
        assert "plugged in" in watcher.source.status.reason or "no camera 0" in watcher.source.status.reason
        camera.plugged = True
        back(watcher, recovery)
        watcher.more(5)
    sound_axis(watcher, gaps=1)


@needs_rtsp
def test_slow_model(rtsp: RtspServer) -> None:
    """Who takes one frame of eight gets the newest each time; the others are counted."""
    behind = []
    with watching(rtsp.url("/live"), capacity=1) as watcher:
        watcher.until(State.LIVE)
        for _ in range(10):
            watcher.more(8)
            newest = watcher.source.status.frames - 1
            behind += [newest - frame.sequence for frame in watcher.mailbox.take(1)]
        mailbox = watcher.mailbox
        assert mailbox.dropped > 40
        assert mailbox.taken == len(behind), "all others are counted as dropped, or wait"
    assert len(behind) == 10
    assert max(behind) <= 1, "one that is counted may not have been put yet"


class Flapping(Mjpeg):
    """Hangs up after a second, unless the server is told to be steady."""

    def do_GET(self) -> None:  # noqa: N802
        began = time.monotonic()
        picture = self.server.still  # type: ignore[attr-defined]

        def flap(n: int) -> bytes:
            if not self.server.steady.is_set() and time.monotonic() - began > 1:  # type: ignore[attr-defined]
                raise OSError("flaps")
            time.sleep(0.1)
            return bytes(picture)

        self.server.picture = flap  # type: ignore[attr-defined]
        super().do_GET()


def test_forty_streams_of_which_ten_flap(recovery: Record) -> None:
    steady = threading.Event()
    picture = jpeg(drawn(0, 160, 90))

    def calm(n: int) -> bytes:
        time.sleep(0.15)
        return picture

    with http_server(Mjpeg, picture=calm) as url, http_server(Flapping, still=picture, steady=steady) as other:
        # CALM, as forty on a busy machine are late by more than a second now and then.
        healthy = [Watcher(f"{url}/{n}", capacity=1, patience=CALM) for n in range(30)]
        flapping = [Watcher(f"{other}/{n}", capacity=1) for n in range(10)]
        try:
            for watcher in healthy:
                watcher.until(State.LIVE)
            wait_for(lambda: all(watcher.source.status.reconnects >= 2 for watcher in flapping))
            names = {watcher.source.name for watcher in healthy + flapping}
            threads = [each for each in threading.enumerate() if each.name.removeprefix("source ") in names]
            assert 30 <= len(threads) <= 40 + 10 + 1, "of the ten, those that wait have none"
            assert all({*watcher.states} == {State.CONNECTING, State.LIVE} for watcher in healthy)
            assert all(State.WAITING in watcher.states for watcher in flapping)
            steady.set()
            began = time.monotonic()
            for watcher in flapping:
                watcher.until(State.LIVE)
            recovery(time.monotonic() - began)
            had = [watcher.source.status.frames for watcher in healthy + flapping]
            for watcher, before in zip(healthy + flapping, had, strict=True):
                wait_for(lambda w=watcher, n=before: w.source.status.frames >= n + 2)  # type: ignore[misc]
        finally:
            stop_all(healthy + flapping)


def publish(watcher: Watcher, publisher: Publisher, ended: threading.Event | None = None) -> Publisher:
    source = watcher.source
    assert isinstance(source, WhipSource)
    over = threading.Event() if ended is None else ended
    publisher.publish(lambda offer: source.publish(offer, over.set).result(60))
    return publisher


@pytest.mark.usefixtures("loopback")
def test_publisher_vanishes_without_delete(recovery: Record) -> None:
    gone = threading.Event()
    with watching("whip://door", patience=replace(STEADY, give_up=4.0)) as watcher:
        first = publish(watcher, Publisher(), gone)
        watcher.more(20)
        first.vanish()
        watcher.until(State.STALLED)
        watcher.until(State.WAITING)
        assert gone.wait(60), "the session's owner is told"
        wait_for(lambda: watcher.source.status.reason == "waits for a publisher")
        began = time.monotonic()
        second = publish(watcher, Publisher())
        back(watcher, recovery, began)
        watcher.more(10)
        sound_axis(watcher, gaps=1)
        first.close()
        second.close()


@pytest.mark.usefixtures("loopback")
def test_publisher_replaced_by_another(recovery: Record) -> None:
    """The later one wins, and what the earlier one still sends or says touches nothing."""
    gone = threading.Event()
    with watching("whip://door", patience=CALM) as watcher:
        first = publish(watcher, Publisher("VP8"), gone)
        watcher.more(20)
        began = time.monotonic()
        second = publish(watcher, Publisher("H264"))
        back(watcher, recovery, began)
        assert gone.wait(60)
        watcher.more(20)
        first.close()
        watcher.more(20)
        assert watcher.state is State.LIVE and watcher.source.status.reconnects == 1
        sound_axis(watcher, gaps=1)
        second.close()


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("codec", ["VP8", "H264"])
@pytest.mark.parametrize(
    "percent", [0, 1, 5, 20], ids=["one packet lost for ever", "loss 1 %", "loss 5 %", "loss 20 %"]
)
def test_webrtc(percent: int, codec: str, recovery: Record) -> None:
    """Packets are lost whenever they are sent, retransmissions included; the picture waits for a key frame a second or two at most."""
    losing = threading.Event()
    only: list[int] = []

    def lose(sequence: int) -> bool:
        if not losing.is_set():
            return False
        if percent:
            return sequence * 2654435761 % 2**32 < percent / 100 * 2**32
        only.extend([sequence] if not only else [])
        return sequence == only[0]

    with (
        watching("whip://door", patience=STEADY) as watcher,
        contextlib.closing(Publisher(codec, lose)) as publisher,
    ):

        def between_pictures() -> int:
            """How many pictures were sent meanwhile: a publisher that is held up itself sends none."""
            sent = publisher.track.n
            watcher.more(1)
            return publisher.track.n - sent

        publish(watcher, publisher)
        watcher.more(10)
        losing.set()
        longest = max(between_pictures() for _ in range(20 if percent == 20 else 40))
        assert longest < 150, "a second or two of the publisher's pictures, and a busy machine"
        assert publisher.asked > 0 or percent == 1, "a key frame was asked for"
        losing.clear()
        back(watcher, recovery)
        watcher.more(10)
        assert watcher.source.status.reconnects == 0
        sound_axis(watcher)
