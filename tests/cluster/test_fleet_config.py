"""What is refused of a fleet's file, what its table keeps, and who is let in at an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jwt
import pytest

from streamer.cluster.config import load_fleet, parse_fleet
from streamer.cluster.passes import audience, head_pass, visitor_pass
from streamer.cluster.table import FileTable, TableError
from streamer.config import ConfigError

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
