"""The written protocol is the spoken one."""

import pytest
from jsonschema import Draft202012Validator, ValidationError

from protocols.realtime.client_events import EVENTS
from tests.wire import CLIENT, DOCUMENT, SERVER, check


def test_every_event_that_is_understood_is_written_down() -> None:
    assert set(CLIENT) == set(EVENTS)


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
