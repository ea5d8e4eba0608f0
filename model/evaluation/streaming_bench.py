"""StreamingBench (arXiv 2411.03628): its published files of multiple choice, read and scored as its own script does.

A reply's first character is its choice. What is not multiple choice (proactive output) and what goes on a dialogue
(sequential questions) is passed over, and so is what several files hold: the benchmark publishes most questions twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.evaluation.questions import LayoutError, Question
from model.evaluation.report import grid, told

MATCHED = "the reply's first character is the letter of the right option, as in StreamingBench's script"
PASSED_OVER = "questions without options, within a dialogue, or of another file as well,"
DIALOGUE = "Sequential Question Answering"
"""The task whose questions go on a dialogue."""
FILES = "questions*.json"
PROMPT = (
    "A multiple-choice question about this video, up to now. Look carefully and choose the best of the options. "
    "Reply with the letter of the right option and nothing else.\n\n{question}\n{options}\n\nThe best option is:"
)


def read(folder: Path) -> tuple[list[Question], int]:
    """The questions of every `questions*.json`, and how many are passed over. Raises LayoutError for another layout."""
    found, passed = dict[str, Question](), 0
    for path in sorted(folder.glob(FILES)):
        for number, entry in enumerate(entries(path)):
            if isinstance(entry, list):  # a dialogue
                passed += sum(
                    len(part["questions"]) for part in entry if isinstance(part, dict) and "questions" in part
                )
                continue
            where = f"{path}, entry {number}"
            clip = wanted(entry, "video_path", str, where)
            for index, question in enumerate(wanted(entry, "questions", list, where)):
                its = f"{where}, question {index}"
                if isinstance(question, dict) and ("options" not in question or question.get("task_type") == DIALOGUE):
                    passed += 1
                    continue
                read = choice(question, clip, its)
                passed += read.key in found
                found[read.key] = read
    if not found:
        raise LayoutError(f"{folder} holds no {FILES} with multiple-choice questions of StreamingBench")
    return list(found.values()), passed


def entries(path: Path) -> list[Any]:
    """A JSON file's list. Raises LayoutError for anything else."""
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path} is no JSON: {error}") from None
    if not isinstance(data, list):
        raise LayoutError(f"{path} is no JSON list of entries")
    return data


def wanted(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """An entry's value. Raises LayoutError where it is missing or of another kind."""
    if not isinstance(entry, dict) or key not in entry:
        raise LayoutError(f"{where}: {key!r} is missing")
    if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
        raise LayoutError(f"{where}: {key!r} is {json.dumps(entry[key])[:80]}, which is not of the published layout")
    return entry[key]


def choice(data: Any, clip: str, where: str) -> Question:
    options = [str(option) for option in wanted(data, "options", list, where)]
    if options and not options[0].startswith("A."):
        options = [f"{chr(65 + number)}. {option}" for number, option in enumerate(options)]
    text = PROMPT.format(question=wanted(data, "question", str, where), options="\n".join(options))
    answer = wanted(data, "answer", str, where)
    if answer not in [chr(65 + number) for number in range(len(options))]:
        raise LayoutError(f"{where}: 'answer' is {answer!r}, which is the letter of none of {len(options)} options")
    return Question(clip, moment(data, where), wanted(data, "task_type", str, where), text, (answer,))


def moment(data: Any, where: str) -> float:
    """Seconds of a time such as "00:03:10"."""
    text = wanted(data, "time_stamp", str, where)
    try:
        parts = [int(part) for part in text.split(":")]
        if "-" in text or len(parts) > 3:
            raise ValueError
        return float(sum(part * 60**power for power, part in enumerate(reversed(parts))))
    except ValueError:
        raise LayoutError(f"{where}: 'time_stamp' is {text!r}, not hours:minutes:seconds") from None


def right(question: Question, reply: str) -> bool:
    """Whether the reply begins with the right letter."""
    return reply[:1] == question.answers[0]


def counted(marks: Iterable[tuple[Question, bool]]) -> dict[str, dict[str, list[int]]]:
    """Right replies and questions of each task, and of all."""
    found: dict[str, dict[str, list[int]]] = {}
    total = [0, 0]
    for question, good in sorted(marks, key=lambda mark: mark[0].kind):
        for count in (found.setdefault(question.kind, {"right": [0, 0]})["right"], total):
            count[0] += good
            count[1] += 1
    return {**found, "all": {"right": total}}


def table(counts: Mapping[str, Mapping[str, list[int]]]) -> Iterator[str]:
    """Lines of Markdown: the share of right replies (questions), by task."""
    return grid(["", "right"], [[task, told(count["right"])] for task, count in counts.items()])
