"""Commands that are run for events."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from streamer.config import parse_config
from streamer.outputs.outputs import Outputs
from tests.outputs.receiver import happened
from tests.streamer.serving import eventually

PROGRAM = """
import json, os, sys
event = json.load(sys.stdin)
with open(sys.argv[1], "a") as out:
    print(json.dumps({"id": event["id"], "arguments": sys.argv[2:], "token": "STREAMER_TOKENS" in os.environ,
        "pid": os.getpid()}), file=out)
sys.exit(3 if event["watch"] == "broken" else 0)
"""
SLOW = 'echo "{\\"pid\\": $$}" >> "$0"; exec sleep 99'
"""A shell's, which has begun when a Python might still be starting, on a busy machine, as its time is over."""


def test_a_command_reads_the_event_and_has_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_TOKENS", "a secret")
    program, out = tmp_path / "told.py", tmp_path / "out"
    program.write_text(PROGRAM)
    out.touch()
    command = [sys.executable, str(program), str(out), "a b", "$HOME; rm"]
    slow = ["/bin/sh", "-c", SLOW, str(out)]

    async def test(watch: str, timeout: float, lines: int, command: list[str] = command) -> str | None:
        outputs = Outputs(
            parse_config({"outputs": {"commands": [{"name": "told", "command": command, "timeout": timeout}]}}).outputs
        )
        await outputs.start(None)
        outputs.publish(happened(1, watch=watch))
        await eventually(
            lambda: (
                (outputs.status()[0].delivered or outputs.status()[0].failed_tries)
                and len(out.read_text().splitlines()) >= lines
            )
        )
        await outputs.stop()
        return outputs.status()[0].trouble

    assert asyncio.run(test("gate", 60, 1)) is None
    told = json.loads(out.read_text())
    pids = [told.pop("pid")]
    assert told == {"id": happened(1)["id"], "arguments": ["a b", "$HOME; rm"], "token": False}
    assert "ended with 3, not 0" in (asyncio.run(test("broken", 60, 2)) or "")
    assert "not ended within 1 s and was killed" in (asyncio.run(test("slow", 1, 3, slow)) or "")
    pids += [json.loads(line)["pid"] for line in out.read_text().splitlines()[1:]]
    assert len(pids) >= 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # neither running nor a zombie
            os.kill(pid, 0)


def test_a_command_that_is_not_there_is_one_line() -> None:
    async def test() -> str | None:
        outputs = Outputs(parse_config({"outputs": {"commands": [{"name": "told", "command": ["/no/such"]}]}}).outputs)
        await outputs.start(None)
        outputs.publish(happened(1))
        await eventually(lambda: outputs.status()[0].failed_tries)
        await outputs.stop()
        return outputs.status()[0].trouble

    assert asyncio.run(test()) == "/no/such can't be run: No such file or directory"
