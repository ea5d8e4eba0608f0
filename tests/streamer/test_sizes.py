"""A checkpoint of the real 0.8B's sizes, saved by transformers, watches a file on two cores and answers the `openai` client."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import torch
from transformers import Qwen3_5ForConditionalGeneration

from tests.model.qwen35 import of_preset, scatter
from tests.model.qwen_tokenizer import qwen_tokenizer
from tests.streamer.serving import wait_for

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "tests" / "clips" / "small.mp4"
SCHEMA = {
    "type": "object",
    "properties": {"where": {"enum": ["left", "right"]}, "times": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["where", "times"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random weights as the published ones are kept: bfloat16, but for what decays."""
    folder = tmp_path_factory.mktemp("sizes") / "Qwen3.5-0.8B"
    twin = Qwen3_5ForConditionalGeneration(of_preset("qwen3.5-0.8b"))
    scatter(twin)
    for name, parameter in twin.named_parameters():
        if not name.endswith("A_log"):
            parameter.data = parameter.data.to(torch.bfloat16)
    twin.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(qwen_tokenizer())
    yield folder
    shutil.rmtree(folder)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_it_watches_and_answers(checkpoint: Path, openai_python: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"limits": {"streams": 1, "answers": 2}}))
    command = [
        sys.executable, "-u", "-m", "streamer.cli.main", "run", str(config), "--model", str(checkpoint), "--source", str(CLIP),
        "--loop", "--port", "0", "--stateless",
    ]  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))[:2]
    with subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), *command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            said, url = "", None
            assert process.stdout is not None
            while url is None:
                line = process.stdout.readline()
                assert line, said
                said += line
                url = re.search(r"ready at (http://127\.0\.0\.1:\d+)", said)
            with httpx.Client(base_url=url[1], trust_env=False, timeout=60) as http:
                model = http.get("/v1/models").json()["data"][0]["id"]
                wait_for(lambda: frames(http), 300)
                before = frames(http)
                program = ROOT / "tests" / "streamer" / "openai_sizes.py"
                done = subprocess.run(
                    [openai_python, program, url[1], model, json.dumps(SCHEMA)], capture_output=True, text=True
                )
                assert done.returncode == 0, done.stderr
                after, metrics = frames(http), http.get("/metrics").text
        finally:
            process.terminate()
        process.communicate(timeout=60)
    seen: dict[str, Any] = json.loads(done.stdout)
    print(json.dumps(seen, indent=1), *re.findall(r"streamer_\w+_seconds_(?:sum|count).*", metrics), sep="\n")
    assert after > before, "it stopped watching"
    schema, thinking, plain = seen["schema"], seen["thinking"], seen["plain"]
    for tool in (seen["tool"], seen["required"]):
        assert tool["calls"][0][0] == "look" and tool["reason"] == "tool_calls" and not tool["text"]
        jsonschema.validate(json.loads("".join(arguments or "" for _, arguments in tool["calls"])), SCHEMA)
    jsonschema.validate(json.loads(schema["text"]), SCHEMA)
    assert schema["reason"] == "stop" and not schema["thoughts"]
    assert thinking["thoughts"] and "<think>" not in thinking["text"] + thinking["thoughts"]
    assert thinking["text"] and thinking["tokens"] <= 262
    assert plain["text"] and not plain["thoughts"] and not plain["calls"] and plain["tokens"] <= 12


def frames(http: httpx.Client) -> int:
    """What the stream has been seen for."""
    (stream,) = http.get("/v1/streams").json()["streams"]
    seen: int = stream["frames_seen"]
    return seen
