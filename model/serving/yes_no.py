"""How likely yes is, told from the logits of an answer's first token alone: no word of it is spoken."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ConfigError
from model.serving.calibration import Calibration
from model.tokenizer import Tokenizer

AROUND = " \t\n\r.,!\"'*"
"""What may stand around a word that is still that word."""


class YesNo(NamedTuple):
    """`probability` of yes, where the answer is yes or no, and how `sure` it is to be one of the two."""

    probability: float
    sure: float


def spellings(tokenizer: Tokenizer, vocabulary: int, word: str) -> list[int]:
    """The tokens below `vocabulary` that spell a word alone, whatever its case and what stands around it ("Yes", " yes", "YES.")."""
    out = []
    for token in range(vocabulary):
        text = tokenizer.spelling(token).decode("utf-8", "replace")
        if text.strip(AROUND).casefold() == word:
            out.append(token)
    return out


class YesNoReader:
    """Reads logits; knows every spelling of yes and of no. Raises ConfigError where the vocabulary has none of one."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: int,
        device: torch.device,
        calibration: Calibration = Calibration(),  # noqa: B008
    ) -> None:
        found = [spellings(tokenizer, vocabulary, word) for word in ("yes", "no")]
        if not all(found):
            raise ConfigError("the tokenizer has no token for yes or none for no: ask with 'when: changes' instead")
        self.calibration = calibration
        self.yes, self.no = (torch.tensor(tokens, device=device) for tokens in found)

    def read(self, logits: Tensor) -> list[YesNo]:
        """Of each row of `logits` float [batch, vocabulary]: all spellings of yes against all of yes and no, calibrated."""
        whole = logits.float()
        yes, no = whole[:, self.yes].logsumexp(-1), whole[:, self.no].logsumexp(-1)
        sure = (torch.logaddexp(yes, no) - whole.logsumexp(-1)).exp()
        return [YesNo(*row) for row in torch.stack((self.calibration.probability(yes - no), sure), -1).tolist()]
