"""`streamer eval`."""

import asyncio
import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.evaluation import run
from model.world.render import Assets
from streamer.cli import eval_video
from streamer.cli import main as cli
from streamer.cli.eval_video import Film, VideoError, decoded, encode, measure, serve
from streamer.client import AsyncClient
from streamer.config import parse_config
from streamer.engine import scheduler
from tests.forked import Forked, script
from tests.tiny import TINY


def test_figures_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = [paper for paper in run.papers(quick=True) if paper.name in ("empty", "memory 128")]
    monkeypatch.setattr(run, "papers", lambda quick: few)
    monkeypatch.setattr(run, "QUICK", 1.0)
    assert cli.main(["eval", "--quick", "--json", "--fresh-seeds", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    about = {key: found[key] for key in ("suite", "model", "device", "dtype", "quick")}
    assert about == {"suite": "world", "model": "nano", "device": "cpu", "dtype": "float32", "quick": True}
    assert len(found["seeds"]) == 1 and found["seeds"] != [run.SEED]
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
    monkeypatch.setattr(run.Assets, "load", lambda: load(tmp_path / "assets.npz"))
    assert cli.main(["eval"]) == 1
    said = capsys.readouterr().err
    assert "run from a checkout" in said and said.count("\n") == 1


@pytest.mark.slow
def test_a_file_through_daemon_and_websocket_is_answered_like_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_video, "SHORT", 360)
    # Two frames a step, as from memory, however slowly a busy machine decodes.
    monkeypatch.setattr(scheduler, "LONE_PERIODS", 1e6)
    monkeypatch.setattr(AsyncClient, "attach", partialmethod(AsyncClient.attach, deadline=10))
    marks, found = measure("nano", "cpu", {"now": 1})
    assert found["frames"] == 32
    ways = found["through video"]
    assert list(ways) == ["tensors in memory", "H.264, decoded", "H.264, daemon, websocket"]
    memory, file, daemon = ways.values()
    assert memory["asked"] == daemon["asked"] == 16 and memory["lost"] == 0.0 and memory["answered alike"] == 16
    assert daemon["answered alike"] >= 12 and abs(daemon["right"] - file["right"]) <= 1
    assert daemon["lost"] == round((memory["right"] - daemon["right"]) / 16, 4)
    assert sum(row["right"] for row in found["rows"] if row["candidate"] == "daemon") == daemon["right"]
    assert any(line.startswith("| lost") for line in eval_video.table(marks, found))


def test_a_frame_that_the_daemon_never_saw_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, streams = tmp_path / "six.mp4", AsyncClient.streams
    encode(file, np.zeros((6, 90, 160, 3), np.uint8))
    config = parse_config({"server": {"port": 0}, "model": TINY}, "test")

    async def noticed(client: AsyncClient) -> list[dict[str, Any]]:
        """Patience ends a while after all six were seen, however long a busy machine takes until then."""
        found = await streams(client)
        if found[0]["frames_seen"] == 6:
            monkeypatch.setattr(eval_video, "PATIENCE", 0.5)
        return found

    monkeypatch.setattr(AsyncClient, "streams", noticed)
    with pytest.raises(VideoError, match=r"six.mp4: 6 of 8 frames were seen, dropped: {} \(ended"):
        asyncio.run(serve(config, [Film("now", file, 8, [], {})], bar=None))


def test_a_file_decodes_to_its_pictures(tmp_path: Path) -> None:
    pictures = np.zeros((6, 360, 640, 3), np.uint8)
    pictures[:, :, 320:] = np.arange(0, 240, 40, dtype=np.uint8)[:, None, None, None]
    encode(tmp_path / "six.mp4", pictures)
    seen = decoded(tmp_path / "six.mp4")
    assert len(seen) == 6
    assert all(np.abs(a.astype(int) - b).mean() < 4 for a, b in zip(seen, pictures, strict=True))


@pytest.mark.parametrize("way", ["streamer.cli.main", "model.evaluation.run"])
def test_without_the_made_world_one_line_asks_for_a_checkout(way: str, tmp_path: Path) -> None:
    """As from a wheel, which leaves the world out."""
    code = f"""
import runpy, sys
class Wheel:
    def find_spec(self, name, *_):
        if name == "model.world":
            raise ModuleNotFoundError("No module named 'model.world'", name=name)
sys.meta_path.insert(0, Wheel())
sys.argv = ["x", "eval"]
sys.modules.pop({way!r}, None)
runpy.run_module({way!r}, run_name="__main__")
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    with Forked(script, [str(program)]) as process:
        out, told = process.communicate(120)
    assert process.returncode == 1 and not out
    assert "run the examination from a checkout" in told and told.count("\n") == 1
