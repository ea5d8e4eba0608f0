"""Questions about one's own clips: their file, how a reply is matched to the accepted answers, and what was found, by kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.evaluation.report import grid, told
from model.world.questions import normalise

FILE = "questions.jsonl"
KEYS: dict[str, type | tuple[type, ...]] = {
    "clip": str, "at": (int, float), "kind": str, "question": str, "answers": list, "memory": bool,
}  # fmt: skip
"""What a line holds, all of it; other keys are for its writer."""
WANTED = {str: "text", (int, float): "a number of seconds, 0 or more", list: "a list of text", bool: "true or false"}
NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
NOT_ANY = {"none": "0", "nobody": "0", "nothing": "0"}
PASSED_OVER = "watches"
MATCHED = (
    "yes and no by the reply's first word, numbers by its first number, all else by an accepted answer among its words"
)


class LayoutError(ValueError):
    """A file of questions that can't be read, in one line that names its line and key."""


@dataclass(frozen=True)
class Question:
    """One question, asked once `at` seconds of its clip were shown.

    Attributes:
        clip: the video's file, below the folder of its suite.
        at: seconds since the clip's first frame.
        kind: what is asked for, by which replies are counted.
        text: what is asked, word for word.
        answers: accepted ones, at least one.
        memory: what the answer is about has left the picture.
    """

    clip: str
    at: float
    kind: str
    text: str
    answers: tuple[str, ...]
    memory: bool = False

    @property
    def key(self) -> str:
        """What tells it from all others, across runs."""
        return json.dumps([self.clip, self.at, self.kind, self.text, self.answers, self.memory], ensure_ascii=False)

    @property
    def group(self) -> str:
        """`yes` or `no` where that is the only answer accepted, else `other`."""
        return self.answers[0] if self.answers in (("yes",), ("no",)) else "other"


def read(folder: Path) -> tuple[list[Question], int]:
    """The questions of `questions.jsonl`, in the file's order, and how many of its lines are watches, which are not asked.

    Raises LayoutError for a file that is missing, empty or of another layout.
    """
    path = folder / FILE
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # text may hold what splitlines takes for an end
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}; a folder of questions holds {FILE} and its clips") from None
    except UnicodeDecodeError:
        raise LayoutError(f"{path} is not text in UTF-8") from None
    found, watches = [], 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            raise LayoutError(f"{path}, line {number}: no JSON object; each line is one") from None
        if not isinstance(data, dict):
            raise LayoutError(f"{path}, line {number}: no JSON object; each line is one")
        if "watch" in data:
            watches += 1
        else:
            found.append(_question(data, f"{path}, line {number}"))
    if not found:
        raise LayoutError(f"{path} holds no question")
    return found, watches


def _question(data: Mapping[str, Any], where: str) -> Question:
    for key, kind in KEYS.items():
        if key not in data:
            raise LayoutError(f"{where}: {key!r} is missing; a question has {', '.join(KEYS)}")
        value = data[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = {list: isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value),
                (int, float): number and 0 <= value < float("inf")}.get(kind, isinstance(value, kind))  # fmt: skip
        if not good or (kind in (str, list) and not all(map(normalise, [value] if kind is str else value))):
            shown = json.dumps(value, ensure_ascii=False)[:80]
            raise LayoutError(f"{where}: {key!r} must be {WANTED[kind]}, not {shown}")
    answers = tuple(answer.strip().lower() for answer in data["answers"])
    return Question(data["clip"], float(data["at"]), data["kind"], data["question"], answers, data["memory"])


def right(question: Question, reply: str) -> bool:
    """Whether a reply is an accepted answer, loosely (see `MATCHED`)."""
    said, accepted = normalise(reply), {normalise(answer) for answer in question.answers}
    words = said.split()
    if accepted <= {"yes", "no"}:
        return bool(words) and words[0] in accepted
    if all(answer.isdigit() for answer in accepted):
        numbers = [number for number in map(_number, words) if number is not None]
        return bool(numbers) and numbers[0] in {str(int(answer)) for answer in accepted}
    return any(re.search(rf"(?<!\S){re.escape(answer)}(?!\S)", said) for answer in accepted)


def _number(word: str) -> str | None:
    if word.isdecimal():
        return str(int(word))
    return str(NUMBERS.index(word)) if word in NUMBERS else NOT_ANY.get(word)


def counted(marks: Iterable[tuple[Question, bool]]) -> dict[str, dict[str, list[int]]]:
    """Right replies and questions, `now` and from `memory`: of each kind, of yes, no and other answers, and of all."""
    found: dict[str, dict[str, list[int]]] = {}
    for question, good in sorted(marks, key=lambda mark: mark[0].kind):
        for row in (question.kind, f"answer {question.group}", "all"):
            count = found.setdefault(row, {"now": [0, 0], "memory": [0, 0]})["memory" if question.memory else "now"]
            count[0] += good
            count[1] += 1
    last = [row for row in ("answer yes", "answer no", "answer other", "all") if row in found]
    return {row: found[row] for row in (*(row for row in found if row not in last), *last)}


def table(counts: Mapping[str, Mapping[str, list[int]]]) -> Iterator[str]:
    """Lines of Markdown: the share of right replies (questions), by kind."""
    rows = [
        [row, told(count["now"]), told(count["memory"]), told([sum(each) for each in zip(*count.values(), strict=True)])]
        for row, count in counts.items()
    ]  # fmt: skip
    return grid(["", "now", "memory", "both"], rows)
