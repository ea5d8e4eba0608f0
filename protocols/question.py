"""The one form of a question: built where a wire is read, and carried to the engine as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from protocols.fields import Model, Seed, Share, Temperature, number

TopK = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(number)]
"""An extension of the dialects' own: OpenAI has none."""


Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), BeforeValidator(number)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
EFFORTS: dict[Effort, int] = {"none": 0, "minimal": 0, "low": 256, "medium": 1_024, "high": 4_096, "xhigh": 16_384}
"""Tokens that a model may think before it answers."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A picture or a video, as a file of a kind that `capture` decodes, that a question is about.

    `data` is the file's bytes; where they are still to be fetched it is None, and `url` says from where.
    """

    kind: Literal["image", "video"]
    data: bytes | None = None
    url: str | None = None


class Sampling(Model):
    """How an answer's tokens are to be chosen, in every message that may say so; None leaves a choice open."""

    model_config = ConfigDict(frozen=True)

    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    presence_penalty: Penalty | None = None
    seed: Seed = None

    def over(self, defaults: Sampling) -> Sampling:
        """These choices alone, and where they leave one open, that of `defaults`."""
        return Sampling.model_construct(**{**defaults.chosen(), **self.chosen()})

    def chosen(self) -> dict[str, Any]:
        """The choices that are made, by name."""
        choices = {name: getattr(self, name) for name in Sampling.model_fields}
        return {name: value for name, value in choices.items() if value is not None}


class Thinking(Model):
    """Whether and how long the model thinks before it answers, in every message that may say so; off unless asked for."""

    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None

    def tokens(self) -> int:
        """Tokens that it may think; an effort alone asks for it, `enable_thinking` alone for a medium effort."""
        if self.enable_thinking is False:
            return 0
        return EFFORTS[self.reasoning_effort or ("medium" if self.enable_thinking else "none")]


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The form of an answer that is JSON: whatever `schema` allows (JSON Schema 2020-12); `param` is where a wire named it."""

    schema: Mapping[str, Any]
    param: str = "response_format"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments, an object, named by a wire at `param`."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    param: str = "tools"


@dataclass(frozen=True, slots=True)
class ToolRound:
    """Calls (name, arguments) that were made to answer a question, words said before them, and their results in order."""

    text: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, about which stream, and how it is to be answered; None leaves a choice to the daemon.

    `history` holds earlier (question, answer) pairs, oldest first. With `attachments`, the question is about those instead
    of a stream; with `at`, about a moment of the past, in Unix seconds or as people write it, and with `since` and `until` about a
    span of it. An answer with a `format` keeps to it from its first token on.
    """

    text: str
    stream: str | None = None
    instructions: str = ""
    history: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    thinking: int = 0
    """Tokens that the model may think before it answers; 0 is not at all."""
    format: JsonSchema | None = None
    tools: tuple[Tool, ...] = ()
    """Those that may be called; with `call` the answer is a call of one of them."""
    call: bool = False
    rounds: tuple[ToolRound, ...] = ()
    at: str | float | None = None
    since: str | float | None = None
    until: str | float | None = None
    recording: str | None = None
    """One that is kept, instead of a stream."""

    @property
    def past(self) -> bool:
        """Whether it is about the past."""
        return any(each is not None for each in (self.at, self.since, self.until))
