"""Publishers over WebRTC: real ICE, DTLS and SRTP on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from itertools import count, pairwise
from pathlib import Path

import aioice.ice
import aiortc.rtcrtpreceiver
import numpy as np
import pytest
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RtpPacket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capture import IceServer, Patience, SourceError, State
from capture.sources.webrtc import MOST_CODED, CodedQueue, RepairingBuffer, WhipSource
from tests.capture.lab import HASTY, STEADY, SYSTEM_PYTHON, Watcher, ec_certificate, http_server, wait_for, watching
from tests.capture.publisher import Publisher
from tests.ports import free_port

pytestmark = [pytest.mark.beside, pytest.mark.usefixtures("loopback")]


def whip(watcher: Watcher) -> WhipSource:
    assert isinstance(watcher.source, WhipSource)
    return watcher.source


@contextlib.contextmanager
def publishing(watcher: Watcher, **options: object) -> Iterator[Publisher]:
    publisher = Publisher(**options)  # type: ignore[arg-type]
    try:
        publisher.publish(lambda offer: whip(watcher).publish(offer).result(60))
        yield publisher
    finally:
        publisher.close()


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_a_publisher_is_watched(codec: str) -> None:
    with watching("whip://door", patience=STEADY) as watcher:
        assert watcher.told[-1].reason == "waits for a publisher"
        with publishing(watcher, codec=codec):
            watcher.until(State.LIVE)
            watcher.more(40)
            frames = list(watcher.frames())
        assert "ended its stream" in (said := watcher.been(State.WAITING)) or "closed" in said
    assert frames[-1].pixels.shape == (180, 320, 3)
    assert frames[-1].pixels.max() > 200 and np.median(frames[-1].pixels) == pytest.approx(80, abs=8)
    assert all(later.time > earlier.time for earlier, later in pairwise(frames))
    assert not any(frame.discontinuity for frame in frames)


def test_goodbye_and_hello_again() -> None:
    over = threading.Event()
    with watching("whip://door", patience=STEADY) as watcher:
        publisher = Publisher()
        publisher.publish(lambda offer: whip(watcher).publish(offer, over.set).result(60))
        watcher.more(10)
        whip(watcher).unpublish()
        assert "the publisher left" in watcher.been(State.WAITING)
        assert over.wait(60)
        publisher.close()
        with publishing(watcher):
            watcher.until(State.LIVE)
            watcher.more(10)
        frames = watcher.frames()
    assert sum(frame.discontinuity for frame in frames) == 1
    assert all(later.time >= earlier.time for earlier, later in pairwise(frames))


class Whip(BaseHTTPRequestHandler):
    """The least of a WHIP endpoint: an offer in, the server's `source` answers."""

    def do_POST(self) -> None:
        offer = self.rfile.read(int(self.headers["Content-Length"])).decode()
        answer = self.server.source.publish(offer).result(60).encode()  # type: ignore[attr-defined]
        self.send_response(201)
        self.send_header("Content-Type", "application/sdp")
        self.send_header("Location", "/session")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_DELETE(self) -> None:
        self.server.source.unpublish()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def ffmpeg_publisher(url: str, folder: Path) -> Iterator[None]:
    """FFmpeg's WHIP muxer in a process of its own, as it holds Python's lock while it negotiates."""
    certificate, key = ec_certificate(folder)
    options = {"cert_file": certificate, "key_file": key}
    program = "import threading, tests.capture.lab as lab; lab.broadcast({!r}, 'whip', threading.Event(), {!r})"
    process = subprocess.Popen([sys.executable, "-c", program.format(url, options)], cwd=Path(__file__).parents[2])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_ffmpegs_own_whip_publisher(tmp_path: Path) -> None:
    with (
        watching("whip://door", patience=STEADY) as watcher,
        http_server(Whip, source=watcher.source) as url,
        ffmpeg_publisher(url, tmp_path),
    ):
        watcher.until(State.LIVE)
        watcher.more(30)
    assert watcher.frames()[-1].pixels.shape == (180, 320, 3)


def test_a_publisher_that_connects_and_sends_nothing_is_sent_away() -> None:
    with watching("whip://door", patience=replace(HASTY, open=1.0)) as watcher:
        publisher = Publisher()
        publisher.track.still = True
        publisher.publish(lambda offer: whip(watcher).publish(offer).result(60))
        assert "no picture within 1 s of publishing" in watcher.been(State.WAITING)
        publisher.close()


@pytest.mark.parametrize(
    "offer", ["", "v=0", "v=0\r\nm=video 9 X 1\r\n", "\0" * 100, "v=0\r\no=- 0 0 IN IP4 0\r\ns=-\r\nt=0 0\r\n"]
)
def test_offers_that_are_none(offer: str) -> None:
    with watching("whip://door") as watcher:
        with pytest.raises(SourceError, match="offer") as refusal:
            whip(watcher).publish(offer).result(60)
        assert "\n" not in str(refusal.value)
        assert watcher.state is State.CONNECTING


def test_an_offer_of_a_codec_that_is_not_decoded_is_refused() -> None:
    publisher = Publisher()
    offer = asyncio.run_coroutine_threadsafe(publisher.offer(), publisher.loop).result(60)
    with watching("whip://door") as watcher, pytest.raises(SourceError, match="H264 or VP8"):
        whip(watcher).publish(offer.replace("VP8", "AV1")).result(60)
    publisher.close()


def test_offers_that_strangers_send() -> None:
    """Any damage to an offer is answered or refused, and the source goes on."""
    publisher = Publisher()
    lines = asyncio.run_coroutine_threadsafe(publisher.offer(), publisher.loop).result(60).splitlines(keepends=True)
    publisher.close()
    with watching("whip://door", patience=STEADY) as watcher:

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            st.lists(st.integers(0, len(lines) - 1), max_size=3),
            st.integers(0, len(lines) - 1),
            st.text(max_size=20),
        )
        def damaged(left_out: list[int], changed: int, text: str) -> None:
            sdp = [line for n, line in enumerate(lines) if n not in left_out]
            sdp[changed % len(sdp)] = sdp[changed % len(sdp)][:2] + text + "\r\n"
            with contextlib.suppress(SourceError):
                whip(watcher).publish("".join(sdp)).result(60)

        damaged()
        with publishing(watcher):
            watcher.until(State.LIVE)


def test_candidates_that_strangers_send() -> None:
    with watching("whip://door", patience=STEADY) as watcher, publishing(watcher):
        watcher.until(State.LIVE)
        with pytest.raises(SourceError, match="can't be taken"):
            whip(watcher).trickle(["candidate:nonsense"]).result(60)
        whip(watcher).trickle(["candidate:1 1 udp 2130706431 127.0.0.1 9 typ host"]).result(60)
        watcher.more(5)


def packet(n: int, size: int = 1) -> RtpPacket:
    """Packet n of a stream of pictures of three packets each."""
    made = RtpPacket(sequence_number=(65500 + n) % 2**16, timestamp=n // 3)
    made._data = bytes([n % 256]) * size
    return made


def test_a_lost_packet_still_blocks_aiortcs_own_buffer() -> None:
    """If this fails, aiortc has mended it, and RepairingBuffer can go."""
    buffer = JitterBuffer(512, is_video=True)
    assert not any(buffer.add(packet(n))[1] for n in range(300) if n != 1)


def test_a_lost_packet_blocks_for_a_moment_and_asks_for_a_key_frame() -> None:
    now = 0.0
    buffer = RepairingBuffer(clock=lambda: now)
    asked, came = [], []
    for n in range(300):
        now = n / 100
        if n == 100:
            continue
        needed, frame = buffer.add(packet(n))
        asked += [n] if needed else []
        came += [frame.timestamp] if frame else []
    assert len(asked) == 1 and 100 + 25 <= asked[0] <= 100 + 28
    assert sorted(set(range(98)) - set(came)) == [33]


def test_a_late_packet_mends_the_picture() -> None:
    now = 0.0
    buffer = RepairingBuffer(clock=lambda: now)
    came = []
    for n in [*range(10), *range(11, 20), 10, *range(20, 40)]:
        now += 0.01
        needed, frame = buffer.add(packet(n))
        assert not needed
        came += [frame.timestamp] if frame else []
    assert came == list(range(len(came))) and len(came) >= 10


@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0, 0.2)), max_size=200))
def test_any_order_of_packets_gives_pictures_in_order(arrivals: list[tuple[int, float]]) -> None:
    now, came = 0.0, []
    buffer = RepairingBuffer(64, clock=lambda: now)
    for n, passed in arrivals:
        now += passed
        _, frame = buffer.add(packet(n))
        came += [frame.timestamp] if frame else []
    assert all(data is not None for data in came)


def test_the_decoders_input_has_a_bound_and_its_end_always_passes() -> None:
    dropped = threading.Event()
    coded = CodedQueue(dropped)
    for n in range(MOST_CODED + 5):
        coded.put(n)
    coded.put(None)
    assert coded.qsize() == MOST_CODED + 1 and dropped.is_set()


def test_aiortcs_own_queues_still_have_no_bound() -> None:
    """If this fails, aiortc has mended it, and `tame` and `newest` can be simpler."""
    receiver = aiortc.rtcrtpreceiver
    assert isinstance(receiver.RemoteStreamTrack("video")._queue, asyncio.Queue)
    assert receiver.RemoteStreamTrack("video")._queue.maxsize == 0
    assert queue.Queue().maxsize == 0


def has_gstreamer() -> bool:
    """Whether GStreamer's WebRTC and a network namespace of one's own can be had."""
    probe = "import gi; gi.require_version('GstWebRTC', '1.0'); from gi.repository import GstWebRTC"
    return (
        Path(SYSTEM_PYTHON).exists()
        and subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True).returncode == 0
        and os.geteuid() == 0
        and shutil.which("ip") is not None
    )


NETWORKS = count(os.getpid())


@contextlib.contextmanager
def namespace() -> Iterator[tuple[str, str]]:
    """A network namespace on a wire of its own: its name, and this side's address on the wire."""
    number = next(NETWORKS)
    name = f"streamer{number}"
    wire, host = f"wire{number}", f"10.{number % 200 + 20}.{number // 200 % 250}"
    setup = f"""
        ip netns add {name}
        ip link add {wire} type veth peer name {wire}b netns {name}
        ip addr add {host}.1/24 dev {wire}
        ip link set {wire} up
        ip -n {name} addr add {host}.2/24 dev {wire}b
        ip -n {name} link set {wire}b up
        ip -n {name} link set lo up"""
    try:
        for command in setup.strip().splitlines():
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"needs network namespaces: {done.stderr.strip()}")
        yield name, f"{host}.1"
    finally:
        subprocess.run(["ip", "link", "del", wire], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


needs_gstreamer = pytest.mark.skipif(
    not has_gstreamer(), reason="needs GStreamer's WebRTC and root: sh tests/system-packages.sh"
)


@contextlib.contextmanager
def gstreamer_publisher(network: str, url: str) -> Iterator[None]:
    """Publishes from within a network namespace."""
    script = str(Path(__file__).parent / "whip_gstreamer.py")
    command = ["ip", "netns", "exec", network, SYSTEM_PYTHON, script, url, "", "30"]
    publisher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        publisher.kill()
        publisher.wait()


@needs_gstreamer
def test_gstreamer_publishes_from_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key is RSA, which aiortc's own DTLS would not take."""
    with namespace() as (name, address):
        monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: [address])
        with (
            watching("whip://door", patience=Patience()) as watcher,
            http_server(Whip, address=address, source=watcher.source) as url,
            gstreamer_publisher(name, url),
        ):
            watcher.until(State.LIVE)
            watcher.more(40)
    assert watcher.frames()[-1].pixels.shape == (360, 640, 3)


@contextlib.contextmanager
def turn_server(address: str) -> Iterator[IceServer]:
    """coturn, with a user."""
    turnserver = shutil.which("turnserver")
    if turnserver is None:
        pytest.skip("needs coturn: sh tests/system-packages.sh")
    port = free_port(address)
    command = (
        f"{turnserver} -n --listening-ip {address} --relay-ip {address} --listening-port {port} --lt-cred-mech "
        "--user ada:lovelace --realm streamer --no-tls --no-dtls --no-cli --log-file stdout --pidfile /dev/null"
    )
    process = subprocess.Popen(command.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            return True
        return False

    try:
        wait_for(listens)
        yield IceServer((f"turn:{address}:{port}?transport=udp",), "ada", "lovelace")
    finally:
        process.kill()
        process.wait()


@needs_gstreamer
@pytest.mark.parametrize("relayed", [True, False], ids=["with", "without"])
def test_turn(relayed: bool) -> None:
    """The publisher is in another network, and our own address, loopback, means nothing there: all goes through the relay."""
    with namespace() as (name, address), turn_server(address) as turn:
        servers = (turn,) if relayed else ()
        with (
            watching(
                "whip://door", patience=replace(HASTY, open=15.0 if relayed else 3.0), ice_servers=servers
            ) as watcher,
            http_server(Whip, address=address, source=watcher.source) as url,
            gstreamer_publisher(name, url),
        ):
            wait_for(lambda: watcher.state is State.CONNECTING and "first picture" in watcher.source.status.reason)
            watcher.until(State.LIVE if relayed else State.WAITING)
            if relayed:
                watcher.more(20)
    assert bool(watcher.source.status.frames) == relayed
