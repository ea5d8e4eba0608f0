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


def test_a_benchmark_is_examined_the_same_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_clips, "WORDS", 2)
    entry = {"id": 1, "video": "gray.mp4", "task": "CRR", "question": "Why?", "answer": "So", "ask_time": 0}
    entry["test_info"] = [{"realtime": 1, "type": 0}, {"realtime": 2.0, "type": 1}]
    (folder / "ovo_bench_new.json").write_text(json.dumps([entry]))
    found = measure(folder, TINY, 5.0, suite="ovo-bench")
    assert found["asked"] == 2 and found["counts"] == {"CRR": {"right": [0, 2]}}
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
