"""The realtime session, event by event, without a socket and without a clock."""

import base64
import itertools
import json
from typing import Any

import pytest

from protocols.question import ToolRound
from protocols.realtime.decisions import Ask, Cancel, Command, Decision, Listen, Push, Send
from protocols.realtime.output import Usage
from protocols.realtime.session import Limits, RealtimeSession

JPEG = b"\xff\xd8\xff\xe0 not much of a picture"
JPEG_URI = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
STREAMS = ["door", "yard"]
DEFAULTS = Limits()
UPDATE = '{"type": "session.update", "session": {%s}}'
CREATE = '{"type": "conversation.item.create", "item": {"role": "user", "content": [%s]}}'


class Talk:
    """A session with countable ids, spoken to in plain dictionaries."""

    def __init__(self, stream: str | None = None, limits: Limits = DEFAULTS) -> None:
        numbers = itertools.count(1)
        self.session = RealtimeSession(
            "nano", stream=stream, limits=limits, new_id=lambda kind: f"{kind}_{next(numbers)}"
        )

    def open(self) -> list[Decision]:
        return self.session.open(STREAMS)

    def say(self, kind: str, **fields: Any) -> list[Decision]:
        return self.session.receive(json.dumps({"type": kind, **fields}), STREAMS)

    def user(self, text: str, **fields: Any) -> list[Decision]:
        return self.say("conversation.item.create", item=message(text), **fields)

    def ask(self, **response: Any) -> Ask:
        (ask,) = self.say("response.create", response=response)
        assert isinstance(ask, Ask)
        self.session.accepted(ask.response)
        return ask

    def answer(self, *words: str) -> None:
        ask = self.ask()
        for word in words:
            self.session.delta(ask.response, word)
        self.session.finished(ask.response, "stop")


def message(text: str, role: str = "user", **fields: Any) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **fields}


def sent(decisions: list[Decision]) -> list[dict[str, Any]]:
    assert all(isinstance(decision, Send) for decision in decisions), decisions
    return [decision.event for decision in decisions if isinstance(decision, Send)]


def kinds(decisions: list[Decision]) -> list[str]:
    return [event["type"] for event in sent(decisions)]


def error(decisions: list[Decision]) -> dict[str, Any]:
    (event,) = sent(decisions)
    assert event["type"] == "error"
    return event["error"]


def test_session_opens_with_its_settings_and_listens_to_its_stream() -> None:
    created, listen = Talk(stream="door").open()
    assert isinstance(created, Send) and listen == Listen("door")
    assert created.event["type"] == "session.created"
    assert created.event["session"]["object"] == "realtime.session"
    assert created.event["session"]["stream"] == "door"
    assert created.event["session"]["output_modalities"] == ["text"]


def test_session_without_a_stream_hears_of_none() -> None:
    assert kinds(Talk().open()) == ["session.created"]


def test_session_on_an_unknown_stream_is_told_and_stays_open() -> None:
    talk = Talk(stream="cellar")
    _, told, listen = talk.open()
    assert listen == Listen("cellar")
    assert isinstance(told, Send)
    assert told.event["error"]["code"] == "unknown_stream"
    assert told.event["error"]["param"] == "stream"
    assert "door, yard" in told.event["error"]["message"]
    assert "session.updated" in kinds(talk.say("session.update", session={"stream": "door"})[:1])


def test_whole_answer_in_exact_order_with_exact_fields() -> None:
    talk = Talk(stream="door")
    talk.open()
    added, done = sent(talk.user("What is there?", event_id="mine"))
    assert (added["type"], done["type"]) == ("conversation.item.added", "conversation.item.done")
    assert added["previous_item_id"] is None and added["item"]["content"][0]["text"] == "What is there?"
    (ask,) = talk.say("response.create")
    assert isinstance(ask, Ask) and (ask.question.text, ask.question.stream) == ("What is there?", "door")
    events = sent(talk.session.accepted(ask.response))
    for word in ("A ", "red ", "ball"):
        events += sent(talk.session.delta(ask.response, word))
    events += sent(talk.session.finished(ask.response, "stop", Usage(12, 3)))
    assert [event["type"] for event in events] == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    ids = [event["event_id"] for event in events]
    assert len(set(ids)) == len(ids)
    item_id = events[1]["item"]["id"]
    for event in events[3:9]:
        assert (event["response_id"], event["item_id"]) == (ask.response, item_id)
        assert (event["output_index"], event["content_index"]) == (0, 0)
    assert events[1]["item"]["content"] == [] and events[1]["item"]["status"] == "in_progress"
    assert "".join(event["delta"] for event in events[4:7]) == events[7]["text"] == events[8]["part"]["text"]
    response = events[-1]["response"]
    assert response["status"] == "completed" and response["status_details"] is None
    assert response["output"] == [events[10]["item"]]
    assert response["output"][0]["content"] == [{"type": "output_text", "text": "A red ball"}]
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (12, 3)
    assert response["usage"]["total_tokens"] == 15
    assert response["conversation_id"] is not None


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        ("length", "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}),
        ("cancelled", "cancelled", {"type": "cancelled", "reason": "client_cancelled"}),
        (
            "failed",
            "failed",
            {"type": "failed", "error": {"type": "server_error", "code": "engine", "message": "it broke"}},
        ),
    ],
)
def test_answer_that_ends_otherwise(reason: Any, status: str, details: dict[str, Any]) -> None:
    talk = Talk()
    talk.user("Hm?")
    ask = talk.ask()
    talk.session.delta(ask.response, "Well")
    trouble = ("engine", "it broke") if reason == "failed" else None
    events = sent(talk.session.finished(ask.response, reason, error=trouble))
    assert events[-1]["response"]["status"] == status
    assert events[-1]["response"]["status_details"] == details
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


def test_answer_cancelled_before_its_first_word_has_no_output() -> None:
    talk = Talk()
    talk.user("Hm?")
    ask = talk.ask()
    assert talk.say("response.cancel") == [Cancel(ask.response)]
    (done,) = sent(talk.session.finished(ask.response, "cancelled"))
    assert done["type"] == "response.done" and done["response"]["output"] == []


def test_thoughts_have_events_of_their_own() -> None:
    """They end where the answer begins, and are no part of it."""
    talk = Talk()
    talk.user("Hm?")
    (ask,) = talk.say("response.create", response={"reasoning_effort": "low"})
    assert isinstance(ask, Ask) and ask.question.thinking == 256
    talk.session.accepted(ask.response)
    events = [*sent(talk.session.thought(ask.response, "Let me ")), *sent(talk.session.thought(ask.response, "see."))]
    events += [*sent(talk.session.delta(ask.response, "Yes.")), *sent(talk.session.finished(ask.response, "stop"))]
    told = [(event["type"], event.get("delta", event.get("text"))) for event in events if "_text" in event["type"]]
    assert told == [
        ("response.reasoning_text.delta", "Let me "),
        ("response.reasoning_text.delta", "see."),
        ("response.reasoning_text.done", "Let me see."),
        ("response.output_text.delta", "Yes."),
        ("response.output_text.done", "Yes."),
    ]
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "output_text", "text": "Yes."}]


def test_answer_without_a_word_still_has_its_item() -> None:
    talk = Talk()
    talk.user("Hm?")
    ask = talk.ask()
    events = sent(talk.session.finished(ask.response, "stop"))
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "output_text", "text": ""}]


def test_shutdown_closes_every_answer_and_later_words_say_nothing() -> None:
    talk = Talk()
    talk.user("Hm?")
    first, second = talk.ask(), talk.ask(conversation="none")
    talk.session.delta(first.response, "Well")
    out = talk.session.shut_down()
    assert [each.response for each in out if isinstance(each, Cancel)] == [first.response, second.response]
    dones = [each.event["response"] for each in out if isinstance(each, Send) and "response.done" in each.event["type"]]
    assert [done["status"] for done in dones] == ["cancelled", "cancelled"]
    assert dones[0]["status_details"]["error"]["code"] == "shutting_down"
    assert talk.session.delta(first.response, "more") == []
    assert talk.session.finished(first.response, "cancelled") == []
    assert talk.session.accepted(first.response) == []
    assert talk.session.refused(first.response, "busy", "Too many.") == []


def test_close_cancels_what_is_open() -> None:
    talk = Talk()
    talk.user("Hm?")
    ask = talk.ask()
    assert talk.session.close() == [Cancel(ask.response)]


def test_conversation_remembers_turns_and_instructions() -> None:
    talk = Talk()
    talk.say("session.update", session={"instructions": "Be brief."})
    talk.say("conversation.item.create", item=message("Speak like a guard.", "system"))
    talk.user("Who is there?")
    talk.answer("A ", "man.")
    talk.user("And now?")
    ask = talk.ask()
    assert ask.question.text == "And now?"
    assert ask.question.history == (("Who is there?", "A man."),)
    assert ask.question.instructions == "Be brief.\nSpeak like a guard."


def test_history_is_bounded_newest_kept() -> None:
    talk = Talk(limits=Limits(history_characters=10))
    for question, answer in (("aaaa", "bbbb"), ("cccc", "dddd")):
        talk.user(question)
        talk.answer(answer)
    talk.user("now?")
    assert talk.ask().question.history == (("cccc", "dddd"),)


def test_transcript_is_bounded_and_the_client_is_told() -> None:
    talk = Talk(limits=Limits(items=3))
    for number in range(3):
        talk.user(f"{number}", previous_item_id=None)
    out = sent(talk.say("conversation.item.create", item=message("3", id="last")))
    assert [event["type"] for event in out] == [
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.deleted",
    ]
    assert error(talk.say("conversation.item.retrieve", item_id=out[-1]["item_id"]))["code"] == "item_not_found"


def test_items_can_be_placed_read_cut_and_removed() -> None:
    talk = Talk()
    talk.say("conversation.item.create", item=message("b", id="b"))
    talk.say("conversation.item.create", item=message("a", id="a"), previous_item_id="root")
    (added, _) = sent(
        talk.say("conversation.item.create", item=message("answer", "assistant", id="x"), previous_item_id="a")
    )
    assert added["previous_item_id"] == "a"
    (retrieved,) = sent(talk.say("conversation.item.retrieve", item_id="x"))
    assert retrieved["type"] == "conversation.item.retrieved" and retrieved["item"] == added["item"]
    (cut,) = sent(talk.say("conversation.item.truncate", item_id="x", content_index=0, audio_end_ms=0))
    assert cut["type"] == "conversation.item.truncated"
    (retrieved,) = sent(talk.say("conversation.item.retrieve", item_id="x"))
    assert retrieved["item"]["content"] == [{"type": "output_text", "text": ""}]
    (deleted,) = sent(talk.say("conversation.item.delete", item_id="x"))
    assert deleted["type"] == "conversation.item.deleted"
    for kind in ("conversation.item.retrieve", "conversation.item.delete"):
        assert error(talk.say(kind, item_id="x"))["param"] == "item_id"


def test_one_answer_in_the_conversation_many_beside_it() -> None:
    talk = Talk(limits=Limits(answers=3))
    talk.user("Hm?")
    talk.ask(metadata={"topic": "first"})
    assert error(talk.say("response.create"))["code"] == "conversation_already_has_active_response"
    beside = [talk.ask(conversation="none", input=[message("Other?")], metadata={"topic": "other"}) for _ in range(2)]
    assert error(talk.say("response.create", response={"conversation": "none"}))["code"] == "too_many_answers"
    events = sent(talk.session.delta(beside[0].response, "Yes"))
    assert "conversation.item.added" not in [event["type"] for event in events]
    done = sent(talk.session.finished(beside[0].response, "stop"))[-1]["response"]
    assert done["conversation_id"] is None and done["metadata"] == {"topic": "other"}
    (cancel,) = talk.say("response.cancel", response_id=beside[1].response)
    assert cancel == Cancel(beside[1].response)


def test_response_overrides_the_session() -> None:
    talk = Talk(stream="door")
    talk.say("session.update", session={"max_output_tokens": 50, "temperature": 0.5, "instructions": "Long."})
    talk.user("Hm?")
    (ask,) = talk.say(
        "response.create",
        response={
            "stream": "yard",
            "max_output_tokens": 7,
            "temperature": 0,
            "top_p": 0.9,
            "top_k": 40,
            "seed": 3,
            "instructions": "",
        },
    )
    assert isinstance(ask, Ask)
    question, sampling = ask.question, ask.question.sampling
    assert (question.stream, question.max_tokens) == ("yard", 7)
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0, 0.9, 3)
    assert sampling.top_k == 40
    assert ask.question.instructions == ""
    talk.session.refused(ask.response, "not_ready", "The model is still loading.")
    assert talk.ask().question.max_tokens == 50
    talk2 = Talk()
    talk2.user("Hm?")
    assert talk2.ask(max_output_tokens="inf").question.max_tokens is None


def test_what_an_update_can_not_do_is_refused_alone_and_by_name() -> None:
    talk = Talk(stream="door")
    asked = {
        "type": "realtime",
        "instructions": "Be brief.",
        "output_modalities": ["audio"],
        "temperature": 9,
        "stream": "cellar",
        "audio": {"output": {"voice": "marin"}},
        "truncation": {"type": "retention_ratio"},
    }
    updated, *refused = sent(talk.say("session.update", session=asked, event_id="mine"))
    assert updated["type"] == "session.updated" and updated["session"]["instructions"] == "Be brief."
    assert (updated["session"]["output_modalities"], updated["session"]["stream"]) == (["text"], "door")
    assert [each["error"]["param"] for each in refused] == [
        "session.output_modalities[0]",
        "session.temperature",
        "session.stream",
    ]
    assert all(each["error"]["event_id"] == "mine" and each["type"] == "error" for each in refused)


def test_the_betas_settings_are_understood() -> None:
    talk = Talk()
    asked = {"modalities": ["text"], "max_response_output_tokens": 20, "voice": "alloy", "turn_detection": None}
    (updated,) = sent(talk.say("session.update", session=asked))
    assert updated["session"]["max_output_tokens"] == 20 and "modalities" not in updated["session"]
    trouble = sent(talk.say("session.update", session={**asked, "modalities": ["text", "audio"]}))[-1]
    assert trouble["error"]["param"] == "session.modalities"
    assert talk.ask(modalities=["text", "audio"], instructions="Go").question.max_tokens == 20
    assert talk.ask(conversation="none", max_response_output_tokens=7, instructions="Go").question.max_tokens == 7
    trouble = error(talk.say("response.create", response={"modalities": ["audio"], "instructions": "Go"}))
    assert trouble["param"] == "response.modalities"


def test_response_from_its_own_input_and_references() -> None:
    talk = Talk()
    talk.say("conversation.item.create", item=message("Old?", id="old"))
    ask = talk.ask(conversation="none", input=[{"type": "item_reference", "id": "old"}, message("New?")])
    assert ask.question.text == "Old?\nNew?"
    trouble = error(talk.say("response.create", response={"input": [{"type": "item_reference", "id": "no"}]}))
    assert trouble["param"] == "response.input[0].id"
    assert (
        talk.ask(conversation="none", input=[{"role": "user", "content": message("x")["content"]}]).question.text == "x"
    )


def test_response_instructions_alone_are_a_question() -> None:
    assert Talk().ask(instructions="Describe the scene.").question.text == "Describe the scene."


def test_pictures_in_items_go_along_with_the_question() -> None:
    talk = Talk()
    parts = [{"type": "input_image", "image_url": JPEG_URI}, {"type": "input_text", "text": "What is this?"}]
    (added, _) = sent(talk.say("conversation.item.create", item={"type": "message", "role": "user", "content": parts}))
    assert added["item"]["content"] == parts
    ask = talk.ask()
    assert [each.data for each in ask.question.attachments] == [JPEG] and ask.question.text == "What is this?"
    usage = Usage(10, 2, image_tokens=8).view()
    assert usage["input_token_details"] == {"text_tokens": 2, "image_tokens": 8, "audio_tokens": 0, "cached_tokens": 0}


def test_choosing_a_stream_moves_the_ear() -> None:
    talk = Talk()
    out = talk.say("session.update", session={"stream": "yard"})
    assert isinstance(out[0], Send) and out[0].event["session"]["stream"] == "yard" and out[1] == Listen("yard")
    assert talk.say("session.update", session={"stream": "yard"})[1:] == []
    talk.user("Hm?")
    assert talk.ask().question.stream == "yard"
    assert talk.say("session.update", session={"stream": None})[1:] == [Listen(None)]


def test_stream_commands() -> None:
    talk = Talk(stream="door")
    assert talk.say("stream.list", event_id="e") == [Command("list", "e")]
    assert talk.say("stream.attach", stream="new", source="demo:", options={"loop": True}) == [
        Command("attach", None, "new", "demo:", {"loop": True})
    ]
    assert talk.say("stream.frame") == [Command("frame", None, "door")]
    assert talk.say("stream.status", stream="yard") == [Command("status", None, "yard")]
    assert error(talk.say("stream.detach", name="door"))["code"] == "missing_required_parameter"
    (detach,) = talk.say("stream.detach", stream="door")
    assert isinstance(detach, Command)
    (reply,) = sent(talk.session.performed(detach, stream="door"))
    assert reply["type"] == "stream.detached" and talk.session.stream is None
    assert error(talk.say("stream.frame"))["code"] == "missing_required_parameter"
    assert error(talk.say("stream.detach", stream="cellar", event_id="me")) == {
        "type": "invalid_request_error",
        "code": "unknown_stream",
        "message": "There is no stream 'cellar'; known: door, yard.",
        "param": "stream",
        "event_id": "me",
    }
    assert error(talk.session.failed(detach, "unknown_stream", "Gone."))["param"] == "stream"
    (news,) = sent(talk.session.news({"type": "stream.status", "stream": "door", "state": "live", "reason": ""}))
    assert news["state"] == "live" and news["event_id"]


def test_frames_are_pushed_as_text_or_binary() -> None:
    talk = Talk(stream="door")
    assert talk.session.receive(JPEG, STREAMS) == [Push("door", JPEG)]
    assert talk.say("input_video_buffer.append", video=JPEG_URI, timestamp=1.5, stream="yard", event_id="e") == [
        Push("yard", JPEG, 1.5, "e")
    ]
    plain = base64.b64encode(b"\x89PNG\r\n\x1a\n...").decode()
    (push,) = talk.say("input_video_buffer.append", video=plain)
    assert isinstance(push, Push) and push.picture.startswith(b"\x89PNG")
    assert "neither a JPEG nor a PNG" in error(talk.session.receive(b'{"type": "x"}', STREAMS))["message"]


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        ("", "invalid_json", None),
        ("{", "invalid_json", None),
        ("[" * 100_000, "invalid_json", None),
        ("[]", "invalid_event", None),
        ("{}", "invalid_event", "type"),
        ('{"type": 3}', "invalid_event", "type"),
        ('{"type": "no.such"}', "unknown_event", "type"),
        ('{"type": "input_audio_buffer.append"}', "unknown_event", "type"),
        ('{"type": "session.update"}', "missing_required_parameter", "session"),
        ('{"type": "session.update", "session": {"stream": "cellar"}}', "unknown_stream", "session.stream"),
        ('{"type": "session.update", "session": {"stream": 3}}', "invalid_value", "session.stream"),
        ('{"type": "session.update", "session": {"temperature": NaN}}', "invalid_value", "session.temperature"),
        ('{"type": "session.update", "session": {"temperature": true}}', "invalid_value", "session.temperature"),
        (
            '{"type": "session.update", "session": {"output_modalities": ["audio"]}}',
            "invalid_value",
            "session.output_modalities[0]",
        ),
        (
            '{"type": "session.update", "session": {"max_output_tokens": 0}}',
            "invalid_value",
            "session.max_output_tokens",
        ),
        (
            '{"type": "session.update", "session": {"tools": [{}]}}',
            "missing_required_parameter",
            "session.tools[0].type",
        ),
        ('{"type": "session.update", "session": {"instructions": "\\ud800"}}', "invalid_value", "session.instructions"),
        ('{"type": "conversation.item.create"}', "missing_required_parameter", "item"),
        (
            '{"type": "conversation.item.create", "item": {"role": "user", "content": []}}',
            "invalid_value",
            "item.content",
        ),
        (
            CREATE % '{"type": "input_text", "text": " "}',
            "empty_question",
            "item.content",
        ),
        (
            '{"type": "conversation.item.create", "item": {"role": "user", "content": [{"type": "input_text"}]}}',
            "missing_required_parameter",
            "item.content[0].text",
        ),
        (
            '{"type": "conversation.item.create", "item": {"role": "user", "content": [{"type": "input_audio"}]}}',
            "invalid_value",
            "item.content[0]",
        ),
        (
            '{"type": "conversation.item.create", "item": {"role": "user", "content": '
            '[{"type": "input_image", "image_url": "http://x/y.png"}]}}',
            "invalid_value",
            "item.content[0].image_url",
        ),
        ('{"type": "response.create"}', "empty_question", "response.input"),
        ('{"type": "response.create", "response": {"input": []}}', "empty_question", "response.input"),
        ('{"type": "response.create", "response": {"metadata": {"a": 1}}}', "invalid_value", "response.metadata.a"),
        ('{"type": "response.create", "response": {"stream": "cellar"}}', "unknown_stream", "response.stream"),
        ('{"type": "response.cancel"}', "response_cancel_not_active", "response_id"),
        ('{"type": "conversation.item.retrieve"}', "missing_required_parameter", "item_id"),
        ('{"type": "input_video_buffer.append", "video": "?"}', "invalid_value", "video"),
        ('{"type": "input_video_buffer.append", "video": 3}', "invalid_value", "video"),
        ('{"type": "stream.attach", "stream": "x"}', "missing_required_parameter", "source"),
    ],
)
def test_bad_messages_get_an_error_event(text: str, code: str, param: str | None) -> None:
    trouble = error(Talk().session.receive(text, STREAMS))
    assert (trouble["code"], trouble["param"]) == (code, param)
    assert trouble["type"] == "invalid_request_error"


def test_errors_name_the_event_they_answer() -> None:
    trouble = error(Talk().say("response.create", event_id="mine"))
    assert trouble["event_id"] == "mine"


def test_twice_the_same_item_is_refused() -> None:
    talk = Talk()
    talk.say("conversation.item.create", item=message("a", id="a"))
    assert error(talk.say("conversation.item.create", item=message("a", id="a")))["code"] == "item_exists"
    trouble = error(talk.say("conversation.item.create", item=message("b"), previous_item_id="no"))
    assert (trouble["code"], trouble["param"]) == ("item_not_found", "previous_item_id")


def test_rate_limits_are_shown_with_the_answer() -> None:
    talk = Talk()
    talk.user("Hm?")
    (ask,) = talk.say("response.create")
    assert isinstance(ask, Ask)
    limit = {"name": "requests", "limit": 60, "remaining": 59, "reset_seconds": 1.0}
    created, limits = sent(talk.session.accepted(ask.response, [limit]))
    assert created["type"] == "response.created" and limits["rate_limits"] == [limit]


LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}


def test_words_then_calls_are_items_of_one_answer() -> None:
    talk = Talk()
    talk.say("session.update", session={"tools": [LOOK], "tool_choice": "required"})
    talk.user("What?")
    ask = talk.ask()
    assert ask.question.call and [tool.name for tool in ask.question.tools] == ["look"]
    session, out = talk.session, []
    out += session.thought(ask.response, "hm")
    out += session.delta(ask.response, "I look.")
    for n in "12":
        out += session.call(ask.response, "look")
        out += session.arguments(ask.response, '{"n": ')
        out += session.arguments(ask.response, f"{n}}}")
    out += session.finished(ask.response, "stop")
    told = sent(out)
    done = told[-1]["response"]["output"]
    assert [item["type"] for item in done] == ["message", "function_call", "function_call"]
    assert [event["output_index"] for event in told if event["type"] == "response.output_item.done"] == [0, 1, 2]
    assert done == [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert [item["arguments"] for item in done[1:]] == ['{"n": 1}', '{"n": 2}']
    assert {item["status"] for item in done} == {"completed"}
    for call, result in zip(done[1:], ("a door", "a wall"), strict=True):
        item = {"type": "function_call_output", "call_id": call["call_id"], "output": result}
        added, _ = sent(talk.say("conversation.item.create", item=item))
        assert added["item"]["output"] == result
        if result == "a door":
            trouble = error(talk.say("response.create"))
            assert "2 calls have 1 results" in trouble["message"]
    (turn,) = talk.ask().question.rounds
    assert turn == ToolRound("I look.", (("look", {"n": 1}), ("look", {"n": 2})), ("a door", "a wall"))


def test_results_are_words_where_no_tool_may_be_called_and_behind_the_next_question() -> None:
    talk = Talk()
    talk.user("What?")
    talk.say(
        "conversation.item.create", item={"type": "function_call", "call_id": "c", "name": "look", "arguments": ""}
    )
    talk.say("conversation.item.create", item={"type": "function_call_output", "call_id": "c", "output": "A door."})
    assert talk.session.receive('{"type": "response.create"}', STREAMS)[0].question.text == "What?\nA door."  # type: ignore[union-attr]
    talk.session.close()
    later = Talk()
    later.user("What?")
    later.say(
        "conversation.item.create", item={"type": "function_call", "call_id": "c", "name": "look", "arguments": ""}
    )
    later.user("And now?")
    question = later.ask(tools=[LOOK]).question
    assert (question.text, question.rounds) == ("What?\nAnd now?", ())


def test_a_call_that_is_cut_is_incomplete_and_not_read_back() -> None:
    talk = Talk()
    talk.user("What?")
    ask = talk.ask(tools=[LOOK])
    talk.session.call(ask.response, "look")
    talk.session.arguments(ask.response, '{"n"')
    (*_, done) = sent(talk.session.finished(ask.response, "length"))
    assert done["response"]["status"] == "incomplete" and done["response"]["output"][0]["status"] == "incomplete"
    assert talk.ask(tools=[LOOK]).question.rounds == ()


def test_tools_are_chosen_for_the_session_or_one_answer() -> None:
    talk = Talk()
    named = {"type": "function", "name": "look"}
    (updated,) = sent(talk.say("session.update", session={"tools": [LOOK], "tool_choice": named}))
    assert (updated["session"]["tools"], updated["session"]["tool_choice"]) == ([LOOK], named)
    talk.user("What?")
    assert talk.ask(conversation="none").question.call
    free = talk.ask(conversation="none", tool_choice="none").question
    assert (free.tools, free.call) == ((), False)
    assert not talk.ask(conversation="none", tools=[], tool_choice="auto").question.tools
    trouble = error(talk.say("session.update", session={"tools": []}))
    assert trouble["param"] == "session.tool_choice" and "no tool is named 'look'" in trouble["message"]
    trouble = error(talk.say("response.create", response={"tools": [LOOK, LOOK]}))
    assert trouble["param"] == "response.tools" and "two are named" in trouble["message"]
    session = RealtimeSession("nano", calls_tools=False)
    message = json.dumps({"type": "session.update", "session": {"tools": [LOOK], "instructions": "Be brief."}})
    updated, refused = sent(session.receive(message, STREAMS))
    assert (updated["session"]["instructions"], updated["session"]["tools"]) == ("Be brief.", [])
    assert (refused["error"]["code"], refused["error"]["param"]) == ("no_tools", "session.tools")
