"""The bench: its clip is what it says, its figures come from the daemon and carry their units."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import av
import pytest

from streamer.cli import bench
from streamer.cli.bench import add_arguments, bench_config, render, render_all, run, spread
from tests.tiny import TINY


def test_the_rendered_clip_is_720p_h264_at_25_frames_a_second(tmp_path: Path) -> None:
    render(tmp_path / "clip.mp4", 1.0)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec.canonical_name, stream.width, stream.height) == ("h264", 1280, 720)
        assert stream.average_rate == 25
        assert sum(1 for _ in container.decode(video=0)) == 25


def test_each_stream_has_a_clip_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CLIP_SECONDS", 0.4)
    paths = [tmp_path / f"{i}.mp4" for i in range(2)]
    render_all(paths)
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_spread() -> None:
    assert spread("x_ms", []) == {"x_ms_p50": None, "x_ms_p99": None}
    assert spread("x_ms", [n / 1000 for n in range(1, 101)]) == {"x_ms_p50": 50.5, "x_ms_p99": 100.0}


def test_the_daemon_says_when_a_frame_is_late_unless_told() -> None:
    """A model that is shown two frames a second has another deadline than one of 25, where none is set."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    usual, told = (
        bench_config(parser.parse_args(given), [Path("clip.mp4")]).streams[0] for given in ([], ["--deadline", "0.08"])
    )
    assert "deadline" not in usual.model_fields_set and told.deadline == 0.08


def test_the_daemon_is_measured_through_file_and_websocket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0.5)
    render(tmp_path / "clip.mp4", 1.0)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--file", str(tmp_path / "clip.mp4"), "--seconds", "2", "--askers", "2", "--streams", "2", "--json"]
    options += ["--model", TINY["name"], "--readers", "1"]
    options += ["--random-weights", "--open", "1"]  # what is random ends no answer, so one stays open
    assert run(parser.parse_args(options)) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["model"] == TINY["name"] and figures["askers"] == figures["streams"] == 2
    for key in (
        "frames_per_second",
        "frames_per_second_with_askers",
        "frame_step_ms_p50",
        "frame_step_ms_p99",
        "first_token_ms_p50",
        "first_token_ms_p99",
        "tokens_per_second",
        "model_frames_per_second",
        "model_tokens_per_second",
        "state_bytes",
        "resident_bytes",
        "cpu_share",
        "cpu_share_with_askers",
        "start_s",
        "cores",
        "decoding_cores",
    ):
        assert figures[key] > 0, key
    assert figures["frames_per_second"] <= 60, "two seconds of two streams, and what waited 0.2 s as they began"
    assert 0 <= figures["frames_late_with_askers_share"] <= 1
    assert figures["answers"] >= 1 and figures["open"] == 1 and figures["open_when_asked_share"] > 0.9
    assert figures["frame_step_ms_p50"] <= figures["frame_step_ms_p99"]


def test_a_file_that_is_missing_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--file", str(tmp_path / "none.mp4")])) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("streamer: ") and "none.mp4" in error[-1]
