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


QUANTISED = ("quantization_config", "compression_config", "quantization")
"""Keys of a config.json whose weights are quantised: transformers', one that it had before, and MLX's."""
UNQUANTISED = (
    "take the repository without that suffix, whose weights are bfloat16, and set model.dtype to make them smaller"
)
"""What to do about quantised weights."""


def parse(found: dict[str, Any]) -> InfiniteVLConfig:
    """The configuration that a config.json's contents describe, whatever the family. Raises ConfigError."""
    text = found.get("text_config")
    places = [place for place in (found, text) if isinstance(place, dict)]
    for place in places:
        for key in QUANTISED:
            method = place.get(key)
            if method is not None:
                known = isinstance(method, dict)
                name = method.get("quant_method") or f"{method.get('bits', 'few')} bits" if known else method
                raise ConfigError(f"the weights are quantised ({name}), which is not read: {UNQUANTISED}")
    for place in places:
        kind = place.get("model_type")
        if isinstance(kind, str) and ("_moe" in kind or place.get("num_experts")):
            raise ConfigError(
                f"model_type {kind!r} is a mixture of experts, which is not supported: choose a dense size of its family"
            )
    kind = found.get("model_type")
    named = [str(name) for name in found.get("architectures") or ()]
    family = next((each for each in FAMILIES.values() if kind in each.model_types), None)
    if family is None and any("InfiniteVL" in name for name in named):
        family = FAMILIES["infinitevl"]
    if family is None:
        raise ConfigError(
            f"architecture {', '.join(named) or None!r} of model_type {kind!r} is not one that is read: InfiniteVL and Qwen3.5 (with"
            " their vision towers) are; streamer models lists what is known"
        )
    config = family.parse(found)
    for name in ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"):
        if (token := getattr(config, name)) >= config.decoder.vocab_size:
            raise ConfigError(
                f"{name} {token} is outside of the vocabulary of {config.decoder.vocab_size}: take the config.json that came with the"
                " weights"
            )
    return config
