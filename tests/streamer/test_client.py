"""The client and the command line over a real socket."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streamer.client import AsyncClient, Client, ClientError
from streamer.wire import fetch
from tests.environments import install, pip
from tests.streamer.serving import Daemon, Served, eventually

ROOT = Path(__file__).parents[2]


def test_answer_streams_in_and_leaving_early_cancels_it(server: Served, daemon: Daemon) -> None:
    async def story() -> None:
        async with AsyncClient(server.url, stream="demo") as client:
            assert [word async for word in client.ask("What?", max_tokens=3)]
            answer = client.ask("And now?", max_tokens=20_000)
            await anext(answer)
            assert daemon.open_answers == 1
            await answer.aclose()
            await eventually(lambda: daemon.open_answers == 0)
            assert [word async for word in client.ask("Again?", max_tokens=2)]

    asyncio.run(story())


def test_a_client_is_opened_once(server: Served) -> None:
    client = Client(server.url)
    with client:
        with pytest.raises(ClientError, match="opened once: make a new one"), client:
            pass
        assert client.streams(), "the first goes on"
    with pytest.raises(ClientError, match="opened once: make a new one"), client:
        pass
    away = Client("http://127.0.0.1:1")
    for told in ("No daemon answers", "opened once: make a new one"):
        with pytest.raises(ClientError, match=told), away:
            pass


def test_a_watch_is_made_heard_of_and_judged(server: Served, daemon: Daemon) -> None:
    """The model is untrained: what it would have said is put into its mouth."""
    with Client(server.url) as client, Client(server.url) as other:
        told = other.watch_events()
        options = {"when": "changes", "every": 60, "streams": ["demo"]}
        hearing = threading.Thread(target=lambda: heard.append(next(told)), daemon=True)
        heard: list[dict[str, Any]] = []
        hearing.start()
        made = client.add_watch("words", "What is there?", **options)
        assert made["name"] == "words" and made["streams"][0]["stream"] == "demo"
        with pytest.raises(ClientError, match="set when to changes"):
            client.add_watch("more", "What is there?", streams=["demo"])
        frame, post = daemon.assistant.newest_frame("demo"), daemon.assistant.watches._posts["words", "demo"]
        assert frame is not None
        while not heard:
            for words in ("nothing", "a dog"):
                daemon.do(lambda words=words: post.see(words, time.time(), frame, 1))
            hearing.join(0.5)
        (event,) = heard
        assert (event["type"], event["watch"]) == ("watch.changed", "words")
        assert {event["before"], event["after"]} == {"nothing", "a dog"}
        client.mark(event["id"], "right")
        assert client.change_watch("words", paused=True, snooze=60)["paused"]
        (watch,) = client.watches()
        assert watch["right"] == 1 and watch["events"] and watch["streams"][0]["snoozed_until"]
        again = client.watch_events(after="event_0")  # of a connection there is one reader: the later one
        assert any(each["id"] == event["id"] for each in again), "perhaps behind one that was told before we listened"
        client.remove_watch("words")
        assert client.watches() == [] and client.streams()
        with pytest.raises(ClientError, match="no watch 'words'"):
            client.remove_watch("words")


async def whole(answer: AsyncIterator[str]) -> str:
    return "".join([word async for word in answer])


def test_everything_goes_on_while_answers_are_open(server: Served, daemon: Daemon) -> None:
    """Nothing of one call's is taken by another."""

    async def story() -> None:
        async with AsyncClient(server.url, stream="demo") as client:
            long = client.ask("What?", max_tokens=20_000)
            await anext(long)
            said, streams, again, refused = await asyncio.gather(
                whole(client.ask("And now?", max_tokens=5)),
                client.streams(),
                client.streams(),
                client.attach("demo", "demo:"),
                return_exceptions=True,
            )
            assert said and streams[0]["name"] == again[0]["name"] == "demo"
            assert isinstance(refused, ClientError) and refused.code == "stream_exists"
            assert await anext(long)
            assert daemon.open_answers == 1
            leaving = client.ask("Never mind", max_tokens=20_000)
            first = asyncio.ensure_future(anext(leaving))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await long.aclose()
            await eventually(lambda: daemon.open_answers == 0)
            told = await anext(client.events())
            assert told["type"] == "stream.status" and told["stream"] == "demo"
            assert not client.missed

    asyncio.run(story())


def test_streams_can_be_managed(server: Served) -> None:
    async def story() -> None:
        async with AsyncClient(server.url) as client:
            await client.attach("robot", "demo:", fps=1)
            assert [stream["name"] for stream in await client.streams()] == ["demo", "robot"]
            with pytest.raises(ClientError, match="already"):
                await client.attach("robot", "demo:")
            with pytest.raises(ClientError) as refused:
                [word async for word in client.ask("What?", stream="cellar")]
            assert refused.value.code == "unknown_stream"
            await client.detach("robot")

    asyncio.run(story())


def test_refusals_are_one_clear_line(server: Served) -> None:
    async def refusal(url: str) -> str:
        with pytest.raises(ClientError) as refused:
            await AsyncClient(url).__aenter__()
        assert "\n" not in refused.value.message
        return refused.value.message

    secure = server.url.replace("http", "https")
    with pytest.raises(ClientError, match=r"does not speak TLS .*: write http://"):
        fetch(secure, "streams", {})

    async def story() -> None:
        assert "No daemon answers at http://127.0.0.1:1:" in await refusal("http://127.0.0.1:1")
        assert "is no address" in await refusal("ftp://x")
        assert "answers 404" in await refusal(f"{server.url}/elsewhere")
        assert "does not speak TLS" in await refusal(secure)

    asyncio.run(story())


def test_a_plain_client_out_of_its_block_refuses_rather_than_waits(server: Served) -> None:
    client = Client(server.url)
    for call in (lambda: next(client.ask("What?")), client.streams):
        with pytest.raises(ClientError, match="use it in a 'with' block"):
            call()
    with client:
        assert client.streams()
    for call in (lambda: next(client.ask("What?")), client.streams):
        with pytest.raises(ClientError, match="use it in a 'with' block"):
            call()


def test_plain_client_is_an_ordinary_iterator(server: Served) -> None:
    with Client(server.url) as client:
        words = client.ask("What?", max_tokens=20_000)
        assert next(words)
        words.close()
        assert "".join(client.ask("What?", max_tokens=3))
        assert client.streams()[0]["name"] == "demo"
        with pytest.raises(ClientError, match="known: demo"):
            list(client.ask("What?", stream="cellar"))


def test_command_line_asks(server: Served) -> None:
    asked = streamer("ask", "What?", "--max-tokens", "3", "--url", server.url)
    assert asked.returncode == 0 and asked.stdout
    facts = json.loads(streamer("ask", "What?", "--max-tokens", "3", "--url", server.url, "--json").stdout)
    assert facts["answer"] == asked.stdout.removesuffix("\n") and 0 < facts["first_word_s"] <= facts["answer_s"]
    missing = streamer("ask", "What?", "--stream", "cellar", "--url", server.url)
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1) and "cellar" in missing.stderr


def test_command_line_shows_status(server: Served) -> None:
    head, line = streamer("status", "--url", server.url).stdout.splitlines()
    assert re.split("  +", head) == [
        *("STREAM", "STATE", "FPS IN", "FPS SEEN", "DROPS", "LAG", "NEWEST", "UPTIME", "SOURCE")
    ]
    name, state, fps_in, fps_seen, *_, source = re.split("  +", line)
    assert (name, state, source) == ("demo", "live", "demo:")
    assert float(fps_in) >= 0 and float(fps_seen) > 0
    (facts,) = json.loads(streamer("status", "--json", "--url", server.url).stdout)["streams"]
    assert facts["name"] == "demo" and facts["uptime_s"] > 0
    unreachable = streamer("status", "--url", "http://127.0.0.1:1")
    assert unreachable.returncode == 1 and "streamer run" in unreachable.stderr


def test_client_and_command_line_start_without_torch() -> None:
    heavy = ("torch", "numpy", "av", "pydantic", "model", "capture", "protocols")
    code = f"import sys, streamer.client, streamer.cli; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


@pytest.fixture(scope="module")
def alone() -> Path:
    """The interpreter of an environment in which only the client was asked for; made once for each pyproject.toml."""
    executable, mark = ROOT / ".venv-client" / "bin" / "python", ROOT / ".venv-client" / "installed"
    wanted = (ROOT / "pyproject.toml").read_text()
    if not mark.exists() or mark.read_text() != wanted:
        done = install(executable.parents[1], "-e", f"{ROOT}[client]")
        assert done.returncode == 0, done.stderr
        mark.write_text(wanted)
    return executable


@pytest.mark.slow
def test_the_client_installs_alone(alone: Path, server: Served, tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([alone, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200)

    there = json.loads(pip(alone, "list", "--format", "json").stdout)
    assert {package["name"] for package in there} - {"pip", "setuptools"} == {"streamer", "websockets"}
    code = f"from streamer.client import Client\nwith Client({server.url!r}) as c: print(*c.ask('What?', max_tokens=2))"
    asked = run("-c", code)
    assert asked.returncode == 0 and asked.stdout, asked.stderr
    assert run("-m", "streamer.cli.main", "status", "--url", server.url).stdout.startswith("STREAM")
    refused = run("-m", "streamer.cli.main", "run", "--source", "demo:")
    told = run("-m", "streamer.cli.main", "doctor").stdout
    assert "torch is not installed\n        → install streamer[daemon]" in told
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "install streamer[daemon]" in refused.stderr


def streamer(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamer.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)
