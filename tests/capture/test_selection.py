"""Which frames are handed over."""

import numpy as np
import pytest

from capture import SourceOptions, open_source
from capture.gate import Selection, difference, thumbnail
from capture.sources.base import SourceShell


def picture(square: int = 0, level: int = 90) -> np.ndarray:
    pixels = np.full((360, 640, 3), level, np.uint8)
    pixels[100 : 100 + square, 200 : 200 + square] = 250
    return pixels


@pytest.mark.parametrize(("source", "wanted"), [(25.0, 10.0), (25.0, 5.0), (30.0, 29.0), (25.0, 50.0), (10.0, 1.0)])
def test_fps_is_kept(source: float, wanted: float) -> None:
    selection = Selection(fps=wanted)
    frames = int(source * 60)
    taken = sum(selection.timely(round(n / source, 3)) for n in range(frames))
    assert taken == pytest.approx(60 * min(source, wanted), rel=0.02)
    assert taken + selection.thinned == frames


def test_a_gap_is_not_made_up_for() -> None:
    selection = Selection(fps=2)
    assert selection.timely(0.0)
    assert [selection.timely(100 + n / 10) for n in range(10)].count(True) == 2


def test_a_small_thing_in_a_large_picture_is_a_change() -> None:
    assert difference(thumbnail(picture()), thumbnail(picture(square=40))) > 50
    assert difference(thumbnail(picture()), thumbnail(picture(level=91))) == 1
    assert difference(thumbnail(picture()), thumbnail(picture()[:180])) == 255


def test_the_gate_leaves_out_what_stands_still_but_keeps_a_floor() -> None:
    selection = Selection(change=4.0, floor=1.0)
    taken = [selection.telling(n / 25, thumbnail(picture(level=90 + n % 2))) for n in range(250)]
    assert sum(taken) == pytest.approx(10, abs=1)
    assert sum(taken) + selection.unchanged == 250 and selection.thinned == 0
    assert selection.telling(10.0, thumbnail(picture(square=40)))


def test_what_stands_still_from_one_moment_on_is_not_shown_at_one_moment() -> None:
    """Every 5 s each, for ever; the first time sooner, by its phase."""
    shown = {}
    for phase in (0.0, 0.3, 0.9):
        selection = Selection(change=4.0, floor=0.2, phase=phase)
        shown[phase] = [n / 10 for n in range(200) if selection.telling(n / 10, thumbnail(picture()))]
    assert [times[:4] for times in shown.values()] == [[0, 4.5, 9, 13.5], [0, 3, 7.5, 12], [0, 0.1, 4.6, 9.1]]


def test_slow_change_adds_up() -> None:
    selection = Selection(change=4.0, floor=0.001)
    taken = [selection.telling(n / 25, thumbnail(picture(level=90 + n // 5))) for n in range(100)]
    assert 4 <= sum(taken) <= 6


def test_times_that_are_rounded_otherwise_choose_the_same() -> None:
    """One who adds up what passed and one who counts from the beginning: a frame comes when the one that was left out was due."""
    chosen = []
    for off in (0.0, -1e-9, 1e-9):
        selection = Selection(fps=2)
        chosen.append([selection.timely(time + off * (time > 0)) for time in (0.0, 1.0, 1.2, 1.5)])
    assert chosen == [[True, True, False, True]] * 3


def test_sources_that_are_watched_have_phases_of_their_own() -> None:
    """One that is read has none, so that it shows the same each time."""

    def phase(realtime: bool) -> float:
        source = open_source("demo:", SourceOptions(change=4.0, realtime=realtime))
        assert isinstance(source, SourceShell)
        return source.selection.phase

    assert phase(True) != phase(True) and phase(False) == 0.0
