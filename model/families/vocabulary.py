"""What a family's prompt asks of a tokenizer."""

from __future__ import annotations

from typing import Protocol


class Vocabulary(Protocol):
    """Text to ids; see `model.tokenizer.Tokenizer`."""

    def encode(self, text: str) -> list[int]:
        """Plain text to ids."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling; None where there is no such token."""
        ...
