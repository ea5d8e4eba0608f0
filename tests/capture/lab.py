"""Real videos, real servers and a proxy that does damage, for the tests of capture."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aioice.ice
import av
import numpy as np
import pytest

from capture import Frame, Mailbox, Patience, Source, SourceOptions, SourceStatus, State, open_source

HERE = Path(__file__).parent
SYSTEM_PYTHON = "/usr/bin/python3"
HASTY = Patience(open=4.0, stall=1.0, give_up=1.0, frozen=2.0, backoff=0.2, backoff_most=1.0, healthy=2.0)
"""Patience for tests."""
STEADY = replace(HASTY, open=30.0, give_up=8.0)
"""Where a connection must be kept: a sender beside other tests may be held up for as long as HASTY gives it."""
CALM = replace(HASTY, open=30.0, stall=10.0)
"""Where nothing may be told of a connection that is merely held up, not even a stall."""


@functools.cache
def has_rtsp_server() -> bool:
    """Whether GStreamer's RTSP server and its Python binding are here."""
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    return (
        Path(SYSTEM_PYTHON).exists()
        and subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True).returncode == 0
    )


needs_rtsp = pytest.mark.skipif(
    not has_rtsp_server(), reason="needs GStreamer's RTSP server: sh tests/system-packages.sh"
)


def drawn(n: int, width: int = 320, height: int = 180) -> np.ndarray:
    """Picture n of a clip: a white square that moves along a grey field."""
    pixels = np.full((height, width, 3), 80, np.uint8)
    x = n * 4 % (width - 40)
    pixels[40:80, x : x + 40] = 255
    return pixels


def render(
    path: Path,
    frames: int = 50,
    *,
    fps: int = 25,
    size: tuple[int, int] = (320, 180),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    aspect: Fraction | None = None,
    times: Callable[[int], int | None] = lambda n: n,
    picture: Callable[[int], np.ndarray] | None = None,
    format: str | None = None,
    options: dict[str, str] | None = None,
    key: int = 10,
    encoder: dict[str, str] | None = None,
) -> Path:
    """Writes a clip; `times` gives each frame's presentation time in frames, `picture` its pixels, `encoder` the encoder's options."""
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.gop_size = key
        stream.codec_context.thread_count = 1
        usual = {"preset": "ultrafast", "tune": "zerolatency"} if codec == "libx264" else {}
        stream.options = encoder or usual
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(drawn(n, *size) if picture is None else picture(n), format="rgb24")
            frame.pts, frame.time_base = times(n), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def wait_for(true: Callable[[], bool], seconds: float = 60.0, what: Callable[[], object] = str) -> float:
    """Waits until something is true; the seconds that took. Fails the test after `seconds`."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what()}"
        time.sleep(0.02)
    return time.monotonic() - began


class Watcher:
    """A source with a mailbox, and all that it told."""

    def __init__(self, url: str, *, capacity: int = 500, policy: str = "newest", **options: object) -> None:
        self.source: Source = open_source(url, replace(SourceOptions(patience=HASTY), **options))  # type: ignore[arg-type]
        self.mailbox = Mailbox(capacity, policy="every" if policy == "every" else "newest")
        self.told: list[SourceStatus] = []
        self.seen: list[Frame] = []
        self.source.start(self.mailbox, self.told.append)

    @property
    def state(self) -> State:
        return self.source.status.state

    @property
    def states(self) -> list[State]:
        return [status.state for status in self.told]

    def frames(self) -> list[Frame]:
        """All frames so far."""
        self.seen += self.mailbox.take(len(self.mailbox))
        return self.seen

    def until(self, state: State, seconds: float = 60.0) -> float:
        """Waits until it is told that the source is in a state, or has been in it meanwhile."""
        told = max(len(self.told) - 1, 0)
        return wait_for(
            lambda: state in self.states[told:],
            seconds,
            lambda: f"{state}, not {self.source.status}",
        )

    def been(self, state: State) -> str:
        """Waits until the source has been in a state, be it for a moment before this call; why it last was."""
        wait_for(lambda: state in self.states, what=lambda: f"{state}, only {self.states}")
        return self.reason(state)

    def reason(self, state: State) -> str:
        """Why it was last in a state."""
        return next(status.reason for status in reversed(self.told) if status.state is state)

    def more(self, frames: int = 5, seconds: float = 60.0) -> float:
        """Waits for so many new frames."""
        had = self.source.status.frames
        return wait_for(
            lambda: self.source.status.frames >= had + frames,
            seconds,
            lambda: f"{frames} more frames: {self.source.status}",
        )


@contextlib.contextmanager
def watching(url: str, **options: object) -> Iterator[Watcher]:
    """Watches a source for the length of a test, and sees that its threads go."""
    watcher = Watcher(url, **options)  # type: ignore[arg-type]
    try:
        yield watcher
    finally:
        watcher.frames()
        watcher.source.stop(8.0)
        assert watcher.state is State.ENDED
        assert not any(thread.is_alive() for thread in getattr(watcher.source, "threads", []))


def kept_port() -> socket.socket:
    """A port of loopback for a server that comes and goes, by a socket that is bound to it and does not listen.

    Linux gives it to nobody who asks for any port, and lets whoever asks for this one (SO_REUSEADDR) listen there.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept


class RtspServer:
    """GStreamer's RTSP server in a process of its own."""

    def __init__(self, user: str = "", certificate: str = "", **settings: object) -> None:
        self.arguments = (user, certificate, json.dumps(settings))
        self.kept = kept_port()
        self.port: int = self.kept.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Starts it, at its port."""
        command = [SYSTEM_PYTHON, str(HERE / "rtsp_server.py"), str(self.port), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == str(self.port), "the RTSP server did not start"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def close(self) -> None:
        """Stops it for good."""
        self.stop()
        self.kept.close()

    def url(self, path: str, scheme: str = "rtsp", user: str = "") -> str:
        return f"{scheme}://{user + '@' if user else ''}127.0.0.1:{self.port}{path}"


@pytest.fixture(scope="session")
def rtsp() -> Iterator[RtspServer]:
    """A server that all tests share which do it no harm."""
    with rtsp_server() as server:
        yield server


@pytest.fixture(scope="module")
def loopback() -> Iterator[None]:
    """aioice leaves loopback out, which may be all there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])
        yield


@contextlib.contextmanager
def rtsp_server(user: str = "", certificate: str = "", **settings: object) -> Iterator[RtspServer]:
    server = RtspServer(user, certificate, **settings)
    try:
        yield server
    finally:
        server.close()


def stop_all(watchers: Collection[Watcher]) -> None:
    """Ends many sources at once."""
    for watcher in watchers:
        watcher.source.stop(0)
    for watcher in watchers:
        watcher.source.stop(8)


class Proxy:
    """A proxy on loopback between a player and an RTSP server, that does damage where it is told to.

    `damage` gets each RTP packet, over TCP or UDP, with its number and returns what becomes of it; None drops it. While `hushed`
    nothing passes from the server, though the connection stays (a half-open one). `mute` accepts and never answers.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.damage: Callable[[int, bytes], bytes | None] | None = None
        self.hushed = self.mute = False
        self.packets = self.dropped = 0
        self.open: list[socket.socket] = []
        self.datagrams: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True, name="proxy").start()

    def accept(self) -> None:
        while True:
            try:
                player, _ = self.listener.accept()
            except OSError:
                return
            self.open.append(player)
            if self.mute:
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream), 5)
            except OSError:
                player.close()
                continue
            server.settimeout(None)
            self.open.append(server)
            for run, ends in ((self.upwards, (player, server)), (self.downwards, (server, player))):
                threading.Thread(target=self.carry, args=(run, *ends), daemon=True, name="proxy").start()

    def carry(
        self, run: Callable[[socket.socket, socket.socket], None], one: socket.socket, other: socket.socket
    ) -> None:
        try:
            run(one, other)
        except OSError:
            pass
        finally:
            for end in (one, other):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def upwards(self, player: socket.socket, server: socket.socket) -> None:
        while data := player.recv(65536):
            server.sendall(re.sub(rb"client_port=(\d+)-(\d+)", self.redirected, data))

    def redirected(self, ports: re.Match[bytes]) -> bytes:
        """Ports of our own in place of a player's, for RTP and for RTCP."""
        own = []
        for n, port in enumerate(ports.groups()):
            link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            link.bind(("127.0.0.1", 0))
            link.settimeout(0.2)
            self.datagrams.append(link)
            threading.Thread(target=self.relay, args=(link, int(port), n == 0), daemon=True, name="proxy").start()
            own.append(link.getsockname()[1])
        return b"client_port=%d-%d" % (*own,)

    def relay(self, link: socket.socket, port: int, pictures: bool) -> None:
        """Carries datagrams to a player's port until the proxy is closed."""
        while link.fileno() >= 0:
            with contextlib.suppress(OSError):
                packet: bytes | None = link.recv(65536)
                if pictures and not self.hushed:
                    packet = self.damaged(packet or b"")
                if packet is not None and not self.hushed:
                    link.sendto(packet, ("127.0.0.1", port))

    def damaged(self, packet: bytes) -> bytes | None:
        """What becomes of an RTP packet."""
        self.packets += 1
        left = packet if self.damage is None else self.damage(self.packets, packet)
        self.dropped += left is None
        return left

    def downwards(self, server: socket.socket, player: socket.socket) -> None:
        waiting = b""
        while data := server.recv(65536):
            waiting += data
            out = b""
            while waiting:
                if waiting[0] != ord("$"):
                    end = waiting.find(b"$")
                    text, waiting = (waiting, b"") if end < 0 else (waiting[:end], waiting[end:])
                    out += text
                    continue
                if len(waiting) < 4 or len(waiting) < 4 + (size := struct.unpack(">H", waiting[2:4])[0]):
                    break
                channel, packet, waiting = waiting[1], waiting[4 : 4 + size], waiting[4 + size :]
                if channel == 0:
                    left = self.damaged(packet)
                    if left is None:
                        continue
                    packet = left
                out += b"$" + bytes([channel]) + struct.pack(">H", len(packet)) + packet
            if not self.hushed:
                player.sendall(out)

    def cut(self) -> None:
        """Breaks all connections."""
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.open.clear()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
        for link in self.datagrams:
            link.close()


@contextlib.contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    between = Proxy(port)
    try:
        yield between
    finally:
        between.close()


def certificate(folder: Path) -> str:
    """A self-signed certificate and its key, in one file."""
    path = folder / "server.pem"
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl")
    command = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout k -out c"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    path.write_bytes((folder / "c").read_bytes() + (folder / "k").read_bytes())
    return str(path)


def ec_certificate(folder: Path) -> tuple[str, str]:
    """Files of a self-signed P-256 certificate and of its key."""
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=x -keyout ek -out ec"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return str(folder / "ec"), str(folder / "ek")


class Mjpeg(BaseHTTPRequestHandler):
    """Pushes JPEGs; the server's `picture` gives each, None keeps the connection and sends nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        n = 0
        with contextlib.suppress(OSError):
            while not self.server.stopping:  # type: ignore[attr-defined]
                data = self.server.picture(n)  # type: ignore[attr-defined]
                if data is not None:
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    self.wfile.write(head.encode() + data + b"\r\n")
                n += 1
                time.sleep(0.04)

    def log_message(self, *_: object) -> None:
        pass


def jpeg(pixels: np.ndarray) -> bytes:
    context = av.CodecContext.create("mjpeg", "w")
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt, context.time_base = "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode()])


class Server(ThreadingHTTPServer):
    """With room for forty that knock at once, none of whom has to knock again a second later."""

    daemon_threads, request_queue_size = True, 64


@contextlib.contextmanager
def http_server(handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1", **settings: object) -> Iterator[str]:
    server = Server((address, 0), handler)
    vars(server).update(stopping=False, **settings)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        server.stopping = True  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()


def broadcast(target: str, format: str, stop: threading.Event, options: dict[str, str]) -> None:
    """Encodes the moving square in real time into whatever `target` is, until told to stop."""
    began = time.monotonic()
    with contextlib.suppress(av.error.FFmpegError), av.open(target, "w", format=format, options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = 25, 1
        n = 0
        while not stop.wait(max(0.0, began + n / 25 - time.monotonic())):
            frame = av.VideoFrame.from_ndarray(drawn(n), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(stream.encode(frame))
            n += 1


@contextlib.contextmanager
def broadcasting(target: str, format: str, **options: str) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=broadcast, args=(target, format, stop, options), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


class Folder(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments, directory=str(arguments[2].folder))  # type: ignore[arg-type, attr-defined]

    def log_message(self, *_: object) -> None:
        pass


def serving_folder(folder: Path) -> contextlib.AbstractContextManager[str]:
    """An HTTP server of a folder's files; its URL."""
    return http_server(Folder, folder=folder)


@contextlib.contextmanager
def rtmp_server(clip: Path) -> Iterator[str]:
    """FFmpeg's own RTMP server, which serves one player in real time, and begins anew for the next."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("needs ffmpeg: sh tests/system-packages.sh")
    kept = kept_port()
    url = f"rtmp://127.0.0.1:{kept.getsockname()[1]}/live/camera"
    command = f"{ffmpeg} -v quiet -nostdin -re -stream_loop -1 -i {clip} -c copy -f flv -listen 1 {url}"
    stopping = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def serve() -> None:
        while not stopping.is_set():
            running[:] = [subprocess.Popen(command.split())]
            running[0].wait()
            stopping.wait(0.1)

    thread = threading.Thread(target=serve, daemon=True, name="rtmp server")
    thread.start()
    try:
        yield url
    finally:
        stopping.set()
        while thread.is_alive():
            for process in running:
                process.kill()
            thread.join(0.1)
        kept.close()
