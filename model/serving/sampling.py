"""Choosing the next token from logits: greedy, or drawn with temperature and nucleus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-6
"""A temperature below this is greedy: float32 can't divide by it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer's tokens are chosen. Temperature 0 is greedy; `top_p` is the nucleus' mass (arXiv 1904.09751)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

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


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """One token id from `logits` float32 [vocabulary]."""
    if generator is None:
        return int(logits.argmax())
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, ids = probabilities.sort(descending=True)
        ordered[1:][(ordered.cumsum(-1) - ordered)[1:] >= sampling.top_p] = 0
        return int(ids[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))
