"""Recordings of real sources: packets as they came, segments that outlast a kill, budgets, and disks that fail."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from capture import Frame, Mailbox, Patience, SourceOptions, open_source
from streamer.errors import AssistantError
from streamer.memory import recording
from streamer.memory.clips import Clips, streamed
from streamer.memory.folder import Folder
from streamer.memory.footage import decoded, pictures, pieces
from streamer.memory.recording import Recordings, find_segments
from streamer.memory.segment import NOTES
from tests.capture.lab import RtspServer, needs_rtsp, render, rtsp, wait_for

__all__ = ["rtsp"]
STEPS = 2


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recordings]:
    monkeypatch.setattr(recording, "SEGMENT_SECONDS", 1.0)
    monkeypatch.setattr(recording, "RETRY_SECONDS", 0.1)
    made = Recordings(Folder(tmp_path / "state"), 10**9, 24)
    yield made
    made.close()


def record(recordings: Recordings, url: str, frames: int, *, name: str = "door", **options: object) -> list[Frame]:
    """Records a source until so many frames came, each of which a model would have seen."""
    source = open_source(url, SourceOptions(patience=Patience(backoff=0.2), **options))  # type: ignore[arg-type]
    mailbox, recorder, seen = Mailbox(64, policy="every"), recordings.recorder(name), []
    source.record(recorder)
    source.start(mailbox, lambda status: None)

    def enough() -> bool:
        while taken := mailbox.take(STEPS):
            seen.extend(taken)
            recorder.ingested(1, [(frame.sequence, frame.time) for frame in taken])
        return len(seen) >= frames or source.status.state == "ended"

    wait_for(enough, what=lambda: (source.status, len(seen)))
    source.stop()
    recorder.close()
    wait_for(lambda: recorder not in recordings._recorders)
    return seen


def same(recordings: Recordings, seen: list[Frame], name: str = "door") -> int:
    """How many recorded pictures equal, to the bit, the frames of the same sequence that were seen."""
    run = pieces(recordings.of(name))
    places = {(each.segment, each.pts): each.sequence for piece in run for each in piece.notes.frames}
    by_sequence = {frame.sequence: frame for frame in seen}
    equal = 0
    for each, pixels in pictures(run):
        frame = by_sequence.get(places.get((each.piece.segment.number, each.pts), -1))
        if frame is not None:
            assert np.array_equal(pixels, frame.pixels), frame.sequence
            equal += 1
    return equal


@needs_rtsp
def test_a_cameras_own_packets_give_the_very_pictures_that_were_seen(recordings: Recordings, rtsp: RtspServer) -> None:
    seen = record(recordings, rtsp.url("/live"), 80)
    assert recordings.lost == 0 and recordings.fault is None
    kept = recordings.of("door")
    assert len(kept) >= 2 and all(each.ends - each.begins < 3 for each in kept)
    assert same(recordings, seen) == len(seen)
    for each in kept:
        with av.open(str(each.path)) as container:
            assert next(container.demux(video=0)).is_keyframe
            assert not container.streams.audio
    steps = [step for piece in pieces(kept) for step in piece.notes.steps]
    assert [sequence for step in steps for sequence, _ in step.frames] == [frame.sequence for frame in seen]
    assert all(len(step.frames) == STEPS for step in steps)


CASES: dict[str, dict[str, object]] = {
    "b-frames.mp4": {"options": {"bf": "3"}, "aspect": Fraction(4, 3)},
    "hevc.mkv": {"codec": "libx265"},
    "jumps.ts": {"times": lambda n: n + 2000 * (n > 40)},
    "vp8.webm": {"codec": "libvpx"},
    "motion.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
}


@pytest.mark.parametrize("file", CASES)
def test_files_of_all_kinds(file: str, recordings: Recordings, tmp_path: Path) -> None:
    path = render(tmp_path / file, 60, **CASES[file])  # type: ignore[arg-type]
    seen = record(recordings, str(path), 60, realtime=False)
    assert recordings.lost == 0
    if file == "vp8.webm":  # which MP4 can't hold: its pictures are encoded
        assert not pieces(recordings.of("door"))[0].notes.facts.copied
        assert len(list(decoded(pieces(recordings.of("door"))))) == len(seen)
    else:
        assert same(recordings, seen) == len(seen) == 60


def test_pushed_frames_are_encoded(recordings: Recordings) -> None:
    from capture import PushSource

    source, recorder = PushSource("push://x", SourceOptions()), recordings.recorder("door")
    source.record(recorder)
    source.start(Mailbox(4), lambda status: None)
    began = time.time()
    shades = [40, 90, 140, 190, 240]
    for n, shade in enumerate(shades):
        size = (91, 120, 3) if n < 3 else (180, 321, 3)  # as a camera that is turned
        source.push(np.full(size, shade, np.uint8), n * 0.2)
    source.stop()
    recorder.close()
    recordings.close()
    found = [(each, pixels) for each, pixels in pictures(pieces(recordings.of("door")))]
    assert [round(float(pixels.mean()), -1) for _, pixels in found] == shades
    assert found[0][1].shape == (90, 120, 3) and found[-1][1].shape == (180, 320, 3)
    assert all(abs(each.piece.wall(each.pts) - began) < 2 for each, _ in found)
    assert len(recordings.of("door")) == 2


KILLED = """
    import sys, time
    from pathlib import Path
    from capture import Mailbox, SourceOptions, open_source
    from streamer.memory.folder import Folder
    from streamer.memory.recording import Recordings
    recordings = Recordings(Folder(Path(sys.argv[1])), 10**9, 24)
    source, recorder = open_source(sys.argv[2], SourceOptions(loop=True)), recordings.recorder("door")
    source.record(recorder)
    source.start(Mailbox(4), lambda status: None)
    while recordings.size < int(sys.argv[3]):
        time.sleep(0.05)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_all_but_its_last_fragment(tmp_path: Path) -> None:
    clip = render(tmp_path / "clip.mp4", 500, key=500)  # one key frame in all: fragments are cut by time alone
    state = tmp_path / "state"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(state), str(clip), "20000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    alive = time.time()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (recordings := Recordings(Folder(state), 10**9, 24)).close()
    (kept,) = recordings.of("door")
    torn = kept.path.with_suffix(".jsonl")
    torn.write_bytes(torn.read_bytes()[:-7])
    run = pieces([kept])
    frames = list(decoded(run))
    assert len(frames) >= 25 and alive - kept.ends < 3 and len(run[0].notes.frames) >= 25
    assert alive - run[0].wall(frames[-1].pts) < 3.5
    begun = kept.path.with_name("0000000002-1800000000000.mp4")  # it died before the first packet of another was there
    data = kept.path.read_bytes()
    begun.write_bytes(data[: data.index(b"moof") - 4])
    begun.with_suffix(".jsonl").write_text(torn.read_text().splitlines()[0] + "\n")
    (again := Recordings(recordings.folder, 10**9, 24)).close()
    assert [each.path for each in again.of("door")] == [kept.path]
    assert sorted(kept.path.parent.iterdir()) == sorted((kept.path, torn))


def test_the_oldest_goes_first_and_what_is_forgotten_is_gone(recordings: Recordings, tmp_path: Path) -> None:
    clip = str(render(tmp_path / "clip.mp4", 100))
    record(recordings, clip, 100, name="one")
    record(recordings, clip, 100, name="two")
    one, two = recordings.of("one"), recordings.of("two")
    assert len(one) >= 3 and len(two) >= 3
    recordings.budget = recordings.size - one[0].size
    recordings.thin(time.time())
    assert recordings.of("one") == one[1:] and recordings.of("two") == two and not one[0].path.exists()
    assert recordings.forget("two", two[1].begins, two[1].ends - 0.1)[0] == 1
    assert recordings.of("two") == [two[0], *two[2:]] and not two[1].path.exists()
    recordings.hours = 1.0
    recordings.thin(time.time() + 3 * 3600)
    assert recordings.size == 0 and not list((recordings.folder.path / "recordings").rglob("*.*"))
    again = Recordings(recordings.folder, 10**9, 24)
    assert again.of("one") == []
    again.close()


def test_where_segments_end_is_read_where_their_files_do_not_tell(tmp_path: Path) -> None:
    began = 1_800_000_000
    for number, (begins, wrote) in enumerate(((0, 10), (10, 14), (20, 30), (90, 100)), 1):
        path = tmp_path / f"{number:010d}-{(began + begins) * 1000}.mp4"
        path.write_bytes(bytes(7))
        path.with_suffix(NOTES).write_text(json.dumps(["frame", 1, number, 0, began + begins + 3.5]))
        os.utime(path, (began + wrote,) * 2)
    found = find_segments(tmp_path)
    assert [each.number for each in found] == [1, 2, 3, 4] and all(each.size > 7 for each in found)
    assert [each.ends - each.begins for each in found] == [10, 3.5, 3.5, 3.5]


def test_segments_in_which_nothing_is_are_gone_after_a_start(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "state")
    place = folder.place("recordings", "door")
    for number in range(3):
        path = place / f"{number:010d}-1800000000000.mp4"
        path.write_bytes(bytes(number))
        path.with_suffix(NOTES).touch()
    recordings = Recordings(folder, 10**9, 100)
    assert not recordings.of("door") and not list(place.iterdir())
    recordings.close()
    folder.close()


def test_a_segment_that_the_system_does_not_let_be_read_now_is_kept(
    recordings: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = recordings.folder.place("recordings", "door")
    path = Path(render(place / "0000000001-1800000000000.mp4", 30))
    path.with_suffix(NOTES).touch()
    real = av.open

    def denied(name: str, *rest: Any, **options: Any) -> Any:
        raise av.error.PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    for failing in (True, False):
        monkeypatch.setattr(av, "open", denied if failing else real)
        others = Recordings(recordings.folder, 10**9, 10**6)
        others.close()
        assert [each.path for each in others.of("door")] == [path] and path.exists()


def test_what_is_forgotten_while_it_is_written_is_no_fault(recordings: Recordings, tmp_path: Path) -> None:
    clip = str(render(tmp_path / "clip.mp4", 100, key=100))
    source, recorder = open_source(clip, SourceOptions(loop=True)), recordings.recorder("door")
    source.record(recorder)
    source.start(Mailbox(4), lambda status: None)
    wait_for(lambda: recordings.size > 1000)
    recordings.forget("door")
    wait_for(lambda: bool(recordings.of("door")))
    source.stop()
    recorder.close()
    assert recordings.fault is None and recordings.of("door")[0].begins > time.time() - 10


def test_a_folder_that_is_removed_is_told_and_recording_resumes(
    recordings: Recordings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = str(render(tmp_path / "clip.mp4", 50))
    source, recorder = open_source(clip, SourceOptions(loop=True)), recordings.recorder("door")
    mailbox = Mailbox(4)
    source.record(recorder)
    source.start(mailbox, lambda status: None)
    wait_for(lambda: recordings.size > 1000)
    recordings.folder.path.rename(tmp_path / "gone")  # at once: a segment may begin while it is emptied
    wait_for(lambda: recordings.fault is not None)
    wait_for(lambda: recorder.lost > 20)
    received = mailbox.received
    wait_for(lambda: mailbox.received > received + 20)  # watching goes on
    recordings.folder.path.mkdir()
    wait_for(lambda: recordings.fault is None)
    recordings.begin_anew()
    assert all(each.path.exists() for each in recordings.of("door")) and recordings.of("door")
    source.stop()
    recorder.close()
    assert recordings.faults == 1 and recordings.lost > 20
    assert sum("nothing can be recorded" in each.message for each in caplog.records) == 1


def test_what_the_model_sees_after_its_source_has_ended_is_noted(recordings: Recordings, tmp_path: Path) -> None:
    """However long it takes to: frames wait for it, while what the source has sent is already whole on the disk."""
    clip = str(render(tmp_path / "clip.mp4", 20))
    source, recorder = open_source(clip, SourceOptions(realtime=False)), recordings.recorder("door")
    mailbox = Mailbox(64, policy="every")
    source.record(recorder)
    source.start(mailbox, lambda status: None)
    wait_for(lambda: source.status.state == "ended")
    recorder.rest()
    wait_for(lambda: recorder.seconds > 0)  # the segment has ended

    def seen() -> list[int]:
        (piece,) = pieces(recordings.of("door"))
        return [sequence for step in piece.notes.steps for sequence, _ in step.frames]

    assert len(mailbox) == 20 and not seen()
    for n in range(5):
        recorder.ingested(1, [(frame.sequence, frame.time) for frame in mailbox.take(STEPS)])
        wait_for(lambda n=n: len(seen()) == (n + 1) * STEPS)  # type: ignore[misc]
    assert seen() == list(range(5 * STEPS))
    recordings.forget("door")
    recorder.ingested(1, [(frame.sequence, frame.time) for frame in mailbox.take(STEPS)])
    source.stop()
    recorder.close()
    wait_for(lambda: recorder not in recordings._recorders)
    assert not list((recordings.folder.path / "recordings").rglob("*.*")) and recordings.fault is None


@pytest.fixture
def footage(recordings: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Clips, list[float]]:
    """Six seconds of a clip whose seconds are of different greys, and when each of its pictures was captured.

    On a machine that stood still for a while those are no even steps.
    """
    path = render(
        tmp_path / "clip.mp4",
        150,
        picture=lambda n: np.full((90, 160, 3), 20 + 40 * (n // 25), np.uint8),
        size=(160, 90),
    )
    record(recordings, str(path), 150)
    monkeypatch.setattr("streamer.memory.clips.GROWING", 0.0)  # nothing is written any more
    frames = [each for piece in pieces(recordings.of("door")) for each in piece.notes.frames]
    assert [each.sequence for each in frames] == list(range(150))
    return Clips(recordings), [each.wall for each in frames]


def test_a_still_of_a_camera_that_shows_one_a_minute(recordings: Recordings) -> None:
    """What stands until the next picture comes; not beyond the last, nor where something between was forgotten."""
    recorder, now = recordings.recorder("door"), time.monotonic()
    for n in range(4):
        pixels = np.full((90, 160, 3), 20 + 40 * n, np.uint8)
        recorder.frame(Frame(pixels, now - 300 + 60 * n, 60.0 * n, n, "push://door"), None)
    recorder.close()
    wait_for(lambda: recorder not in recordings._recorders)
    clips, begins = Clips(recordings), recordings.of("door")[0].begins

    def shown(second: float) -> int | None:
        try:
            picture, taken = clips.still("door", begins + second)
        except AssistantError as error:
            assert error.code == "no_recording"
            return None
        from capture.image import decode_image

        found = grey(decode_image(picture, 640))
        assert abs(taken - begins - 60 * found) < 0.1
        return found

    assert [shown(second) for second in (-1, 1, 55, 61, 119, 200, 215)] == [None, 0, 0, 1, 1, 3, None]
    recordings.forget("door", begins + 59, begins + 61)
    assert [shown(second) for second in (20, 55, 100, 125)] == [0, None, None, 2]


def grey(pixels: np.ndarray) -> int:
    return round(float(pixels.mean()) / 40 - 0.5)


def test_clips_and_stills_of_any_span(footage: tuple[Clips, list[float]]) -> None:
    clips, walls = footage
    begins, ends = walls[0], walls[-1]

    def newest(moment: float, step: int = 1) -> int:
        """The picture that stands at a moment, of every so many."""
        return max(n for n in range(0, 150, step) if walls[n] <= moment)

    since, until = (walls[27] + walls[28]) / 2, (walls[97] + walls[98]) / 2  # a segment begins with neither
    made = clips.clip("door", since, until, encoded=False)
    first, last = newest(since, step=10), newest(until)  # from a key frame on
    assert made.path is not None and made.clip.begins == pytest.approx(walls[first], abs=0.01)
    with av.open(str(made.path)) as container:
        frames = list(container.decode(video=0))
        assert [grey(frame.to_ndarray(format="rgb24")) for frame in frames] == [n // 25 for n in range(first, last + 1)]
        assert frames[0].time == 0
        for n, frame in enumerate(frames):  # as the clip's own clock goes, and where that stood still as ours does
            assert n / 25 - 0.1 < float(frame.time or 0) < max(n / 25, walls[first + n] - walls[first]) + 0.6
        seconds = float(container.duration or 0) / 1e6
        assert seconds == pytest.approx(float(frames[-1].time or 0), abs=0.1)
        container.seek(round(seconds / 2 * 1e6))
        assert next(container.decode(video=0)).key_frame
    assert clips.clip("door", since, until, encoded=True).path == made.path, "H.264 is not encoded again"
    whole = b"".join(streamed(clips.clip("door", begins, ends + 1, encoded=False).clip))
    (Path(made.path).parent / "whole.mp4").write_bytes(whole)
    with av.open(str(Path(made.path).parent / "whole.mp4")) as container:
        assert len(list(container.decode(video=0))) == 150
    from capture.image import decode_image

    for second in (0.5, 2.5, 4.5):
        picture, taken = clips.still("door", begins + second)
        n = newest(begins + second)
        assert grey(decode_image(picture, 640)) == n // 25 and taken == pytest.approx(walls[n], abs=0.01)
    for since, until in ((begins - 100, begins - 50), (ends + 60, ends + 70)):
        with pytest.raises(AssistantError, match="Nothing of stream 'door' is recorded there"):
            clips.clip("door", since, until, encoded=False)
    for since, until in ((begins, begins - 1), (begins, begins + 10**6)):
        with pytest.raises(AssistantError) as error:
            clips.clip("door", since, until, encoded=False)
        assert error.value.code == "bad_span"
    made = clips.clip(
        "door", begins - 86_400, begins + 1e-3, encoded=False
    )  # a day, and what typing took; of one picture
    assert made.path is not None and made.clip.begins == pytest.approx(begins, abs=0.1)


@pytest.mark.parametrize(("codec", "pixels", "name"), [("libx265", "yuv420p", "hevc"), ("mjpeg", "yuvj420p", "mjpeg")])
def test_what_browsers_do_not_play_is_encoded_on_request(
    recordings: Recordings, tmp_path: Path, codec: str, pixels: str, name: str
) -> None:
    path = render(tmp_path / "clip.mkv", 50, codec=codec, pixel_format=pixels)
    record(recordings, str(path), 50)
    begins = recordings.of("door")[0].begins
    names = []
    for encoded in (False, True):
        made = Clips(recordings).clip("door", begins, begins + 5, encoded=encoded)
        with av.open(str(made.path)) as container:
            names.append(container.streams.video[0].codec_context.name)
            assert len(list(container.decode(video=0))) == 50
    assert names == [name, "h264"]


def with_sound(path: Path, seconds: int, codec: str = "libx264", sound_codec: str = "aac") -> Path:
    """A clip whose odd seconds are bright and are a tone, and whose even ones are dark and silent."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        sound = container.add_stream(sound_codec, rate=8_000 if "law" in sound_codec else 16_000, layout="mono")
        video.width, video.height, video.pix_fmt, video.codec_context.gop_size = 160, 90, "yuv420p", 5
        video.codec_context.thread_count, video.options = 1, {"preset": "ultrafast", "tune": "zerolatency"}
        for n in range(25 * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((90, 160, 3), 200 * (n // 25 % 2), np.uint8), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(video.encode(frame))
            times = np.arange(640 * n, 640 * (n + 1)) / 16_000
            wave = (0.5 * np.sin(2 * np.pi * 440 * times) * (times.astype(int) % 2)).astype(np.float32)
            heard = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = 16_000, 640 * n, Fraction(1, 16_000)
            container.mux(sound.encode(heard))
        for stream in (video, sound):
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("audio", "codec", "name", "sound"),
    [
        (True, "libx264", "clip.mp4", "aac"),
        (False, "libx264", "clip.mp4", "aac"),
        (True, "libx265", "clip.mp4", "aac"),
        (True, "libx264", "clip.ts", "aac"),  # ADTS
        (True, "libx264", "clip.mov", "pcm_mulaw"),
        (True, "libx264", "clip.mov", "pcm_alaw"),
    ],
)
def test_sound_goes_along_where_it_is_wanted(
    recordings: Recordings, tmp_path: Path, audio: bool, codec: str, name: str, sound: str
) -> None:
    path = with_sound(tmp_path / name, 4, codec, sound)
    seen = record(recordings, str(path), 100, audio=audio)
    assert same(recordings, seen) > 90
    begins = recordings.of("door")[0].begins
    made = Clips(recordings).clip("door", begins + 0.6, begins + 3.7, encoded=codec != "libx264")
    streamed_path = tmp_path / "streamed.mp4"
    streamed_path.write_bytes(b"".join(streamed(made.clip)))
    for written in (made.path, streamed_path):
        with av.open(str(written)) as container:
            assert [each.type for each in container.streams] == ["video", "audio"][: 1 + audio]
            bright = [
                (frame.time, frame.to_ndarray(format="rgb24").mean() > 100) for frame in container.decode(video=0)
            ]
            rises = [at for (_, before), (at, now) in pairwise(bright) if now and not before]
        if not audio:
            continue
        with av.open(str(written)) as container:
            loud = [(frame.time, float(np.abs(frame.to_ndarray()).mean()) > 0.1) for frame in container.decode(audio=0)]
        tones = [at for (_, before), (at, now) in pairwise(loud) if now and not before]
        assert len(rises) == len(tones) == 2
        # Of what is encoded, up to a tenth of a second is missing where a segment begins.
        late = 0.1 if name == "clip.mp4" else 0.25
        assert all(abs(one - other) < late for one, other in zip(rises, tones, strict=True)), (rises, tones)


@needs_rtsp
@pytest.mark.parametrize("audio", [True, False])
def test_a_cameras_sound(recordings: Recordings, rtsp: RtspServer, audio: bool) -> None:
    seen = record(recordings, rtsp.url("/heard"), 60, audio=audio)
    assert recordings.lost == 0 and recordings.fault is None and same(recordings, seen) == len(seen)
    kept = recordings.of("door")
    made = Clips(recordings).clip("door", kept[0].begins, kept[-1].ends, encoded=False)
    with av.open(str(made.path)) as container:
        assert len(container.streams.audio) == audio
        if audio:
            heard = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
            assert heard == pytest.approx(kept[-1].ends - kept[0].begins, abs=0.5)
