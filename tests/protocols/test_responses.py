"""Responses, read and written without a server."""

import json
from typing import Any

import pytest

from protocols.fields import ProtocolError
from protocols.question import Sampling
from protocols.responses import ResponseRequest, ResponseWriter, read_response
from tests.protocols.test_chat import PNG, PNG_URI, STREAMS


def read(given: Any = "What?", **fields: Any) -> ResponseRequest:
    return read_response(json.dumps({"model": "nano", "input": given, **fields}).encode(), "nano", STREAMS)


def refused(*arguments: Any, **fields: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as error:
        read(*arguments, **fields)
    return error.value


def events(data: bytes) -> list[dict[str, Any]]:
    out = []
    for each in data.decode().removesuffix("\n\n").split("\n\n"):
        head, body = each.split("\n")
        out.append(json.loads(body.removeprefix("data: ")))
        assert head == f"event: {out[-1]['type']}"
    return out


def test_input_becomes_question_history_and_instructions() -> None:
    asked = read(
        [
            {"role": "developer", "content": "Look well."},
            {"role": "user", "content": "Who is there?"},
            {"type": "reasoning", "id": "r", "summary": []},
            {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "A man."}]},
            {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
        ],
        instructions="Be brief.",
        max_output_tokens=7,
        temperature=0.5,
        seed=3,
        stream=True,
        store=True,
        truncation="auto",
        include=["reasoning.encrypted_content"],
    )
    question = asked.question
    assert (question.text, question.history) == ("And now?", (("Who is there?", "A man."),))
    assert question.instructions == "Be brief.\nLook well."
    assert (question.max_tokens, question.sampling, asked.streaming) == (7, Sampling(temperature=0.5, seed=3), True)


def test_pictures_of_the_newest_question() -> None:
    parts = [{"type": "input_image", "image_url": PNG_URI, "detail": "auto"}, {"type": "input_text", "text": "What?"}]
    assert [each.data for each in read([{"role": "user", "content": parts}]).question.attachments] == [PNG]
    later = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]
    assert read([*later, {"role": "user", "content": "Sure?"}]).question.attachments == ()


def test_an_effort_is_tokens_that_the_model_may_think() -> None:
    asked = read(reasoning={"effort": "low", "summary": "auto"})
    assert asked.question.thinking > 0 and read().question.thinking == 0
    body = ResponseWriter("resp_1", "msg_1", 5, asked).whole("A cat.", "stop", 10, 9, 7)
    assert body["usage"]["output_tokens_details"] == {"reasoning_tokens": 7} and body["reasoning"]["effort"] == "low"


def test_an_answer_may_be_held_to_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    asked = read(text=text)
    assert asked.question.format is not None and asked.question.format.schema == schema
    assert ResponseWriter("resp_1", "msg_1", 5, asked).whole("{}", "stop", 1, 1)["text"] == text
    assert refused(text={"format": {"type": "xml"}}).param == "text.format"


def test_what_a_tool_said_belongs_to_the_question() -> None:
    asked = read(
        [
            {"role": "user", "content": "Is the door shut?"},
            {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "It is unlocked."},
        ]
    )
    assert asked.question.text == "Is the door shut?\nIt is unlocked."


def test_the_stream_is_chosen_by_model_or_metadata() -> None:
    assert read().question.stream is None
    assert read(model="nano/door").question.stream == "door"
    assert read(metadata={"stream": "yard", "a": "b"}).question.stream == "yard"
    error = refused(metadata={"stream": "cellar"})
    assert (error.code, error.param) == ("unknown_stream", "metadata.stream") and "door, yard" in error.message
    assert refused(model="gpt-9").code == "model_not_found"


def test_the_past_may_be_asked_and_is_told_as_it_is_reached() -> None:
    asked = read(at="10 minutes ago")
    assert (asked.question.at, asked.question.past, read().question.past) == ("10 minutes ago", True, False)
    span = read(**{"from": "14:00", "to": "14:05"}).question
    assert (span.since, span.until) == ("14:00", "14:05")
    writer = ResponseWriter("resp_1", "msg_1", 5, asked)
    assert all("moment" not in each["response"] for each in events(writer.begin()))
    writer.moment = {"how": "replayed"}
    (told,) = events(writer.replaying(3, 20))
    assert told.pop("sequence_number") == 2 and told.pop("type") == "response.replaying"
    assert told == {"response_id": "resp_1", "shown": 3, "of": 20, "moment": {"how": "replayed"}}
    assert events(writer.end("stop", 1, 1))[-1]["response"]["moment"] == {"how": "replayed"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": []}, "invalid_value", "input"),
        ({"input": " "}, "empty_question", "input"),
        ({"input": 3}, "invalid_value", "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "invalid_value", "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "invalid_value", "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}]},
            "invalid_value",
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
            "missing_required_parameter",
            "input[0].content[0].image_url",
        ),
        ({"previous_response_id": "resp_1"}, "invalid_value", "previous_response_id"),
        ({"conversation": "conv_1"}, "invalid_value", "conversation"),
        ({"prompt": {"id": "p"}}, "invalid_value", "prompt"),
        ({"background": True}, "invalid_value", "background"),
        ({"tools": [{"type": "web_search"}]}, "invalid_value", "tools[0].type"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"at": True}, "invalid_value", "at"),
        ({"from": "x" * 100}, "invalid_value", "from"),
        ({"temperature": 3}, "invalid_value", "temperature"),
    ],
)
def test_bad_requests_name_the_field(fields: dict[str, Any], code: str, param: str) -> None:
    error = refused(fields.pop("input", "What?"), **fields)
    assert (error.code, error.param) == (code, param)


def test_answer_in_one_piece() -> None:
    asked = read(metadata={"a": "b"}, instructions="Be brief.")
    body = ResponseWriter("resp_1", "msg_1", 5, asked).whole("A cat.", "length", 10, 2)
    assert (body["object"], body["id"], body["created_at"], body["model"]) == ("response", "resp_1", 5, "nano")
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["content"][0] == {
        "type": "output_text",
        "text": "A cat.",
        "annotations": [],
        "logprobs": [],
    }
    assert body["usage"]["total_tokens"] == 12 and body["store"] is False
    assert (body["metadata"], body["instructions"]) == ({"a": "b"}, "Be brief.")


@pytest.mark.parametrize(
    ("reason", "last"), [("stop", "completed"), ("length", "incomplete"), ("failed", "failed"), ("cancelled", "failed")]
)
def test_answer_in_events(reason: str, last: str) -> None:
    writer = ResponseWriter("resp_1", "msg_1", 5, read())
    trouble = "It broke." if last == "failed" else None
    told = events(
        writer.begin() + writer.delta("A ") + writer.delta("cat.\n\n") + writer.end(reason, 10, 2, 0, trouble)
    )
    assert [each["type"] for each in told] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{last}",
    ]
    assert [each["sequence_number"] for each in told] == list(range(10))
    assert told[6]["text"] == "".join(each["delta"] for each in told[4:6]) == "A cat.\n\n"
    response = told[-1]["response"]
    assert response["output"] == [told[8]["item"]] and response["usage"]["output_tokens"] == 2
    assert (response["error"] or {}).get("message") == trouble
