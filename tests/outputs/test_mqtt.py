"""MQTT, with a real broker that is killed, hangs, is slow or full, and refuses."""

import asyncio
import json
import logging
import math
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from streamer.outputs import mqtt, outbox
from streamer.outputs.outputs import Outputs
from tests.outputs.broker import BROKER, running, slowed, subscriber
from tests.outputs.receiver import configured, happened, started
from tests.streamer.serving import eventually

pytestmark = pytest.mark.skipif(BROKER is None, reason="needs mosquitto (apt-get install mosquitto)")
GATE = {"name": "gate", "streams": ["yard"], "when": "both", "outputs": None}
METER = {
    "name": "meter",
    "streams": ["hall", "cellar"],
    "when": "changes",
    "format": {"type": "number"},
    "outputs": ["broker"],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "MOST_SECONDS", 0.1)


async def still(event: str) -> bytes:
    return f"a picture of {int(event.removeprefix('event_'))}".encode()


@asynccontextmanager
async def outputs(
    port: int,
    folder: Path | None = None,
    *,
    snoozed: list[tuple[str, float]] | None = None,
    picture: Callable[[str], Awaitable[bytes]] = still,
    **options: Any,
) -> AsyncIterator[Outputs]:
    """Outputs with one broker."""
    made = configured("mqtt", name="broker", host="127.0.0.1", port=port, **options)
    made.still = picture
    if snoozed is not None:
        made.snooze = lambda watch, seconds: snoozed.append((watch, seconds))
    async with started(made, folder):
        yield made


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await test()

    asyncio.run(bounded())


def numbers(payloads: list[bytes]) -> list[int]:
    return [int(json.loads(payload)["id"].removeprefix("event_")) for payload in payloads]


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_events_states_and_availability_are_told(tmp_path: Path, version: str) -> None:
    async def test() -> None:
        with running(tmp_path) as broker:
            async with subscriber(broker.port) as (_, heard), outputs(broker.port, version=version) as made:
                made.watches_changed([{**GATE, "states": {"yard": False}}])
                await eventually(lambda: heard.last.get("streamer/watch/gate/yard/state") == b"OFF")
                assert heard.last["streamer/status"] == b"online"
                made.publish(happened(1))
                await eventually(lambda: heard.last["streamer/watch/gate/yard/state"] == b"ON")
                await eventually(lambda: numbers(heard.of("/event")) == [1])
                assert json.loads(heard.of("/event")[0]) == happened(1)
                made.publish(happened(2, type="watch.ended", before=True, after=False))
                await eventually(lambda: made.status()[0].delivered == 2)
                async with subscriber(broker.port) as (_, late):
                    await eventually(lambda: late.last.get("streamer/watch/gate/yard/state") == b"OFF")
                    assert late.retained == {"streamer/status", "streamer/watch/gate/yard/state"}
            async with subscriber(broker.port) as (_, later):
                await eventually(lambda: later.last.get("streamer/status") == b"offline")

    run(test)


def test_home_assistant_is_told_once_of_each_and_no_more_when_it_is_gone(tmp_path: Path) -> None:
    async def test() -> None:
        options = {"discovery": "homeassistant", "stills": True, "commands": True}
        with running(tmp_path) as broker:
            async with outputs(broker.port, **options) as made, subscriber(broker.port) as (_, heard):
                made.watches_changed([GATE, METER, {**GATE, "name": "other", "outputs": ["elsewhere"]}])

                def configs() -> dict[str, Any]:
                    return {t: json.loads(p) for t, p in heard.last.items() if t.endswith("/config") and p}

                await eventually(lambda: len(configs()) == 8)
                assert sorted(topic.removeprefix("homeassistant/").removesuffix("/config") for topic in configs()) == [
                    "binary_sensor/streamer/gate_yard",
                    "button/streamer/gate_snooze",
                    "button/streamer/meter_snooze",
                    "camera/streamer/cellar",
                    "camera/streamer/hall",
                    "camera/streamer/yard",
                    "sensor/streamer/meter_cellar",
                    "sensor/streamer/meter_hall",
                ]
                gate = configs()["homeassistant/binary_sensor/streamer/gate_yard/config"]
                assert gate["state_topic"] == "streamer/watch/gate/yard/state" and gate["payload_on"] == "ON"
                assert gate["availability_topic"] == "streamer/status" and gate["unique_id"]
                assert configs()["homeassistant/sensor/streamer/meter_hall/config"]["state_class"] == "measurement"
                assert len({each["unique_id"] for each in configs().values()}) == 8
                told = len(heard.of("/config"))
                made.watches_changed([GATE, METER])
                made.watches_changed([METER])
                await eventually(lambda: len(configs()) == 5)
                assert len(heard.of("/config")) == told + 3  # what stays is not told again
            # Removed while no daemon ran: taken back when it is there again, and only what is its own.
            async with subscriber(broker.port) as (client, heard):
                await client.publish("homeassistant/sensor/another/x/config", b"{}", qos=1, retain=True)
                async with outputs(broker.port, **options) as made:
                    made.watches_changed([])
                    await eventually(
                        lambda: (
                            [t for t, p in heard.last.items() if p and t.endswith("/config")]
                            == ["homeassistant/sensor/another/x/config"]
                        )
                    )

    run(test)


def test_a_still_is_shown_and_a_snooze_is_followed_where_that_is_configured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(stills: bool, commands: bool) -> None:
        snoozed: list[tuple[str, float]] = []
        with running(tmp_path) as broker:
            async with (
                subscriber(broker.port) as (client, heard),
                outputs(broker.port, snoozed=snoozed, stills=stills, commands=commands) as made,
            ):
                made.watches_changed([GATE])
                await eventually(lambda: heard.last.get("streamer/status") == b"online")
                made.publish(happened(1, still="/v1/watches/events/1/still.jpg"))
                await eventually(lambda: made.status()[0].delivered == 1)
                for payload in (b"600", b"for ever", b"-1", b"nan"):
                    await client.publish("streamer/watch/gate/snooze", payload, qos=1)
                await client.publish("streamer/over", b"", qos=1)
                if stills:
                    await eventually(lambda: heard.last.get("streamer/stream/yard/still") == b"a picture of 1")
                await eventually(lambda: "streamer/over" in heard.last)
                if commands:
                    await eventually(lambda: caplog.text.count("is not followed") == 3)
                assert snoozed == ([("gate", 600.0)] if commands else [])
                assert stills == ("streamer/stream/yard/still" in heard.last)

    run(lambda: test(True, True))
    run(lambda: test(False, False))


def test_a_broker_that_is_killed_or_hangs_gets_everything_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "PATIENCE", 0.3)

    async def test() -> None:
        with running(tmp_path) as broker:
            async with outputs(broker.port, tmp_path / "state") as made:
                made.watches_changed([{**GATE, "states": {"yard": False}}])
                made.publish(happened(1))
                await eventually(lambda: made.status()[0].delivered == 1)
                broker.kill()
                for number in range(2, 50):
                    made.publish(happened(number))
                await eventually(lambda: made.status()[0].failed_tries > 1)
                assert made.status()[0].waiting == 48
                broker.start()
                async with subscriber(broker.port) as (_, heard):
                    await eventually(lambda: made.status()[0].waiting == 0)
                    await eventually(lambda: heard.last.get("streamer/watch/gate/yard/state") == b"ON")
                    assert heard.last["streamer/status"] == b"online"
                async with subscriber(broker.port) as (_, heard):
                    before = made.status()[0].failed_tries
                    broker.signal(signal.SIGSTOP)
                    for number in range(50, 90):
                        made.publish(happened(number))
                    await eventually(lambda: made.status()[0].failed_tries > before)
                    broker.signal(signal.SIGCONT)
                    await eventually(lambda: made.status()[0].waiting == 0)
                    # What was on its way when it hung may come twice, with its id; nothing is left out.
                    await eventually(lambda: sorted(set(numbers(heard.of("/event")))) == list(range(50, 90)))

    run(test)


def test_a_slow_broker_gets_everything_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is on its way together takes longer than the broker may be silent."""
    monkeypatch.setattr(mqtt, "PATIENCE", 3.0)

    async def test() -> None:
        with running(tmp_path) as broker:
            async with (
                subscriber(broker.port) as (_, heard),
                slowed(broker.port, 1_000) as port,
                outputs(port, tmp_path / "state") as made,
            ):
                made.watches_changed([{**GATE, "states": {"yard": False}}])
                for number in range(20):
                    made.publish(happened(number))
                await eventually(lambda: made.status()[0].waiting == 0)
                await eventually(lambda: heard.last.get("streamer/watch/gate/yard/state") == b"ON")
                assert numbers(heard.of("/event")) == list(range(20))
                assert made.status()[0].failed_tries == 0

    run(test)


def test_what_was_confirmed_before_a_broker_hung_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "PATIENCE", 3.0)

    async def test() -> None:
        with running(tmp_path) as broker:
            async with (
                subscriber(broker.port) as (_, heard),
                slowed(broker.port, 2_000) as port,
                outputs(port) as made,
            ):
                await eventually(lambda: heard.last.get("streamer/status") == b"online")
                for number in range(mqtt.AT_ONCE):
                    made.publish(happened(number))
                await eventually(lambda: len(heard.of("/event")) >= 4)
                broker.signal(signal.SIGSTOP)
                await eventually(lambda: made.status()[0].failed_tries > 0)
                assert made.status()[0].delivered >= 3
                broker.signal(signal.SIGCONT)
                await eventually(lambda: made.status()[0].waiting == 0)
                await eventually(lambda: set(numbers(heard.of("/event"))) == set(range(mqtt.AT_ONCE)))
                assert [numbers(heard.of("/event")).count(number) for number in range(3)] == [1, 1, 1]

    run(test)


def test_a_broker_that_is_full_keeps_the_rest_waiting_until_one_with_room_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps what a subscriber has missed until its memory is used up. Of version 3.1.1 mosquitto confirms more than it can hold."""
    monkeypatch.setattr(mqtt, "PATIENCE", 1.0)
    many = 600

    async def test() -> None:
        full = "allow_anonymous true\nmemory_limit 250000\nmax_queued_messages 0"
        with running(tmp_path, full) as broker:
            async with subscriber(broker.port, identifier="sleeper", clean_session=False):
                pass
            (opened := asyncio.Event()).set()
            async with (
                slowed(broker.port, math.inf, opened) as port,
                outputs(port, tmp_path / "state", version="5") as made,
            ):
                for number in range(many):
                    made.publish(happened(number))
                await eventually(lambda: made.status()[0].failed_tries > 1)
                opened.clear()  # nothing reaches the new broker before somebody hears what comes there
                broker.kill()
                tries = made.status()[0].failed_tries
                await eventually(lambda: made.status()[0].failed_tries > tries)
                status = made.status()[0]
                assert 0 < status.waiting < many and status.delivered + status.waiting == many
                assert status.trouble is not None
                broker.write("allow_anonymous true")
                broker.start()
                async with subscriber(broker.port) as (_, heard):
                    opened.set()
                    await eventually(lambda: made.status()[0].waiting == 0)
                    await eventually(lambda: numbers(heard.of("/event"))[-1:] == [many - 1])
                    came = list(dict.fromkeys(numbers(heard.of("/event"))))
                assert came == list(range(came[0], many)) and came[0] <= status.delivered

    run(test)


@pytest.mark.parametrize(("version", "limit"), [("3.1.1", "max_packet_size"), ("5", "message_size_limit")])
def test_a_broker_that_takes_no_picture_of_that_size_gets_every_event_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, version: str, limit: str
) -> None:
    """It closes the connection at a picture, or falls silent: once that is no accident none of that size is sent."""
    monkeypatch.setattr(mqtt, "PATIENCE", 0.5)

    async def test() -> None:
        with running(tmp_path, f"allow_anonymous true\n{limit} 5000") as broker:
            async with (
                subscriber(broker.port) as (_, heard),
                outputs(broker.port, version=version, stills=True, picture=picture) as made,
            ):
                made.watches_changed([{**GATE, "states": {"yard": False}}])
                for number in range(1, 4):
                    made.publish(happened(number, still="/still.jpg"))
                    await eventually(lambda number=number: number in numbers(heard.of("/event")))
                await eventually(lambda: "max_packet_size" in caplog.text and made.status()[0].trouble is None)
                for number in range(4, 7):
                    made.publish(happened(number, still="/still.jpg"))
                    await eventually(lambda number=number: number in numbers(heard.of("/event")))
                assert list(dict.fromkeys(numbers(heard.of("/event")))) == [1, 2, 3, 4, 5, 6]
                size.append(4_000)
                made.publish(happened(7, still="/still.jpg"))
                await eventually(lambda: heard.last.get("streamer/stream/yard/still") == bytes(4_000))
                await eventually(lambda: made.status()[0].waiting == 0)

    async def picture(event: str) -> bytes:
        return bytes(size[-1])

    size = [9_000]
    run(test)
    assert caplog.text.count("takes no picture of 9000 bytes: raise its max_packet_size (or message_size_limit)") == 1


def test_a_password_that_is_refused_is_one_line_and_tried_seldom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "streamer", "right"], check=True, capture_output=True)
    caplog.set_level(logging.INFO)

    async def test() -> None:
        with running(tmp_path, f"allow_anonymous false\npassword_file {passwords}") as broker:
            async with subscriber(broker.port, username="streamer", password="right") as (_, heard):
                for version in ("3.1.1", "5"):
                    async with outputs(broker.port, username="streamer", password="hunter2", version=version) as made:
                        await eventually(lambda: made.status()[0].failed_tries > 0)
                        status = made.status()[0]
                        assert "refuses its username and password" in (status.trouble or "")
                        assert status.retry_s is not None and status.retry_s > 10
                async with outputs(broker.port, username="streamer", password="right") as made:
                    made.publish(happened(1))
                    await eventually(lambda: numbers(heard.of("/event")) == [1])

    run(test)
    assert (
        len([each for each in caplog.records if each.levelno >= logging.WARNING]) == 2 and "hunter2" not in caplog.text
    )


def test_a_broker_that_lets_nothing_be_published_there_loses_no_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of version 5 it says so; of 3.1.1 it confirms what it throws away, and never shows this output its own availability."""
    monkeypatch.setattr(mqtt, "PATIENCE", 0.5)
    rules = tmp_path / "rules"
    rules.write_text("topic read #\n")

    async def test() -> None:
        with running(tmp_path, f"allow_anonymous true\nacl_file {rules}") as broker:
            async with outputs(broker.port, version="5") as made:
                made.publish(happened(1))
                said = "does not take what is published below streamer/: not authorized"
                await eventually(lambda: said in (made.status()[0].trouble or ""))
                status = made.status()[0]
                assert (status.waiting, status.delivered) == (1, 0)
            async with outputs(broker.port) as made:
                await eventually(
                    lambda: "confirms what is published below streamer/ and shows none of it" in caplog.text
                )
        caplog.clear()
        monkeypatch.setattr(mqtt, "PATIENCE", 30.0)
        loop = asyncio.get_running_loop()
        later, warnings = loop.call_later, []

        def call_later(delay: float, call: Callable[..., Any], *arguments: Any, **options: Any) -> asyncio.TimerHandle:
            timer = later(delay, call, *arguments, **options)
            if getattr(call, "__func__", None) is mqtt.Mqtt._warn:
                warnings.append(timer)
            return timer

        monkeypatch.setattr(loop, "call_later", call_later)
        with running(tmp_path) as broker:
            async with outputs(broker.port, stills=True) as made:
                await eventually(lambda: made.status()[0].trouble is None and warnings and warnings[-1].cancelled())
                assert "shows none of it" not in caplog.text

    run(test)


def test_a_broker_over_tls_must_be_who_it_says(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    subprocess.run([*command, "-keyout", key, "-out", certificate, *subject], check=True, capture_output=True)

    async def test() -> None:
        with running(tmp_path, f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}") as broker:
            async with outputs(broker.port, tls=True, ca_file=str(certificate)) as made:
                made.publish(happened(1))
                await eventually(lambda: made.status()[0].delivered == 1)
            async with outputs(broker.port, tls=True) as made:
                await eventually(lambda: made.status()[0].failed_tries > 0)
                assert "CERTIFICATE_VERIFY_FAILED" in (made.status()[0].trouble or "")

    run(test)


@pytest.mark.parametrize("many", [1_000, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_a_great_many_arrive_in_order(tmp_path: Path, many: int) -> None:
    async def test() -> None:
        with running(tmp_path, "allow_anonymous true\nmax_queued_messages 0") as broker:
            async with subscriber(broker.port) as (_, heard), outputs(broker.port, tmp_path / "state") as made:
                for number in range(many):
                    made.publish(happened(number))
                await eventually(lambda: len(heard.of("/event")) >= many, 180)
                assert numbers(heard.of("/event")) == list(range(many))

    run(test)
