"""`streamer eval --suite questions`: clips shown through the daemon and asked about at their moments."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.evaluation import questions
from streamer.cli import eval_clips
from streamer.cli import main as cli
from streamer.cli.eval_clips import ClipError, measure, table
from streamer.cli.eval_video import encode
from streamer.client import AsyncClient
from tests.tiny import TINY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clip of two seconds, three questions about it, a clip that is missing, one that is broken, and a watch."""
    (tmp_path / "clips").mkdir()
    pictures = np.repeat(np.arange(0, 200, 4, dtype=np.uint8), 64 * 64 * 3).reshape(50, 64, 64, 3)
    encode(tmp_path / "clips" / "gray.mp4", pictures)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    moments = [("gray.mp4", 9), ("gray.mp4", 0), ("gray.mp4", 1), ("gone.mp4", 1), ("broken.mp4", 1)]
    lines: list[dict[str, Any]] = [
        {"clip": clip, "at": at, "kind": "what", "question": "What?", "answers": ["it"], "memory": at > 5}
        for clip, at in moments
    ]
    lines.append({"clip": "gray.mp4", "watch": "Is it?", "intervals": []})
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_a_clip_is_shown_once_and_a_run_that_was_ended_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_clips, "WORDS", 3)
    found = measure(folder, TINY, 5.0)
    assert found["asked"] == 3 and found["questions"] == 5 and found["asked_past_the_end"] == 1
    assert found["counts"]["all"]["memory"][1] == 1 and found["passed_over"] == 1
    assert found["clips_left_out"]["gone.mp4"] == "missing" and "broken.mp4" in found["clips_left_out"]
    assert 0 < found["first_s"]["median"] <= found["whole_s"]["p95"]
    file = folder / "results-questions-tiny.jsonl"
    replies = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    # Of two seconds at five frames a second, in pairs: the first pair, all up to the moment, all there is.
    assert [reply["seen"] for reply in replies] == pytest.approx([0.2, 1.0, 1.8], abs=0.041)
    assert all(reply["words"] for reply in replies)
    assert "2 clips left out:" in list(table(found))

    # Ended while it wrote its last line.
    (folder / "broken.mp4").unlink()
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    asked: list[float] = []
    ask = eval_clips.ask

    async def counting(client: Any, question: questions.Question, shown: float) -> eval_clips.Reply:
        asked.append(question.at)
        return await ask(client, question, shown)

    monkeypatch.setattr(eval_clips, "ask", counting)
    again = measure(folder, TINY, 5.0)
    assert asked == [9.0] and again["asked"] == 3
    assert [json.loads(line)["words"] for line in file.read_text().splitlines()[1:]] == [r["words"] for r in replies]

    # All is answered: no daemon is started, and another examination's results are left alone.
    monkeypatch.setattr(eval_clips, "Daemon", None)
    assert measure(folder, TINY, 5.0) == again
    with pytest.raises(ClipError, match=r'holds results of .*"fps": 5.0.*--results'):
        measure(folder, TINY, 6.0)
    with pytest.raises(ClipError, match="no file of results"):
        measure(folder, TINY, 5.0, folder / "clips" / "gray.mp4")


def test_what_is_wrong_with_a_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--suite", "questions"]) == 2
    assert "--data FOLDER" in capsys.readouterr().err
    (tmp_path / "questions.jsonl").write_text('{"clip": "a.mp4"}')
    assert cli.main(["eval", "--suite", "questions", "--data", str(tmp_path), "--model", "nano"]) == 1
    said = capsys.readouterr().err
    assert "line 1: 'at' is missing" in said and said.count("\n") == 1


def test_questions_are_read_as_editors_write_them(tmp_path: Path) -> None:
    """With a mark at the file's begin, with returns at its lines' ends, and with what is an end of line to some inside a question."""
    line = {"clip": "a.mp4", "at": 1, "kind": "k", "question": "x\u2028y", "answers": ["z"], "memory": False}
    text = json.dumps(line, ensure_ascii=False)
    (tmp_path / "questions.jsonl").write_bytes(f"\ufeff{text}\r\n\r\n{text}\r\n".encode())
    asked, _ = questions.read(tmp_path)
    assert [each.text for each in asked] == ["x\u2028y"] * 2


def examined(data: Path, *more: str) -> int:
    return cli.main(["eval", "--suite", "questions", "--data", str(data), *more])


def test_an_examination_of_nothing_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No folder, no clip that is there, whatever their names: lines, and an exit code that tells."""
    assert examined(folder / "none") == 1
    said = capsys.readouterr().err
    assert f"--data {folder / 'none'} is no folder" in said and said.count("\n") == 1
    names = ["gone.mp4", "a" * 300, "no\0name", ""]
    line = {"at": 1, "kind": "k", "question": "x", "answers": ["z"], "memory": False}
    (folder / "questions.jsonl").write_text("\n".join(json.dumps({**line, "clip": name or "x"}) for name in names))
    assert examined(folder) == 1
    said = capsys.readouterr().out
    assert "0 of 4 questions asked" in said and "4 clips left out:" in said and "gone.mp4: missing" in said
    facts = {"suite": "questions", "fps": 4.0}
    kept = json.loads((folder / "results-questions-nano.jsonl").read_text())
    assert kept == {**facts, "model": kept["model"], "weights": kept["weights"]}


def test_results_are_of_these_weights_and_a_place_to_write_is_needed(folder: Path) -> None:
    path, about = folder / "results.jsonl", {"suite": "questions", "weights": "a"}
    question = questions.read(folder)[0][0]
    eval_clips.Results(path, about).add(question, eval_clips.Reply("yes", 1.0, 0.1, 0.2))
    whole = path.read_bytes()
    assert list(eval_clips.Results(path, about).replies) == [question.key]
    with pytest.raises(ClipError, match=r'holds results of .*"weights": "a".*--results'):
        eval_clips.Results(path, about | {"weights": "b"})
    for cut in range(len(whole)):  # ended at any moment
        path.write_bytes(whole[:cut])
        assert not eval_clips.Results(path, about).replies
        assert path.read_bytes() == whole[: whole.index(b"\n") + 1]
    path.write_text("diary")
    with pytest.raises(ClipError, match="no file of results"):
        eval_clips.Results(path, about)
    assert path.read_text() == "diary"
    full = eval_clips.Results(folder / "other.jsonl", about)
    full.path = Path("/dev/full")
    with pytest.raises(ClipError, match=r"/dev/full: No space left on device; choose another file with --results"):
        full.add(question, eval_clips.Reply("yes", 1.0, 0.1, 0.2))
    assert not full.replies
    for place in (Path("/dev/null"), folder):
        with pytest.raises(ClipError, match=rf"{place} is no file: choose another with --results"):
            eval_clips.Results(place, about)
    with pytest.raises(ClipError, match=r"No such file or directory; choose another file"):
        eval_clips.Results(folder / "none" / "results.jsonl", about)


def test_a_benchmark_is_examined_the_same_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_clips, "WORDS", 2)
    entry = {"id": 1, "video": "gray.mp4", "task": "CRR", "question": "Why?", "answer": "So", "ask_time": 0}
    entry["test_info"] = [{"realtime": 1, "type": 0}, {"realtime": 2.0, "type": 1}]
    (folder / "ovo_bench_new.json").write_text(json.dumps([entry, {**entry, "test_info": entry["test_info"][:1]}]))
    found = measure(folder, TINY, 5.0, suite="ovo-bench")
    # One is there twice, as in the published file: it counts twice, and is asked once.
    assert found["asked"] == 3 and found["counts"] == {"CRR": {"right": [0, 3]}}
    assert len((folder / "results-ovo-bench-tiny.jsonl").read_text().splitlines()) == 1 + 2
    assert "| forward avg. | 0.0000   |" in list(table(found))


def test_the_control_sees_the_last_four_frames_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_clips, "WORDS", 2)
    shown: dict[str, list[float]] = {}
    push = AsyncClient.push

    async def counting(client: AsyncClient, picture: bytes, *, stream: str, timestamp: float) -> None:
        shown.setdefault(stream, []).append(timestamp)
        await push(client, picture, stream=stream, timestamp=timestamp)

    monkeypatch.setattr(AsyncClient, "push", counting)
    found = measure(folder, TINY, 5.0, controls=True)
    whole, glimpsed = shown["clip"], shown["glimpse"]
    # At 0 s two frames are all there are; at 1 s, and at the end, the last four.
    assert glimpsed == [*whole[:2], *whole[2:6], *whole[-4:]]
    assert found["counts_last_four_frames"]["all"]["memory"][1] == 1
    assert "by who saw the last four frames only" in list(table(found))
    with pytest.raises(ClipError, match="holds results of"):
        measure(folder, TINY, 5.0)
