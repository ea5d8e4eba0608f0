from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as some

from streamer.memory.moments import KNOWN, read_moment, written

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 29, 15, 0, tzinfo=BERLIN).timestamp()


def at(*then: int) -> float:
    return datetime(*then, tzinfo=BERLIN).timestamp()  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("10 minutes ago", NOW - 600),
        ("  An  hour AGO ", NOW - 3_600),
        ("1.5h ago", NOW - 5_400),
        ("90 s ago", NOW - 90),
        ("2 days ago", NOW - 172_800),
        ("now", NOW),
        ("14:03", at(2026, 11, 29, 14, 3)),
        ("14:03:20", at(2026, 11, 29, 14, 3, 20)),
        ("today 9:30", at(2026, 11, 29, 9, 30)),
        ("23:10", at(2026, 11, 28, 23, 10)),
        ("yesterday 14:03", at(2026, 11, 28, 14, 3)),
        ("2026-11-29T13:00:00Z", at(2026, 11, 29, 14)),
        ("2026-11-29T13:00:00+02:00", at(2026, 11, 29, 12)),
        ("2026-11-29 13:00", at(2026, 11, 29, 13)),
        ("2026-07-01T12:00:00", at(2026, 7, 1, 12)),
        ("20260701", at(2026, 7, 1)),
        (f"{NOW - 20:.2f}", NOW - 20),
        ("1751364000", 1_751_364_000),
    ],
)
def test_what_people_write(text: str, moment: float) -> None:
    assert read_moment(text, NOW, BERLIN) == pytest.approx(moment)


def test_the_day_on_which_clocks_change() -> None:
    now = datetime(2026, 10, 25, 12, 0, tzinfo=BERLIN).timestamp()  # at 3:00 it became 2:00
    assert read_moment("1:00", now, BERLIN) == datetime(2026, 10, 24, 23, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no moment"),
        ("half past two", "no moment"),
        ("10 parsecs ago", "unit"),
        ("25:00", "time of day"),
        ("2026-13-01", "no moment"),
        ("today 16:00", "3600 s in the future"),
        ("2027-01-01", "in the future"),
        (f"{NOW + 60:.0f}", "60 s in the future"),
        ("9" * 400 + " days ago", "no moment"),
    ],
)
def test_what_is_refused_says_what_is_known(text: str, why: str) -> None:
    with pytest.raises(ValueError) as error:
        read_moment(text, NOW, BERLIN)
    assert why in str(error.value) and KNOWN in str(error.value) and "\n" not in str(error.value)


@given(some.text(max_size=40))
def test_nothing_else_is_raised(text: str) -> None:
    try:
        assert read_moment(text, NOW) <= NOW
    except ValueError as error:
        assert KNOWN in str(error)


@given(some.floats(0, 4e9))
def test_what_is_written_can_be_read(moment: float) -> None:
    assert read_moment(written(moment), 5e9) == pytest.approx(moment, abs=1e-3)
