"""What strangers may send and name: pushed frames, URLs; and what of it is printed."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capture import PushSource, SourceError, SourceOptions, State, open_source, redact
from capture.image import decode_image, image_header
from capture.network import policy as guard
from capture.network.policy import refuse_private
from tests.capture.lab import Watcher, drawn, jpeg, wait_for, watching

JPEG = jpeg(drawn(3))


def pushing(watcher: Watcher) -> PushSource:
    assert isinstance(watcher.source, PushSource)
    return watcher.source


def test_pushed_frames_arrive_with_their_time() -> None:
    with watching("push://door") as watcher:
        source = pushing(watcher)
        assert watcher.state is State.CONNECTING
        assert "first pushed frame" in watcher.told[-1].reason
        for n in range(5):
            source.push(drawn(n), 100 + n * 0.2)
        assert watcher.state is State.LIVE
        wait_for(lambda: watcher.state is State.STALLED)
        source.push_jpeg(JPEG, 103.0)
        assert watcher.state is State.LIVE
    frames = watcher.frames()
    assert [frame.time for frame in frames[:2]] == pytest.approx([0, 0.2])
    assert np.array_equal(frames[2].pixels, drawn(2))
    assert np.abs(frames[5].pixels.astype(int) - drawn(3)).mean() < 3


def test_a_pushed_frame_belongs_to_the_source_once_it_is_handed_in() -> None:
    with watching("push://door") as watcher:
        pixels = drawn(0)
        pushing(watcher).push(pixels)
        pixels[:] = 0
        assert np.array_equal(watcher.frames()[0].pixels, drawn(0))


def test_pushing_never_waits() -> None:
    with watching("push://door", policy="every", capacity=2) as watcher:
        for n in range(10):
            pushing(watcher).push(drawn(n), n / 25)
        assert watcher.mailbox.dropped == 8


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        None,
        "door.jpg",
    ],
)
def test_wrong_typed_frames_are_refused(pixels: Any) -> None:
    with watching("push://door") as watcher:
        with pytest.raises(SourceError, match="must be uint8"):
            pushing(watcher).push(pixels)
        with pytest.raises(SourceError, match="number of seconds"):
            pushing(watcher).push(drawn(0), float("nan"))
        assert watcher.source.status.frames == 0


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = bytearray(JPEG)
    at = bomb.index(b"\xff\xc0")
    bomb[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert image_header(bytes(bomb))[1:3] == (65535, 65535)
    with pytest.raises(SourceError, match="65535×65535"):
        decode_image(bytes(bomb))
    with pytest.raises(SourceError, match="bytes is too large"):
        decode_image(JPEG + bytes(33 * 2**20))


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"\xff\xd8\xff" + tail))
@example(b"")
@example(b"\xff\xd8")
@example(b"\xff\xd8\xff\xe0\x00\x00" * 20)
def test_whatever_is_no_jpeg_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(SourceError) as refusal:
        decode_image(data)
    assert "\n" not in str(refusal.value)


@given(
    st.lists(st.tuples(st.integers(2, len(JPEG) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 40)
)
def test_damaged_jpegs_decode_or_are_refused(damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(JPEG)
    for at, value in damage:
        data[at] = value
    try:
        pixels = decode_image(bytes(data[: len(data) - cut]))
    except SourceError:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and max(pixels.shape) <= 640


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("rtsp://ada:lovelace@camera/1", "rtsp://***@camera/1"),
        ("rtsp://ada:love@lace@camera/1", "rtsp://***@camera/1"),
        ("rtsp://ada:love/lace@camera/1", "rtsp://***@camera/1"),
        ("rtsp://camera:554/1@2", "rtsp://camera:554/1@2"),
        ("http://cam/live?user=ada&pwd=lovelace&quality=5", "http://cam/live?user=***&pwd=***&quality=5"),
        ("can't open rtsp://a:b@c/ or http://d:e@f/", "can't open rtsp://***@c/ or http://***@f/"),
        ("clip.mp4", "clip.mp4"),
    ],
)
def test_credentials_are_left_out(secret: str, shown: str) -> None:
    assert redact(secret) == shown


def test_credentials_show_nowhere() -> None:
    with watching("rtsp://ada:lovelace@127.0.0.1:9/x?token=sesame") as watcher:
        watcher.until(State.WAITING)
        said = repr((watcher.told, watcher.source.name))
    assert "lovelace" not in said and "sesame" not in said
    with pytest.raises(SourceError) as refusal:
        open_source("gopher://ada:lovelace@host/")
    assert "lovelace" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("http://example.org/x.m3u8", ["93.184.216.34", "10.0.0.1"]),
        ("rtsp://localhost/1", ["127.0.0.1"]),
        ("rtsp://metadata/1", ["169.254.169.254"]),
        ("http://v6/1", ["fd00::1"]),
        ("http://mapped/1", ["::ffff:192.168.0.1"]),
        ("http://link/1", ["fe80::1%eth0"]),
        ("http://sixtofour/1", ["2002:c0a8:1::1"]),
        ("http://zero/1", ["0.0.0.0"]),
        ("/etc/passwd", []),
        ("file:///etc/passwd", []),
        ("v4l2:///dev/video0", []),
        ("camera://0", []),
        ("concat:/etc/passwd", []),
    ],
)
def test_a_remote_client_reaches_nothing_private(
    url: str, addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "resolve", lambda host: addresses)
    with pytest.raises(SourceError, match=r"private|may not name"):
        refuse_private(url)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "RFC 1918"),
        ("100.64.0.0/10", "behind a carrier's NAT"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local, metadata"),
        ("172.16.0.0/12", "RFC 1918"),
        ("192.0.0.0/24", "IETF protocols, DS-Lite"),
        ("192.0.2.0/24", "documents"),
        ("192.88.99.0/24", "6to4 relays"),
        ("192.168.0.0/16", "RFC 1918"),
        ("198.18.0.0/15", "benchmarks"),
        ("198.51.100.0/24", "documents"),
        ("203.0.113.0/24", "documents"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved, broadcast"),
        ("::/96", "IPv4-compatible, loopback, unspecified"),
        ("::ffff:10.0.0.0/104", "a private address, mapped"),
        ("::ffff:0:10.0.0.0/104", "a private address, translated"),
        ("64:ff9b::10.0.0.0/104", "a private address through NAT64"),
        ("64:ff9b::169.254.0.0/112", "metadata through NAT64"),
        ("64:ff9b:1::/48", "NAT64 of a network's own"),
        ("100::/64", "discarded"),
        ("2001::/23", "protocols, Teredo"),
        ("2001:db8::/32", "documents"),
        ("2002:c0a8::/32", "192.168.0.0/16 by 6to4"),
        ("2002:7f00::/24", "127.0.0.0/8 by 6to4"),
        ("2606:2800:220:1:0:5efe:a00:0/104", "10.0.0.0/8 by ISATAP"),
        ("3fff::/20", "documents"),
        ("4000::/2", "not handed out"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    ],
)
@given(place=st.integers(0, 2**128 - 1))
@example(place=0)
@example(place=2**128 - 1)
@example(place=1)
def test_no_address_of_a_private_network_is_public(network: str, why: str, place: int) -> None:
    """Judged offline, by networks and not by examples: any address of each."""
    within = ipaddress.ip_network(network)
    assert not guard.is_public(str(within[place % within.num_addresses])), why


@pytest.mark.parametrize(
    "address",
    [
        *("93.184.216.34", "1.1.1.1", "192.0.1.1", "192.1.0.1", "100.63.255.255", "172.32.0.1", "198.20.0.1"),
        *("2606:2800:220:1::1", "2001:200::1", "2a00:1450::1", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8", "2002:808:808::1"),
    ],
)
def test_public_addresses_are_public(address: str) -> None:
    assert guard.is_public(address)


@pytest.mark.parametrize("url", ["push://door", "whip://door", "camera://0", "rtsp://x/y", "rtmp://x/y"])
@pytest.mark.parametrize("options", [{"start": 3.0}, {"loop": True}])
def test_what_only_recordings_have_is_refused_by_name(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="leave out loop and start"):
        open_source(url, SourceOptions(**options))


def test_a_remote_client_may_name_what_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "resolve", lambda host: ["93.184.216.34", "2606:2800:220:1::1"])
    refuse_private("http://example.org/x.m3u8")
    refuse_private("push://door")
    refuse_private("demo:")


@given(st.text(max_size=80))
@example("rtsp://[")
@example("\0")
def test_any_text_as_a_url_is_refused_or_opened(url: str) -> None:
    try:
        open_source(url)
    except SourceError as refusal:
        assert "\n" not in str(refusal) or "\n" in url
