"""A daemon whose model is still being loaded: its port is open, its streams can be named, and who asks may wait."""

import asyncio
import json
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from model import Runner
from model.serving.capacity import Capacity
from streamer.assistant import Assistant
from streamer.config import Config, parse_config
from streamer.errors import AssistantError
from streamer.loading import check_weights, cores, engine_threads, load, share
from tests.model.qwen35 import twin
from tests.streamer.serving import CONFIG, _served, ask, send, until

QUESTION = {"messages": [{"role": "user", "content": "What is there?"}], "max_tokens": 2}


async def waiting(url: str, line: asyncio.Barrier, *words: str) -> bytes:
    """What a command prints, once it has said that it waits, as all others have."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamer.cli.main", *words, "--url", url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    told = await asyncio.wait_for(process.stderr.readline(), 60)
    assert told == b"streamer: the model is being loaded: waiting\n"
    await line.wait()
    said = await asyncio.wait_for(process.stdout.read(), 120)
    assert await process.wait() == 0 and await process.stderr.read() == b""
    return said


def test_who_asks_while_the_model_is_loaded_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def slowly(config: Config) -> Runner:
        assert go.wait(120)
        return load(config)

    monkeypatch.setattr("streamer.assistant.load", slowly)

    async def story() -> None:
        config = Config.model_validate(CONFIG)
        assistant = Assistant(config)
        starting = asyncio.create_task(assistant.start())
        async with (
            _served(assistant, config, 0, 0) as server,
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        ):
            models = (await http.get("/v1/models")).json()["data"]
            assert [model["id"] for model in models] == ["nano", "nano/demo"]
            for path, body in (
                ("/v1/chat/completions", {**QUESTION, "model": "nano"}),
                ("/v1/chat/completions", {**QUESTION, "model": "nano/demo"}),
                ("/v1/responses", {"model": "nano/demo", "input": "What is there?"}),
            ):
                response = await http.post(path, json=body)
                assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready"), response.text
                assert 1 <= int(response.headers["retry-after"]) <= 30
            assert (await http.post("/v1/chat/completions", json={**QUESTION, "model": "gpt"})).status_code == 404
            async with server.connect("?stream=demo") as client:
                await ask(client)
                assert (await until(client, "error"))[-1]["error"]["code"] == "not_ready"
            for method, path in (
                ("GET", "/v1/streams"),
                ("GET", "/v1/streams/demo"),
                ("GET", "/v1/streams/demo/frame.jpg"),
                ("POST", "/v1/streams"),
                ("DELETE", "/v1/streams/demo"),
                ("GET", "/v1/watches"),
                ("GET", "/v1/watches/events"),
                ("POST", "/v1/watches"),
                ("PATCH", "/v1/watches/lit"),
            ):
                body = {"name": "yard", "source": "demo:", "question": "Is it?"} if method == "POST" else {}
                response = await http.request(method, path, json=body)
                assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready"), (
                    path,
                    response.text,
                )
                assert response.headers["retry-after"]
            async with server.connect() as client:
                await send(client, "watch.subscribe", after="event_0")
                assert (await until(client, "error"))[-1]["error"]["code"] == "not_ready"
            asked = ("ask", "What?", "--stream", "demo", "--max-tokens", "2")
            all_wait = asyncio.Barrier(5)
            commands = [
                asyncio.create_task(waiting(server.url, all_wait, *words))
                for words in (asked, ("stream", "add", "yard", "demo:"), ("watch", "list"), ("status",))
            ]
            await asyncio.wait([asyncio.create_task(all_wait.wait()), *commands], return_when=asyncio.FIRST_COMPLETED)
            assert not any(task.done() for task in commands)
            go.set()
            said = await asyncio.wait_for(asyncio.gather(*commands), 120)
            assert all(said) and said[1].startswith(b"yard is ") and said[2:3] == [b"no watches\n"]
            await starting
            asked = await http.post("/v1/chat/completions", json={**QUESTION, "model": "nano/demo"})
            assert asked.status_code == 200
            await assistant.stop()

    asyncio.run(story())


def test_weights_larger_than_memory_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known repository even before it is downloaded; what fits is named."""
    monkeypatch.setattr("model.serving.catalogue.capacity", lambda device, each: Capacity(8_000_000_000, each))
    with pytest.raises(AssistantError) as told:
        check_weights(parse_config({"model": {"name": "Qwen/Qwen3.5-4B"}}))
    assert str(told.value) == (
        "Model Qwen/Qwen3.5-4B: its weights take 18.2 GB in float32, 8.0 GB of memory are free and 10.2 GB are missing; "
        "Qwen/Qwen3.5-0.8B fits in float32."
    )
    check_weights(parse_config({"model": {"name": "Qwen/Qwen3.5-0.8B"}}))


@pytest.mark.parametrize(
    ("device", "slow", "usable", "whole", "threads"),
    [
        ("cpu", False, 64, 32, 32), ("cpu", False, 2, 2, 1), ("cpu", False, 1, 1, 1), ("cpu", False, 3, 3, 1),
        ("cpu", True, 2, 2, 2), ("cpu", True, 1, 1, 1), ("cpu", True, 8, 4, 4), ("cpu", True, 8, 8, 8),
        ("cuda", False, 64, 32, 1), ("cuda", True, 64, 32, 1),
    ],
)  # fmt: skip
def test_a_cpu_gives_half_to_a_fast_model_and_every_core_to_a_slow_one(
    device: str, slow: bool, usable: int, whole: int, threads: int
) -> None:
    """And a GPU is fed by one."""
    assert share(device, slow, usable, whole) == threads


def test_two_processors_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(("0,4", "1,5", "0,4", "1,5")):
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{siblings}\n")
    assert cores({0, 1, 2, 3}, tmp_path) == 2 and cores({0, 2}, tmp_path) == 1
    assert cores({0, 1, 7, 8}, tmp_path) == 4, "of two nothing is told"


@pytest.mark.parametrize(
    ("model", "threads"),
    [
        ({"name": "nano"}, 1),
        ({"name": "Qwen/Qwen3.5-0.8B"}, 2),
        ({"name": "qwen3.5-0.8b", "random_weights": True}, 2),
        ({"name": "Qwen/Qwen3.5-0.8B", "threads": 1}, 1),
        ({"name": "Qwen/Qwen3.5-0.8B", "device": "cuda"}, 1),
        ({"name": "someone/Qwen3.5-tuned"}, 2),
    ],
)
def test_threads_follow_the_models_rate(
    model: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is listed nowhere says it itself, once it is here."""
    monkeypatch.setattr("model.serving.catalogue.capacity", lambda device, each: None)
    (tmp_path / "config.json").write_text(json.dumps(twin().config.to_dict()))
    monkeypatch.setattr("streamer.loading.locate", {"someone/Qwen3.5-tuned": tmp_path}.__getitem__)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1000, 1001})
    assert engine_threads(parse_config({"model": model})) == threads
