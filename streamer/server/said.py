"""What an answer says, told apart as it comes: words, and calls of tools."""

from __future__ import annotations

from model.families.tools import CallBegun, CallParser, Spoken, Words


class Said:
    """An answer's text and its calls (name, arguments), put together from its pieces; without a parser all is text."""

    def __init__(self, parser: CallParser | None) -> None:
        self._parser = parser
        self.text = ""
        self.calls: list[tuple[str, str]] = []

    def feed(self, words: str) -> list[Spoken]:
        """What `words` complete."""
        return self._take([Words(words)] if self._parser is None else self._parser.feed(words))

    def rest(self) -> list[Spoken]:
        """What was kept back, once the answer is over."""
        return [] if self._parser is None else self._take(self._parser.rest())

    def _take(self, parts: list[Spoken]) -> list[Spoken]:
        for part in parts:
            if isinstance(part, Words):
                self.text += part.text
            elif isinstance(part, CallBegun):
                self.calls.append((part.name, ""))
            else:
                name, arguments = self.calls[-1]
                self.calls[-1] = name, arguments + part.text
        return parts
