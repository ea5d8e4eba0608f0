"""Slow and greedy clients: half requests, floods of frames, bodies, candidates, viewers and wrong tokens."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from contextlib import ExitStack, closing, suppress
from typing import Any

import aioice.ice
import httpx
import pytest

from protocols.chat import read_chat
from protocols.fields import ProtocolError
from protocols.whip import FRAGMENT, MOST_CANDIDATES, SDP, WhipEndpoint
from streamer.server import app, connections, limits
from streamer.server.admission import Held
from streamer.server.auth import new_token, token_digest
from streamer.server.connections import FRAGMENTS, Crowd
from streamer.server.errors import Refusals, RequestError
from streamer.server.limits import Limits, network_of
from tests.capture.publisher import Publisher
from tests.protocols.test_whip import OFFER
from tests.streamer.serving import CONFIG, Daemon, Served, eventually, receive, send, wait_for
from tests.streamer.test_hardness import HANDSHAKE, frame, raw


def answered(server: Served) -> None:
    """Somebody else's request is."""
    assert httpx.get(f"{server.url}/healthz", timeout=60).status_code == 200


def test_half_heads_are_sent_away(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.5)  # what is sent to a connection that is cut already resets it
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    with ExitStack() as stack:
        clients = []
        for sent in (b"", head[:30], head + b"X: y\r\n" * 50):
            clients.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))))
            clients[-1].settimeout(60)
            clients[-1].sendall(sent)
        for client in clients:
            told = b""
            with suppress(ConnectionResetError):
                while part := client.recv(65_536):
                    told += part
            assert b"408 Request Timeout" in told
    wait_for(lambda: not len(server.app.state.crowd))


def test_a_head_that_trickles_is_late_all_the_same(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 60:
                client.sendall(b"x: y\r\n")
                time.sleep(0.02)


def test_connections_have_a_number_and_one_address_never_has_all(daemon: Daemon) -> None:
    with daemon.served() as server, ExitStack() as stack:
        server.app.state.crowd = Crowd(8)
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(6)]
        wait_for(lambda: len(server.app.state.crowd) == 6)
        with socket.create_connection(("127.0.0.1", server.port)) as seventh:
            seventh.settimeout(60)
            assert seventh.recv(1000).startswith(b"HTTP/1.1 503") and not seventh.recv(1000)
        assert server.app.state.crowd.enter("another", "192.0.2.1"), "those of other addresses find room"
        held[0].close()
        wait_for(lambda: len(server.app.state.crowd) == 6)
        answered(server)


def test_tls_handshakes_are_connections_like_others(
    daemon: Daemon, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that shakes hands by itself shows a connection only afterwards: 500 that never do would be seen by nobody."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60.0)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    secured = {"certificate": certificate[0], "key": certificate[1]}
    with daemon.served(server=secured) as server, ExitStack() as stack:
        server.app.state.crowd = crowd = Crowd(8)
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(6)]
        for client, sent in zip(
            held, (b"", hello, hello[:3], b"GET / HTTP/1.1\r\n\r\n", b"\0" * 9_000, b""), strict=True
        ):
            client.sendall(sent)
        for client in held[3:5]:  # what is no handshake at all is sent away, and held its place until then
            client.settimeout(60)
            with suppress(ConnectionResetError):
                while client.recv(1000):
                    pass
        wait_for(lambda: len(crowd) == 4)
        for _ in range(2):
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))))
        wait_for(lambda: len(crowd) == 6)
        with socket.create_connection(("127.0.0.1", server.port)) as seventh, suppress(ConnectionResetError):
            seventh.settimeout(60)
            assert not seventh.recv(1000)
        for client in held:
            client.close()
        wait_for(lambda: not len(crowd))
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
        late = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(3)]
        for client, sent in zip(late, (b"", hello, hello[:3]), strict=True):
            client.settimeout(30)  # within which asyncio's own patience with handshakes is not over
            with suppress(ConnectionError):
                client.sendall(sent)
        for client in late:
            with suppress(ConnectionError):
                assert not client.recv(1000), "it is sent away once its time is over"
        wait_for(lambda: not len(crowd))
        monkeypatch.setattr(connections, "HEAD_SECONDS", 60.0)
        with httpx.Client(verify=ssl.create_default_context(cafile=certificate[0]), timeout=60) as client:
            for _ in range(3):
                assert client.get(f"https://127.0.0.1:{server.port}/healthz").status_code == 200
            assert len(crowd) == 1
        wait_for(lambda: not len(crowd))


@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_sent_along_with_the_handshake_is_kept(server: Served, parts: int) -> None:
    """A client ought to wait until it is let in (RFC 6455, 4.1); one that does not loses nothing, and is told of what is wrong."""
    asked = frame(b'{"type": "stream.list"}') + frame(b"x", 0x89)

    async def story(sent: bytes, told: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        both = HANDSHAKE + sent
        at = len(both) if parts == 1 else len(HANDSHAKE) + 5
        writer.write(both[:at])
        await writer.drain()
        writer.write(both[at:])
        assert b" 101 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        got = b""
        while told not in got:
            part = await asyncio.wait_for(reader.read(65_536), 60)
            assert part, got
            got += part
        writer.close()

    asyncio.run(story(asked, b"\x8a\x01x"))
    asyncio.run(story(asked, b"stream.listed"))
    asyncio.run(story(b"\x81\xff" + (100 * 2**20).to_bytes(8, "big") + bytes(4) + b"x" * 200_000, b"message_too_large"))


def test_an_address_is_counted_by_what_one_machine_can_use() -> None:
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::9%eth0") == "2001:db8:1:2::/64"
    assert network_of("192.0.2.7") == "192.0.2.7" and network_of("unknown") == "unknown"


FLOODS = {
    "empty fragments": frame(b"", 0x01) + frame(b"", 0x00) * 20_000,
    "pings": frame(b"x", 0x89) * 20_000,
    "pongs": frame(b"", 0x8A) * 20_000,
    "empty messages": frame(b"", 0x81) * 20_000,
}


@pytest.mark.parametrize("kind", FLOODS)
def test_floods_of_frames_are_read_slowly(server: Served, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 at once would hold the loop for a second and more; others are answered between them."""
    monkeypatch.setattr(limits, "FRAMES_AT_ONCE", 100.0)
    monkeypatch.setattr(limits, "FRAMES_PER_SECOND", 1.0)
    counted: list[float] = []
    count = connections.WebSocketProtocol._count

    def counting(protocol: connections.WebSocketProtocol) -> None:
        counted.append(time.monotonic())
        count(protocol)

    monkeypatch.setattr(connections.WebSocketProtocol, "_count", counting)

    async def story() -> None:
        _, writer = await raw(server)
        began = time.monotonic()
        writer.write(FLOODS[kind])
        for _ in range(3):
            await asyncio.to_thread(answered, server)
        wait_for(lambda: counted)
        passed = time.monotonic() - began
        assert len(counted) <= 100 + passed + connections.SLICE_BYTES / 6 + 1, "a slice may hold more than is left"
        writer.transport.abort()

    asyncio.run(story())


def test_a_message_has_so_many_fragments(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAMES_AT_ONCE", 100_000.0)

    async def story() -> None:
        reader, writer = await raw(server)
        writer.write(frame(b"", 0x01) + frame(b"", 0x00) * (FRAGMENTS + 10))
        told = b""
        while part := await asyncio.wait_for(reader.read(65_536), 60):
            told += part
        assert (1009).to_bytes(2, "big") in told

    asyncio.run(story())


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [' + b"{}," * 2_000_000 + b"{}]}",
        b'{"messages": "' + b"x" * 24_000_000 + b'"}',
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": [{"role": "user", "content": [' + b'{"type": "x"},' * 500_000 + b"{}]}]}",
        b'{"a": ' + b"9" * 5_000_000 + b"}",
    ],
    ids=["objects", "a string", "depth", "parts", "a number"],
)
def test_large_json_is_read_off_the_loop_and_refused(
    server: Served, daemon: Daemon, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[threading.Thread] = []

    def read(*arguments: Any) -> Any:
        readers.append(threading.current_thread())
        return read_chat(*arguments)

    monkeypatch.setattr(app, "read_chat", read)
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=body, timeout=60)
    assert reply.status_code == 400 and len(reply.content) < 2_000
    assert readers and daemon.thread not in readers


def test_bytes_that_are_held_are_counted_over_all() -> None:
    held = Held(100)
    held.take("a", 50)
    with pytest.raises(RequestError) as refused:
        held.take("a", 1)
    assert refused.value.code == "overloaded" and refused.value.retry_after
    held.take("b", 50)
    with pytest.raises(RequestError):
        held.take("c", 1)
    held.give_back("a", 50)
    held.take("c", 50)


def test_messages_are_held_like_bodies(server: Served) -> None:
    """64 websockets that each begin a message of 16 MiB would hold a gigabyte: what is begun counts, until it is done with."""
    held = server.app.state.held
    held.most = 2 * 2**20
    begun = b"\x01\xff" + (2**20).to_bytes(8, "big") + bytes(4) + b" " * 600_000

    async def story() -> None:
        _, writer = await raw(server)
        writer.write(begun)
        await eventually(lambda: held.bytes > 600_000)
        other, sending = await raw(server)
        sending.write(begun)
        assert (1013).to_bytes(2, "big") + b"Too much" in await asyncio.wait_for(other.read(), 60)
        await eventually(lambda: held.bytes < 700_000)
        writer.write(b" " * (2**20 - 600_000) + frame(b"", 0x80))
        await eventually(lambda: held.bytes < 100)
        async with server.connect() as client:
            for _ in range(4):
                await client.send(" " * 900_000)
                assert (await receive(client))["type"]
            await client.send("x" * 5_000)
        writer.transport.abort()
        await eventually(lambda: held.bytes == 0)

    asyncio.run(story())


def test_a_visitors_websockets_share_what_one_visitor_may_send() -> None:
    counted = Limits(64, 1, 1)
    waits = [counted.message("ada", 0.0, 10.0) for _ in range(limits.SOCKETS_AT_ONCE * 60)]
    assert waits[0] == 0 < waits[-1] and waits == sorted(waits) and not counted.message("bob", 0.0, 10.0)
    assert counted.message("ada", 60.0, 1.0) == 0


def test_bodies_beyond_what_is_held_wait_outside(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.server.admission.MOST_BYTES", 4 * 2**20)
    monkeypatch.setattr(Held.__init__, "__defaults__", (4 * 2**20,))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n"
    with daemon.served() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.settimeout(60)
            with suppress(OSError):
                client.sendall(head + b" " * 3_000_000)
            assert client.recv(1000).startswith(b"HTTP/1.1 503")
        reply = httpx.post(f"{server.url}/v1/chat/completions", content=b"{}", timeout=60)
        assert reply.status_code == 400, "all was given back"


def test_candidates_have_a_number() -> None:
    endpoint = WhipEndpoint(new_id=lambda: "session")
    candidate = "a=candidate:1 1 udp 2130706431 192.0.2.1 9 typ host\r\n"
    publish = endpoint.request("POST", "door", None, {"content-type": SDP}, OFFER.encode())
    endpoint.published(publish, "v=0")  # type: ignore[arg-type]

    def trickle(count: int) -> None:
        endpoint.request("PATCH", "door", "session", {"content-type": FRAGMENT}, (candidate * count).encode())

    trickle(MOST_CANDIDATES - 1)
    trickle(1)
    for count in (1, 3_500):
        with pytest.raises(ProtocolError, match="100 candidates"):
            trickle(count)
    with pytest.raises(ProtocolError, match="100 candidates"):
        endpoint.request("POST", "door", None, {"content-type": SDP}, (OFFER + candidate * 3_500).encode())


def test_one_publisher_never_takes_every_slot(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])
    ada, bob = new_token(), new_token()
    tokens = [
        {"name": name, "scopes": ["publish"], "digest": f"sha256:{token_digest(token)}"}
        for name, token in (("ada", ada), ("bob", bob))
    ]
    with daemon.served(server={"tokens": tokens}) as server, ExitStack() as stack:

        def publish(name: str, token: str) -> tuple[int, str]:
            told: list[httpx.Response] = []

            def exchange(offer: str) -> str:
                headers = {"Content-Type": SDP, "Authorization": f"Bearer {token}"}
                told.append(httpx.post(f"{server.url}/whip/{name}", content=offer, headers=headers, timeout=60))
                told[0].raise_for_status()
                return told[0].text

            peer = stack.enter_context(closing(Publisher()))
            with suppress(httpx.HTTPStatusError):
                peer.publish(exchange)
            return told[0].status_code, told[0].text

        assert [publish(f"ada{number}", ada)[0] for number in range(2)] == [201, 201]  # of four slots
        code, text = publish("ada2", ada)
        assert code == 429 and "2 streams of this publisher are here already" in text
        assert publish("bob", bob)[0] == 201
        for name in ("ada0", "ada1", "bob"):
            daemon.run(lambda name=name: daemon.assistant.detach(name))


def test_viewers_have_a_number(daemon: Daemon) -> None:
    with (
        daemon.served(limits={**CONFIG["limits"], "visitor_connections": 2}) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        address = "/v1/streams/demo/video.mjpeg"
        with client.stream("GET", address), client.stream("GET", address):
            assert client.get(address).status_code == 429
        wait_for(lambda: not server.app.state.routes.limits._connected)
        with client.stream("GET", address) as again:
            assert again.status_code == 200


def test_wrong_tokens_are_told_once_a_minute(
    daemon: Daemon, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REQUESTS_AT_ONCE", 50.0)
    monkeypatch.setattr(limits, "REQUESTS_PER_SECOND", 0.01)
    token = {"name": "ada", "scopes": ["view"], "digest": f"sha256:{token_digest(new_token())}"}
    with (
        daemon.served(server={"tokens": [token]}) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        caplog.at_level(logging.INFO, "streamer"),
    ):
        codes = [
            client.get("/v1/streams", headers={"Authorization": f"Bearer {number:040d}"}).status_code
            for number in range(60)
        ]
    assert codes == [401] * 50 + [429] * 10
    assert len([line for line in caplog.messages if "refused" in line]) == 2, "one of each reason"


def test_refusals_are_summed_up() -> None:
    refusals = Refusals()
    assert [refusals.told("a", "unauthorized", now) for now in (0, 1, 59, 60, 61, 121)] == [0, None, None, 2, None, 1]
    assert refusals.told("a", "forbidden", 61) == 0 == refusals.told("b", "unauthorized", 61)
    for number in range(10_000):
        refusals.told(f"address {number}", "unauthorized", 62)
    assert len(refusals._since) <= 1_000


def test_addresses_that_knock_are_forgotten() -> None:
    counted = Limits(1, 1, 1)
    for number in range(20_000):
        counted.knock(f"{number}", 0.0)
    assert len(counted._knocks) <= 10_000


def test_the_connection_that_is_one_too_many_is_told_why(daemon: Daemon) -> None:
    async def story(server: Served) -> None:
        async with server.connect() as one, server.connect() as two:
            await receive(one)
            await receive(two)
            async with server.connect() as three:
                with suppress(Exception):
                    await three.recv()
                assert three.close_code == 1013 and "2 connections are open" in (three.close_reason or "")
            await send(one, "stream.list")
            while (await receive(one))["type"] != "stream.listed":
                pass

    with daemon.served(limits={**CONFIG["limits"], "visitor_connections": 2}) as server:
        asyncio.run(story(server))
