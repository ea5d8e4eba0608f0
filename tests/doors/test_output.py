"""Output that can't be written, or that is written to somebody's terminal: it holds nobody up, ends nothing, steers nothing."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import unicodedata
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import logs
from streamer.cli.main import main
from streamer.cli.remote import status_lines
from streamer.cli.watch import event_line, watch_lines
from streamer.client import ClientError
from streamer.logs import JsonFormatter, LineFormatter, Output
from tests.capture.lab import wait_for
from tests.forked import Forked
from tests.streamer.serve import serve
from tests.streamer.serving import Served
from tests.streamer.test_daemon import ROOT, command, configured


def record(text: str, error: BaseException | None = None) -> logging.LogRecord:
    told = (type(error), error, None) if error is not None else None
    return logging.LogRecord("streamer", logging.INFO, __file__, 1, "%s", (text,), told)


def steers(text: str) -> list[str]:
    """Controls, separators and directions in what was printed."""
    return [
        each for each in text if unicodedata.category(each) in ("Cc", "Zl", "Zp") or each in "\u200e\u200f\u202e\u2066"
    ]


@given(st.text())
def test_nothing_that_is_logged_steers_a_terminal_or_begins_a_line(text: str) -> None:
    attack = f"{text}\x1b[2J\r\n12:00:00 admin logged in\u202e\x9b31m\u2028"
    for told in (record(attack), record("x", ValueError(attack))):
        first, *others = LineFormatter().format(told).split("\n")
        assert not steers(first) and not any(steers(line) for line in others)
        assert all(line.startswith("    ") for line in others), "what follows is seen to belong to it"
        line = JsonFormatter().format(told)
        assert not steers(line)
        json.loads(line)


def pipe() -> tuple[int, TextIOWrapper]:
    """A pipe: the end that reads, and a text stream that writes."""
    reads, writes = os.pipe()
    return reads, os.fdopen(writes, "w", encoding="utf-8")


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_what_is_dropped_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reads, beneath = pipe()
    output = Output(beneath, "stderr")
    lines = 4 * logs.MOST_BYTES // 100
    with caplog.at_level(logging.WARNING, "streamer.logs"):
        for n in range(lines):
            print(f"{n:99d}", file=output, flush=True)  # a text, and its end, each taken along or not
        assert 0 < output.dropped < 2 * lines
        read = bytearray()
        reader = threading.Thread(target=lambda: read.extend(os.fdopen(reads, "rb").read()))
        reader.start()
        with output._changed:
            assert output._changed.wait_for(lambda: not output._bytes, 60)
        output.write("again\n")
        output.finish(60)
    beneath.close()
    reader.join(60)
    assert read.endswith(b"again\n") and len(read) <= logs.MOST_BYTES + 2 * 65_536 + 4096
    # It tells as it gets on, so that the lines of one flood may be told in parts.
    told = re.findall(r"(\d+) lines for stderr were dropped: nobody reads it", caplog.text)
    assert sum(map(int, told)) == output.dropped


def test_dropped_lines_are_in_the_metrics(monkeypatch: pytest.MonkeyPatch, server: Served) -> None:
    output = Output(os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"), "stderr")
    monkeypatch.setattr(sys, "stderr", output)
    output.write("one\ntwo\n")
    output.finish()
    told = httpx.get(f"{server.url}/metrics").text
    assert 'streamer_output_lines_dropped_total{output="stderr"} 2' in told
    with suppress(OSError):
        output._beneath.close()


@pytest.mark.parametrize("why", ["full", "gone"])
def test_what_can_not_be_written_is_dropped_and_counted(why: str) -> None:
    if why == "full":
        beneath = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    else:
        reads, beneath = pipe()
        os.close(reads)
    output = Output(beneath, "stdout")
    for n in range(10):
        print(n, file=output, end=" and no more\n")
    output.finish()
    assert output.dropped == 10 or output.dropped == 20
    with suppress(OSError):
        beneath.close()


def test_the_end_waits_for_the_last_words_but_not_for_ever() -> None:
    reads, beneath = pipe()
    output = Output(beneath, "stdout")
    output.write("x" * 1000)
    output.finish()
    assert os.read(reads, 2000) == b"x" * 1000
    stuck = Output(beneath, "stdout")
    stuck.write("x" * 500_000)
    stuck.finish(0.05)
    os.close(reads)
    beneath.close()


def test_a_daemon_whose_output_goes_nowhere_serves_and_ends() -> None:
    """stdout on a full disk, stderr a pipe that is full already."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writes, b"x" * 4096)
    os.set_blocking(writes, True)
    reader, announced = os.pipe()
    program = command(
        server={"port": 0, "tokens": [{"name": "ada", "scopes": ["view"], "digest": "sha256:" + "0" * 64}]}
    )
    program[2] = (
        "import os, sys; from tests.streamer.serve import serve; "
        f"sys.exit(serve(sys.argv[1:], lambda url: os.write({announced}, url.encode())))"
    )
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(program, cwd=ROOT, stdout=full, stderr=writes, pass_fds=[announced])
    os.close(writes)
    os.close(announced)
    try:
        url = os.read(reader, 200).decode()
        with httpx.Client(base_url=url, timeout=60) as client:
            for _ in range(50):  # what is logged finds the pipe full
                client.get("/v1/streams", headers={"Authorization": "Bearer " + "x" * 40})
            assert client.get("/healthz").json()["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reads)
        os.close(reader)


def test_a_reader_that_goes_away_ends_nothing() -> None:
    """As `streamer run | head -1` does."""
    with Forked(serve, [configured()]) as process:
        try:
            url = process.stdout.readline().split()[-1]
            process.stdout.close()
            wait_for(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_what_others_named_steers_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch's question is whoever's that may ask; it is shown to an administrator."""
    attack = "Is it\x1b]0;mine\x07 so\x9b31m\u202e?\nFAKE  demo  true"
    at = {"stream": "demo", "state": attack, "seen": attack, "silent": None, "looks_per_s": 1.0, "slowed": False}
    watch = {"name": "a", "question": attack, "paused": False, "events": 1, "right": 0, "false_alarms": 0}
    event = {"captured_at": 0.0, "id": "event_0", "watch": "a", "type": "watch.changed", "stream": "demo"}
    event |= {"before": attack, "after": attack, "probability": None, "feedback": None}
    lines = watch_lines([{**watch, "streams": [{**at, "trouble": attack}]}])
    assert len(lines) == 2 and not any(steers(line) for line in (*lines, event_line(event)))
    stream = dict.fromkeys(("fps_in", "fps_seen", "lag_s", "newest_frame_age_s", "uptime_s"), 1.0)
    lines = status_lines([{**stream, "name": "a", "drops": {}, "state": "live", "reason": attack, "source": attack}])
    assert len(lines) == 2 and not any(map(steers, lines))

    def refused(*_: object) -> None:
        raise ClientError("unknown_stream", attack)

    monkeypatch.setattr("streamer.cli.watch.web", refused)
    assert main(["watch", "list"]) == 1
    assert not steers(capsys.readouterr().err.removesuffix("\n"))


def test_a_line_says_which_stream_it_is_about_and_where_in_a_fleet_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_ABOUT", {})
    logs.about(node="box", engine="gpu-1")
    record = logging.LogRecord("streamer", logging.INFO, "", 0, "100%% of %d: stream %s goes", (3, "ga\x1bte"), None)
    told = json.loads(JsonFormatter().format(record))
    assert (told["stream"], told["node"], told["engine"]) == ("ga\\x1bte", "box", "gpu-1")
    assert "gpu-1: 100% of 3: stream ga" in LineFormatter().format(record)
    elsewhere = logging.LogRecord("streamer", logging.INFO, "", 0, "engine %s: %s", ("cpu-0", "stream x"), None)
    assert json.loads(JsonFormatter().format(elsewhere))["message"] == "engine cpu-0: stream x"
    assert "stream" not in json.loads(JsonFormatter().format(elsewhere))
