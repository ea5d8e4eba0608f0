"""Questions and their answers as tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.tokenizer import Tokenizer
from model.world.phrasings import PHRASES
from model.world.questions import Question
from model.world.scene import Integers

SKILLS = tuple(PHRASES)
LENGTH = 32
"""Tokens of a question with its answer; the few longer ones are asked again with other words."""


@dataclass
class Round:
    """Questions asked once all streams of a batch have seen `steps` steps.

    `tokens` int64 [streams, questions, LENGTH]; an answer token stands after position `rows` (into the flattened tokens)
    and should be `targets`; `owner` is the question it belongs to (into the flattened questions), `skill` [questions].
    """

    steps: int
    tokens: Integers
    rows: Integers
    targets: Integers
    owner: Integers
    skill: Integers


def write(questions: list[list[Question]], tokenizer: Tokenizer, steps: int) -> Round:
    """Questions [streams][questions] as tokens."""
    streams, each = len(questions), len(questions[0])
    tokens = np.zeros((streams * each, LENGTH), np.int64)
    rows: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    flat = [question for asked in questions for question in asked]
    for i, question in enumerate(flat):
        prompt = tokenizer.encode_question(question.text)
        answer = [*tokenizer.encode(question.answer), tokenizer.turn_end]
        whole = prompt + answer
        tokens[i, : len(whole)] = whole
        at = i * LENGTH + len(prompt) - 1
        rows += range(at, at + len(answer))
        targets += answer
        owner += [i] * len(answer)
    return Round(
        steps, tokens.reshape(streams, each, LENGTH), np.array(rows), np.array(targets), np.array(owner),
        np.array([SKILLS.index(question.skill) for question in flat]),
    )  # fmt: skip


def fits(question: Question, tokenizer: Tokenizer) -> bool:
    """Whether a question and its answer are at most LENGTH tokens."""
    return len(tokenizer.encode_question(question.text)) + len(tokenizer.encode(question.answer)) < LENGTH
