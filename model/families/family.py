"""What a family of models is: how its checkpoints are read, how it looks at pictures, and the words around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from model.config import ConfigError, DecoderConfig, InfiniteVLConfig, VisionConfig
from model.families.tools import Round, Tool, ToolFormat
from model.families.vocabulary import Vocabulary


class Framing(Protocol):
    """The token ids around frames."""

    @property
    def opening(self) -> Sequence[int]:
        """What begins a stream."""
        ...

    @property
    def after(self) -> Sequence[int]:
        """What follows the grid of a step."""
        ...

    def before(self, seconds: float) -> list[int]:
        """What precedes the grid of a step whose frames show this stream time."""
        ...


class Prompt(Framing, Protocol):
    """The token ids around frames and questions, made with one tokenizer."""

    @property
    def tools(self) -> ToolFormat | None:
        """How tools are told and called; None where the family was not trained for any."""
        ...

    def question(
        self,
        text: str,
        instructions: str,
        history: Sequence[tuple[str, str]],
        thinking: bool,
        tools: Sequence[Tool] = (),
        rounds: Sequence[Round] = (),
    ) -> list[int]:
        """What a fork of a stream reads, up to where the answer begins.

        `history` holds earlier (question, answer) pairs, oldest first, `rounds` the calls that were made to answer this question. Raises
        ConfigError for `thinking`, and for `tools` and `rounds`, where the family can't.
        """
        ...


class Tower(Protocol):
    """What makes the vision tower."""

    def __call__(self, config: VisionConfig) -> nn.Module:
        """Takes patches float32 [frames, patches, patch_dim], rows and columns; gives [frames, tokens, hidden], row by row."""
        ...


@dataclass(frozen=True)
class Family:
    """One family. `parse` reads a config.json's contents and raises ConfigError.

    `convert` takes a tensor of a checkpoint by its name there, with the decoder's sizes, and gives ours: several, or none where
    it is not needed.
    """

    model_types: tuple[str, ...]
    parse: Callable[[dict[str, Any]], InfiniteVLConfig]
    convert: Callable[[str, Tensor, DecoderConfig], Iterable[tuple[str, Tensor]]]
    tower: Tower
    prompt: Callable[[Vocabulary, InfiniteVLConfig], Prompt]


FAMILIES: dict[str, Family] = {}
"""By the first of its `model_types`, which is what a configuration calls its family."""


def parse(found: dict[str, Any]) -> InfiniteVLConfig:
    """The configuration that a config.json's contents describe, whatever the family. Raises ConfigError."""
    kind, text = found.get("model_type"), found.get("text_config")
    for place in (found, text):
        method = place.get("quantization_config") if isinstance(place, dict) else None
        if method is not None:
            name = method.get("quant_method", "an unnamed way") if isinstance(method, dict) else method
            raise ConfigError(
                f"the weights are quantised ({name}), which is not read: take the repository without that suffix, whose weights are"
                " bfloat16, and set model.dtype to make them smaller"
            )
    if isinstance(kind, str) and kind.endswith("_moe"):
        raise ConfigError(
            f"model_type {kind!r} is a mixture of experts, which is not supported: choose a dense size of its family"
        )
    for family in FAMILIES.values():
        if kind in family.model_types:
            return family.parse(found)
    return FAMILIES["infinitevl"].parse(found)
