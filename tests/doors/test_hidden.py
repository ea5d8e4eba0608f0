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
        }
        assert {name: reply.status_code for name, reply in replies.items()} == dict.fromkeys(replies, 404)
        question = {"model": f"nano/{hidden}", "messages": [{"role": "user", "content": "What?"}]}
        assert client.post("/v1/chat/completions", json=question).status_code == 404
        for address in ("/v1/streams", "/v1/models", "/metrics", "/healthz"):
            assert PREFIX not in client.get(address).text
        assert client.get("/healthz").json()["streams"] == 1
        assert PREFIX not in client.get("/v1/streams/cellar/frame.jpg").text, "nor is it named beside others"
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
