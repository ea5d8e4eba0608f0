"""`streamer eval --suite watches`: what is due, what counts as rightly told, and the whole way with a model that knows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoint import CheckpointError
from model.evaluation import watches
from model.evaluation.calibration import applied, expected_error, fitted
from model.evaluation.watches import Programme, Span, programmes, quiet, spans
from model.serving.calibration import FILE, Calibration, read_calibration, write_calibration
from model.serving.runner import NANO
from model.world.render import Assets
from streamer.cli import eval_watches
from streamer.cli.main import main
from streamer.watches.watch import Event


def test_what_is_due_begins_with_the_first_of_it_and_is_once_though_half_hidden() -> None:
    truths = [False, False, None, True, None, True, None, False, False, True]
    assert spans(truths, "becomes_true") == [Span(2, 7, True), Span(9, 10, True)]
    assert spans(truths, "becomes_false") == [Span(6, 9, False)]
    assert spans(["-", None, "42", "42", None, "-"], "changes") == [Span(1, 5, "42"), Span(4, 6, "-")]
    assert not spans([True, None, True], "becomes_true")


def told(step: int, after: bool | str) -> tuple[int, Event]:
    return step, Event("watch.changed", step, step, None, None, after, 0.0)


def test_an_event_is_right_in_its_time_once_and_in_its_words() -> None:
    due = [Span(2, 7, "42"), Span(9, 12, "I don't see that")]
    assert eval_watches.matched(due, [told(3, "42"), told(10, "i don't see that.")]) == 2
    assert eval_watches.matched(due, [told(3, "42"), told(5, "42"), told(8, "i don't see that")]) == 1
    assert eval_watches.matched(due, [told(3, "47"), told(1, "42")]) == 0


@pytest.fixture(scope="module")
def assets() -> Assets:
    return Assets.load()


def test_streams_hold_every_kind_and_nothing_that_is_due_twice_at_once(assets: Assets) -> None:
    gallery = assets.gallery
    written = programmes(3, "test", gallery, 2)
    due: dict[str, int] = {}
    for stream in written:
        for sought, truths in zip(stream.sought, stream.truths, strict=True):
            found = spans(truths, sought.when)
            due[sought.kind] = due.get(sought.kind, 0) + len(found)
            assert all(b.begin >= a.begin for a, b in pairwise(found))
    assert set(due) == set(watches.KINDS) and all(count >= 8 for count in due.values())
    still = quiet(3, "test", gallery, written, 0.02)
    assert all(not each.scene.visits and not any(map(any, [t for t in each.truths if t[0] is False])) for each in still)
    assert all(np.ptp(each.scene.ground) for each in still)  # video


class Knowing:
    """Stands for the model: it says what is right, but for what `wrong` changes."""

    def __init__(self, wrong: Any) -> None:
        self.wrong = wrong

    def __call__(self, runner: Any, painter: Any, streams: Sequence[Programme], seed: int) -> Iterator[Any]:
        (stream,) = streams
        last: list[Any] = [None] * len(stream.sought)
        for step in range(stream.scene.steps):
            last = [t[step] if t[step] is not None else before for t, before in zip(stream.truths, last, strict=True)]
            yield [[self.wrong(float(v) if isinstance(v, bool) else v, step) for v in last]]


@pytest.mark.parametrize(
    ("wrong", "precision", "recall"),
    [
        (lambda value, step: value, 1.0, 1.0),
        (lambda value, step: 0.0 if isinstance(value, float) else value, 1.0, 0.0),
        (lambda value, step: 1.0 - value if isinstance(value, float) and step % 50 < 4 else value, 0.9, 0.9),
    ],
)
def test_who_knows_all_has_full_marks_and_who_is_blind_or_jumpy_has_not(
    assets: Assets,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: Any,
    precision: float,
    recall: float,
) -> None:
    monkeypatch.setattr(eval_watches.Assets, "load", lambda: assets)
    monkeypatch.setattr(eval_watches, "Painter", lambda *given: None)
    monkeypatch.setattr(eval_watches, "shown", Knowing(wrong))
    monkeypatch.setattr(eval_watches, "load_runner", lambda *a, **k: type("Nobody", (), {"calibration": Calibration()}))
    monkeypatch.setattr(eval_watches, "SHORT", 0.02)
    assert main(["eval", "--suite", "watches", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    comes = found["kinds"]["object comes"]
    assert comes["events"] == 10 and comes["recall"] == recall
    assert (comes["precision"] or 1.0) <= precision and found["kinds"]["word changes"]["recall"] == 1.0
    assert "| object comes" in "\n".join(eval_watches.table(found))


def test_a_calibration_mends_what_is_too_sure_and_is_read_beside_its_weights_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(1)
    real = rng.normal(-1, 2, 4000)
    truths = (rng.random(4000) < 1 / (1 + np.exp(-real))).tolist()
    said = (1 / (1 + np.exp(-3 * (real + 0.5)))).tolist()
    found = fitted(said, truths)
    assert math.isclose(found.scale, 1 / 3, rel_tol=0.1) and math.isclose(found.shift, -0.5, abs_tol=0.15)
    assert expected_error(said, truths) > 0.1 > 0.03 > expected_error(applied(found, said), truths)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert read_calibration(tmp_path) == Calibration()
    write_calibration(tmp_path, Calibration(0.5, -1.25), looks=3)
    assert read_calibration(tmp_path) == Calibration(0.5, -1.25)
    (tmp_path / "model.safetensors").write_bytes(b"heavier")
    assert read_calibration(tmp_path) == Calibration() and "of other weights" in caplog.text
    (tmp_path / FILE).write_text('{"scale": -1, "shift": 0, "weights": ""}')
    with pytest.raises(CheckpointError, match="is no calibration"):
        read_calibration(tmp_path)


def test_the_nano_has_one_that_is_of_its_weights(caplog: pytest.LogCaptureFixture) -> None:
    assert (NANO / FILE).is_file() and read_calibration(NANO) != Calibration() and not caplog.text
