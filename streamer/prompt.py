"""What the model is given of a question: all choices made, and its tokens."""

from __future__ import annotations

from dataclasses import replace

from model.tokenizer import Tokenizer
from protocols.question import Question, Sampling
from streamer.config import Config
from streamer.errors import AssistantError

CHARACTERS_A_TOKEN = 16
"""A text that is longer than its tokens at this rate is refused unread: to tokenise a megabyte takes seconds."""


def settled(question: Question, stream: str, config: Config) -> Question:
    """The question with all that it left open as it is configured. Raises AssistantError: bad_sampling."""
    defaults = config.answers
    longest = defaults.max_tokens if question.max_tokens is None else question.max_tokens
    if longest < 1:
        raise AssistantError("bad_sampling", f"max_tokens {longest} must be at least 1.")
    configured = {name: getattr(defaults, name) for name in Sampling.model_fields if hasattr(defaults, name)}
    return replace(
        question,
        stream=stream,
        sampling=question.sampling.over(Sampling(**configured)),
        max_tokens=min(longest, config.limits.answer_tokens),
    )


def prompt_tokens(question: Question, tokenizer: Tokenizer, most: int) -> list[int]:
    """The whole prompt's ids, `most` at most. Raises AssistantError: question_too_long."""
    text, instructions, history = question.text, question.instructions, question.history
    characters = sum(map(len, (text, instructions, *(words for turn in history for words in turn))))
    tokens = tokenizer.encode_question(text, instructions, history) if characters <= most * CHARACTERS_A_TOKEN else []
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
