"""Links to evidence: each opens one thing, for as long as that and the key are kept."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from streamer.watches.links import Links, kept_key

STILL, FRAME = (f"/v1/watches/events/event_1/{name}.jpg" for name in ("still", "frame"))
CLIP = "/v1/streams/yard/clip?from=1.000&to=9.000&codec=h264"
NOW = 1_700_000_000.0


def made(key: bytes, events: float = 600.0, recordings: float = 60.0) -> Links:
    return Links(key, events, recordings)


def holds(links: Links, link: str, now: float = NOW) -> bool:
    path, _, query = link.removeprefix(links.address).partition("?")
    return links.holds(path, query, now)


@pytest.mark.parametrize("place", [STILL, CLIP])
@pytest.mark.parametrize("address", ["", "/cam", "https://home.example/cam"])
def test_a_link_opens_its_place_alone_and_for_its_time(place: str, address: str) -> None:
    links = made(b"k" * 32)
    links.address = address
    link = links.signed(place, NOW + 60)
    assert link.startswith(f"{address}{place}")
    assert holds(links, link) and holds(links, link, NOW + 59) and not holds(links, link, NOW + 60)
    assert not holds(made(b"l" * 32), link.removeprefix(address))
    for was, becomes in (
        ("event_1", "event_2"), ("yard", "door"), ("to=9", "to=99"), ("expires=1", "expires=2"), ("signature=", "signature=0"),
        ("signature=", "signature=&to=99&signature="), ("&signature=", "&expires=9999999999&signature="),
    ):  # fmt: skip
        if was in link:
            assert not holds(links, link.replace(was, becomes)), becomes
    assert not holds(links, place) and not holds(links, f"{place}?signature=") and not holds(links, f"{link}é")


def test_an_event_is_seen_for_as_long_as_each_part_of_it_is_kept() -> None:
    links = made(b"k" * 32, events=600, recordings=60)
    event = {"id": "event_1", "captured_at": NOW + 0.5, "still": STILL, "frame": FRAME, "clip": CLIP}
    told = links.of(event)
    assert told == links.of(event) and told["id"] == "event_1"
    for key, seconds in (("still", 600), ("frame", 60), ("clip", 60)):
        assert holds(links, told[key], NOW + seconds) and not holds(links, told[key], NOW + seconds + 1), key
    assert links.of(event | {"frame": None, "clip": None})["clip"] is None


def test_the_key_outlasts_the_process_and_is_nobody_elses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = kept_key(tmp_path)
    assert len(key) == 32 and kept_key(tmp_path) == key != kept_key(None)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_bytes(b"cut")
    assert len(kept_key(tmp_path)) == 32 == len(file.read_bytes())
    assert len(kept_key(tmp_path / "gone")) == 32 and "links to evidence end with this process" in caplog.text
