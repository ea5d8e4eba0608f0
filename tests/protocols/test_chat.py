"""Chat completions, read and written without a server."""

import base64
import io
import json
from typing import Any

import av
import pytest

from protocols.chat import (
    KNOWN_BY,
    ChatRequest,
    StopSequences,
    error_body,
    error_status,
    models_body,
    read_chat,
    video_file,
)
from protocols.completion import ChatWriter
from protocols.fields import ProtocolError
from protocols.question import JsonSchema, Sampling, ToolRound

PNG = b"\x89PNG\r\n\x1a\n..."
PNG_URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
FILM = b"\0\0\0\x18ftypisom..."
VIDEO_URI = "data:video/mp4;base64," + base64.b64encode(FILM).decode()
STREAMS = ["door", "yard"]


def read(messages: Any = "What?", **fields: Any) -> ChatRequest:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return read_chat(json.dumps({"model": "nano", "messages": messages, **fields}).encode(), "nano", STREAMS)


def refused(*arguments: Any, **fields: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as error:
        read(*arguments, **fields)
    return error.value


def chunks(data: bytes) -> list[Any]:
    lines = data.decode().removesuffix("\n\n").split("\n\n")
    return [line if line == "data: [DONE]" else json.loads(line.removeprefix("data: ")) for line in lines]


def test_conversation_becomes_question_history_and_instructions() -> None:
    asked = read(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Who is there?"},
            {"role": "assistant", "content": "A man."},
            {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "now?"}]},
        ],
        model="nano/door",
        temperature=0.5,
        max_tokens=5,
        max_completion_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
        user="somebody",
    )
    assert (asked.question.stream, asked.question.text, asked.question.instructions) == (
        "door",
        "And\nnow?",
        "Be brief.",
    )
    assert asked.question.history == (("Who is there?", "A man."),)
    assert (asked.question.sampling.temperature, asked.question.max_tokens) == (0.5, 7)
    assert (asked.streaming, asked.include_usage) == (True, True)


def test_model_alone_leaves_the_stream_open() -> None:
    assert read().question.stream is None
    error = refused(model="gpt-9")
    assert (error.code, error.param) == ("model_not_found", "model") and "nano/door" in error.message
    assert refused(model="nano/cellar").code == "model_not_found"


def test_only_the_likeliest_tokens_may_be_asked_for() -> None:
    assert read(top_k=40).question.sampling == Sampling(top_k=40)


def test_an_answers_form() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "count", "strict": True, "schema": schema}}
    assert read(response_format=named).question.format == JsonSchema(schema, "response_format.json_schema.schema")
    assert read(response_format={"type": "json_object"}).question.format == JsonSchema({"type": "object"})
    assert read(response_format={"type": "text"}).question.format is None


def test_pictures_and_videos_of_the_newest_question() -> None:
    picture = {"type": "image_url", "image_url": {"url": PNG_URI, "detail": "low"}}
    video = {"type": "video_url", "video_url": {"url": VIDEO_URI}}
    far = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    text = {"type": "text", "text": "What?"}
    asked = read([{"role": "user", "content": [picture, video, far, text]}])
    assert [(each.kind, each.data, each.url) for each in asked.question.attachments] == [
        ("image", PNG, None),
        ("video", FILM, None),
        ("image", None, "https://example.com/a.png"),
    ]
    earlier = [{"role": "user", "content": [picture, text]}, {"role": "assistant", "content": "A cat."}]
    assert read([*earlier, {"role": "user", "content": "Sure?"}]).question.attachments == ()


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "user"}]}, "empty_question", "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty_question", "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "invalid_value", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}]},
            "invalid_value",
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
            "invalid_value",
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": PNG_URI}}]}]},
            "invalid_value",
            "messages[0].content[0].video_url.url",
        ),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG_URI}}]}]},
            "invalid_value",
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "missing_required_parameter", None),
        ({"model": None}, "invalid_value", "model"),
        ({"n": 2}, "invalid_value", "n"),
        ({"tools": [{}]}, "missing_required_parameter", None),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_value", "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "invalid_value",
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "invalid_value", "tool_choice"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"top_k": 0}, "invalid_value", "top_k"),
        ({"top_k": 2.5}, "invalid_value", "top_k"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": True}, "invalid_value", "max_tokens"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format"),
        ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "invalid_value",
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 1}}},
            "invalid_value",
            "response_format.json_schema.schema",
        ),
        ({"logprobs": True}, "invalid_value", "logprobs"),
        ({"stop": ["x"] * 5}, "invalid_value", "stop"),
        ({"stop": [""]}, "invalid_value", "stop[0]"),
        ({"stop": [3]}, "invalid_value", "stop[0]"),
        ({"frequency_penalty": 0.1}, "invalid_value", "frequency_penalty"),
        ({"repetition_penalty": 1.2}, "invalid_value", "repetition_penalty"),
        ({"min_p": 0.1}, "invalid_value", "min_p"),
        ({"logit_bias": {"5": 1}}, "invalid_value", "logit_bias"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"functions": [{"name": "x"}]}, "invalid_value", "functions"),
        ({"modalities": ["text", "audio"]}, "invalid_value", "modalities"),
        ({"seed": -2}, "invalid_value", "seed"),
        ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
        ({"reasoning_effort": "huge"}, "invalid_value", "reasoning_effort"),
    ],
)
def test_bad_requests_name_the_field(fields: dict[str, Any], code: str, param: str | None) -> None:
    error = refused(**fields) if "messages" not in fields else refused(fields["messages"])
    assert error.code == code
    assert param is None or error.param == param
    assert error.param


def test_a_wrong_value_is_told_with_what_it_must_be() -> None:
    told = {
        refused(messages=[]).message: "'messages': []; it must have at least 1 item.",
        refused(stop=[""]).message: "'stop[0]': ''; it must have at least 1 character.",
        refused(metadata={"a": "x" * 513}).message: "; it must have at most 512 characters.",
        refused(temperature=7).message: "'temperature': 7; it must be less than or equal to 2.",
        refused(model=7).message: "'model': 7; it must be a valid string.",
    }
    for message, end in told.items():
        assert message.startswith("Invalid value for '") and message.endswith(end)
    assert read(at="").question.at == "", "what is a moment is for the daemon to say"


def test_what_many_clients_send_does_no_harm() -> None:
    harmless: dict[str, Any] = {
        "n": 1,
        "seed": -1,
        "max_tokens": -1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "repetition_penalty": 1.0,
        "min_p": 0,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "functions": [],
        "stop": None,
        "user": "u",
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "prediction": None,
        "keep_alive": -1,
        "verbosity": "low",
        "no_such_key": {"a": [1]},
    }
    asked = read(**harmless)
    assert asked.question.sampling == Sampling(presence_penalty=0.0) and asked.question.max_tokens is None
    assert read(max_tokens=65_536).question.max_tokens == 65_536
    message = refused(frequency_penalty=1.5).message
    assert message == (
        "Invalid value for 'frequency_penalty': it can't be done: answers are drawn without penalties, so leave it out."
    )


def test_what_tools_said_belongs_to_the_question() -> None:
    asked = read(
        [
            {"role": "user", "content": "Is the door shut?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "It is unlocked."},
        ]
    )
    assert (asked.question.text, asked.question.history) == ("Is the door shut?\nIt is unlocked.", ())


def test_rounds_of_calls_where_tools_may_be_called() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"n": 2}'}}
    messages = [
        {"role": "user", "content": "Is the door shut?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "It is unlocked."},
    ]
    tools = [{"type": "function", "function": {"name": "look"}}]
    asked = read(messages, tools=tools).question
    assert asked.text == "Is the door shut?" and [tool.name for tool in asked.tools] == ["look"]
    assert asked.rounds == (ToolRound("I look.", (("look", {"n": 2}),), ("It is unlocked.",)),)
    never = read(messages, tools=tools, tool_choice="none").question
    assert (never.tools, never.rounds) == ((), ()) and "It is unlocked." in never.text


def test_parts_as_other_doors_name_them() -> None:
    parts = [
        {"type": "input_text", "text": "What"},
        {"type": "input_image", "image_url": PNG_URI},
        {"type": "image_url", "image_url": PNG_URI},
    ]
    past = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    asked = read([{"role": "user", "content": "Hm?"}, past, {"role": "user", "content": parts}]).question
    assert asked.history == (("Hm?", "No."),)
    assert asked.text == "What" and [each.data for each in asked.attachments] == [PNG, PNG]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model": "nano"}', b"[" * 100_000])
def test_bad_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_chat(body, "nano", STREAMS)


def test_answer_in_one_piece() -> None:
    body = ChatWriter("chatcmpl-1", 5, "nano").whole("A cat.", "length", 10, 2)
    assert (body["object"], body["id"], body["created"], body["model"]) == ("chat.completion", "chatcmpl-1", 5, "nano")
    assert body["choices"][0]["message"]["content"] == "A cat."
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


@pytest.mark.parametrize("usage", [False, True])
def test_answer_in_events(usage: bool) -> None:
    writer = ChatWriter("chatcmpl-1", 5, "nano", usage)
    events = chunks(writer.begin() + writer.delta("A ") + writer.delta("cat.\n\n") + writer.end("stop", 10, 2))
    assert events.pop() == "data: [DONE]"
    if usage:
        last = events.pop()
        assert last["choices"] == [] and last["usage"]["total_tokens"] == 12
    assert all(event["object"] == "chat.completion.chunk" and event["id"] == "chatcmpl-1" for event in events)
    assert all(("usage" in event) == usage for event in events)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0]["role"] == "assistant" and deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == "A cat.\n\n"
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, None, "stop"]


@pytest.mark.parametrize(
    ("pieces", "sequences", "shown"),
    [
        (("a red", " circle"), (), "a red circle"),
        (("a red", " circle"), (" circle",), "a red"),
        (("a red ci", "rcle and", " a dog"), ("circle",), "a red "),
        (("one, two", ", three"), (", t", ","), "one"),
        (("aab",), ("ab",), "a"),
        (("aa", "a", "b!"), ("aab",), "a"),
        (("wait for i", "t"), ("it!",), "wait for it"),
    ],
)
def test_answers_end_before_a_stop_sequence(pieces: tuple[str, ...], sequences: tuple[str, ...], shown: str) -> None:
    stop, out = StopSequences(sequences), ""
    for piece in pieces:
        if not stop.met:
            out += stop.feed(piece)
            assert shown.startswith(out)
    assert out + stop.rest() == shown
    assert stop.met == (shown != "".join(pieces))


def test_a_single_stop_sequence_may_be_a_string() -> None:
    assert read(stop="x").stop == ("x",)
    assert read(stop=["x", "y"]).stop == ("x", "y")
    assert read(stop=None).stop == ()


def test_break_in_an_answer_is_told() -> None:
    told, end = chunks(ChatWriter("chatcmpl-1", 5, "nano").broken("It broke."))
    assert told["error"]["message"] == "It broke." and end == "data: [DONE]"


def test_errors_and_models_have_openais_shape() -> None:
    assert error_status("model_not_found") == 404 and error_status("invalid_value") == 400
    assert error_body("too_many_answers", "Later.")["error"] == {
        "message": "Later.",
        "type": "rate_limit_error",
        "param": None,
        "code": "too_many_answers",
    }
    assert [model["id"] for model in models_body("nano", STREAMS, 5)["data"]] == ["nano", "nano/door", "nano/yard"]
    twice = models_body("nano", [*STREAMS, "yard"], 5)["data"]  # a recording of a stream's name
    assert [model["id"] for model in twice] == ["nano", "nano/door", "nano/yard"]


@pytest.mark.parametrize("form", ["mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv"])
def test_videos_are_known_by_how_they_begin(form: str) -> None:
    file = io.BytesIO()
    codec = {"webm": "libvpx", "mpeg": "mpeg2video"}.get(form, "libx264")
    with av.open(file, "w", format=form) as made:
        stream = made.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(25):
            made.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        made.mux(stream.encode())
    assert video_file(file.getvalue()[:KNOWN_BY])


@pytest.mark.parametrize(
    "text", [b"#EXTM3U\n", b"ffconcat version 1.0\n", b"v=0\r\no=- 0 0 IN IP4 x\r\n", b"G" + bytes(400), b""]
)
def test_what_may_name_other_files_is_no_video(text: bytes) -> None:
    with pytest.raises(ValueError, match="is no video in MP4"):
        video_file(text + b"file:///etc/passwd\n")


def test_playlists_are_no_videos() -> None:
    """FFmpeg would open what a playlist names: local files, and hosts that a stranger can't reach."""
    data = base64.b64encode(b"#EXTM3U\nfile:///etc/passwd\n").decode()
    video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
    error = refused([{"role": "user", "content": [video, {"type": "text", "text": "What?"}]}])
    assert error.param == "messages[0].content[0].video_url.url" and "is no video in MP4" in error.message


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 0),
        ({"reasoning_effort": "none"}, 0),
        ({"reasoning_effort": "low"}, 256),
        ({"enable_thinking": True}, 1_024),
        ({"enable_thinking": False, "reasoning_effort": "high"}, 0),
        ({"chat_template_kwargs": {"enable_thinking": True}}, 1_024),
    ],
)
def test_thinking_is_off_unless_asked_for(fields: dict[str, Any], tokens: int) -> None:
    assert read(**fields).question.thinking == tokens


def test_thoughts_stand_beside_the_answer() -> None:
    writer = ChatWriter("chatcmpl-1", 5, "nano", True)
    body = writer.whole("Yes.", "stop", 10, 6, "Let me see.", 4)
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Yes.", "Let me see.")
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}
    (thought,) = chunks(writer.thought("Let me see."))
    assert thought["choices"][0]["delta"] == {"reasoning_content": "Let me see."}
