"""The daemon as a process of its own: start, port, signals."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.client import connect

from streamer.config import ServerConfig, parse_config
from streamer.daemon import Daemon, OutOfFiles
from streamer.engine.scheduler import Scheduler
from tests.forked import Forked, script
from tests.ports import free_port
from tests.streamer.serve import serve
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
CODE = "import sys; from tests.streamer.serve import serve; sys.exit(serve(sys.argv[1:]))"


def configured(**keys: Any) -> str:
    config = {
        "server": {"port": 0},
        "model": TINY,
        "limits": {"streams": 1, "answers": 2, "waiting_questions": 2},
        "streams": [{"name": "demo", "source": "demo:"}],
        **keys,
    }
    return json.dumps(config)


def command(**keys: Any) -> list[str]:
    return [sys.executable, "-c", CODE, configured(**keys)]


@contextmanager
def ready(process: Forked | subprocess.Popen[str]) -> Iterator[tuple[str, str]]:
    """A daemon's URL and its banner, once it runs."""
    try:
        assert process.stdout is not None and process.stderr is not None
        banner = ""
        while not (line := process.stdout.readline()).startswith("http://"):
            assert line, process.stderr.read()
            banner += line
        yield line.strip(), banner
    finally:
        process.kill()


@contextmanager
def daemon(environment: dict[str, str] | None = None, **keys: Any) -> Iterator[tuple[Forked, str, str]]:
    """A running daemon, its URL and its banner."""
    with Forked(serve, [configured(**keys)], **(environment or {})) as process, ready(process) as (url, banner):
        yield process, url, banner


AT_ONCE = 25.0
"""Seconds of an end that waits for nothing, on a busy machine: at most 1.9 were seen with three other programs on each core."""


def ended(process: Forked | subprocess.Popen[str], number: signal.Signals) -> tuple[int, float]:
    began = time.monotonic()
    process.send_signal(number)
    code = process.wait(60)
    return code, time.monotonic() - began


def refused(**keys: Any) -> tuple[int, str]:
    """The exit code of a daemon that does not start, and what it says on stderr."""
    with Forked(serve, [configured(**keys)]) as process:
        _, stderr = process.communicate(200)
        return process.wait(0), stderr


def test_starts_says_what_it_is_and_stops() -> None:
    """The one that imports all by itself, as a user's does."""
    with (
        subprocess.Popen(command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ready(process) as (url, banner),
    ):
        assert url in banner and "model tiny" in banner and "room for 1 streams and 2 answers" in banner
        assert re.search(r"free memory would hold \d+ more of their slots\n", banner)
        assert re.search(r"up to \d+ frames a second in all, as measured: [\d.]+ streams of 25; more lower", banner)
        assert ("RANDOM WEIGHTS" in banner) == (not facts(url)["model"]["trained"])
        code, seconds = ended(process, signal.SIGTERM)
        assert code == 0 and seconds < AT_ONCE
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_what_the_banner_tells_of_the_device_the_engine_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity, asking = Scheduler.capacity, set()

    def noted(scheduler: Scheduler[Any]) -> float:
        asking.add(threading.current_thread().name)
        return capacity(scheduler)

    monkeypatch.setattr(Scheduler, "capacity", noted)

    async def banner() -> str:
        whole = Daemon(parse_config({"server": {"port": 0}, "model": TINY, "limits": {"streams": 1, "answers": 1}}))
        try:
            return whole.banner(await whole.start())
        finally:
            await whole.stop()

    assert "the device sees up to" in asyncio.run(banner())
    assert asking == {"engine"}


@pytest.mark.parametrize(
    ("listening", "server", "begins"),
    [
        ("http://127.0.0.1:8765", {}, "http://127.0.0.1:8765"),
        ("https://10.0.0.7:8765", {"host": "cam.lan"}, "https://cam.lan:8765"),
        ("http://[::1]:8765", {"host": "::1"}, "http://[::1]:8765"),
        ("http://0.0.0.0:8765", {"host": "0.0.0.0"}, ""),
        ("http://[::]:8765", {"host": "::"}, ""),
        ("http://127.0.0.1:8765", {"proxies": ("127.0.0.1",)}, ""),
        ("http://127.0.0.1:8765", {"root_path": "/cam"}, "/cam"),
        (
            "http://0.0.0.0:8765",
            {"root_path": "/cam", "public_url": "https://home.example/cam/"},
            "https://home.example/cam",
        ),
    ],
)
def test_links_begin_with_the_address_that_others_know_or_none(
    listening: str, server: dict[str, Any], begins: str
) -> None:
    daemon: Any = SimpleNamespace(listening=listening)
    assert Daemon.address(daemon, ServerConfig(**server)) == begins


def test_says_what_full_attention_forgets(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(ROOT / "model/nano", folder, ignore=shutil.ignore_patterns("training"))
    config = json.loads((folder / "config.json").read_text()) | {"use_sliding_window": False, "attention_sinks": 0}
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    with daemon(model={"name": str(folder), "position_horizon": 100}) as (_, _, banner):
        assert "older than 4096 tokens (5 s at 25 frames/s) are forgotten; model.attention" in banner


def test_systemd_hears_of_it(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with daemon(environment=environment) as (process, _, _):
            assert manager.recv(100) == b"READY=1"
            assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            code, _ = ended(process, signal.SIGTERM)
            assert code == 0
            heard = b""
            while heard != b"STOPPING=1":
                heard = manager.recv(100)


def test_a_bad_configuration_on_sighup_changes_nothing_and_the_log_is_json() -> None:
    with daemon() as (process, url, _):
        process.send_signal(signal.SIGHUP)
        while "refused" not in (line := json.loads(process.stderr.readline()))["message"]:
            assert line["level"] == "info"
        assert line["level"] == "error" and "limits.streams" in line["message"] and line["time"].endswith("+00:00")
        assert facts(url)["streams"] == 1
        assert ended(process, signal.SIGTERM)[0] == 0


def facts(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + "/healthz", timeout=60) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_mid_answer_cancels_it_and_closes_with_1001(number: signal.Signals) -> None:
    async def speak(process: Forked, url: str) -> tuple[list[dict[str, Any]], int | None, float]:
        events = []
        async with connect(url.replace("http", "ws") + "/v1/realtime") as socket:
            item = {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "What is happening?"}],
            }
            ask = {"type": "response.create", "response": {"input": [item], "max_output_tokens": 1000}}
            while not events or events[-1]["type"] != "response.output_text.delta":
                if not events or events[-1]["type"] == "error":
                    await asyncio.sleep(0.2)
                    await socket.send(json.dumps(ask))
                events.append(json.loads(await socket.recv()))
            began = time.monotonic()
            process.send_signal(number)
            async for message in socket:
                events.append(json.loads(message))
            code = await asyncio.to_thread(process.wait, 60)
            assert code == 0
            return events, socket.close_code, time.monotonic() - began

    with daemon() as (process, url, _):
        events, close_code, seconds = asyncio.run(asyncio.wait_for(speak(process, url), 200))
        done = [event["response"] for event in events if event["type"] == "response.done"]
        assert [response["status"] for response in done] == ["cancelled"]
        assert close_code == 1001 and seconds < AT_ONCE
        assert "Traceback" not in process.stderr.read()


def test_a_signal_while_the_model_loads_is_obeyed() -> None:
    port = free_port()
    with Forked(serve, [configured(server={"port": port})]) as process:
        while True:
            assert process.poll() is None
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.02)
        code, seconds = ended(process, signal.SIGINT)
        assert code == 0 and seconds < AT_ONCE
        assert "ready" not in process.stdout.read()
        assert "Traceback" not in process.stderr.read()


def test_a_source_that_can_never_work_is_told_before_the_model_is_loaded() -> None:
    keys = {"model": {"name": "/no/such/model"}, "streams": [{"name": "a", "source": "/nowhere.mp4"}]}
    code, stderr = refused(**keys)
    assert code == 1 and stderr.count("\n") == 1 and "/nowhere.mp4" in stderr


def test_a_signal_is_obeyed_while_the_engine_is_inside_of_a_long_call(tmp_path: Path) -> None:
    code = """
import sys, torch
from streamer import loading
from streamer.config import parse_config
from streamer.daemon import run

def load(*arguments, **options):
    print("loading", flush=True)
    while True:
        torch.ones(2000, 2000) @ torch.ones(2000, 2000)

loading.load_runner = load
sys.exit(run(parse_config({"server": {"port": 0}})))
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    with Forked(script, [str(program)]) as process:
        assert process.stdout.readline() == "loading\n"
        code_of_exit, seconds = ended(process, signal.SIGTERM)
        assert code_of_exit == 0 and seconds < AT_ONCE and process.stderr.read() == ""


def test_that_no_file_is_left_for_a_connection_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def crowd() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(OutOfFiles())
        for _ in range(100):
            loop.call_exception_handler(
                {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")}
            )
        assert [record.getMessage() for record in caplog.records] == [
            "no connection can be taken (Too many open files): raise ulimit -n, LimitNOFILE under systemd"
        ]
        loop.call_exception_handler({"message": "another", "exception": ValueError("x")})
        assert len(caplog.records) == 2

    asyncio.run(crowd())


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, stderr = refused(server={"port": port})
    assert code == 1
    assert stderr.strip() == (
        f"streamer: port {port} at 127.0.0.1 is in use: stop what uses it, or choose another with --port"
    )


@pytest.mark.beside(2)
@pytest.mark.parametrize(
    ("keys", "part"),
    [
        (
            {"server": {"port": 0, "host": "no.such.host.invalid", "insecure": 2}},
            "can't listen at no.such.host.invalid:0",
        ),
        ({"streams": [{"name": "a", "source": "/nowhere.mp4"}]}, "/nowhere.mp4"),
        ({"model": {"name": "/no/such/folder"}}, "/no/such/folder"),
        ({"model": {"position_horizon": 0.5}}, "horizon"),
    ],
)
def test_what_can_never_work_is_one_clear_line(keys: dict[str, Any], part: str) -> None:
    code, stderr = refused(**keys)
    assert code == 1
    assert part in stderr and "Traceback" not in stderr
