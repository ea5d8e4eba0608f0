"""Thoughts are told apart from what is said, token by token, and end where they have gone on for long enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model.tokenizer import Detokenizer
from streamer.engine.thoughts import Thoughts

BEGIN, END = 1, 2
WORDS = {3: "hm", 4: "so", 5: "\n\n", 6: "yes", 7: "\nno"}


class Speller:
    """What a detokeniser asks of a tokenizer."""

    def spelling(self, token: int) -> bytes:
        return WORDS[token].encode()


def told(tokens: Sequence[int], most: int, begin: int | None = BEGIN, end: int | None = END) -> list[tuple[bool, str]]:
    """Of each token whether it is a thought, and what it shows."""
    thoughts, speaker = Thoughts(begin, end, most), Detokenizer(Speller())  # type: ignore[arg-type]

    def each() -> Iterator[tuple[bool, str]]:
        for token in tokens:
            token = thoughts.bounded(token)
            yield thoughts.going_on, thoughts.shown(token, speaker)

    return list(each())


def test_thoughts_then_answer() -> None:
    """The lines after a thought's end are neither's; later ones are the answer's."""
    assert told([3, 4, END, 5, 6, 7], 10) == [
        (True, "hm"), (True, "so"), (True, ""), (False, ""), (False, "yes"), (False, "\nno"),
    ]  # fmt: skip


def test_thoughts_end_at_their_bound() -> None:
    assert told([3, 4, 3, 6], 2) == [(True, "hm"), (True, "so"), (True, ""), (False, "yes")]


def test_none_begin_unasked() -> None:
    assert told([6, BEGIN, 7], 0) == [(False, "yes"), (False, ""), (False, "no")]


def test_a_model_without_marks_has_no_thoughts() -> None:
    assert told([6, 7], 0, None, None) == [(False, "yes"), (False, "\nno")]
