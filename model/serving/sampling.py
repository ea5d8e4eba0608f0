"""Choosing the next token from logits: greedy, or drawn with temperature, from the likeliest few, from a nucleus."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-6
"""A temperature below this is greedy: float32 can't divide by it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer's tokens are chosen. Temperature 0 is greedy; `top_p` is the nucleus' mass (arXiv 1904.09751).

    With `top_k`, only so many of the likeliest tokens are drawn from, and `top_p` is a share of their mass. A
    `presence_penalty` is taken from the logit of every token that the answer holds already, greedy or not.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int | None = None
    presence_penalty: float = 0.0

    def generator(self, device: torch.device) -> torch.Generator | None:
        """A source of randomness for one answer, None where it is greedy."""
        if self.temperature < COLDEST:
            return None
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator | None, spoken: Collection[int] = ()) -> int:
    """One token id from `logits` float32 [vocabulary]: temperature, then the `top_k` likeliest, then their nucleus.

    `spoken` are the tokens that the presence penalty is for.
    """
    if spoken and sampling.presence_penalty:
        logits = logits.index_add(
            0,
            torch.tensor(sorted(spoken), device=logits.device),
            logits.new_full((len(spoken),), -sampling.presence_penalty),
        )
    if generator is None:
        return int(logits.argmax())
    warm, ids = logits / sampling.temperature, None
    if sampling.top_k is not None and sampling.top_k < len(logits):
        warm, ids = warm.topk(sampling.top_k)
    probabilities = warm.softmax(-1)
    if sampling.top_p < 1:
        probabilities, order = probabilities.sort(descending=True)
        probabilities[1:][(probabilities.cumsum(-1) - probabilities)[1:] >= sampling.top_p] = 0
        ids = order if ids is None else ids[order]
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return int(drawn if ids is None else ids[drawn])
