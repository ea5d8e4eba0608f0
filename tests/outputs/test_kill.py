"""A process that is killed while events wait for an output that can't be reached."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streamer.config import parse_config
from streamer.memory.store import Store
from streamer.outputs import outbox
from streamer.outputs.outputs import Outputs
from tests.outputs.receiver import Receiver, received
from tests.streamer.serving import eventually

PROGRAM = """
import asyncio, json, pathlib, sys
from streamer.config import parse_config
from streamer.memory.store import Store
from streamer.outputs.outputs import Outputs
from tests.outputs.receiver import happened

async def main():
    store, outputs = Store(pathlib.Path(sys.argv[1])), Outputs(parse_config(json.loads(sys.argv[2])).outputs)
    await outputs.start(store)
    for number in range(200):
        outputs.publish(happened(number))
        await asyncio.sleep(0)
    while store.read("SELECT count(*) FROM outbox")[0][0] < 199:
        await asyncio.sleep(0.001)
    print("kept", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_nothing_is_lost_and_nothing_gets_another_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_SECONDS", 0.01)

    async def test() -> None:
        async with received(Receiver(204, 500)) as receiver:
            config = {"outputs": {"webhooks": [{"name": "hook", "url": receiver.url}]}}
            command = [sys.executable, "-c", PROGRAM]
            process = await asyncio.create_subprocess_exec(
                *command, str(tmp_path), json.dumps(config), stdout=subprocess.PIPE
            )
            assert process.stdout is not None and await process.stdout.readline() == b"kept\n"
            process.send_signal(signal.SIGKILL)
            await process.wait()
            receiver.answers = [204]
            store, outputs = Store(tmp_path), Outputs(parse_config(config).outputs)
            await outputs.start(store)
            await eventually(lambda: not outputs.status()[0].waiting)
            await outputs.stop()
            await asyncio.to_thread(store.close)
            ids = [each["id"] for each in receiver.accepted]
            assert list(dict.fromkeys(ids)) == [f"event_{number:026d}" for number in range(200)]
            assert len(ids) <= 201  # one may have arrived without its process having known

    asyncio.run(asyncio.wait_for(test(), 120))
