"""What a real Home Assistant makes of discovery: each entity once, with its state, and gone when its watch is.

Nightly, where HOME_ASSISTANT names the Python of an environment that holds it (2024.3.3 is the newest for Python 3.11) and what
its MQTT integration and cameras need: `pip install homeassistant==2024.3.3 paho-mqtt==1.6.1 janus==1.0.0 numpy==1.26.0
PyTurboJPEG==1.7.1 Pillow==10.2.0 psutil-home-assistant`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.outputs.broker import BROKER, running
from tests.outputs.receiver import configured, happened, started
from tests.ports import free_port
from tests.streamer.serving import eventually

PYTHON = os.environ.get("HOME_ASSISTANT")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(PYTHON is None or BROKER is None, reason="needs HOME_ASSISTANT and mosquitto"),
]
GATE = {"name": "gate", "streams": ["yard"], "when": "both", "outputs": None, "states": {"yard": False}}
METER = {"name": "meter", "streams": ["hall"], "when": "changes", "format": {"type": "number"}, "outputs": None}


async def still(event: str) -> bytes:
    return b"a picture"


def test_home_assistant_has_each_entity_once_with_its_state_and_none_that_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"

    def facts() -> dict[str, Any]:
        return json.loads(file.read_text()) if file.exists() else {"states": {}, "registered": []}

    def states() -> dict[str, str]:
        mqtt = ("binary_sensor.", "sensor.", "button.", "camera.")
        return {key: value for key, value in facts()["states"].items() if key.startswith(mqtt) and "streamer" in key}

    async def test(port: int) -> None:
        made = configured(
            "mqtt", name="home", host="127.0.0.1", port=port, discovery="homeassistant", stills=True, commands=True
        )
        snoozed: list[tuple[str, float]] = []
        made.still, made.snooze = still, lambda watch, seconds: snoozed.append((watch, seconds))
        async with started(made):
            made.watches_changed([GATE, METER])
            await eventually(lambda: len(states()) == 6, 40)
            kinds = sorted(each.split(".")[0] for each in states())
            assert kinds == ["binary_sensor", "button", "button", "camera", "camera", "sensor"]
            gate = next(each for each in states() if each.startswith("binary_sensor."))
            meter = next(each for each in states() if each.startswith("sensor."))
            await eventually(lambda: states()[gate] == "off", 20)
            made.publish(happened(1, still="/still.jpg"))
            await eventually(lambda: states()[gate] == "on", 20)
            made.publish(happened(2, watch="meter", stream="hall", type="watch.changed", before=None, after=47))
            await eventually(lambda: states()[meter] == "47", 20)
            # All of it is told again, as after a restart: nothing is there twice.
            made.watches_changed([GATE, METER])
            await asyncio.sleep(1)
            ids = [unique for _, unique in facts()["registered"]]
            assert len(ids) == len(set(ids)) == 6 and not any(key.endswith("_2") for key in states())
            made.watches_changed([METER])
            await eventually(lambda: gate not in states() and len(states()) == 3, 20)
        await eventually(lambda: states()[meter] == "unavailable", 20)

    with running(tmp_path) as broker:
        program = Path(__file__).with_name("home_assistant.py")
        (tmp_path / "ha").mkdir()
        command = [str(PYTHON), str(program), str(tmp_path / "ha"), str(broker.port), str(file), str(free_port())]
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
        try:
            asyncio.run(test(broker.port))
        finally:
            process.kill()
            process.wait()
            log.close()
