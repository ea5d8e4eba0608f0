"""Where what a model thinks ends and its answer begins, and how long it may think."""

from __future__ import annotations

from model.tokenizer import Detokenizer


class Thoughts:
    """Reads an answer's tokens in turn. `going_on` says whether the next one is thought, not said.

    `begin` and `end` are the ids around thoughts (None: the model has none), `most` the tokens that may be thought.
    """

    def __init__(self, begin: int | None = None, end: int | None = None, most: int = 0) -> None:
        self.begin, self.end, self.most = begin, end, most
        self.going_on = most > 0
        self.count = 0
        self.gap = False

    def bounded(self, token: int) -> int:
        """The token that follows: the one that ends thinking where it has gone on for long enough, or was not asked for."""
        if self.end is None:
            return token
        if self.going_on:
            self.count += 1
        unasked = token == self.begin and self.count >= self.most
        return self.end if unasked or (self.going_on and self.count > self.most) else token

    def shown(self, token: int, detokenizer: Detokenizer) -> str:
        """What the token shows of thought or answer; the marks between them, and the lines after, are neither's."""
        if self.end is not None and token in (self.begin, self.end):
            self.going_on = token == self.begin
            self.gap = not self.going_on
            return detokenizer.flush()
        text = detokenizer.push(token)
        if self.gap and not self.going_on:
            text = text.lstrip("\n")
            self.gap = not text
        return text
