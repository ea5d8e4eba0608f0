"""What a stranger's socket can do: pipelines, fragments, half-closed connections, giants; and TLS."""

import asyncio
import datetime
import ipaddress
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from streamer.client import AsyncClient, ClientError
from streamer.server import limits
from tests.streamer.serving import Daemon, Served, ask, eventually, receive, until

ROOT = Path(__file__).parents[2]
HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def raw(server: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A websocket after its handshake, in bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HANDSHAKE)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 101 " in head
    return reader, writer


def frame(body: bytes, first: int = 0x81) -> bytes:
    """A frame with a mask of zeros."""
    size = len(body)
    head = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([first]) + head + bytes(4) + body


def test_ten_thousand_pipelined_requests_are_answered_in_order(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred of them on their way at any time: behind ten thousand, on a busy machine, a ping is answered too late."""
    for name in ("MESSAGES_AT_ONCE", "FRAMES_AT_ONCE"):
        monkeypatch.setattr(limits, name, 20_000.0)

    async def story(server: Served) -> None:
        async with server.connect() as client:
            await receive(client)
            unanswered = asyncio.Semaphore(100)

            async def write() -> None:
                for number in range(10_000):
                    await unanswered.acquire()
                    message = {"type": "conversation.item.retrieve", "item_id": "none", "event_id": str(number)}
                    await client.send(json.dumps(message))

            writing = asyncio.create_task(write())
            for number in range(10_000):
                assert (await receive(client))["error"]["event_id"] == str(number)
                unanswered.release()
            await writing

    with daemon.served() as server:
        asyncio.run(story(server))


def test_characters_split_over_fragments_arrive_whole(server: Served) -> None:
    async def story() -> None:
        async with server.connect() as client:
            await receive(client)
            text = json.dumps({"type": "session.update", "session": {"instructions": "größer 🙂"}}, ensure_ascii=False)
            data = text.encode()
            for place, byte in enumerate(data):
                if place == 0:
                    client.protocol.send_text(bytes([byte]), fin=False)
                else:
                    client.protocol.send_continuation(bytes([byte]), fin=place == len(data) - 1)
                for out in client.protocol.data_to_send():
                    client.transport.write(out)
            assert (await receive(client))["session"]["instructions"] == "größer 🙂"

    asyncio.run(story())


def test_a_message_of_a_hundred_megabytes_is_refused_by_its_size(server: Served) -> None:
    async def story() -> None:
        reader, writer = await raw(server)
        await reader.read(65_536)
        writer.write(b"\x81\xff" + (100 * 2**20).to_bytes(8, "big") + bytes(4))
        end = await asyncio.wait_for(reader.read(), 60)
        told, _, close = end.rpartition(b"\x88")
        assert b"message_too_large" in told and int.from_bytes(close[1:3], "big") == 1009
        writer.close()

    asyncio.run(story())


@pytest.mark.parametrize("reserved", [0xC1, 0x83, 0x8B])
def test_broken_frames_close_with_1002(server: Served, reserved: int) -> None:
    async def story() -> None:
        reader, writer = await raw(server)
        await reader.read(65_536)
        writer.write(frame(b"x", reserved))
        end = await asyncio.wait_for(reader.read(65_536), 60)
        assert end[0] == 0x88 and int.from_bytes(end[2:4], "big") == 1002
        writer.close()

    asyncio.run(story())


def test_half_closed_socket_ends_its_answer(server: Served, daemon: Daemon) -> None:
    async def story() -> None:
        _, writer = await raw(server)
        response = {"instructions": "Talk", "conversation": "none", "max_output_tokens": 20_000}
        writer.write(frame(json.dumps({"type": "response.create", "response": response}).encode().ljust(200)))
        await eventually(lambda: daemon.open_answers == 1)
        writer.write_eof()
        await eventually(lambda: daemon.open_answers == 0)
        writer.close()

    asyncio.run(story())


def test_nonsense_on_the_port_hurts_nobody(server: Served) -> None:
    async def story() -> None:
        for noise in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
            b"\0" * 100_000,
            b"GET / HTTP/9.9\r\n\r\n",
            b"\r\n" * 50,
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(noise)
            await asyncio.sleep(0.05)
            writer.transport.abort()
        async with server.connect() as client:
            await ask(client, max_output_tokens=1)
            await until(client, "response.done")

    asyncio.run(story())


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "streamer")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")


def test_everything_over_tls(daemon: Daemon, certificate: tuple[str, str]) -> None:
    async def story(url: str) -> None:
        trusting = ssl.create_default_context(cafile=certificate[0])
        async with AsyncClient(url, tls=trusting) as client:
            assert [word async for word in client.ask("What?", max_tokens=2)]
        with pytest.raises(ClientError, match="not trusted") as refused:
            await AsyncClient(url).__aenter__()
        assert refused.value.code == "untrusted"

    with daemon.served(server={"certificate": certificate[0], "key": certificate[1]}) as server:
        url = f"https://127.0.0.1:{server.port}"
        asyncio.run(story(url))
        command = [sys.executable, "-m", "streamer.cli.main", "ask", "What?", "--url", url, "--ca", certificate[0]]
        done = subprocess.run([*command, "--max-tokens", "2"], capture_output=True, text=True, timeout=200, cwd=ROOT)
        assert done.returncode == 0 and done.stdout, done.stderr
        with pytest.raises(ClientError, match="is not a streamer daemon"):
            asyncio.run(AsyncClient(server.url).__aenter__())


def test_example_asks(server: Served) -> None:
    done = subprocess.run(
        [sys.executable, "examples/ask.py"],
        cwd=ROOT,
        env={**os.environ, "STREAMER_URL": server.url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0 and "demo is live" in done.stdout, done.stderr
