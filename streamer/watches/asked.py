"""A watch that somebody asks for while the daemon runs, held to what the configuration would be; and what it asks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from protocols.question import JsonSchema, Question, Sampling
from streamer.errors import AssistantError
from streamer.problems import problems
from streamer.watch_config import WatchConfig, check_names

ANSWER_TOKENS = 64
"""Of an answer whose changes are told."""


def checked(fields: dict[str, Any], streams: Iterable[str], outputs: Iterable[str]) -> WatchConfig:
    """A watch that somebody asks for, where there are these streams and outputs. Raises AssistantError: bad_option, unknown_stream."""
    there = list(streams)
    for stream in fields["streams"]:
        if stream not in there:
            raise AssistantError(
                "unknown_stream", f"There is no stream {stream[:80]!r}; there are: {', '.join(there) or 'none'}."
            )
    if not fields["streams"]:
        raise AssistantError(
            "unknown_stream", f"Which stream is meant? Name one; there are: {', '.join(there) or 'none'}."
        )
    try:
        watch = WatchConfig.model_validate(fields)
        check_names([watch], there, list(outputs))
    except ValidationError as error:
        wrong = problems(error, WatchConfig)
    except ValueError as error:
        wrong = [str(error).removeprefix("watches[0].")]
    else:
        return watch
    raise AssistantError("bad_option", f"The watch is refused: {'; '.join(wrong).rstrip('?.')}.")


def question_of(config: WatchConfig, stream: str) -> Question:
    """The question whose answers' changes are told."""
    form = None if config.format is None else JsonSchema(config.format, "format")
    return Question(config.question, stream, sampling=Sampling(temperature=0), max_tokens=ANSWER_TOKENS, format=form)


def plain(config: WatchConfig, value: Any) -> Any:
    """What an answer of a schema holds, or the words, or whether it is so."""
    return json.loads(value) if config.format is not None and isinstance(value, str) else value
