"""The official `openai` client, unmodified, in a virtual environment of its own (it pins another websockets)."""

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.streamer.serving import Served


@pytest.fixture(scope="module")
def saw(openai_python: Path, server: Served) -> dict[str, Any]:
    program = Path(__file__).with_name("openai_program.py")
    data = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(data, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    done = subprocess.run([openai_python, program, server.url, picture], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.slow
def test_chat_completions(saw: dict[str, Any]) -> None:
    seen = saw["completions"]
    assert seen["models"] == ["nano", "nano/demo"]
    assert seen["whole"] and seen["streamed"]
    assert seen["finish_reason"] in ("stop", "length")
    assert 0 < seen["completion_tokens"] <= 4 and 0 < seen["streamed_tokens"] <= 4
    assert seen["formed"].keys() == {"colour", "n"} and seen["formed_reason"] == "stop"
    assert seen["formed"]["colour"] in ("red", "green") and 0 <= seen["formed"]["n"] <= 99
    assert seen["refused"] == ["NotFoundError", 404, "model_not_found", "model"]


def test_responses(saw: dict[str, Any]) -> None:
    seen = saw["responses"]
    assert seen["whole"] and seen["status"] in ("completed", "incomplete") and 0 < seen["output_tokens"] <= 4
    assert {seen["shown"], seen["again"]} <= {"completed", "incomplete"}
    kinds = [kind for kind, _ in seen["seen"]]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] in ("response.completed", "response.incomplete") and "response.output_text.delta" in kinds
    assert all(name.startswith("Response") for _, name in seen["seen"]), seen["seen"]
    assert seen["streamed"]
    assert seen["refused"] == ["BadRequestError", 400, "invalid_value", "previous_response_id"]


def test_realtime(saw: dict[str, Any]) -> None:
    seen = saw["realtime"]
    kinds = [kind for kind, _ in seen["seen"]]
    assert kinds[:2] == ["session.created", "session.updated"]
    deltas = kinds.count("response.output_text.delta")
    assert [kind for kind in kinds if kind.startswith("response.")] == [
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    assert seen["text"] == seen["said"] != ""
    assert 0 < seen["usage"] <= 4
    assert seen["statuses"][0] in ("completed", "incomplete") and seen["statuses"][1] == "cancelled"
    assert seen["metadata"] == {"a": "b"}
    assert seen["refused"] == ["error", "response_cancel_not_active"]


def test_every_event_has_a_type_that_the_client_knows(saw: dict[str, Any]) -> None:
    known = {kind: name for kind, name in saw["realtime"]["seen"]}
    assert known["response.done"] == "ResponseDoneEvent"
    assert known["rate_limits.updated"] == "RateLimitsUpdatedEvent"
    assert known["conversation.item.added"] == "ConversationItemAdded"
    assert all("Event" in name or "Item" in name for name in known.values()), known
