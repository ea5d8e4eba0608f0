"""Questions about one's own clips: their file and how replies are matched."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.evaluation.questions import LayoutError, Question, counted, read, right, table

LINE: dict[str, Any] = {
    "clip": "a.mp4", "id": "a1", "at": 2, "kind": "what", "question": "What is it?", "answers": ["A Cup "], "memory": False,
}  # fmt: skip


def write(folder: Path, *lines: Any) -> Path:
    shown = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "questions.jsonl").write_text("\n".join(shown))
    return folder


def test_lines_are_read_and_watches_passed_over(tmp_path: Path) -> None:
    watch = {"clip": "a.mp4", "watch": "Is it there?", "intervals": [[0, 1]]}
    asked, watches = read(write(tmp_path, LINE, "", watch))
    assert asked == [Question("a.mp4", 2.0, "what", "What is it?", ("a cup",), memory=False)] and watches == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "line 2: no JSON object"),
        ("{", "line 2: no JSON object"),
        ({**LINE, "at": "2"}, "line 2: 'at' must be a number of seconds, 0 or more, not \"2\""),
        ({**LINE, "at": True}, "line 2: 'at' must be a number"),
        ({**LINE, "at": -1}, "line 2: 'at' must be a number"),
        ({**LINE, "answers": []}, "line 2: 'answers' must be a list of text, not []"),
        ({**LINE, "answers": ["?"]}, "line 2: 'answers' must be a list of text"),
        ({**LINE, "memory": 1}, "line 2: 'memory' must be true or false, not 1"),
        ({**LINE, "question": ""}, "line 2: 'question' must be text"),
        ({key: LINE[key] for key in LINE if key != "clip"}, "line 2: 'clip' is missing"),
    ],
)
def test_another_layout_is_refused_by_line_and_key(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(LayoutError) as refused:
        read(write(tmp_path, LINE, line))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="No such file"):
        read(tmp_path)
    with pytest.raises(LayoutError, match="no question"):
        read(write(tmp_path, ""))


@pytest.mark.parametrize(
    ("answers", "good", "wrong"),
    [
        (["yes"], ["Yes.", "yes, it is"], ["no", "", "I say yes", "yesterday"]),
        (["3", "4"], ["3", "There are three.", "four cars, not 5"], ["5", "13", "many", "2 or 3", "33"]),
        (["0"], ["none", "Nobody", "zero"], ["one", "no"]),
        (["light blue", "bow tie"], ["It is a light-blue one", "A bow tie!"], ["blue", "bow", "bow ties"]),
    ],
)
def test_a_reply_is_matched_loosely_to_what_is_accepted(answers: list[str], good: list[str], wrong: list[str]) -> None:
    question = Question("a.mp4", 0, "what", "?", tuple(answers))
    assert [right(question, reply) for reply in good] == [True] * len(good)
    assert [right(question, reply) for reply in wrong] == [False] * len(wrong)


def test_replies_are_counted_by_kind_by_memory_and_yes_apart_from_no() -> None:
    def about(kind: str, answer: str, memory: bool = False) -> Question:
        return Question("a.mp4", 0, kind, "?", (answer,), memory)

    marks = [(about("is there", "yes"), True), (about("is there", "no"), False), (about("before", "cup", True), True)]
    found = counted(marks)
    assert list(found) == ["before", "is there", "answer yes", "answer no", "answer other", "all"]
    assert found["is there"] == {"now": [1, 2], "memory": [0, 0]} and found["answer no"]["now"] == [0, 1]
    assert found["all"] == {"now": [1, 2], "memory": [1, 1]}
    assert [cell.strip() for cell in list(table(found))[-1].split("|")[1:-1]] == [
        "all",
        "0.50 (2)",
        "1.00 (1)",
        "0.67 (3)",
    ]
