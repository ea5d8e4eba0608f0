"""The command line: what it makes of its options, and one daemon that it runs."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from capture.sources.demo import CLIP
from model.config import PRESETS, AttentionPolicy
from model.serving.capacity import Capacity
from model.serving.catalogue import dtypes
from model.serving.expectation import expect, products_per_second
from streamer.assistant import Assistant, StreamStatus
from streamer.cli.doctor import cameras
from streamer.cli.main import _parser, main
from streamer.cli.remote import _duration, here
from streamer.cli.run import run_config
from streamer.config import Config, ConfigError, load_config
from streamer.errors import AssistantError
from streamer.server.auth import read_tokens
from tests import tiny_qwen
from tests.forked import Forked
from tests.streamer.serving import Daemon, Served

HOME = Path(__file__).parents[2]


def configured(*arguments: str) -> Config:
    return run_config(_parser().parse_args(["run", *arguments]))


def test_sources_become_streams_with_names() -> None:
    config = configured(
        *("--source", "rtsp://user:pass@cam.lan/1", "--source", "/videos/front door.mp4"),
        *("--source", "rtsp://cam.lan/2", "--source", "demo:", "--name", "gate", "--loop"),
    )
    assert [stream.name for stream in config.streams] == ["gate", "front-door", "cam.lan", "demo"]
    assert all(stream.loop for stream in config.streams)


def test_without_a_source_the_demo_is_watched() -> None:
    assert [stream.source for stream in configured().streams] == ["demo:"]


def test_options_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("server: {port: 1}\nstreams: [{name: a, source: 'demo:'}]\n")
    for arguments in ((str(file),), ("--source", str(file))):
        config = configured(*arguments, "--port", "0", "--model", "4b", "--source", "demo:")
        assert (config.server.port, config.model.name) == (0, "4b")
        assert [stream.name for stream in config.streams] == ["a", "demo"]


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (("--name", "x"), "has no --source"),
        (("--port", "99999"), "server.port: 99999 is out of range"),
        (("--source", "demo:", "--name", "two words"), "is no name"),
        (("--source", "demo:", "--source", "demo:", "--name", "a", "--name", "a"), "more than once"),
        (("no.yaml",), "cannot be read"),
    ],
)
def test_bad_options_are_named(arguments: tuple[str, ...], mend: str) -> None:
    with pytest.raises(ConfigError, match=mend):
        configured(*arguments)


INTERRUPTED = """
import signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has ignored in what it runs in the background

class Impatient:
    def find_spec(self, name, path=None, target=None):
        if name == "streamer.cli.remote":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Impatient())
from {module} import {function}
sys.exit({function}())
"""


def test_an_interrupt_during_imports_is_quiet() -> None:
    scripts = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["streamer"].partition(":")
    code = INTERRUPTED.format(module=module, function=function)
    ran = subprocess.run(
        [sys.executable, "-c", code, "--version"], cwd=HOME, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_config_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("streams: [{name: a, source: 'demo:'}]\n")
    assert main(["config", "check", str(file)]) == 0
    assert "good" in capsys.readouterr().out
    assert main(["config", "check", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "streams": ["a"]}
    file.write_text("server: {prot: 1}\n")
    assert main(["config", "check", str(file)]) == 1
    assert "did you mean 'port'?" in capsys.readouterr().err
    assert main(["config", "check", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"]


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("server: {host: 0.0.0.0}", "server.host: '0.0.0.0' can be reached from other machines"),
        ("server: {token_file: /nowhere}", "/nowhere"),
        ("server: {certificate: /nowhere.pem, key: /nowhere.key}", "/nowhere.pem or /nowhere.key can't be read"),
        ("streams: [{name: a, source: 'demo:'}, {name: b, source: 'foo://x'}]", "streams[1].source: source foo://x"),
        ("streams: [{name: a, source: /nowhere.mp4}]", "streams[0].source: source /nowhere.mp4: there is no such file"),
        ("storage: {folder: /proc/x}", "storage.folder: the state folder /proc/x can't be used (No such file"),
        ("storage: {folder: /dev/null/x/y}", "storage.folder: the state folder /dev/null/x/y can't be used (Not a"),
        ("storage: {folder: ~nobody-here/x}", "storage.folder: '~nobody-here/x' begins with nobody's home"),
    ],
)
def test_config_check_refuses_what_run_refuses(
    text: str, mend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert main(["config", "check", str(file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{file}: ") and mend in line


def test_nobodys_home_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("storage: {folder: ~nobody-here/x}")
    assert main(["recordings", "list", "--config", str(file)]) == 1
    told = "'~nobody-here/x' begins with nobody's home: name another"
    assert told in capsys.readouterr().err
    with pytest.raises(AssistantError, match=told):
        asyncio.run(Assistant(load_config(file)).start())


def test_config_check_makes_no_state_folder(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"storage: {{folder: {tmp_path}/state/of/mine}}")
    assert main(["config", "check", str(file)]) == 0
    assert list(tmp_path.iterdir()) == [file]


def test_config_check_tells_of_all_mistakes_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    streams = "[{name: a, source: /nowhere.mp4}, {name: b, sauce: x}, {name: c, source: 'foo://x'}, 7]"
    file.write_text(f"server: {{token_file: /nowhere}}\nanswers: {{max_tokens: no}}\nstreams: {streams}\n")
    assert main(["config", "check", str(file)]) == 1
    told = capsys.readouterr().err
    for mistake in (
        "/nowhere can't be read",
        "answers.max_tokens",
        "streams[0].source: source /nowhere.mp4",
        "streams[1].sauce",
    ):
        assert mistake in told
    assert "streams[2].source: source foo://x" in told and "streams[3]" in told and told.count("\n") == 7


def test_a_token_needs_a_name_that_a_configuration_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "my phone"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "'my phone' is no name; use letters" in told.err


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://127.0.0.1:x", "http://:8765", "127.0.0.1:0"])
def test_an_impossible_address_is_one_clear_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url]) == 1
    assert (
        capsys.readouterr().err
        == f"streamer: {url} is no address of a daemon: use http://127.0.0.1:8765 or the like.\n"
    )


def test_token_is_shown_once_and_kept_hashed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "phone", "--scopes", "view,ask", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    (kept,) = read_tokens([f"phone view,ask {made['token']}"], "test")
    assert made["digest"] == f"sha256:{kept.digest}" and made["scopes"] == ["view", "ask"]
    Config.model_validate({"server": {"tokens": [{key: made[key] for key in ("name", "scopes", "digest")}]}})
    assert main(["token", "phone"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  phone ")]
    assert read_tokens([line], "test")[0].name == "phone"
    assert main(["token", "phone", "--scopes", "look"]) == 2


def test_sources_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources"]) == 0
    assert "rtsp://" in capsys.readouterr().out
    assert main(["sources", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"cameras", "kinds"}


def test_models_are_listed_with_what_they_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals as published, less the MTP layer that is not loaded; what is missing counts the slots of a daemon."""
    monkeypatch.setattr("model.serving.catalogue.capacity", lambda device, each: Capacity(10**10, each))
    assert main(["models", "--json"]) == 0
    found = {(one["name"], one["dtype"]): one for one in json.loads(capsys.readouterr().out)["models"]}
    small, large = found["Qwen/Qwen3.5-0.8B", "float32"], found["Qwen/Qwen3.5-27B", "float32"]
    assert small["weight_bytes"] == 4 * small["parameters"] == pytest.approx(3.41e9, rel=0.01)
    assert large["parameters"] == pytest.approx(27_781e6 - 425e6, rel=0.001)
    assert all(found[f"Qwen/Qwen{by}-27B", "float32"]["parameters"] == large["parameters"] for by in ("3.6", "3.8"))
    assert small["missing_bytes"] == 0 and "--model Qwen/Qwen3.5-0.8B" in small["command"]
    assert large["missing_bytes"] == large["weight_bytes"] + 16 * large["state_bytes"] - 10**10
    assert found["hustvl/InfiniteVL", "float32"]["parameters"] == pytest.approx(4.41e9, rel=0.001)
    assert main(["models"]) == 0
    assert "GB of memory are missing" in capsys.readouterr().out


SPEEDS = {"float32": 70e9, "int8": 140e9}
"""Multiplications a second by the dtype of a machine's steps."""


def test_doctor_says_what_works_and_what_to_mend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.serving.expectation.products_per_second", lambda device, dtype: 70e9)
    monkeypatch.setattr("model.serving.catalogue.capacity", lambda device, each: Capacity(2 * 10**10, each))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["doctor", "--port", str(taken.getsockname()[1]), "--json"]) == 0
    findings = {each["part"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert {"machine", "GPU", "decoders", "cameras", "port", "nano"} <= set(findings)
    assert findings["port"]["verdict"] == "hint" and "in use" in findings["port"]["fact"]
    assert findings["decoders"]["verdict"] == "good"
    small = findings["Qwen/Qwen3.5-0.8B"]
    assert (small["verdict"], small["mend"]) == ("good", "streamer run --model Qwen/Qwen3.5-0.8B")
    assert small["fact"] == "about 2 steps a second at 160×160 in float32, trained with 1"
    assert findings["Qwen/Qwen3.5-2B"]["verdict"] == "hint" and "Qwen/Qwen3.5-4B" not in findings
    assert main(["doctor", "--port", "0"]) == 0
    assert "ok    port" in capsys.readouterr().out
    monkeypatch.setattr("model.serving.expectation.products_per_second", lambda device, dtype: SPEEDS[dtype])
    monkeypatch.setattr("model.serving.catalogue.dtypes", lambda device: tuple(SPEEDS))
    assert main(["doctor", "--port", "0"]) == 0
    said = capsys.readouterr().out
    assert "Qwen/Qwen3.5-0.8B: about 2.3 steps a second at 224×224 in int8, trained with 1" in said
    assert "{name: Qwen/Qwen3.5-0.8B, device: cpu, dtype: int8}" in said


def test_a_rate_to_expect_comes_of_whole_steps_and_chooses_the_picture() -> None:
    tiny = replace(PRESETS[tiny_qwen.TINY_QWEN["name"]], policy=AttentionPolicy(sinks=4, window=64))
    assert products_per_second(torch.device("cpu"), "float32", tiny) > 0
    assert products_per_second(torch.device("cpu"), dtypes(torch.device("cpu"))[-1], tiny) > 0
    small = PRESETS["qwen3.5-0.8b"]
    fast, slow = expect(small, 1e12), expect(small, 1e9)
    assert (fast.side, slow.side, fast.trained) == (448, 160, 1)
    assert fast.rate * 0.7 >= 1 > slow.rate > 0


def test_doctor_names_a_camera_that_may_not_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [Path("/dev/video7")])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (finding,) = cameras()
    assert finding.verdict == "bad" and "/dev/video7" in finding.fact and "usermod" in finding.mend


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("doctor", "stream", "token", "insecure"))


def test_durations_are_readable() -> None:
    assert [_duration(seconds) for seconds in (7.9, 61, 7_260, 200_000)] == ["7 s", "1 min 1 s", "2 h 1 min", "2 d 7 h"]


def added(server: Served, *arguments: str) -> int:
    return main(["stream", "add", *arguments, "--url", server.url])


def figures(daemon: Daemon, name: str, true: Callable[[StreamStatus], bool]) -> StreamStatus:
    """A stream's figures, once something is true of them."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        status = next(status for status in daemon.do(daemon.assistant.streams) if status.name == name)
        if true(status):
            return status
        time.sleep(0.05)
    raise AssertionError(status)


def test_streams_are_added_with_any_key_of_a_configured_one(
    server: Served, daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recording of which the model sees every frame; a gate that leaves out what shows nothing new; a lower rate."""
    whole = ("whole", str(CLIP), "--set", "policy=every", "--set", "realtime=false", "--set", "start=45")
    gated = ("gated", "demo:", "--set", "change=255", "--set", "change_floor=0.5")
    began = time.monotonic()
    try:
        assert added(server, *whole) == added(server, *gated) == added(server, "slow", "demo:", "--fps", "2") == 0
        seen = figures(daemon, "slow", lambda status: status.frames_seen > 4)
        assert seen.frames_thinned > 5 * seen.frames_seen
        seen = figures(daemon, "gated", lambda status: status.frames_unchanged > 60)
        assert 1 <= seen.frames_seen <= 2 + 0.5 * (time.monotonic() - began) / 0.9, "one in 2 s, which may come early"
        seen = figures(daemon, "whole", lambda status: status.frames_seen >= 3 * 25 - 1)
        assert not seen.drops and seen.frames_thinned == seen.frames_unchanged == 0
    finally:
        for name in ("whole", "gated", "slow"):
            main(["stream", "remove", name, "--url", server.url])
    assert added(server, "bad", "demo:", "--set", "polici=every") == 1
    assert "policy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        added(server, "bad", "demo:", "--set", "policy")


def test_a_file_is_found_from_where_its_user_stands() -> None:
    """The daemon runs in a folder of its own; what is no file is left as it is."""
    assert here(os.path.relpath(CLIP)) == str(CLIP.resolve())
    for other in ("demo:", "rtsp://camera/1", "/dev/video90", "gone.mp4"):
        assert here(other) == other


def start(*arguments: str, **environment: str) -> Forked:
    return Forked(main, ["run", "--port", "0", *arguments], **environment)


def read_until(process: Forked, pattern: str, seconds: float = 200) -> re.Match[str]:
    text, end = "", time.monotonic() + seconds
    while time.monotonic() < end:
        text += process.stdout.read(1)
        if found := re.search(pattern, text):
            return found
    raise AssertionError(text)


def test_run_asks_the_first_question_and_ends_in_good_order_mid_answer() -> None:
    process = start("--source", "demo:", "--ask", "What is happening?")
    try:
        read_until(process, r"ready at http://127\.0\.0\.1:\d+\n")
        read_until(process, r"demo: What is happening\?\n> ")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        assert "Traceback" not in err
    finally:
        process.kill()


@pytest.mark.beside(2)
@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (("--host", "0.0.0.0"), "say it twice"),
        (("--source", "/no/such.mp4"), "/no/such.mp4"),
        (("--model", "/no/such/model"), "/no/such/model"),
    ],
)
def test_run_that_can_not_work_says_so_in_a_line(arguments: tuple[str, ...], mend: str, tmp_path: Path) -> None:
    process = start(*arguments, XDG_STATE_HOME=str(tmp_path))
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1 and mend in err, out + err
    assert "Traceback" not in err
