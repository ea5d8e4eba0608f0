"""What another client's question brings along: for nobody else there is such a stream, at no door, in no error, in no figure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from protocols.whip import SDP
from streamer.server.attachments import PREFIX
from tests.protocols.test_whip import OFFER
from tests.streamer.serving import Daemon, Served, receive, send, until, wait_for

HIDDEN = f"{PREFIX}0123456789ab"
SPY = {"name": "spy", "question": "Is there a circle?"}


@pytest.fixture
def hidden(daemon: Daemon) -> Iterator[str]:
    """A stream as a question's picture makes it, of which a frame was seen."""
    daemon.run(lambda: daemon.assistant.attach(HIDDEN, "push://given", policy="every"))
    for number in range(2):
        daemon.assistant.push(HIDDEN, np.full((64, 64, 3), 200, np.uint8), number / 2)
    wait_for(lambda: daemon.do(lambda: daemon.assistant.newest_frame(HIDDEN)) is not None)
    yield HIDDEN
    daemon.run(lambda: daemon.assistant.detach(HIDDEN))


def test_it_is_at_no_door(server: Served, daemon: Daemon, hidden: str) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        replies = {
            "status": client.get(f"/v1/streams/{hidden}"),
            "frame": client.get(f"/v1/streams/{hidden}/frame.jpg"),
            "video": client.get(f"/v1/streams/{hidden}/video.mjpeg"),
            "detach": client.delete(f"/v1/streams/{hidden}"),
            "publish": client.post(f"/whip/{hidden}", content=OFFER, headers={"Content-Type": SDP}),
            "model": client.get(f"/v1/models/nano/{hidden}"),
            "timeline": client.get(f"/v1/streams/{hidden}/timeline"),
            "density": client.get(f"/v1/streams/{hidden}/timeline/density"),
            "clip": client.get(f"/v1/streams/{hidden}/clip?from=now"),
            "still": client.get(f"/v1/streams/{hidden}/still?at=now"),
            "forget": client.delete(f"/v1/streams/{hidden}/memory"),
            "watch": client.post("/v1/watches", json={**SPY, "stream": hidden}),
        }
        assert {name: reply.status_code for name, reply in replies.items()} == dict.fromkeys(replies, 404)
        question = {"model": f"nano/{hidden}", "messages": [{"role": "user", "content": "What?"}]}
        assert client.post("/v1/chat/completions", json=question).status_code == 404
        for address in ("/v1/streams", "/v1/models", "/metrics", "/healthz"):
            assert PREFIX not in client.get(address).text
        assert client.get("/healthz").json()["streams"] == 1
        for name in ("frame.jpg", "clip?from=now", "still?at=now", "timeline"):
            told = client.get(f"/v1/streams/cellar/{name}")
            assert told.status_code == 404 and PREFIX not in told.text, "nor is it named beside others"
        assert PREFIX not in client.post("/v1/watches", json={**SPY, "stream": "cellar"}).text
    assert any(status.name == hidden for status in daemon.do(daemon.assistant.streams))


@pytest.mark.parametrize("verb", ["stream.frame", "stream.detach", "stream.status", "input_video_buffer.append"])
def test_it_is_in_no_session(server: Served, hidden: str, verb: str) -> None:
    async def story() -> None:
        async with server.connect() as client:
            await receive(client)
            fields = {"video": "data:image/gif;base64,R0lGODlhAQABAAAAACw="} if verb.startswith("input") else {}
            await send(client, verb, stream=hidden, **fields)
            refused = (await until(client, "error"))[-1]["error"]
            assert refused["code"] in ("unknown_stream", "unknown_event")
            assert refused["message"].count(PREFIX) <= 1, "no more than the client said itself"

    asyncio.run(story())


def test_nobody_hears_or_asks_of_it(server: Served, hidden: str) -> None:
    async def story() -> None:
        async with server.connect(f"?stream={hidden}") as client:
            await send(client, "response.create", response={"instructions": "What?", "stream": hidden})
            events = [*await until(client, "error")]
            await send(client, "stream.list")
            events += await until(client, "stream.listed")
            assert not [event for event in events if event["type"].startswith(("stream.status", "stream.frame"))]
            assert [each["name"] for each in events[-1]["streams"]] == ["demo"]

    asyncio.run(story())


def test_it_is_never_the_only_stream(server: Served, daemon: Daemon, hidden: str) -> None:
    """Where nothing is watched, a question that names no stream is not answered about another visitor's picture."""
    daemon.run(lambda: daemon.assistant.detach("demo"))

    async def pushed() -> str:
        async with server.connect() as client:
            await receive(client)
            await send(client, "input_video_buffer.append", video="data:image/gif;base64,R0lGODlhAQABAAAAACw=")
            return str((await until(client, "error"))[-1]["error"]["message"])

    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            question = {"model": "nano", "messages": [{"role": "user", "content": "What do you see?"}]}
            replies = [
                client.post("/v1/chat/completions", json=question),
                client.post("/v1/responses", json={"model": "nano", "input": "What do you see?"}),
                client.post("/v1/watches", json=SPY),
            ]
        assert [reply.status_code for reply in replies] == [404] * 3
        for told in (*(reply.text for reply in replies), asyncio.run(pushed())):
            assert "Which stream is meant? Name one; there are: none" in told and PREFIX not in told
    finally:
        daemon.run(lambda: daemon.assistant.attach("demo", "demo:", fps=2))
        wait_for(lambda: daemon.do(lambda: daemon.assistant.newest_frame("demo")) is not None)


def test_it_makes_no_other_stream_ambiguous(server: Served, daemon: Daemon, hidden: str) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        question = {"model": "nano", "max_tokens": 1, "messages": [{"role": "user", "content": "What do you see?"}]}
        assert client.post("/v1/chat/completions", json=question).status_code == 200
        assert "Which stream" not in client.post("/v1/watches", json=SPY).text
        client.delete("/v1/watches/spy")
