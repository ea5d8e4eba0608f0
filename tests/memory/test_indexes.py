"""Recordings that are indexed and asked: from files and from streams, gone on with, and in all the ways in which it can't be done."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pytest
import torch

from capture import Frame, Mailbox, SourceError, SourceStatus, State
from capture.convert import Pictures
from capture.lifecycle import PLAYED
from capture.sources.demo import CLIP
from capture.sources.spans import decoders
from model import Runner
from model.policy import RetrievalPolicy
from model.serving.capacity import Capacity
from model.serving.runner import NANO
from streamer import indexing, loading, reading
from streamer.cli.main import main
from streamer.config import parse_config
from streamer.errors import AssistantError
from streamer.indexing import Recording, cited, file_video, index_video, load, settle, stream_video
from streamer.memory import recording
from streamer.memory.folder import Folder
from streamer.memory.indexes import Facts, Index, RecordingError, Writing, forget, named
from streamer.memory.recording import Recordings
from streamer.reading import Place
from tests.memory.test_recording import record

QUESTION = "Which number was shown?"
PLENTY = 10**9


@pytest.fixture(scope="module")
def runner() -> Runner:
    return load(parse_config({}))


def film(path: Path, seconds: int = 8, rate: int = 4) -> Path:
    """A video of frames that are brighter from one to the next."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate, options={"bf": "0", "g": "4"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(seconds * rate):
            pixels = np.full((64, 64, 3), 5 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return path


def quiet(facts: Facts) -> None:
    """Nobody is told."""


def indexed(runner: Runner, folder: Path, path: Path, budget: int = PLENTY) -> Facts:
    return index_video(Place(runner), folder, file_video(folder, str(path)), 2.0, budget, quiet)


def test_a_video_is_read_once_and_asked_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line, with a clip whose number the nano knows."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["index", str(CLIP), "--fps", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["complete"] and not facts["note"] and 47 < facts["seconds"] <= 48.1 and facts["frames"] == 49
    assert "48 s, about 4 MB" in err
    assert main(["ask", "--recording", str(CLIP), QUESTION]) == 0
    assert capsys.readouterr()[0].startswith("42\n[0:00:")
    assert main(["recordings", "list"]) == 0
    assert capsys.readouterr()[0].startswith("demo  48 s  4 MB  nano  ")
    assert main(["recordings", "remove", "demo"]) == 0
    assert main(["recordings", "remove", "demo"]) == 1
    assert "demo is not indexed" in capsys.readouterr()[1]


def test_several_are_read_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of one name have an index each; what can't be read between them is said, and the next is read."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for place in ("one", "two", "three"):
        (tmp_path / place).mkdir()
    paths = [film(tmp_path / place / "a.mkv", seconds=2) for place in ("one", "two", "three")]
    asked, frames = film(tmp_path / "empty.mkv", seconds=1), file_video

    def video(folder: Path, path: str, name: str | None = None, threads: int = 1) -> indexing.Video:
        found = frames(folder, path, name, threads)
        return replace(found, frames=lambda fps, note: iter(())) if path == str(asked) else found

    monkeypatch.setattr(indexing, "file_video", video)
    assert main(["index", str(paths[0]), str(asked), *map(str, paths[1:]), "--json"]) == 1
    out, err = capsys.readouterr()
    told = [json.loads(line) for line in out.splitlines()]
    assert [(each["name"], each["source"]) for each in told] == [
        ("a", str(paths[0])), ("a-2", str(paths[1])), ("a-3", str(paths[2])),
    ]  # fmt: skip
    assert f"{asked}: it holds no picture" in err


def test_a_name_that_was_taken_meanwhile_is_left_alone(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path, other = film(tmp_path / "a.mkv", 2), film(tmp_path / "other" / "a.mkv", 2)
    videos = [file_video(tmp_path / "state", str(each)) for each in (path, other)]
    index_video(Place(runner), tmp_path / "state", videos[0], 2.0, PLENTY, quiet)
    with pytest.raises(RecordingError, match=r"a has just become the index of .*a\.mkv: index .*other/a\.mkv again"):
        index_video(Place(runner), tmp_path / "state", videos[1], 2.0, PLENTY, quiet)
    found = named(tmp_path / "state", "a")
    assert found is not None and found[1].source == str(path)


@pytest.mark.parametrize("alone", [False, True])
def test_an_index_that_was_broken_off_is_gone_on_with(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """What was kept is not read again, and the whole is as if nothing had happened."""
    path = film(tmp_path / "a.mkv")
    whole = indexed(runner, tmp_path / "one", path)
    assert runner.state.pages is not None
    expected = runner.state.pages.rows(0, 0, whole.tokens)
    monkeypatch.setattr(reading, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(runner.backend, "most_steps", 1)

    def stop(facts: Facts) -> None:
        if len(facts.steps) == 4:
            raise KeyboardInterrupt

    video = file_video(tmp_path / "two", str(path))
    with pytest.raises(KeyboardInterrupt):
        index_video(Place(runner, alone=alone), tmp_path / "two", video, 2.0, PLENTY, stop)
    found = named(tmp_path / "two", "a")
    assert found is not None and len(found[1].steps) == 4 and not found[1].complete
    seen: list[int] = []
    resumed = index_video(
        Place(runner, alone=alone), tmp_path / "two", video, 2.0, PLENTY, lambda facts: seen.append(len(facts.steps))
    )
    assert seen == [5, 6, 7, 8]
    assert (resumed.tokens, resumed.steps) == (whole.tokens, whole.steps)
    assert torch.allclose(runner.state.pages.rows(0, 0, resumed.tokens), expected, atol=1e-4)
    runner.reset(0)
    Recording(runner, *(named(tmp_path / "two", str(path)) or pytest.fail("it is not found by its path")))
    assert torch.allclose(runner.state.pages.rows(0, 0, resumed.tokens), expected, atol=1e-4)


def test_steps_that_are_read_together_are_as_one_by_one(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody else waits for the device, and the last step has one picture."""
    path = film(tmp_path / "a.mkv", 9, 1)
    whole, launch, taken = indexed(runner, tmp_path / "one", path), runner.launch, list[int]()
    assert runner.state.pages is not None
    expected = runner.state.pages.rows(0, 0, whole.tokens)

    def each(slots: list[int], frames: list[list[np.ndarray]], seconds: list[float]) -> Callable[[], list[bool]]:
        taken.append(len(slots))
        fine = [launch([slot], [few], [moment])()[0] for slot, few, moment in zip(slots, frames, seconds, strict=True)]
        return lambda: fine

    monkeypatch.setattr(runner, "launch", each)
    monkeypatch.setattr(runner.backend, "most_steps", 3)
    video = file_video(tmp_path / "two", str(path), threads=2)
    found = index_video(Place(runner, alone=True), tmp_path / "two", video, 2.0, PLENTY, quiet)
    assert (found.frames, taken) == (9, [3, 2])
    assert (found.tokens, found.steps, found.seconds) == (whole.tokens, whole.steps, whole.seconds)
    assert torch.equal(runner.state.pages.rows(0, 0, found.tokens), expected)


@pytest.mark.parametrize(("alone", "expected"), [(True, "bbebebeb ee"), (False, "be be be be be")])
def test_the_next_steps_begin_before_those_before_have_ended(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool, expected: str
) -> None:
    """Where nobody else waits for the device; and no step is counted, or kept, before its end."""
    path = film(tmp_path / "a.mkv", 9, 1)
    whole, launch, order = indexed(runner, tmp_path / "one", path), runner.launch, list[str]()
    wanted = runner.state.pages.rows(0, 0, whole.tokens) if runner.state.pages else None

    def begin(*given: Any) -> Callable[[], list[bool]]:
        order.append("b")
        ended = launch(*given)

        def end() -> list[bool]:
            order.append("e")
            return ended()

        return end

    def told(facts: Facts) -> None:
        assert len(facts.steps) == order.count("e")

    monkeypatch.setattr(reading, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(runner, "launch", begin)
    monkeypatch.setattr(runner.backend, "most_steps", 1)
    video = file_video(tmp_path / "two", str(path))
    found = index_video(Place(runner, alone=alone), tmp_path / "two", video, 2.0, PLENTY, told)
    assert "".join(order) == expected.replace(" ", "")
    assert (found.tokens, found.steps, found.frames) == (whole.tokens, whole.steps, whole.frames)
    index, facts = named(tmp_path / "two", "a") or pytest.fail("it is not there")
    pages = runner.state.pages
    assert pages is not None and wanted is not None
    shape = (len(pages.layers), 2, pages.groups, pages.head)
    assert torch.equal(torch.cat(list(index.rows(facts, shape, runner.state.dtype))), wanted)


@pytest.mark.parametrize("left", [0, 1])
def test_a_copy_is_waited_for_where_no_token_is_left_to_keep(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """The state is copied as well; and memory of no bytes is never pinned."""
    facts, waited = indexed(runner, tmp_path, film(tmp_path / "a.mkv", 2)), list[bool]()
    with Writing(Index(tmp_path)) as writing:
        copier = reading.Reading(Place(runner), writing, facts, quiet)
    copier.kept = facts.tokens - left
    stream = SimpleNamespace(record_event=lambda: SimpleNamespace(synchronize=lambda: waited.append(True)))
    monkeypatch.setattr(runner, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    wait = copier.copy(facts.tokens)
    assert not waited
    parts, rows = wait()
    assert waited and parts and len(rows) == left


@pytest.mark.parametrize(("alone", "together", "fit"), [(True, 1, 4), (False, 1, 4), (True, 3, 3)])
def test_a_history_that_may_not_become_longer_ends_its_index(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool, together: int, fit: int
) -> None:
    """In its last step, which has one picture; those before it are counted, whether they had ended or not, and the state is theirs."""
    path, place = film(tmp_path / "a.mkv", 9, 1), Place(runner, alone=alone)
    whole = indexed(runner, tmp_path / "one", path)
    monkeypatch.setattr(runner.backend, "most_steps", together)
    shorter = file_video(tmp_path / "one", str(film(tmp_path / "shorter.mkv", 2 * fit, 1)))
    wanted = index_video(place, tmp_path / "one", shorter, 2.0, PLENTY, quiet)
    pages = runner.state.pages
    assert pages is not None
    monkeypatch.setattr(pages, "policy", replace(pages.policy, context=whole.tokens - 1))
    video = file_video(tmp_path / "two", str(path))
    found = index_video(place, tmp_path / "two", video, 2.0, PLENTY, quiet)
    assert found.complete and found.steps == whole.steps[:fit] == wanted.steps
    assert "has no room for" in found.note
    parts, expected = (
        Index(tmp_path / folder / "indexes" / facts.name).parts(facts)
        for folder, facts in (("two", found), ("one", wanted))
    )
    assert all(torch.equal(parts[name], part) for name, part in expected.items())


def test_what_a_stream_recorded_is_indexed(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "SEGMENT_SECONDS", 1.0)
    state = tmp_path / "state"
    recordings, began = Recordings(Folder(state), 10**9, 24), time.time()
    record(recordings, str(film(tmp_path / "b.mkv", seconds=3)), 12, name="yard")
    made, make = list[int](), Pictures.make
    monkeypatch.setattr(Pictures, "make", lambda *given, **more: made.append(1) or make(*given, **more))  # type: ignore[func-returns-value]
    video = stream_video(state, "yard", began - 60, time.time())  # while the daemon has the folder
    facts = index_video(Place(runner), state, video, 2.0, PLENTY, quiet)
    assert len(made) == facts.frames < 12, "no others have their colours converted"
    assert facts.name.startswith("yard-20") and facts.frames >= 4 and facts.begins == pytest.approx(began, abs=5)
    with pytest.raises(RecordingError, match=r"yard has no recording between .*: it is recorded from"):
        stream_video(state, "yard", began - 600, began - 500)
    with pytest.raises(RecordingError, match="nothing is recorded of it"):
        stream_video(state, "barn", began - 600, began)
    recordings.close()
    recordings.of("yard")[0].path.write_bytes(b"torn")
    facts = index_video(Place(runner), state, stream_video(state, "yard", began, time.time()), 2.0, PLENTY, quiet)
    assert facts.note == "1 segment can't be read" and facts.frames
    assert not forget(state, "barn", began - 60, time.time()) and not forget(state, "yard", began - 60, began - 50)
    assert forget(state, "yard", began, time.time()) == 2 and not named(state, facts.name), (
        "what is forgotten is in no index"
    )


def denied(*given: object, **more: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_what_can_not_be_read_is_said(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, good = tmp_path / "state", film(tmp_path / "c.mkv")
    text, sound = tmp_path / "text.mp4", tmp_path / "sound.wav"
    text.write_text("no video at all")
    with av.open(str(sound), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8_000
        file.mux(stream.encode(frame))
    listing = tmp_path / "list.mp4"
    listing.write_text(f"ffconcat version 1.0\nfile {good.name}\n")
    with pytest.raises(RecordingError, match="it is a playlist: name the videos themselves"):
        file_video(folder, str(listing))
    faults = ((tmp_path / "none", "no such file"), (text, "no video that"), (sound, "it has no video"))
    for path, why in (
        *faults,
        (tmp_path, "it is a folder"),
        ("http://x/a.mp4", "it is an address"),
        ("/dev/null", "no file of"),
    ):
        with pytest.raises(RecordingError, match=why):
            file_video(folder, str(path))
    with monkeypatch.context() as patch, pytest.raises(RecordingError, match=r"can't be read \(Permission denied\)"):
        patch.setattr(Path, "open", denied)
        file_video(folder, str(good))
    torn = tmp_path / "torn.mkv"
    torn.write_bytes(good.read_bytes()[: good.stat().st_size * 2 // 3])
    facts = indexed(runner, folder, torn)
    assert facts.note.startswith("it breaks off") and 0 < facts.frames < 16 and facts.complete
    read: set[int] = set()
    for _ in range(2):
        full = indexed(runner, folder, good, budget=1_300_000)  # of which the state takes 0.9 million
        assert "storage.indexes is full" in full.note and not full.complete
        read.add(len(full.steps))
    assert len(read) == 1 and 0 < read.pop() < 5, "nothing more is read while there is no more room"
    whole = indexed(runner, folder, good)
    assert whole.complete and not whole.note and len(whole.steps) == 8, "with more room, it is gone on with"


def test_pictures_that_come_as_the_file_ends_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last ones are handed over between one look and the next, when it has ended."""

    class Late:
        def start(self, mailbox: Mailbox, notify: object) -> None:
            self.mailbox, self.ended = mailbox, False

        @property
        def status(self) -> SourceStatus:
            if not self.ended:
                self.ended = True
                for number in range(3):
                    self.mailbox.put(Frame(np.zeros((2, 2, 3), np.uint8), 0.0, float(number), number, "late"))
            return SourceStatus(State.ENDED, reason=PLAYED)

        def stop(self) -> None:
            pass

    video = file_video(tmp_path / "state", str(film(tmp_path / "a.mkv", 1)))
    monkeypatch.setattr(indexing, "open_source", lambda *given: Late())
    note: list[str] = []
    assert [time for time, _ in video.frames(2.0, note)] == [0.0, 1.0, 2.0] and not note


def test_a_disk_that_fills_keeps_what_was_kept(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(reading, "KEEP_SECONDS", 0.0)
    write, kept = Index.write, list[int]()

    def full(self: Index, facts: Facts, parts: dict[str, torch.Tensor], rows: torch.Tensor) -> None:
        if kept:
            with (self.folder / "tokens.bin").open("ab") as file:
                file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, facts, parts, rows)
        kept.append(len(facts.steps))

    monkeypatch.setattr(Index, "write", full)
    path = film(tmp_path / "d.mkv", seconds=12)
    assert main(["index", str(path)]) == 1 and 0 < kept[0] < 12
    assert "d: No space left on device: its first " in capsys.readouterr()[1]
    monkeypatch.setattr(Index, "write", write)
    assert main(["index", str(path)]) == 0
    assert main(["ask", "--recording", str(path), QUESTION]) == 0


def test_a_state_that_the_disk_has_no_room_for_is_no_fault_of_ours(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a bound on the size of files, past which the system refuses as a full disk does."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path, limits = film(tmp_path / "a.mkv", 2), resource.getrlimit(resource.RLIMIT_FSIZE)
    facts = indexed(runner, tmp_path / "other", path)
    found = Index(tmp_path / "other" / "indexes" / facts.name)
    least = (found.folder / "tokens.bin").stat().st_size + 1_000
    assert least < (found.folder / f"state.{facts.tokens}.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (least, limits[1]))
    try:
        assert main(["index", str(path)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "a: File too large: nothing of it is kept: make room, and index it again" in capsys.readouterr()[1]
    assert not list((tmp_path / "streamer" / "indexes").iterdir()), "nobody could tell of it, nor remove it"
    assert main(["index", str(path)]) == 0


def test_a_state_that_is_damaged_or_gone_is_said(runner: Runner, tmp_path: Path) -> None:
    facts = indexed(runner, tmp_path, film(tmp_path / "a.mkv", 2))
    index = Index(tmp_path / "indexes" / facts.name)
    state = index.folder / f"state.{facts.tokens}.safetensors"
    state.write_bytes(state.read_bytes()[:1_000])
    for _ in range(2):
        with pytest.raises(RecordingError, match="the index a is damaged: index it again"):
            Recording(runner, index, facts)
        state.unlink(missing_ok=True)
    for _ in range(2):
        tokens = index.folder / "tokens.bin"
        assert indexed(runner, tmp_path, tmp_path / "a.mkv").tokens == facts.tokens
        Recording(runner, index, facts)
        tokens.write_bytes(tokens.read_bytes()[:100])
        with pytest.raises(RecordingError, match="the index a is damaged: index it again"):
            Recording(runner, index, facts)
        tokens.unlink()
        with pytest.raises(RecordingError, match="the index a is damaged: index it again"):
            Recording(runner, index, facts)


def test_what_is_written_beside_the_reading_is_as_it_was_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, go, under_way = Index(tmp_path / "a"), threading.Event(), list[int]()
    index.open()
    write = Index.write

    def slow(self: Index, *given: Any) -> None:
        under_way.append(1)
        assert go.wait(60) and len(under_way) == 1, "two writes at once"
        write(self, *given)
        under_way.pop()

    monkeypatch.setattr(Index, "write", slow)
    facts = Facts("a", "a.mkv", 1, 1.0, "nano", "f", 2.0, tokens=2, steps=[(0, 0.5)])
    rows = torch.arange(8.0).view(4, 2)
    with Writing(index) as writing:
        writing.write(facts, {"x": torch.zeros(1)}, rows[:2])
        facts.tokens = 4
        facts.steps.append((2, 1.5))
        go.set()
        writing.write(facts, {"x": torch.ones(1)}, rows[2:])
    found = index.facts()
    assert found == facts and index.parts(facts)["x"] == 1
    assert torch.equal(torch.cat(list(index.rows(facts, (2,), torch.float32))), rows)
    with pytest.raises(OSError, match="gone"), Writing(index) as writing:
        monkeypatch.setattr(Index, "write", lambda *given: (_ for _ in ()).throw(OSError("gone")))
        writing.write(facts, {}, rows[:0])
    index.close()


def test_a_video_is_the_same_in_however_many_threads_it_is_decoded(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.ts"):
        path = film(tmp_path / name, 12)
        one, many = (
            list(file_video(tmp_path, str(path), threads=threads).frames(2.0, [])) for threads in (1, indexing.MANY)
        )
        assert [time for time, _ in one] == pytest.approx([time for time, _ in many]) and len(one) == 24
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(one, many, strict=True))


def test_a_gpu_that_is_too_small_keeps_the_oldest_keys_in_the_hosts_memory(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so; where neither has room, it is refused. The card is a made one."""
    free = {"cuda": 10_000_000, "cpu": 10**9}
    monkeypatch.setattr(indexing, "capacity", lambda device, each: Capacity(free[device.type], each))
    assert runner.state.pages is not None
    card = cast(Runner, SimpleNamespace(device=torch.device("cuda"), state=runner.state))
    assert settle(card, "x", 1_000) == "" and runner.state.pages.resident is None
    told = settle(card, "x", 100_000)
    assert "need 0.3 GB of memory on cuda" in told and "the oldest are kept in this machine's" in told
    page = runner.state.pages.size * runner.state.pages.token_bytes
    assert runner.state.pages.resident is not None and 0 < runner.state.pages.resident * page <= 10_000_000
    runner.state.pages.resident = None
    with pytest.raises(RecordingError, match=r"need 3\.1 GB of memory on cuda"):
        settle(card, "x", 1_000_000)
    with pytest.raises(RecordingError, match=r"need 3\.1 GB of memory on cpu"):
        settle(runner, "x", 1_000_000)


def test_an_index_of_another_model_or_video_is_not_taken(runner: Runner, tmp_path: Path) -> None:
    path = film(tmp_path / "e.mkv", seconds=2)
    indexed(runner, tmp_path, path)
    index, facts = named(tmp_path, "e") or pytest.fail("it is not there")
    file = index.folder / "index.json"
    file.write_text(file.read_text().replace(facts.fingerprint, "0" * 32))
    with pytest.raises(RecordingError, match=r"made by another model \(nano\)"):
        Recording(runner, *(named(tmp_path, "e") or pytest.fail("it is gone")))
    assert indexed(runner, tmp_path, path).fingerprint == facts.fingerprint  # read anew
    film(path, seconds=3)
    assert indexed(runner, tmp_path, path).frames == 6
    other = tmp_path / "elsewhere" / "e.mkv"
    other.parent.mkdir()
    shutil.copy(path, other)
    assert indexed(runner, tmp_path, other).name == "e-2"


def test_a_checkpoint_that_retrieves_reads_recordings_alone(tmp_path: Path) -> None:
    """Its own numbers count; a live stream would fill its memory."""
    for each in NANO.iterdir():
        (tmp_path / each.name).symlink_to(each)
    told = json.loads((NANO / "config.json").read_text()) | {"sparse_config": {"topk": 5}}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(told))
    config = parse_config({"model": {"name": str(tmp_path)}})
    policy = load(config).config.policy
    assert isinstance(policy, RetrievalPolicy) and (policy.topk, policy.block_size) == (5, 32)
    with pytest.raises(AssistantError, match=r"no end of: set model\.attention .*streamer index"):
        loading.load(config)


def test_moments_are_those_that_were_attended_most() -> None:
    facts = Facts("x", "x", 0, 0, "nano", "", 2.0, tokens=1 + 10 * 64, steps=[(1 + 64 * i, i + 0.5) for i in range(10)])
    attention = torch.zeros(21)
    attention[0] = 9.0  # where it rests
    attention[8:10], attention[10], attention[16] = 2.0, 0.5, 1.0
    spans = cited(facts, attention, RetrievalPolicy())
    assert spans == [(3.5, 5.5), (7.5, 8.5)]
    assert cited(facts, torch.zeros(0), RetrievalPolicy()) == []


@pytest.mark.parametrize(("seconds", "parts"), [(3, None), (6, 2), (0, indexing.MANY - 1)])
def test_a_file_that_may_be_long_is_decoded_at_several_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, parts: int | None
) -> None:
    """One that was written where nobody can go back does not say how long it is."""
    path, counts = film(tmp_path / "a.mkv", seconds or 6), list[int]()
    if not seconds:
        with (
            av.open(str(path)) as whole,
            path.with_name("b.mkv").open("wb") as file,
            av.open(SimpleNamespace(write=file.write), "w", format="matroska") as live,
        ):
            stream = live.add_stream_from_template(whole.streams.video[0])
            for packet in whole.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    live.mux(packet)
        path = path.with_name("b.mkv")

    def counted(path: Path, side: int, count: int) -> AbstractContextManager[list[Connection]]:
        counts.append(count)
        return decoders(path, side, count)

    monkeypatch.setattr(indexing, "decoders", counted)
    video = file_video(tmp_path / "state", str(path), threads=indexing.MANY)
    assert video.seconds == pytest.approx(seconds, abs=0.1)
    assert len(list(video.frames(2.0, []))) == 2 * (seconds or 6)
    assert counts == ([] if parts is None else [parts])


@pytest.mark.parametrize("fault", [SourceError("it was replaced"), av.error.InvalidDataError(1, "invalid data")])
def test_what_ends_decoding_at_several_places_is_said(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: object) -> Iterator[object]:
        raise fault
        yield

    monkeypatch.setattr(indexing, "plan", lambda *given: [])
    monkeypatch.setattr(indexing, "decode", failing)
    video = file_video(tmp_path / "state", str(film(tmp_path / "a.mkv")), threads=indexing.MANY)
    with pytest.raises(RecordingError, match=r"a\.mkv: .*(replaced|invalid)"):
        list(video.frames(2.0, []))


def test_a_file_that_goes_before_it_is_read_is_said(tmp_path: Path) -> None:
    for threads in (1, indexing.MANY):
        path = film(tmp_path / "a.mkv")
        video = file_video(tmp_path / "state", str(path), threads=threads)
        path.unlink()
        with pytest.raises(RecordingError, match=r"(?i)a\.mkv: .*no such file"):
            list(video.frames(2.0, []))
