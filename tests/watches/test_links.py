"""Links to evidence: each opens one thing, for a week, for as long as its key is kept."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from streamer.watches.links import LASTS, STEP, Links, kept_key

STILL, CLIP = "/v1/watches/events/event_1/still.jpg", "/v1/streams/yard/clip?from=1.000&to=9.000&codec=h264"
NOW = 1_700_000_000.0


def holds(links: Links, link: str, now: float = NOW) -> bool:
    path, _, query = link.partition("?")
    return links.holds(path, query, now)


@pytest.mark.parametrize("place", [STILL, CLIP])
def test_a_link_opens_its_place_alone_and_for_a_week(place: str) -> None:
    links = Links(b"k" * 32)
    link = links.signed(place, NOW)
    assert holds(links, link) and holds(links, link, NOW + LASTS)
    assert not holds(links, link, NOW + LASTS + STEP) and not holds(Links(b"l" * 32), link)
    assert link == links.signed(place, NOW + 1 if NOW % STEP < STEP - 1 else NOW)
    for was, becomes in (
        ("event_1", "event_2"), ("yard", "door"), ("to=9", "to=99"), ("expires=1", "expires=2"), ("signature=", "signature=0"),
        ("signature=", "signature=&to=99&signature="), ("&signature=", "&expires=9999999999&signature="),
    ):  # fmt: skip
        if was in link:
            assert not holds(links, link.replace(was, becomes)), becomes
    assert not holds(links, place) and not holds(links, f"{place}?signature=") and not holds(links, f"{link}é")


def test_an_event_keeps_what_it_has_not(tmp_path: Path) -> None:
    links = Links(kept_key(tmp_path))
    told = links.of({"id": "event_1", "still": STILL, "clip": None}, NOW)
    assert told["clip"] is None and told["id"] == "event_1" and holds(links, told["still"])


def test_the_key_outlasts_the_process_and_is_nobody_elses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = kept_key(tmp_path)
    assert len(key) == 32 and kept_key(tmp_path) == key != kept_key(None)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_bytes(b"cut")
    assert len(kept_key(tmp_path)) == 32 == len(file.read_bytes())
    assert len(kept_key(tmp_path / "gone")) == 32 and "links to evidence end with this process" in caplog.text
