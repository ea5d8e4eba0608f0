"""A fleet's table in a real Redis: what it keeps, who has it, and what becomes of it when Redis dies and comes back."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamer.cluster.redis_table import RedisTable, shown
from streamer.cluster.table import TableError
from tests.cluster.redis_server import REDIS, RedisServer

pytest.importorskip("redis")
pytestmark = pytest.mark.skipif(REDIS is None, reason="needs redis-server (apt-get install redis-server)")
GATE = {"name": "gate", "source": "demo:"}
YARD = {"name": "yard", "source": "demo:"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.close()


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def filled(url: str) -> RedisTable:
    table = RedisTable(url)
    table.keep_stream(GATE)
    table.keep_stream(YARD, listed=True)
    table.keep_engine("gpu-1", {"url": "http://127.0.0.1:1"})
    table.know({"gate": {"fire": {"paused": True}}})
    table.keep_watch("fire", {"name": "fire"})
    table.keep_watch("smoke", {"name": "smoke"})
    table.keep_watch("smoke", None)
    table.own([("gate", "gpu-1", 7)])
    return table


def is_whole(table: RedisTable) -> bool:
    return (
        table.streams() == [(GATE, "gpu-1", 7), (YARD, None, 0)]
        and table.listed() == {"yard"}
        and table.engines() == {"gpu-1": {"url": "http://127.0.0.1:1"}}
        and (table.watches(), table.known()) == ({"fire": {"name": "fire"}}, {"gate": {"fire": {"paused": True}}})
        and table.epoch == 7
    )


def test_what_it_keeps_outlasts_it_and_one_head_has_it(server: RedisServer) -> None:
    table = filled(server.url)
    assert table.holds() and is_whole(table)
    with pytest.raises(TableError, match=r"another head \(process \d+ on .*\) has it"):
        RedisTable(server.url, wait=0.5)
    table.close()
    again = RedisTable(server.url)
    assert is_whole(again)
    again.drop_stream("gate")
    again.drop_stream("yard")
    again.close()
    last = RedisTable(server.url)
    assert last.streams() == [] and last.listed() == set()
    assert last.epoch == 7, "a stream of that name begins above what was"
    last.close()


def test_a_head_that_was_killed_on_this_machine_leaves_the_table_at_once(server: RedisServer) -> None:
    code = "import os, sys; from tests.cluster.test_redis_table import filled; filled(sys.argv[1]); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, server.url]).returncode == -9
    began = time.monotonic()
    table = RedisTable(server.url)
    assert time.monotonic() - began < 5 and is_whole(table), "nobody waits for a head whose process is gone"
    table.close()


def test_redis_that_is_killed_and_comes_back_goes_on(server: RedisServer) -> None:
    table = filled(server.url)
    server.kill()
    table.keep_engine("gpu-2", {"url": "late"})
    with pytest.raises(TableError, match="does not answer"):
        table.own([("yard", "gpu-1", 8)])
    server.start()
    table.own([("yard", "gpu-1", 8)])
    assert table.holds() and not table.taken
    table.close()
    again = RedisTable(server.url)
    assert again.streams()[1] == (YARD, "gpu-1", 8) and again.engines()["gpu-2"] == {"url": "late"}
    again.close()


def test_redis_that_comes_back_empty_is_told_all_again(server: RedisServer) -> None:
    table = filled(server.url)
    server.kill()
    server.empty()
    server.start()
    table.own([("gate", "gpu-1", 7)])
    table.close()
    again = RedisTable(server.url)
    assert is_whole(again)
    again.close()


def test_a_head_that_another_has_replaced_writes_nothing_more(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was silent for too long. What it says then changes nothing, and it is told that it must stop."""
    import redis

    import streamer.cluster.redis_table as module

    first = filled(server.url)
    monkeypatch.setattr(module, "gone", lambda held: True)
    second = RedisTable(server.url)
    with pytest.raises(TableError, match="another head"):
        first.own([("gate", "gpu-2", 8)])
    until(lambda: first.taken)
    assert not first.holds() and second.holds()
    client = redis.Redis.from_url(server.url, decode_responses=True)
    assert '"gpu-2"' not in client.hget("{streamer}:streams", "gate")
    first.close()
    second.own([("gate", "gpu-3", 9)])
    second.close()


def test_where_nobody_answers_that_is_one_line_without_the_password(server: RedisServer) -> None:
    server.kill()
    with pytest.raises(TableError) as refused:
        RedisTable(f"redis://:secret@127.0.0.1:{server.port}/0")
    assert "is Redis running there?" in str(refused.value) and "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert shown("redis://user:secret@box:6380/3") == "redis://box:6380/3"
