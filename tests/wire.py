"""Holds every message of the realtime dialect, in whatever test, to `protocols/asyncapi.yaml`."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from protocols.realtime.decisions import Decision, Send
from protocols.realtime.session import RealtimeSession

DOCUMENT = yaml.safe_load((Path(__file__).parents[1] / "protocols" / "asyncapi.yaml").read_text())
REGISTRY: Registry[Any] = Registry().with_resource("urn:wire", Resource.from_contents(DOCUMENT, DRAFT202012))


def validators(side: str) -> dict[str, Draft202012Validator]:
    """A validator for each event type that `side` (client or server) may send."""
    found = {}
    for branch in DOCUMENT["components"]["messages"][side]["payload"]["oneOf"]:
        name = branch["$ref"].rsplit("/", 1)[1]
        kind = DOCUMENT["components"]["schemas"][name]["properties"]["type"]["const"]
        found[kind] = Draft202012Validator({"$ref": f"urn:wire{branch['$ref']}"}, registry=REGISTRY)
    return found


CLIENT, SERVER = validators("client"), validators("server")
CHECKED: Counter[str] = Counter()


def check(side: dict[str, Draft202012Validator], event: dict[str, Any]) -> None:
    """Raises ValidationError, or KeyError for a type that is not written down."""
    side[event["type"]].validate(event)
    CHECKED[event["type"]] += 1


def watch_sessions() -> None:
    """From now on every session of this process checks what it accepts and what it sends."""

    def checked(name: str) -> None:
        method = getattr(RealtimeSession, name)

        def call(self: RealtimeSession, *arguments: Any, **fields: Any) -> list[Decision]:
            out: list[Decision] = method(self, *arguments, **fields)
            sent = [each.event for each in out if isinstance(each, Send)]
            for event in sent:
                check(SERVER, json.loads(json.dumps(event)))
            refused = any(event["type"] == "error" for event in sent)
            if name == "receive" and isinstance(arguments[0], str) and not refused:
                check(CLIENT, json.loads(arguments[0]))
            return out

        setattr(RealtimeSession, name, call)

    for name in (
        "open",
        "receive",
        "shut_down",
        "accepted",
        "refused",
        "delta",
        "thought",
        "call",
        "arguments",
        "finished",
        "news",
        "performed",
        "watched",
        "alarm",
        "failed",
    ):
        checked(name)
