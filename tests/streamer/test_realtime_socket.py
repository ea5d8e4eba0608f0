"""The realtime door over a real socket: the answer's sequence, and what bad clients get."""

import asyncio
import base64
import io
import json
import socket as sockets
from collections.abc import Coroutine
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed

from streamer.assistant import StreamEvent
from streamer.server import realtime as websocket
from streamer.server.app import close_connections
from tests.streamer.serving import Daemon, Served, ask, eventually, receive, send, until

LONG = 20_000
"""Tokens of an answer that does not end by itself while a test runs."""


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_answer_arrives_in_order(server: Served) -> None:
    async def story() -> None:
        async with server.connect() as client:
            created = await receive(client)
            assert created["type"] == "session.created"
            await ask(client, max_output_tokens=3)
            events = await until(client, "response.done")
            kinds = [event["type"] for event in events if event["type"].startswith("response.")]
            deltas = kinds.count("response.output_text.delta")
            assert deltas > 0
            assert kinds == [
                "response.created",
                "response.output_item.added",
                "response.content_part.added",
                *["response.output_text.delta"] * deltas,
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.done",
            ]
            words = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
            response = events[-1]["response"]
            assert response["output"][0]["content"][0]["text"] == "".join(words)
            assert response["status"] in ("completed", "incomplete")
            assert 0 < response["usage"]["output_tokens"] <= 3

    run(story())


def test_several_answers_at_once(server: Served) -> None:
    async def story() -> None:
        async with server.connect() as client:
            content = [{"type": "input_text", "text": "Who?"}]
            for number in range(3):
                response = {
                    "conversation": "none",
                    "input": [{"type": "message", "role": "user", "content": content}],
                    "metadata": {"number": str(number)},
                    "max_output_tokens": LONG,
                }
                await send(client, "response.create", response=response)
            spoken: list[str] = []
            while len(set(spoken)) < 3 or spoken[-1] != spoken[0]:
                event = await receive(client)
                if event["type"] == "response.output_text.delta":
                    spoken.append(event["response_id"])
            for response_id in set(spoken):
                await send(client, "response.cancel", response_id=response_id)
            done = [(await until(client, "response.done"))[-1]["response"] for _ in range(3)]
            assert {response["metadata"]["number"] for response in done} == {"0", "1", "2"}

    run(story())


def test_cancel_ends_the_answer(server: Served, daemon: Daemon) -> None:
    async def story() -> None:
        async with server.connect() as client:
            await ask(client, max_output_tokens=LONG)
            await until(client, "response.output_text.delta")
            await send(client, "response.cancel")
            done = (await until(client, "response.done"))[-1]["response"]
            assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
            assert daemon.open_answers == 0

    run(story())


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{not json", "invalid_json"),
        ('{"type": "no.such.event"}', "unknown_event"),
        (b"\x00\x01binary", "invalid_value"),
        ('{"type": "response.create", "response": {"stream": "cellar"}}', "unknown_stream"),
        ('{"type": "response.create"}', "empty_question"),
    ],
)
def test_bad_message_gets_an_error_and_the_session_goes_on(server: Served, message: str | bytes, code: str) -> None:
    async def story() -> None:
        async with server.connect() as client:
            await receive(client)
            await client.send(message)
            event = await receive(client)
            assert (event["type"], event["error"]["code"]) == ("error", code)
            await ask(client, max_output_tokens=1)
            assert (await until(client, "response.done"))[-1]["response"]["output"]

    run(story())


def test_unknown_stream_in_the_address_is_told(server: Served) -> None:
    async def story() -> None:
        async with server.connect("?stream=cellar") as client:
            assert (await until(client, "error"))[-1]["error"]["code"] == "unknown_stream"

    run(story())


def test_oversize_message_closes_with_1009_and_others_live_on(daemon: Daemon) -> None:
    async def story(server: Served) -> None:
        async with server.connect() as client:
            await client.send("x" * 5000)
            with pytest.raises(ConnectionClosed):
                await until(client, "never")
            assert client.close_code == 1009
            async with server.connect() as other:
                await ask(other, max_output_tokens=1)
                await until(other, "response.done")

    with daemon.served(server={"max_message_bytes": 4096}) as server:
        run(story(server))


def test_broken_utf8_closes_with_1007_without_a_traceback(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with server.connect() as client:
            await client.send(b"\xff\xfe", text=True)
            with pytest.raises(ConnectionClosed):
                await until(client, "never")
            assert client.close_code == 1007

    run(story())
    assert "Traceback" not in caplog.text


def test_client_that_vanishes_ends_its_answer(server: Served, daemon: Daemon) -> None:
    async def story() -> None:
        client = await server.connect("?stream=demo")
        await ask(client, max_output_tokens=LONG)
        await until(client, "response.output_text.delta")
        assert daemon.open_answers == 1
        client.transport.abort()
        await eventually(lambda: daemon.open_answers == 0)
        await eventually(lambda: not daemon.do(lambda: daemon.assistant.news.subscriptions))

    run(story())


def test_client_that_never_reads_is_closed_and_others_live_on(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "OUTGOING_BYTES", 2 * 1024)
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.2)

    async def story(server: Served) -> None:
        writer = await open_slowly(server.port)
        for _ in range(3):
            response = {"instructions": "Talk", "conversation": "none", "max_output_tokens": LONG}
            writer.write(masked({"type": "response.create", "response": response}))
        await eventually(lambda: daemon.open_answers == 3)
        await eventually(lambda: daemon.open_answers == 0, 60)
        await eventually(lambda: not server.app.state.routes._connections)
        async with server.connect() as other:
            await ask(other, max_output_tokens=2)
            await until(other, "response.done")
        writer.transport.abort()

    with daemon.served(send_buffer=4096) as server:
        run(story(server))


def test_shutdown_mid_answer_is_told_and_closes_with_1001(daemon: Daemon) -> None:
    async def story(server: Served) -> None:
        client = await server.connect()
        await ask(client, max_output_tokens=LONG)
        await until(client, "response.output_text.delta")
        closing = asyncio.run_coroutine_threadsafe(close_connections(server.app), daemon.loop)
        done = (await until(client, "response.done"))[-1]["response"]
        assert done["status"] == "cancelled" and done["status_details"]["error"]["code"] == "shutting_down"
        with pytest.raises(ConnectionClosed):
            await until(client, "never")
        assert client.close_code == 1001
        await asyncio.wait_for(asyncio.wrap_future(closing), 60)
        await eventually(lambda: daemon.open_answers == 0)

    with daemon.served() as server:
        run(story(server))


def test_listener_is_told_of_its_stream_alone(server: Served, daemon: Daemon) -> None:
    async def story() -> None:
        async with server.connect("?stream=demo") as client, server.connect() as silent:
            await receive(client)
            first = await receive(client)
            assert (first["type"], first["stream"], first["state"]) == ("stream.status", "demo", "live")
            facts = {"dropped": {"made up": 2}, "dropped_in_all": 2}
            for stream in ("other", "demo"):
                news = StreamEvent("stream.dropped", stream, facts)
                daemon.do(lambda news=news: daemon.assistant.news.publish(news))
            told: dict[str, Any] = {"dropped": {}}
            while "made up" not in told["dropped"]:  # before it, or with it, comes what a busy machine drops
                told = (await until(client, "stream.dropped"))[-1]
                assert told["stream"] == "demo"
            assert told["dropped"]["made up"] == 2
            await receive(silent)
            await send(silent, "stream.list")
            assert (await receive(silent))["type"] == "stream.listed"

    run(story())


def test_streams_are_listed_added_shown_and_removed(server: Served) -> None:
    async def story() -> None:
        async with server.connect() as client:
            await receive(client)
            await send(client, "stream.attach", stream="new", source="demo:", options={"fps": 2})
            assert (await receive(client))["type"] == "stream.attached"
            await send(client, "stream.list")
            listed = await receive(client)
            assert [stream["name"] for stream in listed["streams"]] == ["demo", "new"]
            await send(client, "stream.attach", stream="new", source="demo:", event_id="again")
            refused = (await receive(client))["error"]
            assert (refused["code"], refused["event_id"]) == ("stream_exists", "again")
            await send(client, "stream.attach", stream="bad", source="/no/such.mp4")
            assert (await receive(client))["error"]["code"] == "bad_source"
            await send(client, "stream.attach", stream="bad", source="http://camera/" + "?pass" * 100_000)
            assert "2,048 are the most" in (await receive(client))["error"]["message"]
            await send(client, "stream.frame", stream="demo")
            shown = await receive(client)
            assert shown["type"] == "stream.frame" and shown["image_url"].startswith("data:image/jpeg;base64,/9j/")
            await send(client, "stream.detach", stream="new")
            assert (await receive(client))["type"] == "stream.detached"

    run(story())


def test_health_and_streams_over_http(server: Served) -> None:
    with httpx.Client(base_url=server.url) as client:
        health = client.get("/healthz").json()
        assert health["status"] == "ok" and health["model"]["name"] == "nano"
        assert health["model"]["trained"] is True or "random" in health["model"]["weights"]
        streams = client.get("/v1/streams").json()["streams"]
        assert streams[0]["name"] == "demo" and streams[0]["state"] == "live"


async def open_slowly(port: int) -> asyncio.StreamWriter:
    """A websocket that reads its handshake and nothing more, with small buffers."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
    writer.write(
        b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert b"101" in await reader.readline()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return writer


def masked(event: dict[str, Any]) -> bytes:
    """A text frame with a mask of zeros."""
    body = json.dumps(event).encode().ljust(200)
    return b"\x81\xfe" + len(body).to_bytes(2, "big") + bytes(4) + body


def test_a_picture_over_the_limit_is_told_the_limit_and_no_reset(daemon: Daemon) -> None:
    """Over a plain socket, which sends all of it before it reads."""
    with daemon.served(server={"max_message_bytes": 100_000}) as server:
        with sockets.create_connection(("127.0.0.1", server.port), 30) as client:
            client.sendall(
                b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            while b"session.created" not in (hello := client.recv(65_536)):  # no client sends before it is let in
                assert hello
            size = 20_000_000
            client.sendall(b"\x82\xff" + size.to_bytes(8) + bytes(4) + bytes(size))
            client.shutdown(sockets.SHUT_WR)
            told = b""
            while data := client.recv(65_536):
                told += data
        assert b'"code": "message_too_large"' in told and b"A message may hold 100000 bytes" in told
        assert b"max_message_bytes" in told and b"\x03\xf1" in told  # and closed with 1009


def test_a_picture_of_12_megapixels_goes_through(server: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((1000, 750)).resize((4000, 3000)))
    data = io.BytesIO()
    Image.fromarray(smooth).save(data, "JPEG", quality=95)
    assert data.tell() > 3_000_000
    url = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What is this?"}]

    async def story() -> None:
        async with server.connect(max_size=None) as client:
            await send(client, "conversation.item.create", item={"type": "message", "role": "user", "content": parts})
            await send(client, "response.create", response={"max_output_tokens": 1})
            done = (await until(client, "response.done"))[-1]["response"]
            assert (
                done["status"] in ("completed", "incomplete") and done["usage"]["input_token_details"]["image_tokens"]
            )

    run(story())
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    chat = {"model": "nano", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    response = {"model": "nano", "max_output_tokens": 1, "input": [{"role": "user", "content": parts}]}
    for path, asked in (("chat/completions", chat), ("responses", response)):
        answered = httpx.post(f"{server.url}/v1/{path}", json=asked, timeout=60)
        assert answered.status_code == 200, answered.text


def test_a_client_of_the_beta_is_answered_in_its_words(server: Served) -> None:
    async def story(**options: Any) -> None:
        async with server.connect(**options) as client:
            created = await receive(client)
            assert created["session"]["modalities"] == ["text"] and "output_modalities" not in created["session"]
            await send(client, "session.update", session={"modalities": ["text"], "max_response_output_tokens": 2})
            assert (await receive(client))["session"]["max_response_output_tokens"] == 2
            await ask(client)
            events = await until(client, "response.done")
            kinds = [event["type"] for event in events]
            assert "conversation.item.created" in kinds and "response.text.delta" in kinds
            assert not {"conversation.item.added", "conversation.item.done", "response.output_text.delta"} & set(kinds)
            words = [event["delta"] for event in events if event["type"] == "response.text.delta"]
            response = events[-1]["response"]
            assert response["output"][0]["content"] == [{"type": "text", "text": "".join(words)}]

    run(story(additional_headers={"OpenAI-Beta": "realtime=v1"}))
    run(story(subprotocols=["realtime", "openai-beta.realtime-v1"]))
