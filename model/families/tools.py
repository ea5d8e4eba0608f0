"""Tools that a model may call: what a family must know to tell it of them, and to read its calls as they are spoken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called; `parameters` is the JSON schema of its arguments, an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """What was answered to a question instead of words, and what came of it: calls (name, arguments), and their results in order."""

    text: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Words:
    """Text of an answer that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """From here on what comes are arguments of this call, until the next one begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments; all of them, joined, are a JSON object."""

    text: str


Spoken = Words | CallBegun | Arguments


class CallParser(Protocol):
    """Reads one answer's text in pieces of any size."""

    def feed(self, text: str) -> list[Spoken]:
        """What `text` completes."""
        ...

    def rest(self) -> list[Spoken]:
        """What was kept back, once the answer is over."""
        ...


class ToolFormat(Protocol):
    """How a family tells of tools and spells calls."""

    def told(self, tools: Sequence[Tool]) -> list[int]:
        """The ids of what a model reads of its tools."""
        ...

    def answered(self, turn: Round) -> tuple[list[int], list[int]]:
        """The ids of the model's own turn, and of the turn with the results."""
        ...

    def grammar(self, tools: Sequence[Tool]) -> str:
        """A grammar (llguidance's Lark) of one call of one of `tools`, with arguments that its schema allows. Raises ValueError."""
        ...

    def parser(self, tools: Sequence[Tool]) -> CallParser:
        """For one answer."""
        ...
