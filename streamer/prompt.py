"""What the model is given of a question: all choices made, and its tokens."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import protocols.question
from model import ConfigError, InfiniteVLConfig
from model.families.tools import CallParser, Round, Tool
from model.tokenizer import Tokenizer
from protocols.question import Question, Sampling
from streamer.config import Config
from streamer.errors import AssistantError

CHARACTERS_A_TOKEN = 16
"""A text that is longer than its tokens at this rate is refused unread: to tokenise a megabyte takes seconds."""


def settled(question: Question, stream: str, config: Config, model: InfiniteVLConfig) -> Question:
    """The question with all that it left open as it is configured, or else as is the model's own.

    Raises AssistantError: bad_sampling.
    """
    defaults, limits = config.answers, config.limits
    thinking = min(question.thinking, limits.thinking_tokens)
    longest = defaults.max_tokens if question.max_tokens is None else question.max_tokens
    if longest < 1:
        raise AssistantError("bad_sampling", f"max_tokens {longest} must be at least 1.")
    own = Sampling(**default_sampling(model, thinking > 0))
    configured = {name: getattr(defaults, name) for name in Sampling.model_fields if hasattr(defaults, name)}
    longest = min(longest, limits.answer_tokens)
    return replace(
        question,
        stream=stream,
        sampling=question.sampling.over(Sampling(**configured).over(own)),
        max_tokens=longest + thinking * (question.max_tokens is None),
        thinking=thinking,
    )


def default_sampling(model: InfiniteVLConfig, thinking: bool = False) -> dict[str, Any]:
    """How a model's answers are drawn where nobody says otherwise, by the names that requests have."""
    own = asdict(model.thinking_sampling if thinking else model.sampling)
    return {name: value for name, value in own.items() if name != "top_k" or value}


def tool_of_model(tool: protocols.question.Tool) -> Tool:
    """A wire's tool as the model has it."""
    return Tool(tool.name, tool.description, tool.parameters)


def call_parser(question: Question, tokenizer: Tokenizer) -> CallParser | None:
    """What reads calls out of the answer's text; None where none may be made."""
    spelling = tokenizer.prompt.tools
    return spelling.parser([tool_of_model(tool) for tool in question.tools]) if spelling and question.tools else None


def prompt_tokens(question: Question, tokenizer: Tokenizer, most: int) -> list[int]:
    """The whole prompt's ids, `most` at most. Raises AssistantError: question_too_long, no_thinking."""
    text, instructions, history = question.text, question.instructions, question.history
    told = [tool.description + str(tool.parameters) for tool in question.tools]
    told += [part for turn in question.rounds for part in (turn.text, str(turn.calls), *turn.results)]
    characters = sum(map(len, (text, instructions, *told, *(words for turn in history for words in turn))))
    tokens: list[int] = []
    try:
        if characters <= most * CHARACTERS_A_TOKEN:
            tools = [tool_of_model(tool) for tool in question.tools]
            rounds = [Round(turn.text, turn.calls, turn.results) for turn in question.rounds]
            tokens = tokenizer.encode_question(text, instructions, history, question.thinking > 0, tools, rounds)
    except ConfigError as error:
        raise AssistantError("no_thinking", f"{str(error).capitalize()}: leave reasoning_effort out.") from None
    if not tokens or len(tokens) > most:
        over = (
            f"{len(tokens)} tokens with its history, {most} are allowed"
            if tokens
            else f"{characters} characters with its history, which is more than {most} tokens hold"
        )
        raise AssistantError(
            "question_too_long", f"The question has {over}: shorten it or raise limits.question_tokens."
        )
    return tokens
