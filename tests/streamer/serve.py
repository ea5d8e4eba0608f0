"""The daemon of a configuration in JSON as a program, which gives up where its engine does not add up."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import tests.tiny  # noqa: F401
from streamer.config import parse_config
from streamer.daemon import run
from tests.adding_up import give_up, watch_engines


def told(url: str) -> None:
    print(url, flush=True)


def serve(arguments: Sequence[str], announce: Callable[[str], Any] = told) -> int:
    """Its exit code. On SIGHUP it reads a configuration that can't be."""
    watch_engines(give_up)
    none: dict[str, Any] = {"streams": [], "limits": {"streams": 0}}
    return run(parse_config(json.loads(arguments[0])), announce, lambda: parse_config(none))
