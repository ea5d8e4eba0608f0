"""Webhooks, delivered to a real server that hangs, breaks, moves and goes away."""

import asyncio
import hashlib
import hmac
import json
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from streamer.config import ConfigError, parse_config
from streamer.errors import AssistantError
from streamer.output_config import WebhookConfig
from streamer.outputs import outbox
from streamer.outputs.outputs import Outputs
from tests.outputs.receiver import Receiver, configured, happened, received, started
from tests.ports import free_port
from tests.streamer.serving import eventually

SECRET = "a secret of the hook"


def outputs(url: str, folder: Path | None = None, **options: Any) -> AbstractAsyncContextManager[Outputs]:
    """Outputs with one webhook."""
    return started(configured("webhooks", name="hook", url=url, **options), folder)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once: how long it rests is told by the outbox's own tests."""
    monkeypatch.setattr(outbox, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(outbox, "MOST_SECONDS", 0.02)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await test()

    asyncio.run(bounded())


def test_a_delivery_is_the_event_signed_with_its_time() -> None:
    async def test() -> None:
        async with received(Receiver()) as receiver, outputs(receiver.url, secret=SECRET) as made:
            made.publish(happened(1))
            await eventually(lambda: made.status()[0].delivered == 1)
            headers, body = receiver.requests[0]
            assert json.loads(body) == happened(1) and headers["content-type"] == "application/json"
            assert headers["host"] == f"127.0.0.1:{receiver.port}" and headers[":path"] == "/hook"
            stamp = headers["x-streamer-timestamp"]
            proof = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
            assert headers["x-streamer-signature"] == f"sha256={proof}"
            assert abs(time.time() - int(stamp)) < 60

    run(test)


def test_what_hangs_breaks_or_moves_is_tried_again_until_it_is_taken() -> None:
    async def test() -> None:
        receiver = Receiver(None, 500, 500, 302, 404, 204)
        async with received(receiver), outputs(receiver.url, timeout=1.0) as made:
            troubles = set()
            for number in range(5):
                made.publish(happened(number))

            def arrived() -> bool:
                troubles.add(made.status()[0].trouble)
                return len(receiver.accepted) == 5

            async with asyncio.timeout(30):
                while not arrived():
                    await asyncio.sleep(0.001)
            assert [each["id"] for each in receiver.accepted] == [happened(number)["id"] for number in range(5)]
            assert len(receiver.requests) == 10  # five of the first event, of which none was taken
            assert {json.loads(body)["id"] for _, body in receiver.requests[:5]} == {happened(0)["id"]}
            await eventually(lambda: made.status()[0].delivered == 5)
            status = made.status()[0]
            assert status.failed_tries == 5 and status.waiting == 0 and status.trouble is None
        told = " ".join(filter(None, troubles))
        for words in (
            "has not answered within 1 s",
            "answers 500",
            "answers 302 and points elsewhere",
            "answers 404",
        ):
            assert words in told

    run(test)


def test_a_server_that_went_away_gets_everything_once_it_is_back() -> None:
    async def test() -> None:
        port = free_port()
        async with received(Receiver(), port) as receiver:
            pass
        async with outputs(receiver.url) as made:
            for number in range(3):
                made.publish(happened(number))
            await eventually(lambda: made.status()[0].failed_tries > 2)
            assert "can't be reached" in (made.status()[0].trouble or "")
            async with received(receiver, port):
                await eventually(lambda: len(receiver.accepted) == 3)

    run(test)


def test_what_waits_outlasts_the_process(tmp_path: Path) -> None:
    """The process ends between an event and its delivery; what was delivered is not delivered again."""

    async def test() -> None:
        port = free_port()
        async with received(Receiver(204, 500), port) as receiver, outputs(receiver.url, tmp_path) as made:
            for number in range(4):
                made.publish(happened(number))
            await eventually(lambda: made.status()[0].delivered == 1 and made.status()[0].failed_tries > 0)
        async with received(Receiver(), port) as later, outputs(receiver.url, tmp_path) as made:
            made.publish(happened(4))
            await eventually(lambda: len(later.accepted) == 4)
            assert [each["id"] for each in later.accepted] == [happened(number)["id"] for number in range(1, 5)]
            await eventually(lambda: made.status()[0].waiting == 0)
        async with received(Receiver(), port) as last, outputs(receiver.url, tmp_path) as made:
            assert made.status()[0].waiting == 0 and not last.requests

    run(test)


def test_a_private_address_is_not_reached_for_who_may_not() -> None:
    async def test() -> None:
        async with received(Receiver()) as receiver:
            url = receiver.url.replace("127.0.0.1", "localhost")
            async with outputs(url, public_only=True) as made:
                made.publish(happened(1))
                await eventually(lambda: made.status()[0].failed_tries == 1)
                assert "private address" in (made.status()[0].trouble or "") and receiver.connections == 0

    run(test)


def test_the_address_that_was_looked_at_is_the_one_that_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is looked at, and this machine when it is connected to (DNS rebinding)."""
    reached: list[Any] = []

    async def test() -> None:
        loop = asyncio.get_running_loop()

        async def no_connection(make: Any, host: str, port: int, **options: Any) -> Any:
            reached.append(host)
            raise OSError("no route")

        monkeypatch.setattr(loop, "create_connection", no_connection)
        async with outputs("http://rebound.example/hook", public_only=True) as made:
            made.publish(happened(1))
            await eventually(lambda: made.status()[0].failed_tries > 0)

    monkeypatch.setattr("capture.network.policy.resolve", lambda host: ["93.184.216.34"])
    run(test)
    assert set(reached) == {"93.184.216.34"}


def test_a_full_outbox_throws_the_oldest_away_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with received(Receiver(503)) as receiver, outputs(receiver.url, keep_events=10) as made:
            for number in range(25):
                made.publish(happened(number))
            assert made.status()[0].waiting == 10 and made.status()[0].discarded == {"count": 15}
            receiver.answers = [204]
            await eventually(lambda: len(receiver.accepted) == 10)
            assert receiver.accepted[0]["id"] == happened(15)["id"]

    run(test)
    assert "thrown away undelivered" in caplog.text


@pytest.mark.parametrize("many", [300, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_a_great_many_arrive_in_order_in_bounded_memory(tmp_path: Path, many: int) -> None:
    async def test() -> None:
        async with received(Receiver(503)) as receiver, outputs(receiver.url, tmp_path) as made:
            tracemalloc.start()
            for number in range(many):
                made.publish(happened(number))
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            assert made.status()[0].waiting == many and held < many * 2_500
            receiver.answers = [204]
            await eventually(lambda: made.status()[0].delivered == many, 180)
            arrived = dict.fromkeys(each["id"] for each in receiver.accepted)
            assert list(arrived) == [happened(number)["id"] for number in range(many)]

    run(test)


def test_a_watch_is_told_to_the_outputs_that_it_names() -> None:
    async def test() -> None:
        async with received(Receiver()) as receiver, outputs(receiver.url) as made:
            made.watches_changed([{"name": "gate", "outputs": ["other"]}, {"name": "door", "outputs": None}])
            made.publish(happened(1))
            made.publish(happened(2, watch="door"))
            await eventually(lambda: len(receiver.accepted) == 1)
            assert receiver.accepted[0]["watch"] == "door" and [each.watch for each in made.feed.kept] == [
                "gate",
                "door",
            ]

    run(test)


def test_outputs_come_go_and_change_with_the_configuration(tmp_path: Path) -> None:
    async def test() -> None:
        old, new = Receiver(500), Receiver()
        async with received(old), received(new), outputs(old.url, tmp_path) as made:
            made.publish(happened(1))
            await eventually(lambda: made.status()[0].failed_tries > 0)
            changed = [{"name": "hook", "url": new.url}, {"name": "more", "url": new.url}]
            lines = await made.reload(parse_config({"outputs": {"webhooks": changed}}).outputs)
            assert lines == ["output hook was changed", "output more was added"]
            await eventually(lambda: len(new.accepted) == 1)  # what waited goes where it is wanted now
            lines = await made.reload(parse_config({}).outputs)
            assert sorted(lines) == ["output hook was removed", "output more was removed"] and not made.status()

    run(test)


def test_one_that_was_added_never_comes_back_after_a_configured_one_took_its_name(tmp_path: Path) -> None:
    """Else removing it from the configuration, with its new secret, would bring back the old one at the next start."""
    added = WebhookConfig(name="hook", url="http://127.0.0.1:1/old", secret="an old secret")
    configured_now = parse_config({"outputs": {"webhooks": [{"name": "hook", "url": "http://127.0.0.1:2/"}]}}).outputs

    async def test() -> None:
        for takes in ("reload", "start"):
            async with started(Outputs(parse_config({}).outputs), tmp_path) as made:
                await made.add(added)
                if takes == "reload":
                    assert await made.reload(configured_now) == ["output hook was changed"]
                    assert await made.reload(parse_config({}).outputs) == ["output hook was removed"]
            if takes == "start":
                async with started(Outputs(configured_now), tmp_path) as made:
                    assert made.address("hook").endswith(":2")
            async with started(Outputs(parse_config({}).outputs), tmp_path) as made:
                assert not made.status()

    run(test)


def test_none_is_added_before_those_that_were_kept_are_there() -> None:
    async def test() -> None:
        made = Outputs(parse_config({}).outputs)
        for change in (made.add(WebhookConfig(name="hook", url="http://127.0.0.1:1/")), made.remove("hook")):
            with pytest.raises(AssistantError, match="being loaded") as refused:
                await change
            assert refused.value.code == "not_ready"

    run(test)


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({"webhooks": [{"name": "a", "url": "ftp://x/y"}]}, "outputs.webhooks[0].url: 'ftp://x/y' is no address"),
        (
            {"webhooks": [{"name": "a", "url": "https://x", "secret": "short"}]},
            "outputs.webhooks[0].secret: what it holds",
        ),
        ({"webhooks": [{"name": "a", "url": "https://x", "secrt": "a long secret"}]}, "did you mean 'secret'?"),
        ({"commands": [{"name": "a", "command": "rm -rf"}]}, "outputs.commands[0].command: 'rm -rf' is not a list"),
        ({"webhooks": [{"name": "a", "url": "https://x"}] * 2}, "a is there more than once"),
        ({"mqtt": [{"name": "a", "host": "b", "password": "hunter2"}]}, "password without username"),
        ({"mqtt": [{"name": "a", "host": "b", "topic": "a/#"}]}, "is no beginning of topics"),
    ],
)
def test_a_wrong_output_is_one_line_without_its_secrets(outputs: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({"outputs": outputs})
    line = "\n".join(refused.value.problems)
    assert told in line and "\n" not in line and "hunter2" not in line and "short'" not in line
