"""A watch that somebody asks for while the daemon runs, held to what the configuration would be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamer.config import ConfigError, parse_config
from streamer.errors import AssistantError
from streamer.watch_config import WatchConfig


def checked(fields: dict[str, Any], streams: Iterable[str], outputs: Iterable[str]) -> WatchConfig:
    """A watch that somebody asks for, where there are these streams and outputs. Raises AssistantError: bad_option, unknown_stream."""
    there = list(streams)
    for stream in fields["streams"]:
        if stream not in there:
            raise AssistantError(
                "unknown_stream", f"There is no stream {stream!r}; there are: {', '.join(there) or 'none'}."
            )
    if not fields["streams"]:
        raise AssistantError(
            "unknown_stream", f"Which stream is meant? Name one; there are: {', '.join(there) or 'none'}."
        )
    try:
        known = [{"name": stream, "source": "push://"} for stream in fields["streams"]]
        to = {"webhooks": [{"name": output, "url": "https://localhost"} for output in outputs]}
        return parse_config({"streams": known, "outputs": to, "watches": [fields]}, "watch").watches[0]
    except ConfigError as error:
        problems = "; ".join(
            problem.removeprefix("watches[0].").removeprefix("watches[0]: ") for problem in error.problems
        )
        raise AssistantError("bad_option", f"The watch is refused: {problems.rstrip('?.')}.") from None
