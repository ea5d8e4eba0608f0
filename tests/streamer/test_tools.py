"""Tools at every door: called whole and in events, forced and read back, and refused where a family has none."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.streamer.serving import Daemon, Served
from tests.tiny_qwen import TINY_QWEN

PARAMETERS = {
    "type": "object",
    "properties": {"where": {"enum": ["left", "right"]}, "times": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["where", "times"],
    "additionalProperties": False,
}
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": PARAMETERS}}
WAIT = {"type": "function", "function": {"name": "wait"}}
USER = {"role": "user", "content": "What is there?"}
ASKED: dict[str, Any] = {"model": "tiny-qwen", "messages": [USER], "max_tokens": 300, "temperature": 1, "seed": 1}


def told(parameters: dict[str, Any]) -> dict[str, Any]:
    """A tool with these parameters."""
    return {"type": "function", "function": {"name": "told", "parameters": parameters}}


@pytest.fixture(scope="module")
def caller() -> Iterator[Served]:
    """A daemon of the family that calls tools; its only stream stays as it is."""
    daemon = Daemon(model=TINY_QWEN, streams=[])
    try:
        with daemon.still("still"), daemon.served(model=TINY_QWEN, streams=[]) as server:
            yield server
    finally:
        daemon.stop()


@pytest.fixture(scope="module")
def http(caller: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=caller.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def seen(caller: Served, openai_python: Path) -> dict[str, Any]:
    """What the official client saw of responses and the realtime dialect."""
    program = Path(__file__).with_name("openai_tools.py")
    flat = json.dumps([{"type": "function", **tool["function"]} for tool in (WAIT, LOOK)])
    command = [openai_python, program, caller.url, "tiny-qwen", flat]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_forced_call_satisfies_its_schema_whole_and_in_events(http: httpx.Client) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    body = {**ASKED, "tools": [WAIT, LOOK], "tool_choice": named}
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    call = choice["message"]["tool_calls"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert (call["type"], call["function"]["name"]) == ("function", "look")
    jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    deltas = [
        event["choices"][0]["delta"]["tool_calls"][0]
        for event in events
        if "tool_calls" in event["choices"][0]["delta"]
    ]
    assert deltas[0]["function"] == {"name": "look", "arguments": ""} and deltas[0]["id"].startswith("call_")
    assert "".join(delta["function"]["arguments"] for delta in deltas) == call["function"]["arguments"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls" and len(deltas) > 3
    assert not any(event["choices"][0]["delta"].get("content") for event in events)


def test_a_required_call_is_cut_by_its_length_and_says_so(http: httpx.Client) -> None:
    body = {**ASKED, "tools": [LOOK], "tool_choice": "required", "max_tokens": 25}
    assert http.post("/v1/chat/completions", json=body).json()["choices"][0]["finish_reason"] == "length"


def test_results_are_read_back(http: httpx.Client) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"where": "left", "times": 2}'}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "A red door."}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
    body = {**ASKED, "max_tokens": 3, "tools": [LOOK]}
    alone = http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    told = http.post("/v1/chat/completions", json={**body, "messages": messages}).json()
    assert told["usage"]["prompt_tokens"] > alone + 20
    other = {**result, "tool_call_id": "c2"}
    error = http.post("/v1/chat/completions", json={**body, "messages": [*messages[:2], other]}).json()["error"]
    assert error["param"] == "messages[1]" and "'c2' names no call" in error["message"]


def test_responses_call_whole_and_in_events_and_read_results_back(seen: dict[str, Any]) -> None:
    told = seen["responses"]
    call = told["call"]
    assert (call["type"], call["name"], call["status"], told["status"]) == ("function_call", "look", *["completed"] * 2)
    jsonschema.validate(json.loads(call["arguments"]), PARAMETERS)
    kinds = list(dict.fromkeys(told["events"]))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert told["arguments"] == told["item"]["arguments"] == call["arguments"] and told["back"] > 20


def test_realtime_calls_in_events_and_reads_results_back(seen: dict[str, Any]) -> None:
    told = seen["realtime"]
    kinds = [kind for kind, _ in told["events"]]
    assert list(dict.fromkeys(kinds[kinds.index("response.created") :])) == [
        "response.created",
        "rate_limits.updated",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    assert not [name for _, name in told["events"] if name == "BaseModel"]
    call, done = told["call"], told["done"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "look", "completed")
    assert told["arguments"] == call["arguments"] == done["arguments"] and done["call_id"] == call["call_id"]
    jsonschema.validate(json.loads(call["arguments"]), PARAMETERS)
    assert [tool["name"] for tool in told["session"]["tools"]] == ["wait", "look"] and told["back"] > 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tools": [{**LOOK, "function": {"name": "a", "parameters": {"properties": {"x": {"type": "intger"}}}}}]},
            "intger",
        ),
        ({"tools": [LOOK], "response_format": {"type": "json_object"}}, "tool_choice to 'none'"),
        ({"tools": [LOOK, LOOK]}, "two are named 'look'"),
        (
            {"tools": [told({"properties": {"x": {}}, "required": ["y"]})], "tool_choice": "required"},
            "[0].function.parameters': required names 'y', which is not among properties",
        ),
        (
            {
                "tools": [LOOK, told({"properties": {"x": {"type": "array", "uniqueItems": True}}})],
                "tool_choice": "required",
            },
            "[1].function.parameters': at properties.x: Unimplemented",
        ),
        (
            {"tools": [told({"properties": {"x": {"type": "string", "pattern": "a"}}})], "tool_choice": "required"},
            "[0].function.parameters': at properties.x: a string's pattern",
        ),
        (
            {"tools": [told({"properties": {"x": {}}, "anyOf": [{"required": ["x"]}]})], "tool_choice": "required"},
            "[0].function.parameters': anyOf can't be kept to in a call",
        ),
    ],
)
def test_bad_tools_are_refused(http: httpx.Client, fields: dict[str, Any], message: str) -> None:
    told = http.post("/v1/chat/completions", json={**ASKED, **fields})
    assert told.status_code == 400 and message in told.json()["error"]["message"]


def test_a_family_without_tools_refuses_them_by_name(server: Served, daemon: Daemon) -> None:
    body = {**ASKED, "model": daemon.do(lambda: daemon.assistant.model.name), "tools": [LOOK]}
    told = httpx.post(f"{server.url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    error = told.json()["error"]
    assert (told.status_code, error["code"]) == (400, "no_tools") and "(family infinitevl) calls no tools" in error[
        "message"
    ]
    flat = {"type": "function", **LOOK["function"]}
    told = httpx.post(
        f"{server.url}/v1/responses",
        json={"model": body["model"], "input": "What?", "tools": [flat]},
        trust_env=False,
        timeout=60,
    )
    assert (told.status_code, told.json()["error"]["code"]) == (400, "no_tools")
    free = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={**body, "tool_choice": "none", "max_tokens": 2},
        trust_env=False,
        timeout=60,
    )
    assert free.status_code == 200
