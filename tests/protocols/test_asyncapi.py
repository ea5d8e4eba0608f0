"""The written protocol is the spoken one."""

import dataclasses

import pytest
from jsonschema import Draft202012Validator, ValidationError

from protocols.realtime import server_events
from protocols.realtime.client_events import EVENTS
from tests.wire import CLIENT, DOCUMENT, SERVER, check


def test_every_event_that_is_understood_is_written_down() -> None:
    assert set(CLIENT) == set(EVENTS)


def test_every_event_that_is_sent_has_its_keys_written_down() -> None:
    events = [each for each in vars(server_events).values() if isinstance(each, type) and "type" in vars(each)]
    sent = {each.type: each for each in events if issubclass(each, server_events.ServerEvent)}
    assert set(sent) == set(SERVER)
    schemas = {
        schema["properties"]["type"]["const"]: schema
        for schema in DOCUMENT["components"]["schemas"].values()
        if "event_id" in schema.get("required", ())
    }
    for kind, event in sent.items():
        keys = {each.name for each in dataclasses.fields(event)} - {"told"}
        assert keys <= set(schemas[kind]["properties"]) and keys <= set(schemas[kind]["required"]), kind
    for view, name in ((server_events.SessionView, "Session"), (server_events.ResponseView, "Response")):
        assert set(view.__annotations__) == set(DOCUMENT["components"]["schemas"][name]["properties"])


def test_schemas_are_sound() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert name.split(".")[0] or schema


def test_references_lead_somewhere() -> None:
    def walk(node: object) -> None:
        if isinstance(node, dict):
            assert None not in node.values(), node
            if "$ref" in node:
                place = DOCUMENT
                for key in node["$ref"].removeprefix("#/").split("/"):
                    place = place[key]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(DOCUMENT)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "session.created", "event_id": "e", "session": {}},
        {"type": "response.output_text.delta", "event_id": "e", "delta": "x"},
        {"type": "error", "event_id": "e", "error": {"message": "x"}},
        {"type": "stream.listed", "event_id": "e", "streams": [{}]},
        {"type": "stream.listed", "event_id": "e", "streams": [], "more": 1},
    ],
)
def test_a_wrong_message_is_noticed(event: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        check(SERVER, event)
