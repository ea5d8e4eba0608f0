"""Every field of every event wrong in every way: an `error` event and an open session, or an answer; never an exception.

What is accepted and what is sent is held to the written protocol meanwhile (see `tests/wire.py`). STREAMER_FUZZ_MESSAGES
sets how many messages are tried (100,000 at night).
"""

import base64
import copy
import json
import os
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.chat import read_chat
from protocols.fields import ProtocolError
from protocols.realtime.decisions import Ask, Cancel, Command, Listen, Push, Send
from protocols.realtime.session import Limits, RealtimeSession

MESSAGES = int(os.environ.get("STREAMER_FUZZ_MESSAGES", "5000"))
AT_ONCE = 10
JPEG = "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8\xff\xe0...").decode()
TEXT = {"type": "input_text", "text": "What?"}
SAID = json.dumps({"type": "conversation.item.create", "item": {"role": "user", "content": [TEXT]}})
ITEM = {"type": "message", "role": "user", "content": [TEXT, {"type": "input_image", "image_url": JPEG}]}
EVENTS: list[dict[str, Any]] = [
    {
        "type": "session.update",
        "event_id": "e",
        "session": {
            "type": "realtime",
            "stream": "door",
            "instructions": "x",
            "output_modalities": ["text"],
            "max_output_tokens": 5,
            "temperature": 0.5,
            "tools": [],
        },
    },
    {"type": "conversation.item.create", "item": {**ITEM, "id": "i"}, "previous_item_id": "root"},
    {"type": "conversation.item.retrieve", "item_id": "i"},
    {"type": "conversation.item.delete", "item_id": "i"},
    {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 0},
    {
        "type": "response.create",
        "response": {
            "conversation": "none",
            "input": [ITEM, {"type": "item_reference", "id": "i"}],
            "stream": "door",
            "instructions": "x",
            "max_output_tokens": "inf",
            "temperature": 1,
            "top_p": 0.5,
            "seed": 1,
            "metadata": {"a": "b"},
        },
    },
    {"type": "response.cancel", "response_id": "r"},
    {"type": "stream.list"},
    {"type": "stream.attach", "stream": "x", "source": "demo:", "options": {"fps": 2}},
    {"type": "stream.detach", "stream": "door"},
    {"type": "stream.status", "stream": "door"},
    {"type": "stream.frame", "stream": "door"},
    {"type": "input_video_buffer.append", "video": JPEG, "timestamp": 1.0, "stream": "door"},
]
CHAT = {
    "model": "nano",
    "messages": [
        {"role": "system", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": JPEG}}]},
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 5,
    "temperature": 1,
    "metadata": {"a": "b"},
    "response_format": {"type": "text"},
}
WRONG: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 2**31, 2**63, -(2**70), 1e308, float("nan"), float("inf")),
    *("", " ", "\0", "\ud800", "\n", "x", "x" * 65, "x" * 5_000, "é" * 70, "root", "door", "inf", "none", "auto"),
    *("data:image/png;base64,", "data:image/png;base64,AAAA", "http://x/y.png", "../../etc", "{}"),
    *([], {}, [[]], [None], [{}], {"type": None}, {"": ""}, {"a": 1}, [1] * 100, {"\ud800": "\ud800"}),
]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside an event."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in inside for place in places(value, (*path, key)))]


def spoiled(templates: list[dict[str, Any]], chance: random.Random) -> Any:
    """An event with none to three of its parts replaced, removed or added to; at times something else altogether."""
    if chance.random() < 0.02:
        return chance.choice(WRONG)
    event: Any = copy.deepcopy(chance.choice(templates))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        path = chance.choice(places(event))
        if not path:
            event[chance.choice(("extra", "session", "response", "\ud800"))] = copy.deepcopy(chance.choice(WRONG))
            continue
        parent = event
        for key in path[:-1]:
            parent = parent[key]
        if isinstance(parent, list) or chance.random() < 0.75:
            parent[path[-1]] = copy.deepcopy(chance.choice(WRONG))
        else:
            del parent[path[-1]]
    return event


LAX = settings(max_examples=max(1, MESSAGES // AT_ONCE), deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tell(session: RealtimeSession, message: str) -> None:
    """Hands a message over, carries out what is asked, and checks what is said."""
    for decision in session.receive(message, ["door"]):
        assert isinstance(decision, Send | Ask | Cancel | Command | Listen | Push)
        if isinstance(decision, Send):
            json.dumps(decision.event, ensure_ascii=False).encode()
            if decision.event["type"] == "error":
                error = decision.event["error"]
                assert error["code"] and "\n" not in error["message"].strip()
                assert error["param"] or error["code"] in ("invalid_json", "invalid_event", "too_many_answers")
        elif isinstance(decision, Ask):
            assert decision.question.text.strip()
            session.accepted(decision.response)
            session.delta(decision.response, "word")
            session.finished(decision.response, "stop")


@pytest.mark.parametrize("template", EVENTS, ids=lambda event: event["type"])
def test_every_field_wrong_in_every_way(template: dict[str, Any]) -> None:
    for path in places(template)[1:]:
        for wrong in WRONG:
            event = copy.deepcopy(template)
            parent: Any = event
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = wrong
            session = RealtimeSession("nano")
            tell(session, json.dumps(event))
            tell(session, SAID)


@LAX
@given(st.integers(0, 2**64), st.text(max_size=30))
def test_session_survives_every_message(seed: int, text: str) -> None:
    chance = random.Random(seed)
    session = RealtimeSession("nano", limits=Limits(answers=2, items=4))
    session.open(["door"])
    for message in [text, *(json.dumps(spoiled(EVENTS, chance)) for _ in range(AT_ONCE))]:
        tell(session, message)
    (listed,) = session.receive('{"type": "stream.list"}', ["door"])
    assert isinstance(listed, Command)


@LAX
@given(st.binary(max_size=40))
def test_session_survives_every_binary_message(message: bytes) -> None:
    (decision,) = RealtimeSession("nano").receive(message, ["door"])
    assert isinstance(decision, Send | Push)


@LAX
@given(st.integers(0, 2**64), st.binary(max_size=40))
def test_chat_survives_every_body(seed: int, noise: bytes) -> None:
    chance = random.Random(seed)
    for body in [noise, *(json.dumps(spoiled([CHAT], chance)).encode() for _ in range(AT_ONCE))]:
        try:
            asked = read_chat(body, "nano", ["door"])
        except ProtocolError as error:
            assert error.code and error.message
            error.message.encode()
        else:
            assert asked.question.text.strip()
