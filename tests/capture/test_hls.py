"""Live and recorded HLS: which size is fetched, where a broadcast is joined, and what is told of it."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import SourceError, State, open_source
from capture.sources.base import Over
from capture.sources.hls import Broadcast, Playlist, Variant, nearest, read_playlist
from capture.sources.http import HttpSource, Kind
from tests.capture.lab import CALM, Folder, http_server, render, serving_folder, wait_for, watching

pytestmark = pytest.mark.beside

MASTER = """#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="x",URI="sound.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=100000,CODECS="mp4a.40.2"
sound.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=200000,RESOLUTION=160x90,CODECS="avc1.4d400d,mp4a.40.2"
low.m3u8
#EXT-X-STREAM-INF:RESOLUTION=1280x720,BANDWIDTH=3000000
//cdn.example/high.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=1000000,RESOLUTION=640x360
mid/mid.m3u8?t=1
"""


def test_the_nearest_of_a_masters_sizes_is_taken() -> None:
    variants = read_playlist(MASTER, "http://host/live/master.m3u8").variants
    assert variants[0] == Variant("http://host/live/low.m3u8", 200000, 160) and len(variants) == 3
    assert nearest(variants, 640).url == "http://host/live/mid/mid.m3u8?t=1"
    assert nearest(variants, 161).longer_side == 640
    assert nearest(variants, 4000).url == "http://cdn.example/high.m3u8"


def test_playlists_are_read_whatever_else_they_hold() -> None:
    text = (
        "#EXTM3U\n#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES\n#EXT-X-MEDIA-SEQUENCE:7\n#EXT-X-MAP:URI=\"i.mp4\"\n"
        "#EXT-X-GAP\n#EXTINF:2.002,no desc\na.m4s\n#EXT-X-DISCONTINUITY\n#EXTINF:2\nb.m4s\n#EXT-X-PART:DURATION=0.3,URI=\"c0.m4s\"\n"
    )  # fmt: skip
    playlist = read_playlist(text, "http://x/")
    told = {"segments": ("http://x/a.m4s", "http://x/b.m4s"), "formats": ("fMP4", "fMP4"), "gaps": {7}, "parts": True}
    assert playlist == Playlist(7, (2.002, 2.0), **told) and playlist.end == 9
    assert read_playlist(text + "#EXT-X-ENDLIST", "").ended


@given(st.text(max_size=300) | st.lists(st.sampled_from(MASTER.splitlines()), max_size=20).map("\n".join))
def test_any_text_is_some_playlist(text: str) -> None:
    read_playlist(text, "http://host/")


def playing(broadcast: Broadcast, began: float, seconds: float) -> None:
    for n in range(int(seconds * 10)):
        broadcast.picture(began + n / 10)


def test_a_broadcast_goes_on_where_it_broke_off() -> None:
    cast = Broadcast()
    assert cast.join(Playlist(10, (2.0,) * 6)) == 4, "near its end"
    playing(cast, 100.0, 6.0)
    assert cast.join(Playlist(12, (2.0,) * 7)) == 5, "segments 14 to 16 were played"
    assert cast.join(Playlist(12, (2.0,) * 7)) == 5, "nothing came in between"
    playing(cast, 106.0, 1.0)
    assert cast.join(Playlist(10, (2.0,) * 9)) == 7, "half of 17 was played"
    playing(cast, 106.0, 4.0)
    assert cast.join(Playlist(10, (2.0,) * 9, ended=True)) is None, "it is over"
    assert cast.join(Playlist(10, (2.0,) * 11, ended=True)) == 9, "it went on a little, and is over"


def test_a_broadcast_whose_timestamps_jump_is_not_begun_again() -> None:
    cast = Broadcast()
    cast.join(Playlist(0, (2.0,) * 4))
    playing(cast, 5_000.0, 2.0)
    playing(cast, 3.0, 2.0)
    assert cast.join(Playlist(0, (2.0,) * 6)) == 4


def test_a_new_broadcast_or_one_far_ahead_is_joined_near_its_end() -> None:
    cast = Broadcast()
    cast.join(Playlist(500, (2.0,) * 4))
    playing(cast, 5_000.0, 4.0)
    assert cast.join(Playlist(0, (2.0,) * 6)) == 4 and cast.reached is None
    playing(cast, 1.0, 4.0)
    assert cast.join(Playlist(0, (2.0,) * 60)) == 58
    assert cast.join(Playlist(100, (2.0,) * 3)) == 0, "what it was at is there no more"


def test_a_broadcast_is_joined_behind_what_its_server_does_not_have() -> None:
    """So servers of low latency begin: with gaps for all that a player may want behind its newest segment."""
    assert Broadcast().join(Playlist(0, (2.0,) * 8, gaps=frozenset(range(7)))) == 7
    assert Broadcast().join(Playlist(3, (2.0,) * 2, gaps=frozenset({3, 4}))) == 2, "still to come"
    cast = Broadcast()
    cast.join(Playlist(10, (2.0,) * 6))
    playing(cast, 100.0, 4.0)
    assert cast.join(Playlist(12, (2.0,) * 7, gaps=frozenset({16, 17}))) == 6


def test_pictures_that_a_segment_brings_again_are_left_out() -> None:
    """Where a broadcast broke off amid a segment it comes again from its beginning; timestamps that jump back later are new."""
    source = open_source("http://127.0.0.1:1/live.m3u8")
    assert isinstance(source, HttpSource)
    source.kind, source.seen = Kind.PLAYLIST, 101.0
    source.broadcast.join(Playlist(0, (2.0,) * 4))
    again = [100.0, 100.5, 101.0, 101.5, 100.9]
    assert [source.news(timestamp) for timestamp in again] == [False, False, False, True, True]
    source.seen = 5_000.0
    source.broadcast.join(Playlist(0, (2.0,) * 4))
    assert [source.news(timestamp / 2) for timestamp in range(11)] == [False] * 9 + [True] * 2, (
        "a clock that began anew"
    )


class Broadcaster(Folder):
    """Serves a folder, and what was asked for is noted in `server.asked`; while `server.down` is set it has a fault."""

    def do_GET(self) -> None:  # noqa: N802
        down = self.server.down.is_set()  # type: ignore[attr-defined]
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if down:
            self.send_error(503)
        else:
            super().do_GET()


def twelve(folder: Path, suffix: str) -> Path:
    """Twelve segments of half a second, whose square moves from picture to picture."""
    options = {"hls_time": "0.5", "hls_list_size": "0", "hls_segment_filename": f"{folder}/%02d.{suffix}"}
    if suffix == "mp4":
        options |= {"hls_segment_type": "fmp4", "hls_fmp4_init_filename": "init.mp4"}
    render(folder / "vod.m3u8", 60, fps=10, format="hls", options=options, key=5)
    return folder


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twelve(tmp_path_factory.mktemp("hls"), "ts")


def announce(folder: Path, count: int, *, ended: bool = False) -> None:
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-PLAYLIST-TYPE:EVENT\n#EXT-X-MEDIA-SEQUENCE:0\n"
    text += "".join(f"#EXTINF:0.5,\n{n:02}.ts\n" for n in range(count)) + "#EXT-X-ENDLIST\n" * ended
    (folder / "new").write_text(text)
    (folder / "new").rename(folder / "live.m3u8")


def announce_parts(folder: Path, count: int, *, ended: bool = False) -> None:
    """As servers of low latency write it, with seven gaps before what there is and parts of what is to come (RFC 8216bis)."""
    text = (
        "#EXTM3U\n#EXT-X-VERSION:9\n#EXT-X-TARGETDURATION:1\n#EXT-X-PART-INF:PART-TARGET=0.1\n#EXT-X-MEDIA-SEQUENCE:0\n"
        '#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=0.3,CAN-SKIP-UNTIL=6\n#EXT-X-MAP:URI="init.mp4"\n'
    )
    text += "#EXT-X-GAP\n#EXTINF:0.5,\ngap.mp4\n" * 7
    for n in range(count):
        parts = "".join(f'#EXT-X-PART:DURATION=0.1,URI="{n:02}.{i}.mp4"\n' for i in range(5)) if n > count - 3 else ""
        text += f"#EXT-X-PROGRAM-DATE-TIME:2026-11-30T00:00:{n / 2:06.3f}Z\n{parts}#EXTINF:0.50000,\n{n:02}.mp4\n"
    hint = f'{count:02}.0.mp4",INDEPENDENT=YES\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI="{count:02}.1.mp4"\n'
    text += "#EXT-X-ENDLIST\n" if ended else f'#EXT-X-PART:DURATION=0.1,URI="{hint}'
    text += '#EXT-X-RENDITION-REPORT:URI="../low/live.m3u8",LAST-MSN=9,LAST-PART=1\n'
    (folder / "new").write_text(text)
    (folder / "new").rename(folder / "live.m3u8")


def growing(folder: Path, down: threading.Event, faulty: range, announce: Callable[..., None]) -> Iterator[None]:
    """Each step is half a second of a broadcast, which has a fault while it is at one of `faulty`."""
    for count in range(5, 13):
        (down.set if count in faulty else down.clear)()
        announce(folder, count)
        yield
    announce(folder, 12, ended=True)


def seen_once(folder: Path, faulty: range, announce: Callable[..., None]) -> None:
    """A broadcast of the folder's segments is joined near its end, seen once, and over when it is."""
    down, asked = threading.Event(), list[str]()
    steps = growing(folder, down, faulty, announce)
    next(steps)
    over = threading.Event()

    def grow() -> None:
        while next(steps, over) is not over:
            over.wait(0.5)
            if down.is_set():
                watcher.been(State.WAITING)  # a fault that nobody met would prove nothing

    with http_server(Broadcaster, folder=folder, down=down, asked=asked) as url:
        with watching(url + "/live.m3u8", patience=CALM) as watcher:
            # It is joined at five segments, and of these it has all: else FFmpeg would pass over one that a fault withholds.
            wait_for(lambda: any(path.startswith("/04.") for path in asked))
            growth = threading.Thread(target=grow, daemon=True)
            growth.start()
            watcher.until(State.ENDED)
            assert watcher.source.status.reason == "the broadcast is over"
            assert (watcher.source.status.reconnects > 0) == bool(faulty)
        growth.join(5)
    squares = [int(frame.pixels[60].mean(axis=1).argmax()) // 4 for frame in watcher.frames()]
    assert squares == list(range(15, 60)), "from near the end of what there was, and each picture once"


@pytest.mark.parametrize("faulty", [range(0), range(6, 9)], ids=["sound", "interrupted"])
def test_a_broadcast_is_seen_once_and_ends(segments: Path, faulty: range, tmp_path: Path) -> None:
    seen_once(shutil.copytree(segments, tmp_path / "broadcast"), faulty, announce)


def test_of_low_latency_whole_segments_are_read_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen_once(twelve(tmp_path, "mp4"), range(0), announce_parts)
    assert len([line for line in caplog.messages if "low-latency HLS whole segments are read" in line]) == 1


@pytest.mark.parametrize("ended", [True, False])
def test_a_broadcast_is_over_when_its_playlist_says_so(segments: Path, tmp_path: Path, ended: bool) -> None:
    """FFmpeg comes to an end of a connection that is lost, too, and the server may be back by then."""
    folder = shutil.copytree(segments, tmp_path / "broadcast")
    announce(folder, 5, ended=ended)
    with serving_folder(folder) as url:
        source = open_source(f"{url}/live.m3u8")
        assert isinstance(source, HttpSource)
        with pytest.raises(Over if ended else SourceError, match=None if ended else "broke off"):
            source.conclude()


def test_a_recordings_playlist_plays_from_its_beginning(segments: Path) -> None:
    with serving_folder(segments) as url, watching(url + "/vod.m3u8") as watcher:
        watcher.until(State.ENDED)
    assert watcher.source.status.reason == "it played to its end"
    assert len(watcher.frames()) == 60


@pytest.mark.parametrize(
    ("playlist", "ends", "said"),
    [
        ("#EXT-X-TARGETDURATION:2\n", False, "its playlist names no segment of video, or none yet"),
        (
            "#EXT-X-STREAM-INF:BANDWIDTH=9,RESOLUTION=64x36\nlist.m3u8\n",
            False,
            "names no segment of video, or none yet",
        ),
        (
            "#EXT-X-STREAM-INF:BANDWIDTH=9,RESOLUTION=64x36\ngone.m3u8\n",
            False,
            r"the server answers 404 to http://\S+/gone\.m3u8$",
        ),
        (
            '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="skd://k",KEYFORMAT="com.apple.streamingkeydelivery"\n#EXTINF:1,\n00.ts\n',
            True,
            r"encrypted for some players alone \(SAMPLE-AES, DRM\)",
        ),
        (
            '#EXT-X-SESSION-KEY:METHOD=SAMPLE-AES-CTR,URI="data:x",KEYFORMAT="urn:uuid:edef8ba9-79d6"\n'
            "#EXT-X-STREAM-INF:BANDWIDTH=9,RESOLUTION=64x36\nvod.m3u8\n",
            True,
            r"encrypted for some players alone \(SAMPLE-AES-CTR, DRM\)",
        ),
    ],
    ids=["empty", "itself", "gone", "DRM", "DRM of a master"],
)
def test_a_playlist_that_shows_nothing_says_why(
    playlist: str, ends: bool, said: str, segments: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(segments, tmp_path / "served")
    (folder / "list.m3u8").write_text("#EXTM3U\n" + playlist)
    with serving_folder(folder) as url, watching(f"{url}/list.m3u8") as watcher:
        watcher.until(State.ENDED if ends else State.WAITING)
        assert re.search(said, watcher.reason(State.ENDED if ends else State.WAITING))


def test_segments_that_are_not_there_are_told(segments: Path, tmp_path: Path) -> None:
    """FFmpeg would look for one after the other for ever, or say that there is no video."""
    announce(tmp_path, 8)
    (tmp_path / "vod.m3u8").write_text((segments / "vod.m3u8").read_text())
    for name in ("vod.m3u8", "live.m3u8"):
        with serving_folder(tmp_path) as url, watching(f"{url}/{name}") as watcher:
            watcher.until(State.WAITING)
            assert "the server answers 404 to http" in (said := watcher.source.status.reason) and ".ts" in said


@pytest.mark.parametrize("first", ["00.ts", "part.m4s"])
def test_a_recording_of_two_formats_is_refused_by_name(tmp_path: Path, first: str) -> None:
    """FFmpeg would pass over half of it without a word."""
    fragmented, plain = '#EXT-X-MAP:URI="init.mp4"\n#EXTINF:0.5,\npart.m4s\n', "#EXTINF:0.5,\n00.ts\n"
    both = plain + "#EXT-X-DISCONTINUITY\n" + fragmented if first == "00.ts" else fragmented + plain
    (tmp_path / "mixed.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n{both}#EXT-X-ENDLIST\n")
    with serving_folder(tmp_path) as url, watching(f"{url}/mixed.m3u8") as watcher:
        watcher.until(State.ENDED)
        assert "partly TS and partly fMP4" in watcher.source.status.reason


def test_only_the_size_that_is_needed_is_fetched(segments: Path, tmp_path: Path) -> None:
    (segments / "master.m3u8").write_text(
        "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1,RESOLUTION=64x36\nsmall.m3u8\n"
        "#EXT-X-STREAM-INF:BANDWIDTH=9,RESOLUTION=320x180\nvod.m3u8\n"
    )  # fmt: skip
    asked: list[str] = []
    with (
        http_server(Broadcaster, folder=segments, down=threading.Event(), asked=asked) as url,
        watching(url + "/master.m3u8", largest_side=300) as watcher,
    ):
        watcher.more(3)
    assert "/small.m3u8" not in asked and "/vod.m3u8" in asked
