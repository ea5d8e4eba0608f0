"""What is refused of a fleet's file, what its table keeps, and who is let in at an engine."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jwt
import pytest

from streamer.cluster.alike import streamer_version, unlike
from streamer.cluster.config import load_fleet, parse_fleet
from streamer.cluster.head import Head
from streamer.cluster.launch import Launched, missing
from streamer.cluster.passes import audience, head_pass, visitor_pass
from streamer.cluster.processes import began, machine
from streamer.cluster.room import Costs
from streamer.cluster.table import FileTable, TableError
from streamer.config import ConfigError
from tests.cluster.test_gateway import NoEngines

FLEET: dict[str, Any] = {
    "secret_file": "secret",
    "folder": "shared",
    "engines": [{"name": "gpu", "count": 2, "labels": {"site": "north"}}],
}
GATE = {"name": "gate", "source": "demo:"}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (
            {"streams": [GATE], "rules": [{"streams": ["gate"], "engine": "gpu-2"}]},
            "there is no engine 'gpu-2'; there are: gpu-0, gpu-1",
        ),
        (
            {"streams": [GATE], "rules": [{"streams": ["gate"], "labels": {"site": "south"}}]},
            "no engine has the label site: south",
        ),
        ({"streams": [GATE, GATE]}, "streams has gate more than once"),
        ({"engines": []}, "engines"),
        ({"engine": {"storage": {}}}, "engine.storage: unknown key"),
        (
            {"folder": "s3://box/fleet"},
            "table: name a file of the head's or redis://…, as none can lie in s3://box/fleet",
        ),
        ({"lease": 0.1}, "lease: 0.1 is out of range; it must be at least 1"),
    ],
)
def test_a_fleet_that_can_not_be_is_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_fleet({**FLEET, **more}, "fleet.yaml")
    assert why in str(refused.value)


def test_a_secret_is_there_and_long_enough(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(f"secret_file: {tmp_path}/secret\nfolder: {tmp_path}\nengines: [{{name: cpu}}]\n")
    with pytest.raises(ConfigError, match="openssl rand -hex 32"):
        load_fleet(file).secret()
    (tmp_path / "secret").write_text("short\n")
    with pytest.raises(ConfigError, match="has 5 characters, 32 are needed"):
        load_fleet(file).secret()


def test_what_a_table_keeps_outlasts_it_and_one_head_has_it(tmp_path: Path) -> None:
    table = FileTable(tmp_path / "fleet.sqlite")
    table.keep_stream(GATE)
    table.own([("gate", "gpu-1", 7)])
    table.keep_stream({**GATE, "fps": 2})
    table.know({"gate": {"fire": {"paused": True}}})
    table.keep_watch("fire", {"name": "fire"})
    with pytest.raises(TableError):
        FileTable(tmp_path / "fleet.sqlite")
    table.close()
    again = FileTable(tmp_path / "fleet.sqlite")
    assert again.streams() == [({**GATE, "fps": 2}, "gpu-1", 7)] and again.epoch == 7
    assert again.known() == {"gate": {"fire": {"paused": True}}} and again.watches() == {"fire": {"name": "fire"}}
    again.drop_stream("gate")
    assert again.streams() == [] and again.epoch == 7, "a stream of that name begins above what was"
    again.close()


def test_a_pass_is_good_for_one_process_of_one_engine() -> None:
    secret = b"s" * 32
    mine = audience("gpu-0", "aa")
    assert jwt.decode(head_pass(secret, "gpu-0", "aa"), secret, ["HS256"], audience=mine)["sub"] == "fleet"
    for other in (audience("gpu-0", "bb"), audience("gpu-1", "aa")):
        with pytest.raises(jwt.InvalidAudienceError):
            jwt.decode(head_pass(secret, "gpu-0", "aa"), secret, ["HS256"], audience=other)
    claims = jwt.decode(visitor_pass(secret, "gpu-0", "aa", "fleet", ["view"]), secret, ["HS256"], audience=mine)
    assert claims["sub"] == "visitor:fleet" and claims["scope"] == "view", "no visitor can be called as the head is"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"version": "0.0.9"}, "it is streamer 0.0.9, this is .*: install the same on both"),
        ({"probe": ""}, "/srv/streamer is not the same folder there as here: mount it on every machine"),
        ({"wall": 1_012.4}, "its clock differs by 12 s from this machine's: set both by NTP"),
        ({"wall": 988.0}, "its clock differs by 12 s"),
        ({"fingerprint": "ffff00001111"}, r"its model is nano \(ffff0000\), the others' nano \(aaaa1111\)"),
        ({"wall": 1_004.0}, "^$"),
    ],
)
def test_an_engine_that_is_not_like_the_others_is_told_why(other: dict[str, Any], why: str) -> None:
    model = "nano", "aaaa1111bbbb"
    hello = {"version": streamer_version(), "probe": "p", "wall": 1_000.0, "model": model[0], "fingerprint": model[1]}
    assert unlike(hello, "p", "/srv/streamer", None, 1_000.0) == ""
    said = unlike({**hello, **other}, "p", "/srv/streamer", model, 1_000.0)
    assert re.search(why, said) and "\n" not in said


def test_what_no_node_of_a_cluster_has_is_named() -> None:
    fleet = parse_fleet({**FLEET, "engines": [{"name": "gpu", "gpus": 2, "labels": {"site": "north"}}]}, "fleet.yaml")
    kind = fleet.names["gpu-0"]
    assert "no node of the Ray cluster has the label site:north" in missing(kind, {"CPU": 8.0, "GPU": 8.0})
    there = {"CPU": 8.0, "site:north": 1.0}
    assert "2 GPUs are asked for, the Ray cluster has 1" in missing(kind, {**there, "GPU": 1.0})
    assert missing(kind, {**there, "GPU": 2.0}) == ""


def test_answers_and_watches_are_counted_in_and_rules_bind() -> None:
    watch = {"name": "fire", "question": "Is there a fire?", "streams": ["gate"], "every": 0.5}
    rules = [{"streams": ["gate"], "labels": {"site": "north"}}, {"streams": ["gate"], "engine": "gpu-1"}]
    gate = {**GATE, "fps": 2, "priority": 3}
    engine = {"answers": {"floor_tokens_per_second": 6.0}}
    fleet = parse_fleet(
        {**FLEET, "streams": [gate], "watches": [watch], "rules": rules, "engine": engine}, "fleet.yaml"
    )
    wish = fleet.wish(fleet.streams[0], fleet.watches)
    assert (wish.fps, wish.looks, wish.tokens, wish.priority) == (2.0, 2.0, 3.0, 3)
    assert (wish.engine, wish.labels) == ("gpu-1", frozenset([("site", "north")]))
    assert wish.need(Costs(10.0, 4.0, 2.0)) == 2 * 10 + 2 * 4 + 3 * 2


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"folder": "/proc/fleet"}, "^folder: /proc/fleet can't be used"),
        ({"table": "/proc/fleet/t.sqlite"}, "^table: /proc/fleet/t.sqlite can't be used"),
        (
            {"folder": "nowhere://box/x", "table": "t.sqlite"},
            "^folder: nowhere://box/x can't be used .*: name one that is shared",
        ),
    ],
)
def test_a_head_that_can_not_begin_says_why_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("s" * 40)
    with pytest.raises(ConfigError) as refused:
        Head(parse_fleet({**FLEET, **more}, "fleet.yaml"), NoEngines())
    [problem] = refused.value.problems
    assert re.search(why, problem) and "\n" not in problem


def test_a_head_that_comes_back_knows_what_is_being_emptied_and_what_the_file_named(tmp_path: Path) -> None:
    """A drained engine stays empty for as long as its process runs; a stream that the file names no more is let go."""
    (tmp_path / "secret").write_text("s" * 40)
    at = Launched("http://127.0.0.1:9", "aa", os.getpid(), "here", machine(), began(os.getpid()))
    gate, yard, door = ({"name": name, "source": "demo:"} for name in ("gate", "yard", "door"))

    @asynccontextmanager
    async def head(*streams: dict[str, Any]) -> AsyncIterator[Head]:
        more = {"secret_file": str(tmp_path / "secret"), "folder": str(tmp_path), "streams": list(streams)}
        there = Head(parse_fleet({**FLEET, **more}, "fleet.yaml"), NoEngines())
        await there.start()
        yield there
        await there.stop(end=False)

    def states(there: Head) -> list[str]:
        return [each["state"] for each in there.view()["engines"]]

    async def test() -> None:
        table = FileTable(tmp_path / "fleet.sqlite")
        table.keep_engine("gpu-0", {"at": asdict(at), "costs": [10.0, 4.0, 2.0], "slots": 8})
        table.keep_stream(door)
        table.close()
        async with head(gate, yard) as first:
            assert states(first) == ["up", "down"] and set(first.configs) == {"door", "gate", "yard"}
            first.drain("gpu-0", draining=True)
        async with head(gate) as second:
            assert states(second) == ["draining", "down"]
            assert set(second.configs) == {"door", "gate"}, "somebody attached the door"
            second.drain("gpu-0", draining=False)
        async with head(yard) as third:
            assert states(third) == ["up", "down"] and set(third.configs) == {"door", "yard"}

    asyncio.run(asyncio.wait_for(test(), 60))
