"""`streamer eval`."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.training import exam
from model.training.paint import Assets
from streamer import cli, lossy
from streamer.lossy import decoded, encode, measure


def test_figures_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = [paper for paper in exam.papers(quick=True) if paper.name in ("empty", "memory 128")]
    monkeypatch.setattr(exam, "papers", lambda quick: few)
    monkeypatch.setattr(exam, "QUICK", 1.0)
    assert cli.main(["eval", "--quick", "--json", "--fresh-seeds", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    about = {key: found[key] for key in ("suite", "model", "device", "dtype", "quick")}
    assert about == {"suite": "world", "model": "nano", "device": "cpu", "dtype": "float32", "quick": True}
    assert len(found["seeds"]) == 1 and found["seeds"] != [exam.SEED]
    assert set(found["rows"][0]) == {"paper", "skill", "kind", "candidate", "right", "asked", "share"}
    # The time was up in the first paper: what was not asked is told as such.
    asked = {row["paper"]: 0 for row in found["rows"]}
    for row in found["rows"]:
        asked[row["paper"]] += row["asked"]
    assert 0 < asked["empty"] <= 32 and asked["clock 60 min"] == 0
    assert found["figures"]["memory 512: first"] == {"right": 0, "asked": 0, "share": None}


def test_what_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(tmp_path / "nowhere")]) == 1
    assert "is no folder here" in capsys.readouterr().err
    load = Assets.load
    monkeypatch.setattr(exam.Assets, "load", lambda: load(tmp_path / "assets.npz"))
    assert cli.main(["eval"]) == 1
    said = capsys.readouterr().err
    assert "run from a checkout" in said and said.count("\n") == 1


def test_what_goes_through_video_is_the_same_pictures_and_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossy, "SHORT", 360)
    found = measure("nano", "cpu", {"now": 1})
    assert found["asked"] == 16 and 0 <= found["through video"] <= 16
    assert found["answered alike"] >= 12
    pictures = np.zeros((6, 360, 640, 3), np.uint8)
    pictures[:, :, 320:] = np.arange(0, 240, 40, dtype=np.uint8)[:, None, None, None]
    encode(tmp_path / "six.mp4", pictures)
    seen = decoded(tmp_path / "six.mp4")
    assert len(seen) == 6
    assert all(np.abs(a.astype(int) - b).mean() < 4 for a, b in zip(seen, pictures, strict=True))
