"""Events and outputs over HTTP."""

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx
import pytest

from streamer.cli.main import main
from streamer.config import Config
from streamer.outputs import feed
from streamer.outputs.outputs import Outputs
from streamer.server.app import create_app
from streamer.server.auth import token_digest
from tests.outputs.receiver import happened
from tests.streamer.serving import CONFIG, Daemon

SECRET = "a secret of the hook"


def events(lines: Iterator[str], count: int) -> list[dict[str, Any]]:
    """The next `count` server-sent events, as a client reads them (id, event and data)."""
    found, event = [], {}
    for line in lines:
        key, _, value = line.partition(": ")
        if not line and "data" in event:
            found.append({"id": event.get("id"), "event": event["event"], **json.loads(event["data"])})
        if not line:
            event = {}
            if len(found) == count:
                break
        else:
            event[key] = value
    return found


def numbers(found: list[dict[str, Any]]) -> list[int]:
    return [int(each["id"].removeprefix("event_")) for each in found]


def test_events_are_told_as_they_come_and_after_the_last_that_was_heard(daemon: Daemon) -> None:
    with daemon.served() as served, httpx.Client(base_url=served.url, timeout=30) as client:

        def publish(*numbers: int, **fields: Any) -> None:
            daemon.do(lambda: [served.outputs.publish(happened(number, **fields)) for number in numbers])

        publish(1)
        with client.stream("GET", "/v1/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.iter_lines()
            assert list(islice(lines, 2)) == ["retry: 2000", ""]
            publish(2, 3)
            found = events(lines, 2)
            assert numbers(found) == [2, 3] and found[0]["question"] == happened(2)["question"]
            assert found[0]["event"] == found[0]["type"] == "watch.started"
        publish(4)
        publish(5, watch="door")
        with client.stream("GET", "/v1/events", headers={"Last-Event-ID": happened(2)["id"]}) as stream:
            assert numbers(events(stream.iter_lines(), 3)) == [3, 4, 5]
        with client.stream("GET", "/v1/events?watch=door", headers={"Last-Event-ID": happened(1)["id"]}) as stream:
            assert numbers(events(stream.iter_lines(), 1)) == [5]


def test_a_reader_is_told_that_it_has_missed_events(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "KEPT", 3)
    with daemon.served() as served, httpx.Client(base_url=served.url, timeout=30) as client:
        daemon.do(lambda: [served.outputs.publish(happened(number)) for number in range(1, 7)])
        with client.stream("GET", "/v1/events", headers={"Last-Event-ID": happened(1)["id"]}) as stream:
            first, *rest = events(stream.iter_lines(), 4)
            assert first["event"] == "events.missed" and numbers(rest) == [4, 5, 6]
        with client.stream("GET", "/v1/events", headers={"Last-Event-ID": happened(3)["id"]}) as stream:
            assert numbers(events(stream.iter_lines(), 3)) == [4, 5, 6]


def test_a_reader_goes_on_after_a_restart() -> None:
    outputs = Outputs(Config().outputs)
    outputs.publish(happened(4))

    async def restart() -> None:
        await outputs.start(None, [happened(number) for number in range(1, 5)])

    asyncio.run(restart())
    reader = feed.Reader(outputs.feed, happened(2)["id"])
    assert [each.id for each in reader.read()] == [happened(3)["id"], happened(4)["id"]] and not reader.missed
    assert not feed.Reader(outputs.feed, happened(0)["id"]).missed


def test_events_need_view_and_outputs_admin(daemon: Daemon) -> None:
    tokens = [
        {"name": name, "scopes": [name], "digest": f"sha256:{token_digest(name * 8)}"}
        for name in ("ask", "view", "admin")
    ]
    with daemon.served(server={"tokens": tokens}) as served, httpx.Client(base_url=served.url, timeout=30) as client:

        def status(method: str, path: str, name: str, body: Any = None) -> int:
            asked = client.stream(method, path, headers={"Authorization": f"Bearer {name * 8}"}, json=body)
            with asked as response:
                return response.status_code

        assert [status("GET", "/v1/events", name) for name in ("ask", "view")] == [403, 200]
        hook = {"name": "hook", "url": "https://127.0.0.1:1/x", "secret": SECRET}
        for method, path in (("GET", "/v1/outputs"), ("POST", "/v1/outputs"), ("DELETE", "/v1/outputs/hook")):
            assert status(method, path, "view", hook) == 403
        assert status("POST", "/v1/outputs", "admin", hook) == 201
        assert status("POST", "/v1/outputs", "admin", hook) == 409


def test_webhooks_come_and_go_and_show_no_secret(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon.served() as served, httpx.Client(base_url=served.url, timeout=30) as client:
        hook = {
            "name": "hook",
            "url": "https://user:hunter2@127.0.0.1:1/services/hunter2?token=hunter2",
            "secret": SECRET,
        }
        replies = [client.post("/v1/outputs", json=hook), client.get("/v1/outputs"), client.get("/metrics")]
        assert [reply.status_code for reply in replies] == [201, 200, 200]
        daemon.do(lambda: served.outputs.publish(happened(1)))
        shown = client.get("/v1/outputs").json()["outputs"][0]
        assert shown["name"] == "hook" and shown["waiting"] == 1 and shown["address"] == "https://127.0.0.1:1/…"
        assert 'streamer_output_waiting{kind="webhook",output="hook"} 1' in client.get("/metrics").text
        assert main(["status", "--url", served.url]) == 0
        head, line = capsys.readouterr().out.splitlines()[-2:]
        assert head.split()[:3] == ["OUTPUT", "KIND", "WAITING"] and line.split()[:3] == ["hook", "webhook", "1"]
        for told in (*(reply.text for reply in (*replies, client.get("/v1/outputs"))), line):
            assert SECRET not in told and "hunter2" not in told
        assert client.delete("/v1/outputs/hook").status_code == 204
        assert client.delete("/v1/outputs/hook").status_code == 404


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"url": "https://192.168.0.7/x"}, "private address 192.168.0.7"),
        ({"url": "http://localhost/x", "public_only": False}, "private address"),
        ({"kind": "command", "command": ["ls"]}, "Only webhooks can be added here"),
        ({"kind": "mqtt", "host": "broker"}, "Only webhooks can be added here"),
        ({"url": "file:///etc/passwd"}, "is no address of a web server"),
        ({"command": ["ls"], "url": "https://x"}, "unknown key"),
    ],
)
def test_what_a_client_on_another_machine_may_add(daemon: Daemon, body: dict[str, Any], told: str) -> None:
    config = Config.model_validate(CONFIG)

    async def post() -> httpx.Response:
        app = create_app(daemon.assistant, config, Outputs(config.outputs))
        transport = httpx.ASGITransport(app, client=("192.168.0.9", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/outputs", json={"name": "hook", **body})

    reply = daemon.run(post)
    assert reply.status_code == 400 and told in reply.json()["error"]["message"]
