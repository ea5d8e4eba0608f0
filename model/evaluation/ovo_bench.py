"""OVO-Bench (arXiv 2501.05510): its published file, read and scored as its own script does.

Backward and real-time tasks are multiple choice. A forward task is asked at each of its moments: how often something was
done (REC), whether a step is being done (SSR), whether enough was seen to answer (CRR).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.evaluation import streaming_bench
from model.evaluation.questions import LayoutError, Question
from model.evaluation.report import grid, told
from model.evaluation.streaming_bench import entries, wanted

MATCHED = "by OVO-Bench's script: the right letter, or Yes or No, within the reply; REC by all of its digits"
PASSED_OVER = "questions"
FILES = "ovo_bench*.json"
PARTS = {
    "backward": ("EPM", "ASI", "HLD"), "realtime": ("STU", "OJR", "ATR", "ACR", "OCR", "FPD"), "forward": ("REC", "SSR", "CRR"),
}  # fmt: skip
"""The tasks of each part."""
PROMPTS = {
    "REC": "People in this video may do the same thing again and again. Count, over all people, how often it was done in full "
           "up to now. How many times did they {activity}?\nReply with a single number and nothing else.",
    "SSR": "This video shows how something is done, step by step. One of the steps is:\n{step}\nIs this step being carried "
           "out right now?\nReply only Yes or No.",
    "CRR": "A question about the newest pictures of this video:\n{question}\nHas enough been seen by now, above all in the "
           "newest pictures, to answer it?\nReply only Yes or No.",
}  # fmt: skip
CHOICE = "{question}\nOptions: {options}\nReply only with the letter of the right option."


def read(folder: Path) -> tuple[list[Question], int]:
    """The questions of `ovo_bench*.json`; none is passed over. Raises LayoutError for another layout."""
    found: list[Question] = []
    for path in sorted(folder.glob(FILES)):
        for number, entry in enumerate(entries(path)):
            found += _asked(entry, f"{path}, entry {number}")
    if not found:
        raise LayoutError(f"{folder} holds no {FILES} with questions of OVO-Bench")
    return found, 0


def _asked(entry: Any, where: str) -> Iterator[Question]:
    clip, task = wanted(entry, "video", str, where), wanted(entry, "task", str, where)
    if task in PARTS["forward"]:
        for index, info in enumerate(wanted(entry, "test_info", list, where)):
            its = f"{where}, test_info {index}"
            holder, key = {"REC": (entry, "activity"), "SSR": (info, "step"), "CRR": (entry, "question")}[task]
            text = PROMPTS[task].format(**{key: wanted(holder, key, str, its)})
            truth = wanted(info, "count" if task == "REC" else "type", int, its)
            answer = str(truth) if task == "REC" else "Yes" if truth else "No"
            yield Question(clip, _moment(info, its), task, text, (answer,))
    elif task in (*PARTS["backward"], *PARTS["realtime"]):
        options = wanted(entry, "options", list, where)
        listed = "; ".join(f"{chr(65 + index)}. {option}" for index, option in enumerate(options))
        text = CHOICE.format(question=wanted(entry, "question", str, where), options=listed)
        truth = wanted(entry, "gt", int, where)
        if not 0 <= truth < len(options):
            raise LayoutError(f"{where}: 'gt' is {truth}, which is none of {len(options)} options")
        yield Question(clip, _moment(entry, where), task, text, (chr(65 + truth),), task in PARTS["backward"])
    else:
        raise LayoutError(f"{where}: 'task' is {task!r}, which OVO-Bench does not have")


def _moment(entry: Any, where: str) -> float:
    value = float(wanted(entry, "realtime", (int, float), where))
    if not 0 <= value < float("inf"):
        raise LayoutError(f"{where}: 'realtime' is {value:g}, not seconds of 0 or more")
    return value


def right(question: Question, reply: str) -> bool:
    """Whether the published script would take the reply as right."""
    answer = question.answers[0]
    if question.kind == "REC":
        return "".join(re.findall(r"\d+", reply)) == answer
    return answer in reply or (question.kind in ("SSR", "CRR") and reply == answer[0])


def counted(marks: Iterable[tuple[Question, bool]]) -> dict[str, dict[str, list[int]]]:
    """Right replies and questions of each task."""
    found = streaming_bench.counted(marks)
    return {task: found[task] for tasks in PARTS.values() for task in tasks if task in found}


def averages(counts: Mapping[str, Mapping[str, list[int]]]) -> dict[str, float]:
    """The mean of the tasks' shares, of each part and of all, each task counting alike."""
    shares = {task: count["right"][0] / count["right"][1] for task, count in counts.items()}
    parts = {part: [shares[task] for task in tasks if task in shares] for part, tasks in PARTS.items()}
    return {part: sum(its) / len(its) for part, its in {**parts, "total": list(shares.values())}.items() if its}


def table(counts: Mapping[str, Mapping[str, list[int]]]) -> Iterator[str]:
    """Lines of Markdown: the share of right replies (questions) by task, and the published averages."""
    rows = [[task, told(count["right"])] for task, count in counts.items()]
    return grid(["", "right"], [*rows, *([f"{part} avg.", f"{mean:.4f}"] for part, mean in averages(counts).items())])
