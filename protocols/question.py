"""The one form of a question: built where a wire is read, and carried to the engine as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from protocols.fields import Model, Seed, Share, Temperature, number

TopK = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(number)]
"""An extension of the dialects' own: OpenAI has none."""


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
    seed: Seed = None

    def over(self, defaults: Sampling) -> Sampling:
        """These choices alone, and where they leave one open, that of `defaults`."""
        return Sampling.model_construct(**{**defaults.chosen(), **self.chosen()})

    def chosen(self) -> dict[str, Any]:
        """The choices that are made, by name."""
        choices = {name: getattr(self, name) for name in Sampling.model_fields}
        return {name: value for name, value in choices.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, about which stream, and how it is to be answered; None leaves a choice to the daemon.

    `history` holds earlier (question, answer) pairs, oldest first. With `attachments`, the question is about those instead
    of a stream.
    """

    text: str
    stream: str | None = None
    instructions: str = ""
    history: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
