"""What a start is timed on: a preset's random weights as a checkpoint that loads and answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import Sampling, load_runner
from model.config import PRESETS
from tests.model.small import of_another_tokenizer, picture

from .start import write


def test_a_preset_of_another_tokenizer_is_saved_loads_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the 4B's: its special tokens lie beyond the nano's vocabulary, by which the weights are asked."""
    other = of_another_tokenizer()
    monkeypatch.setitem(PRESETS, "other", other)
    write(tmp_path / "other", "other", "cpu")
    runner = load_runner(str(tmp_path / "other"), slots=2)
    assert runner.trained and runner.config.decoder == other.decoder
    runner.open(0, 64, 64)
    runner.see([0], [[picture(64, 64, 1)] * runner.frames_per_step], [0.0])
    runner.fork(0, 1)
    token = runner.prefill(1, runner.tokenizer.encode_question("What is it?"))
    assert runner.tokenizer.decode([token, *runner.decode([1], [token], [Sampling()])])
