"""The dialect's beta (`OpenAI-Beta: realtime=v1`), which some clients still speak: today's events under their names of then."""

from __future__ import annotations

from typing import Any

HEADER, SUBPROTOCOL = "realtime=v1", "openai-beta.realtime-v1"
"""How a client says that it speaks the beta: in its OpenAI-Beta header, or among the subprotocols that a browser offers."""
RENAMED = {
    "conversation.item.added": "conversation.item.created",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
}
LATER = frozenset({"conversation.item.done"})
"""Events that the beta has none of."""


def beta_event(event: dict[str, Any]) -> dict[str, Any] | None:
    """An event as the beta has it, or None where it has none."""
    if event["type"] in LATER:
        return None
    out = {**event, "type": RENAMED.get(event["type"], event["type"])}
    if "item" in out:
        out["item"] = _item(out["item"])
    if "session" in out:
        session = dict(out["session"])
        session["modalities"] = session.pop("output_modalities")
        session["max_response_output_tokens"] = session.pop("max_output_tokens")
        out["session"] = session
    if "response" in out:
        response = dict(out["response"])
        response["modalities"] = response.pop("output_modalities")
        response["output"] = [_item(item) for item in response["output"]]
        out["response"] = response
    return out


def _item(item: dict[str, Any]) -> dict[str, Any]:
    if "content" not in item:
        return item
    parts = [{**part, "type": "text"} if part["type"] == "output_text" else part for part in item["content"]]
    return {**item, "content": parts}
