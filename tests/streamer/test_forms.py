"""Answers in a form, through the daemon's doors: whole and in events, over HTTP and the socket, refused and cut."""

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import jsonschema
import pytest

from model.serving.grammar import Grammars
from protocols.question import JsonSchema, Question
from streamer import forms
from streamer.errors import AssistantError
from streamer.forms import Forms
from tests.streamer.serving import Daemon, Served, ask, until

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
    "required": ["colour", "count", "words"],
    "additionalProperties": False,
}
ASKED = {"model": "nano", "messages": [{"role": "user", "content": "What is there?"}], "max_tokens": 300}


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}


def test_an_answer_keeps_to_its_schema_whole_and_in_events(http: httpx.Client, daemon: Daemon) -> None:
    body = {**ASKED, "model": "nano/still", "response_format": form(SCHEMA), "temperature": 1, "seed": 3}
    with daemon.still("still"):
        whole = http.post("/v1/chat/completions", json=body).json()["choices"][0]
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
            events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    jsonschema.validate(json.loads(whole["message"]["content"]), SCHEMA)
    assert whole["finish_reason"] == "stop"
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(pieces) == whole["message"]["content"] and len(pieces) > 3


def test_an_answer_that_is_cut_says_so(http: httpx.Client) -> None:
    body = {**ASKED, "response_format": {"type": "json_object"}, "max_tokens": 2, "temperature": 1, "seed": 0}
    answer = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert answer["message"]["content"].startswith("{") and answer["finish_reason"] == "length"


def test_a_schema_that_can_not_be_followed_is_refused_with_its_place(http: httpx.Client) -> None:
    wrong = {"type": "object", "properties": {"a": {"type": "intger"}}}
    told = http.post("/v1/chat/completions", json={**ASKED, "response_format": form(wrong)})
    error = told.json()["error"]
    assert (told.status_code, error["code"], error["param"]) == (
        400,
        "bad_format",
        "response_format.json_schema.schema",
    )
    assert "at properties.a: Invalid type: intger" in error["message"]


def test_a_form_of_a_session_and_of_a_response(server: Served) -> None:
    async def story() -> None:
        async with server.connect() as client:
            await until(client, "session.created")
            text = {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["red", "green"]}}}
            update = {"type": "session.update", "session": {"type": "realtime", "text": text}}
            await client.send(json.dumps(update))
            assert (await until(client, "session.updated"))[-1]["session"]["text"] == text
            await ask(client, max_output_tokens=50)
            done = (await until(client, "response.done"))[-1]["response"]
            assert json.loads(done["output"][0]["content"][0]["text"]) in ("red", "green")
            assert done["status"] == "completed"
            await ask(client, max_output_tokens=50, text={"format": {**text["format"], "schema": {"not": {}}}})
            refused = (await until(client, "error"))[-1]["error"]
            assert refused["code"] == "bad_format" and "not" in refused["message"]

    asyncio.run(story())


def test_a_schema_that_takes_too_long_is_refused_and_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "COMPILE_SECONDS", 0.5)

    class Slow(Grammars):
        def __init__(self) -> None:
            pass

        def prepare(self) -> None:
            pass

        def schema(self, schema: Any) -> Any:
            loop.call_soon_threadsafe(began.set)
            ended.result(30)

    async def story() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        with pytest.raises(AssistantError, match=r"longer than 0\.5 s"):
            await Forms().compile(SimpleNamespace(grammars=Slow()), Question("What?", format=JsonSchema({})))  # type: ignore[arg-type]
        assert began.is_set()
        ended.set_result(None)

    from concurrent.futures import Future

    began, ended = asyncio.Event(), Future[None]()
    loop: Any = None
    asyncio.run(story())
