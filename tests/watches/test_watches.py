"""Watches on the real nano, shown pieces of the demo: made at every door, told once with evidence, kept over a kill."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from capture.image import decode_image
from streamer import Assistant
from streamer.cli.main import main
from streamer.config import ConfigError, parse_config
from streamer.daemon import join
from streamer.outputs.outputs import Outputs
from streamer.watches import feed as feeding
from streamer.watches import kept
from streamer.watches.event import WatchEvent
from streamer.watches.feed import Feed
from tests.outputs.broker import BROKER, running, subscriber
from tests.streamer.serving import Daemon, Served, eventually, send, until, wait_for

BANANA = "Is there a banana?"
DEMO = Path(__file__).parents[2] / "capture/clips/demo.mp4"


def demo(begin: float, end: float) -> list[np.ndarray]:
    """Frames of the demo, five a second."""
    with av.open(str(DEMO)) as file:
        file.seek(int(begin * 1e6))
        frames = (frame for frame in file.decode(video=0) if frame.time >= begin)
        taken = itertools.takewhile(lambda frame: frame.time < end, frames)
        return [frame.to_ndarray(format="rgb24") for frame in itertools.islice(taken, 0, None, 5)]


@pytest.fixture(scope="module")
def without() -> list[np.ndarray]:
    return demo(31.0, 31.9)


@pytest.fixture(scope="module")
def banana() -> list[np.ndarray]:
    return demo(34.5, 35.6)


class Show:
    """Shows pictures to a stream, in time, each seen before the next."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.daemon, self.name, self.time = daemon, name, 0.0

    def show(self, pictures: list[np.ndarray]) -> None:
        for pixels in pictures:
            seen = self.seen()
            self.time += 0.2
            self.daemon.do(lambda pixels=pixels: self.daemon.assistant.push(self.name, pixels, self.time))
            wait_for(lambda seen=seen: self.seen() > seen)

    def seen(self) -> int:
        return next(each.frames_seen for each in self.daemon.assistant.streams() if each.name == self.name)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon(model={"threads": 1}, streams=[], limits={"streams": 1, "answers": 2})
    push = {"policy": "every", "deadline": 5}
    daemon.run(lambda: daemon.assistant.attach("yard", "push://yard", **push))
    yield daemon
    daemon.stop()


@pytest.fixture
def server(daemon: Daemon) -> Iterator[Served]:
    with daemon.served() as server:
        yield server
    for watch in daemon.run(daemon.assistant.watches.all):
        daemon.run(lambda name=watch["name"]: daemon.assistant.watches.remove(name))


def http(server: Served, method: str, path: str, headers: Any = None, **fields: Any) -> tuple[int, Any]:
    body = json.dumps(fields).encode() if fields else None
    asked = urllib.request.Request(server.url + path, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=30) as reply:
            body = reply.read()
            kind = reply.headers.get_content_type()
            return reply.status, json.loads(body or b"null") if kind != "image/jpeg" else body
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


def test_the_banana_is_told_with_its_picture_and_marked_as_right(
    daemon: Daemon, server: Served, without: Any, banana: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    yard, at = Show(daemon, "yard"), ["--url", server.url]
    yard.show(without)
    assert main(["watch", "add", "fruit", BANANA, "--stream", "yard", "--every", "0.05", "--when", "both", *at]) == 0

    async def hear() -> tuple[WatchEvent, dict[str, Any]]:
        async with server.connect() as client:
            await send(client, "watch.subscribe")
            assert (await until(client, "watch.subscribed"))[-1]["after"] is None
            showing = asyncio.get_running_loop().run_in_executor(None, yard.show, banana)
            event = (await until(client, "watch.started"))[-1]
            await showing
            assert event["watch"] == "fruit" and event["stream"] == "yard" and event["question"] == BANANA
            assert event["probability"] > 0.6 and event["before"] is False and event["after"] is True
            await send(client, "watch.feedback", id=event["id"], feedback="right")
            assert (await until(client, "watch.judged"))[-1]["feedback"] == "right"
            await asyncio.get_running_loop().run_in_executor(None, yard.show, without)
            ended = (await until(client, "watch.ended"))[-1]
            assert ended["captured_at"] > event["captured_at"]
            async with server.connect() as late:
                await send(late, "watch.subscribe", after=event["id"])
                again = (await until(late, "watch.ended"))[-1]
                assert {**again, "event_id": ended["event_id"]} == ended
            await send(client, "watch.list")
            (watch,) = (await until(client, "watch.listed"))[-1]["watches"]
            return event, watch

    event, watch = daemon.run(hear)
    assert (watch["events"], watch["right"], watch["false_alarms"]) == (2, 1, 0)
    assert watch["streams"][0]["state"] is False and watch["streams"][0]["trouble"] is None
    with daemon.served(
        server={"tokens": [{"name": "me", "digest": "sha256:" + "0" * 64, "scopes": ["view"]}]}
    ) as guarded:
        status, still = http(guarded, "GET", event["still"], headers={"Sec-Fetch-Site": "cross-site"})
        assert status == 200 and decode_image(still, 640).shape[2] == 3
        assert "has expired or was changed" in http(guarded, "GET", event["still"] + "0")[1]
        assert "token is needed" in http(guarded, "GET", event["still"].partition("?")[0])[1]
        (listed,) = [
            each for each in http(server, "GET", "/v1/watches/events")[1]["events"] if each["id"] == event["id"]
        ]
        assert http(guarded, "GET", listed["still"])[0] == 200
        links = daemon.assistant.watches.links
        clip = links.signed("/v1/streams/yard/clip?from=1.000&to=2.000", time.time() + 60)
        late = links.signed("/v1/streams/yard/clip?from=1.000&to=2.000", time.time() - 1)
        assert "has expired" in http(guarded, "GET", late)[1]
        assert "Nothing is recorded" in http(guarded, "GET", clip)[1]
        assert http(guarded, "GET", clip.replace("to=2", "to=3"))[0] == 401 and http(guarded, "DELETE", clip)[0] == 405
    capsys.readouterr()
    for command, said in (
        (["events"], event["id"]),
        (["snooze", "fruit", "10m"], "600 s"),
        (["list"], "(snooze)"),
        (["pause", "fruit"], "paused"),
        (["list"], "paused"),
        (["resume", "fruit"], "looks again"),
        (["mark", event["id"], "false_alarm"], "false alarm"),
        (["set", "fruit", "rise=0.8", "cooldown=60"], "fruit is changed: rise, cooldown"),
        (["list", "--json"], '"rise": 0.8'),
        (["tune", "fruit"], "fruit: too little is known: 0 events are marked as right and 1 as false alarms"),
        (["remove", "fruit"], "removed"),
    ):
        assert main(["watch", *command, *at]) == 0
        assert said in capsys.readouterr().out
    assert main(["watch", "set", "fruit", "rise=0.8", *at]) == 1
    assert main(["watch", "remove", "fruit", *at]) == 1
    assert "There is no watch 'fruit'; there are: none." in capsys.readouterr().err


def test_only_what_is_in_its_part_is_told_and_described(
    daemon: Daemon, server: Served, without: Any, banana: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The banana lies in the left half; the stream remembers it, which those that look at the right must not."""
    yard, watches, heard = Show(daemon, "yard"), daemon.assistant.watches, list[WatchEvent]()
    watches.feed.callbacks.append(heard.append)
    yard.show(without)
    at = ["--url", server.url]

    def asked() -> bool:
        return all(
            daemon.do(lambda: watches.view(name, {}))["streams"][0]["seen"] is not None  # noqa: B023
            for name in ("left", "right", "words-left")
        )

    add = ["watch", "add", "left", BANANA, "--every", "1", "--only", "0,0,.5,1", "--describe", *at]
    assert main(add) == 0
    daemon.run(lambda: watches.add("right", BANANA, every=1, only=[0.5, 0, 1, 1]))
    what = {"when": "changes", "every": 0.25}
    daemon.run(lambda: watches.add("words-left", "What do you see?", only=[0, 0, 0.5, 1], **what))
    end = time.monotonic() + 90
    while not {each.type for each in heard} >= {"watch.described", "watch.changed"}:
        yard.show(banana if asked() else without)
        assert time.monotonic() < end, heard
    watches.feed.callbacks.clear()
    started, described = (next(e for e in heard if e.type == f"watch.{kind}") for kind in ("started", "described"))
    assert {each.watch for each in heard} == {"left", "words-left"}
    assert described.about == started.id and "banana" in described.description
    right = daemon.do(lambda: watches.view("right", {}))["streams"][0]
    assert right["state"] is False and right["seen"] < 0.1 and right["trouble"] is None
    _, still = http(server, "GET", daemon.assistant.watches.links.signed(started.still, time.time() + 60))
    assert decode_image(still, 640).shape[:2] == (banana[0].shape[0], banana[0].shape[1] // 2)
    capsys.readouterr()
    assert main(["watch", "events", *at]) == 0 and f": {described.description}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*add[:-5], "--only", "0,0,.5", *at])
    assert "write left, top, right and bottom" in capsys.readouterr().err


@pytest.mark.skipif(BROKER is None, reason="needs mosquitto (apt-get install mosquitto)")
def test_a_broker_hears_of_the_banana_and_that_it_is_gone(
    daemon: Daemon, server: Served, without: Any, banana: Any, tmp_path: Path
) -> None:
    yard, watches = Show(daemon, "yard"), daemon.assistant.watches
    yard.show(without)

    async def hear(port: int) -> None:
        told = {"name": "broker", "host": "127.0.0.1", "port": port, "stills": True, "commands": True}
        outputs = Outputs(parse_config({"outputs": {"mqtt": [told]}}).outputs)
        join(watches, outputs)
        await outputs.start(None)
        async with subscriber(port) as (client, heard):
            show = asyncio.get_running_loop().run_in_executor
            await watches.add("ripe", BANANA, every=0.05, outputs=["broker"])
            await show(None, yard.show, without)
            await eventually(lambda: heard.last.get("streamer/watch/ripe/yard/state") == b"OFF")
            await show(None, yard.show, banana)
            await eventually(lambda: heard.of("/event") and heard.last.get("streamer/stream/yard/still"))
            assert heard.last["streamer/watch/ripe/yard/state"] == b"ON"
            path, _, query = json.loads(heard.of("/event")[0])["still"].partition("?")
            assert watches.links.holds(path, query, time.time() + 86_400)
            assert decode_image(heard.last["streamer/stream/yard/still"], 640).shape[2] == 3
            await client.publish("streamer/watch/ripe/snooze", b"600", qos=1)
            await eventually(lambda: watches.view("ripe", {})["streams"][0]["snoozed_until"])
            # No event tells that it ended, as the watch tells only that it begins: its state does.
            await show(None, yard.show, without)
            await eventually(lambda: heard.last["streamer/watch/ripe/yard/state"] == b"OFF")
            await watches.remove("ripe")
            await eventually(lambda: heard.last["streamer/watch/ripe/yard/state"] == b"")
        await outputs.stop()
        watches.feed.callbacks.clear()
        watches.changed, watches.outputs = lambda: None, tuple

    with running(tmp_path) as broker:
        daemon.run(lambda: hear(broker.port))


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"question": "What is there?"}, 400, "set when to changes"),
        ({"question": "Will the fruit of my labour be sweet?"}, 400, "neither yes nor no"),
        ({"stream": "yrad"}, 404, "no stream 'yrad'; there are: yard"),
        ({"rise": 0.3}, 400, "fall 0.4 is above rise 0.3"),
        ({"rise": 1.5}, 400, "rise: 1.5 is out of range"),
        ({"hold": -1}, 400, "hold: -1 is out of range"),
        ({"every": "500ms"}, 400, "write 0.5"),
        ({"quiet": ["night"]}, 400, "22:00-06:00"),
        ({"when": "becoms_true"}, 400, "did you mean 'becomes_true'"),
        ({"outputs": ["phone"]}, 400, "'phone' is no output; there are: none"),
        ({"cool": 3}, 400, "unknown key"),
        ({"only": [0.5, 0, 1.2, 1]}, 400, "only: [0.5, 0, 1.2, 1] is no rectangle inside of the picture"),
        ({"only": [0.5, 0, 0.5, 1]}, 400, "only: [0.5, 0, 0.5, 1] is no rectangle inside of the picture"),
        ({"only": [-0.1, 0, 0.5, 1]}, 400, "write left, top, right and bottom"),
        ({"only": [0, 1]}, 400, "only"),
        ({"name": "a b"}, 400, "is no name"),
    ],
)
def test_a_wrong_watch_is_refused_with_the_mend(
    daemon: Daemon, server: Served, without: Any, fields: Any, status: int, said: str
) -> None:
    if not Show(daemon, "yard").seen():
        Show(daemon, "yard").show(without)
    given = {"name": "fruit", "question": BANANA, "stream": "yard", **fields}
    found = http(server, "POST", "/v1/watches", **given)
    assert found[0] == status and said in found[1]
    assert http(server, "GET", "/v1/watches")[1] == {"watches": []}


def test_a_watch_becomes_another_or_stays_as_it_was(daemon: Daemon, server: Served, without: Any) -> None:
    if not Show(daemon, "yard").seen():
        Show(daemon, "yard").show(without)
    assert http(server, "POST", "/v1/watches", name="fruit", question=BANANA, stream="yard", hold=2)[0] == 201
    for fields, said in (
        ({"question": "What is there?"}, "set when to changes"),
        ({"rise": 0.3}, "fall 0.4 is above rise 0.3"),
        ({"streams": ["yrad"]}, "no stream 'yrad'"),
        ({"name": "other"}, "its name stays"),
        ({"cool": 3}, "unknown key"),
        ({"question": "Is it " + "very " * 390 + "dark?"}, "tokens"),
    ):
        status, told = http(server, "PATCH", "/v1/watches/fruit", **fields)
        assert status >= 400 and said in told, fields
        assert http(server, "GET", "/v1/watches/fruit")[1]["question"] == BANANA

    async def change() -> dict[str, Any]:
        async with server.connect() as client:
            await send(
                client, "watch.update", name="fruit", watch={"question": "Is there a dog?", "rise": 0.7}, snooze=60
            )
            return (await until(client, "watch.updated"))[-1]["watch"]

    watch = daemon.run(change)
    assert (watch["question"], watch["rise"], watch["hold"]) == ("Is there a dog?", 0.7, 2.0)
    assert watch["streams"][0]["snoozed_until"] and not watch["configured"]


def test_two_of_one_name_and_a_hundred_are_refused(daemon: Daemon, server: Served, without: Any) -> None:
    if not Show(daemon, "yard").seen():
        Show(daemon, "yard").show(without)
    watch = {"question": BANANA, "stream": "yard", "every": 0.1}
    assert http(server, "POST", "/v1/watches", name="w0", **watch)[0] == 201
    assert "already" in http(server, "POST", "/v1/watches", name="w0", **watch)[1]
    told = ""
    for i in range(1, 100):
        status, told = http(server, "POST", "/v1/watches", name=f"w{i}", **watch)
        if status != 201:
            break
    assert status == 429 and "would have the device work" in told and "raise every" in told


def test_who_may_only_look_makes_none() -> None:
    """The scopes of each route, without a model: what is refused is refused before."""
    from streamer.server.auth import Visitor
    from streamer.server.watches import perform

    async def test() -> None:
        for verb in ("add", "update", "remove", "feedback"):
            with pytest.raises(Exception, match="scope"):
                command: Any = type("Command", (), {"verb": verb})
                await perform(None, None, Visitor("eve", frozenset({"view"})), command)  # type: ignore[arg-type]

    asyncio.run(test())


@pytest.mark.parametrize(
    ("watches", "said"),
    [
        ([{"name": "a", "streams": ["yrad"], "question": "Is it dark?"}], "'yrad' is no stream of this configuration"),
        ([{"name": "a", "streams": ["yard"], "question": "Is it dark?"}] * 2, "watches has a more than once"),
        ([{"name": "a", "streams": ["yard"], "question": "How many are there?"}], "set when to changes"),
        ([{"name": "a", "streams": ["yard"], "question": "Is it dark?", "format": {}}], "set when to changes"),
        ([{"name": "a", "streams": ["yard"], "question": " "}], "question has no words"),
    ],
)
def test_a_configuration_with_a_wrong_watch_is_refused(watches: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"streams": [{"name": "yard", "source": "demo:"}], "watches": watches})


@pytest.mark.slow
def test_a_kill_in_the_middle_of_an_event_tells_nothing_twice(
    tmp_path: Path, without: Any, banana: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "PATIENCE", 60.0)
    watch = {"name": "fruit", "streams": ["yard"], "question": BANANA, "every": 0.05, "when": "both"}
    told: list[WatchEvent] = []

    async def life(folder: Path, *parts: list[np.ndarray], copy: Path | None = None) -> list[WatchEvent]:
        config = parse_config(
            {
                "model": {"threads": 1},
                "streams": [{"name": "yard", "source": "push://yard", "policy": "every", "deadline": 5}],
                "watches": [watch],
                "limits": {"streams": 1, "answers": 2},
                "storage": {"folder": str(folder), "every": 0.5},
            }
        )
        heard: list[WatchEvent] = []
        async with Assistant(config) as assistant:
            assistant.watches.feed.callbacks.append(heard.append)
            assert assistant.keeper is not None
            for pixels in itertools.chain(*parts):
                seen = assistant.streams()[0].frames_seen
                assistant.push("yard", pixels, seen * 0.2)
                while assistant.streams()[0].frames_seen == seen:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.06)
            await eventually(lambda: heard)
            await asyncio.sleep(0.3)
            if copy is not None:
                # What a kill would leave: no last words are in it. Whoever writes the folder copies it, as files come and go in it.
                await asyncio.wrap_future(assistant.keeper.store.do(lambda: shutil.copytree(folder, copy)))
                listed = await assistant.watches.kept.after("")
                await assistant.forget("yard", keep_memory=True)
                assert listed and not await assistant.watches.kept.after("")
                assert await assistant.watches.kept.still(listed[0]["id"]) is None
        return heard

    first = asyncio.run(life(tmp_path / "one", without, banana, copy=tmp_path / "killed"))
    assert [event.type for event in first] == ["watch.started"]
    with sqlite3.connect(tmp_path / "killed/streamer.sqlite") as database:
        assert database.execute("SELECT id FROM watch_events").fetchall() == [(first[0].id,)]
    second = asyncio.run(life(tmp_path / "killed", banana, without))
    told = [*first, *second]
    assert [event.type for event in told] == ["watch.started", "watch.ended"]
    assert told[1].id > told[0].id and told[1].gap > 0


def test_a_slow_listener_learns_how_much_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "WAITING", 3)

    async def test() -> None:
        feed = Feed()
        listener = feed.listen()
        feed.callbacks += [lambda event: 1 / 0, lambda event: heard.append(event.id)]
        heard: list[str] = []
        for i in range(5):
            feed.publish(WatchEvent(f"event_{i}", "watch.started", "a", "b", "info", "?", 0, 0, 1, None, True))
        assert listener.missed == 2 and (await anext(listener)).id == "event_2" and len(heard) == 5
        feed.close()
        assert [event.id async for event in listener] == ["event_3", "event_4"]

    asyncio.run(test())
