"""Half an hour of the made world as a recording, asked about under Offline and Online: the program that measures both."""

from __future__ import annotations

import pytest

from model.evaluation.recordings import AGES, examine


@pytest.mark.nightly
@pytest.mark.timeout(3_600)
def test_half_an_hour() -> None:
    """The nano was trained with a window: under it, it knows most of what it is asked; Offline is told beside it."""
    found = examine("nano", "cpu", 30.0, 60, 2026)
    print(found)
    right = found["right"]
    asked = {name: [ages[age][1] for age in ("none", *AGES)] for name, ages in right.items()}
    assert found["tokens"] == 1 + 1_800 * 64 and asked["online"] == asked["offline"] and sum(asked["online"]) == 60
    assert sum(marks[0] for marks in right["online"].values()) >= 40
