"""The field's benchmarks: made files in their published layouts, and scores held to the published rules."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.evaluation import ovo_bench, streaming_bench
from model.evaluation.questions import LayoutError, Question

SB: dict[str, Any] = {
    "time": "[0:00:00 - 0:00:10]",
    "questions": [
        {"task_type": "Object Recognition", "question": "What is it?", "time_stamp": "01:03:10", "answer": "C",
         "options": ["A. A cup.", "B. A can.", "C. A cat.", "D. A cap."], "required_ability": "working memory"},
        {"task_type": "Counting", "question": "How many?", "time_stamp": "00:31", "answer": "A",
         "options": ["1", "2", "3", "4"], "required_ability": "working memory"},
        {"task_type": "Proactive Output", "question": "Say when.", "time_stamp": "00:00:02", "ground_truth_time_stamp": "00:00:05"},
    ],
    "video_path": "./videos/sample_1_real.mp4",
}  # fmt: skip
OVO: list[dict[str, Any]] = [
    {"id": 0, "task": "EPM", "video": "a.mp4", "question": "Where?", "options": ["here", "there"], "realtime": 7, "gt": 1},
    {"id": 1, "task": "OCR", "video": "a.mp4", "question": "What?", "options": ["x", "y"], "realtime": 7.5, "gt": 0},
    {"id": 2, "task": "REC", "video": "b.mp4", "activity": "jump", "test_info": [{"realtime": 3, "count": 12}]},
    {"id": 3, "task": "SSR", "video": "b.mp4", "tutorial": "t", "test_info": [{"realtime": 3, "step": "stir", "type": 1}]},
    {"id": 4, "task": "CRR", "video": "b.mp4", "question": "Why?", "ask_time": 1, "test_info": [{"realtime": 3, "type": 0}]},
]  # fmt: skip


def changed(**values: Any) -> dict[str, Any]:
    """Of StreamingBench's entry its first question alone, otherwise."""
    return {**SB, "questions": [{**SB["questions"][0], **values}]}


def test_streaming_bench_is_read(tmp_path: Path) -> None:
    dialogue = [{"questions": SB["questions"][:2], "video_path": "x"}]
    (tmp_path / "questions_real.json").write_text(json.dumps([SB, dialogue]))
    asked, passed = streaming_bench.read(tmp_path)
    assert passed == 3
    assert [(each.clip, each.at, each.kind, each.answers) for each in asked] == [
        ("./videos/sample_1_real.mp4", 3790.0, "Object Recognition", ("C",)),
        ("./videos/sample_1_real.mp4", 31.0, "Counting", ("A",)),
    ]
    assert "B. A can.\nC. A cat." in asked[0].text and "A. 1\nB. 2" in asked[1].text


def test_what_streaming_bench_publishes_twice_is_asked_once(tmp_path: Path) -> None:
    """Its repository has most questions once more, to be asked one after the other, and dialogues in pieces."""
    for name in ("real", "real_stream"):
        (tmp_path / f"questions_{name}.json").write_text(json.dumps([SB]))
    told = {**SB["questions"][0], "task_type": "Sequential Question Answering"}
    (tmp_path / "questions_sqa_stream.json").write_text(json.dumps([{**SB, "questions": [told]}]))
    asked, passed = streaming_bench.read(tmp_path)
    assert [each.at for each in asked] == [3790.0, 31.0] and passed == 2 + 2 + 1


@pytest.mark.parametrize("suite", [streaming_bench, ovo_bench])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no JSON"),
        (b"[1, ", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "holds no"),
    ],
)
def test_a_file_that_is_no_json_is_one_line(tmp_path: Path, suite: Any, data: bytes, said: str) -> None:
    (tmp_path / ("questions.json" if suite is streaming_bench else "ovo_bench.json")).write_bytes(data)
    with pytest.raises(LayoutError) as refused:
        suite.read(tmp_path)
    assert said in str(refused.value) and str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_ovo_bench_is_read(tmp_path: Path) -> None:
    (tmp_path / "ovo_bench_new.json").write_text("\ufeff" + json.dumps(OVO), "utf-8")
    asked, _ = ovo_bench.read(tmp_path)
    assert [(each.clip, each.at, each.kind, each.answers[0]) for each in asked] == [
        ("a.mp4", 7, "EPM", "B"), ("a.mp4", 7.5, "OCR", "A"),
        ("b.mp4", 3, "REC", "12"), ("b.mp4", 3, "SSR", "Yes"), ("b.mp4", 3, "CRR", "No"),
    ]  # fmt: skip
    assert "A. here; B. there" in asked[0].text and "jump" in asked[2].text and "stir" in asked[3].text


@pytest.mark.parametrize(
    ("suite", "data", "said"),
    [
        (streaming_bench, {}, "no JSON list"),
        (streaming_bench, [{"questions": []}], "entry 0: 'video_path' is missing"),
        (streaming_bench, [changed(time_stamp="soon")], "question 0: 'time_stamp' is 'soon'"),
        (streaming_bench, [changed(time_stamp="-00:31")], "'time_stamp' is '-00:31', not hours:minutes:seconds"),
        (streaming_bench, [changed(answer="E")], "question 0: 'answer' is 'E', which is the letter of none of 4 options"),
        (streaming_bench, [changed(options=[])], "'answer' is 'C', which is the letter of none of 0 options"),
        (streaming_bench, [changed(options="A, B")], "question 0: 'options' is \"A, B\", which is not of the published layout"),
        (ovo_bench, [{**OVO[0], "options": None}], "entry 0: 'options' is null"),
        (ovo_bench, [{key: x for key, x in OVO[0].items() if key != "options"}], "entry 0: 'options' is missing"),
        (ovo_bench, [{**OVO[0], "realtime": -1}], "entry 0: 'realtime' is -1, not seconds of 0 or more"),
        (ovo_bench, [{**OVO[0], "gt": 2}], "entry 0: 'gt' is 2"),
        (ovo_bench, [OVO[0], {**OVO[0], "task": "XYZ"}], "entry 1: 'task' is 'XYZ'"),
        (ovo_bench, [{**OVO[2], "test_info": [{"count": 1}]}], "test_info 0: 'realtime' is missing"),
    ],
)  # fmt: skip
def test_another_layout_is_one_line(tmp_path: Path, suite: Any, data: Any, said: str) -> None:
    (tmp_path / ("questions.json" if suite is streaming_bench else "ovo_bench.json")).write_text(json.dumps(data))
    with pytest.raises(LayoutError) as refused:
        suite.read(tmp_path)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def published(task: str, answer: str, reply: str) -> bool:
    """The rules of the benchmarks' own scripts, told once more in another way."""
    if task == "StreamingBench":
        return reply.startswith(answer)
    if task == "REC":
        return "".join(filter(str.isdecimal, reply)) == answer
    if task in ("SSR", "CRR") and reply in ("Y", "N"):
        return (answer == "Yes") is (reply == "Y")
    return reply.find(answer) >= 0


def test_10_000_random_replies_are_scored_as_published() -> None:
    rng, hits = random.Random(28), dict.fromkeys((True, False), 0)
    tasks: dict[str, tuple[list[str], Callable[[Question, str], bool]]] = {
        "StreamingBench": (list("ABCD"), streaming_bench.right),
        **dict.fromkeys(("EPM", "OCR"), (list("ABCDE"), ovo_bench.right)),
        "REC": ([str(count) for count in range(13)], ovo_bench.right),
        **dict.fromkeys(("SSR", "CRR"), (["Yes", "No"], ovo_bench.right)),
    }
    pieces = [*"ABCDEYN .\n120٣", "Yes", "No", "yes", "no", "None", "Answer", "12", ""]
    for _ in range(10_000):
        task = rng.choice(list(tasks))
        answers, right = tasks[task]
        answer = rng.choice(answers)
        reply = "".join(rng.choices([*pieces, *[answer] * 8], k=rng.randint(0, 3)))
        good = right(Question("a.mp4", 0, task, "?", (answer,)), reply)
        assert good is published(task, answer, reply), (task, answer, reply)
        hits[good] += 1
    assert min(hits.values()) > 2_000


def test_each_task_counts_alike_in_an_average() -> None:
    marks = [(Question("a.mp4", 0, task, "?", ("A",)), good) for task, good in
             [("EPM", True), ("EPM", True), ("EPM", False), ("ASI", True), ("OCR", False), ("REC", True)]]  # fmt: skip
    counts = ovo_bench.counted(marks)
    assert counts["EPM"] == {"right": [2, 3]} and list(counts) == ["EPM", "ASI", "OCR", "REC"]
    means = ovo_bench.averages(counts)
    assert means == pytest.approx(
        {"backward": 5 / 6, "realtime": 0.0, "forward": 1.0, "total": (2 / 3 + 1 + 0 + 1) / 4}
    )
    assert streaming_bench.counted(marks)["all"] == {"right": [4, 6]}
