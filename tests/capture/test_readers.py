"""Sources that processes of their own read: the same as here, whatever happens to those processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from capture import Coded, Coding, Frame, Mailbox, Patience, SourceError, SourceOptions, State, open_source
from capture.reader import Outlet
from capture.readers.apart import ApartSource
from capture.readers.channel import PIECE, Channel
from capture.readers.messages import Open, Shown, Told
from capture.readers.pool import SHARE, Reader, Readers
from capture.readers.slots import COUNT, Slots, new_memory
from tests.capture.lab import Watcher, drawn, needs_rtsp, render, rtsp_server, wait_for, watching

pytestmark = pytest.mark.beside


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="module")
def begun(clip: Path) -> Iterator[Watcher]:
    """One process reads for all tests, so that each need not wait for its own."""
    with watching(str(clip), loop=True, readers=1) as watcher:
        watcher.until(State.LIVE)
        yield watcher


def process(watcher: Watcher) -> int:
    """The process that reads a source."""
    reader = watcher.source.reads  # type: ignore[attr-defined]
    assert isinstance(reader, Reader) and reader.process is not None
    return reader.process.pid


def runs(pid: int) -> bool:
    """Whether a process is there; one that has ended and is not waited for is not."""
    with suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def over(watcher: Watcher) -> bool:
    """Whether a source has ended; its frames are taken meanwhile."""
    watcher.frames()
    return watcher.state is State.ENDED


class Kept:
    """All that a recorder is handed."""

    def __init__(self) -> None:
        self.codings: list[Coding | None] = []
        self.packets: list[Coded] = []
        self.frames: list[tuple[int, int | None]] = []

    def connected(self, coding: Coding | None) -> None:
        self.codings.append(coding)

    def packet(self, packet: Coded) -> None:
        self.packets.append(packet)

    def frame(self, frame: Frame, number: int | None) -> None:
        assert number is None or number <= self.packets[-1].number
        self.frames.append((frame.sequence, number))


CASES: dict[str, dict[str, object]] = {
    "whole": {},
    "thinned": {"fps": 5.0},
    "gated": {"change": 6.0},
    "later": {"start": 1.0},
    "shrunk": {"largest_side": 100},
    "truncated": {},
    "no video": {},
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_as_it_is_here(case: str, begun: Watcher, tmp_path: Path) -> None:
    still = (lambda n: drawn(n if n >= 25 else 0)) if case == "gated" else None
    path = render(tmp_path / "clip.mkv", picture=still)
    if case == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif case == "no video":
        path.write_bytes(bytes(range(256)) * 64)
    told = []
    for readers in (0, 1):
        given = {"realtime": False, "policy": "every", "capacity": 2, "patience": Patience(), **CASES[case]}
        with watching(str(path), readers=readers, **given) as watcher:
            wait_for(partial(over, watcher))
            assert isinstance(watcher.source, ApartSource) == bool(readers)
        told.append((watcher.states, watcher.frames(), replace(watcher.source.status, since=0.0)))
    (states, frames, status), apart = told
    assert (states, status) == (apart[0], apart[2])
    facts = [
        [(frame.sequence, frame.time, frame.source, frame.discontinuity, frame.pixels.shape) for frame in some]
        for some in (frames, apart[1])
    ]
    assert facts[0] == facts[1] and bool(frames) == (case != "no video")
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(frames, apart[1], strict=True))


def test_what_is_recorded_is_as_it_is_here(clip: Path, begun: Watcher) -> None:
    kept = []
    for readers in (0, 1):
        recorder, source = Kept(), open_source(str(clip), SourceOptions(realtime=False, readers=readers))
        source.record(recorder)
        mailbox = Mailbox(2, policy="every")
        source.start(mailbox, lambda status: None)
        wait_for(lambda: not mailbox.take(1) and source.status.state is State.ENDED)  # noqa: B023
        source.stop()
        kept.append((recorder.codings, [replace(each, arrived=0.0) for each in recorder.packets], recorder.frames))
    assert kept[0] == kept[1] and len(kept[0][1]) == 50 and kept[0][2][-1] == (49, 50)


def test_a_taker_that_is_slow_gets_the_newest(begun: Watcher, clip: Path) -> None:
    with watching(str(clip), loop=True, readers=1, capacity=1) as watcher:
        watcher.more(20)
        received = watcher.mailbox.received
        newest = watcher.mailbox.take(1)[0]
        assert newest.sequence >= received - 1 and watcher.mailbox.dropped >= received - 1
        wait_for(lambda: len(watcher.mailbox) == 1)
        assert watcher.mailbox.take(1)[0].sequence > newest.sequence


def test_who_does_not_take_at_all_holds_nothing_up(clip: Path) -> None:
    """No slot is ever given back: as many frames are on their way as there are, and the rest is the mailbox's there."""
    here, there = map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    file = new_memory(640)
    slots = Slots(file)
    os.close(file)
    options = SourceOptions(realtime=False)
    outlet = Outlet(there, Open(7, "door", str(clip), options, 2, "newest", 0, False), slots)
    outlet.start()
    shown: list[Shown] = []
    while len(shown) < COUNT:
        message = here.receive()[0]
        if isinstance(message, Shown):
            shown.append(message)
    wait_for(lambda: outlet.source is not None and outlet.source.status.state is State.ENDED)
    assert [each.sequence for each in shown] == list(range(COUNT)) and {each.slot for each in shown} == set(
        range(COUNT)
    )
    assert outlet.mailbox.dropped == 50 - COUNT - 2
    assert all(
        np.abs(slots.read(each.slot, each.shape).astype(int) - drawn(each.sequence)).mean() < 3 for each in shown
    )
    last: list[object] = []
    for each in shown:
        outlet.ship(each.slot)
    while not last or not isinstance(last[-1], Told) or last[-1].status.state is not State.ENDED:
        last.append(here.receive()[0])
        if isinstance(last[-1], Shown):
            outlet.ship(last[-1].slot)
    assert [each.sequence for each in last if isinstance(each, Shown)] == [48, 49], "and it ends once they are taken"


def test_messages_of_any_size() -> None:
    here, there = map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    file = os.memfd_create("test")
    for size in (0, PIECE - 8, PIECE, 4 * PIECE):
        here.send(bytes(size), file)
        message, files = there.receive()
        assert message == bytes(size) and os.fstat(files[0]).st_ino == os.fstat(file).st_ino
        os.close(files[0])
    os.close(file)
    here.close()
    with pytest.raises(EOFError):
        there.receive()


def test_a_password_stands_in_no_command_line_and_torch_is_not_there(begun: Watcher) -> None:
    with watching("rtsp://ada:lovelace@127.0.0.1:1/x", readers=1) as watcher:
        watcher.until(State.WAITING)
        assert watcher.source.name in watcher.source.status.reason and "lovelace" not in watcher.source.status.reason
        facts = Path(f"/proc/{process(watcher)}")
        assert b"lovelace" not in (facts / "cmdline").read_bytes() + (facts / "environ").read_bytes()
        assert "libtorch" not in (facts / "maps").read_text()


def test_only_what_ffmpeg_opens_is_read_apart(clip: Path) -> None:
    apart = SourceOptions(readers=1)
    assert not isinstance(open_source("push://door", apart), ApartSource)
    assert not isinstance(open_source(str(clip), replace(apart, hwaccel="auto")), ApartSource)
    with pytest.raises(SourceError, match="there is no such file"):
        open_source(str(clip.with_name("none.mp4")), apart)


@needs_rtsp
def test_a_camera_comes_back(begun: Watcher) -> None:
    with rtsp_server() as server, watching(server.url("/live"), readers=1) as watcher:
        watcher.more(5)
        server.stop()
        watcher.until(State.WAITING)
        server.start()
        watcher.until(State.LIVE)
        watcher.more(5)
        frames = watcher.frames()
        assert watcher.source.status.reconnects >= 1 and process(watcher) == process(begun)
    assert any(frame.discontinuity for frame in frames)
    assert all(later.time > earlier.time for earlier, later in pairwise(frames))


HOLDING = """
import sys, time
from capture import Mailbox, SourceOptions, open_source
source, mailbox = open_source(sys.argv[1], SourceOptions(loop=True, readers=1)), Mailbox()
source.start(mailbox, lambda status: None)
while not mailbox.received:
    time.sleep(0.02)
print(source.reads.process.pid, flush=True)
time.sleep(600)
"""


def test_whoever_is_killed_leaves_no_process_and_no_memory(clip: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    command = [sys.executable, "-c", HOLDING, str(clip)]
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}) as program:
        assert program.stdout is not None
        reader = int(program.stdout.readline())
        assert runs(reader)
        program.kill()
        wait_for(lambda: not runs(reader))
    assert not [path for path in set(Path("/dev/shm").iterdir()) - before if "streamer" in path.name]


def test_a_process_that_is_killed_is_begun_again(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its streams reconnect, and go on as after any interruption; a recording where it was. One line says so."""
    long = render(clip.with_name("long.mp4"), 500)
    with watching(str(clip), loop=True, readers=1) as camera, watching(str(long), readers=1) as recording:
        for each in (camera, recording):
            each.more(10)
        killed, had = process(camera), [len(each.frames()) for each in (camera, recording)]
        assert process(recording) == killed
        os.kill(killed, signal.SIGKILL)
        for each, count in zip((camera, recording), had, strict=True):
            wait_for(lambda: State.WAITING in each.states)  # noqa: B023
            assert "the process that read it was ended by SIGKILL" in each.reason(State.WAITING)
            wait_for(lambda: len(each.frames()) > count + 30)  # noqa: B023
            frames, status = each.frames(), each.source.status
            assert each.states[:5] == [State.CONNECTING, State.LIVE, State.WAITING, State.CONNECTING, State.LIVE]
            assert status.reconnects == 1 and status.frames > frames[-1].sequence
            marks = [later for later in range(1, len(frames)) if frames[later].discontinuity]
            assert marks and all(later.time > earlier.time for earlier, later in pairwise(frames))
            assert all(later.sequence > earlier.sequence for earlier, later in pairwise(frames))
        assert process(camera) != killed and not runs(killed)
        mark = next(n for n, frame in enumerate(recording.frames()) if n and frame.discontinuity)
        shown = [int(frame.pixels[60].mean(axis=1).argmax()) // 4 for frame in recording.frames()[mark - 1 : mark + 1]]
        assert (shown[1] - shown[0]) % 70 <= 3, "it goes on where it was; the square begins again after 70 pictures"
    lines = [record.message for record in caplog.records if "reconnect" in record.message]
    assert len(lines) == 1 and "the process that reads" in lines[0]


def test_a_process_ends_with_its_last_source(clip: Path) -> None:
    pool, options = Readers(), SourceOptions(loop=True, readers=1)
    sources = [ApartSource("clip", str(clip), options, endless=False, assign=pool.assign) for _ in range(2)]
    told: list[list[State]] = [[], []]
    for source, states in zip(sources, told, strict=True):
        source.start(Mailbox(), lambda status, states=states: states.append(status.state))  # type: ignore[misc]
        wait_for(lambda source=source: source.status.state is State.LIVE)  # type: ignore[misc]
    [pid] = pool.processes
    sources[0].stop()
    assert runs(pid) and pool.processes == [pid]
    sources[1].stop()
    wait_for(lambda: not runs(pid) and not pool.processes)
    assert told == 2 * [[State.CONNECTING, State.LIVE, State.ENDED]]


def test_new_processes_are_begun_up_to_their_most(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "run", lambda self: None)
    pool = Readers()
    for _ in range(4 * SHARE):
        ApartSource("clip", str(clip), SourceOptions(readers=3), endless=False, assign=pool.assign).start(
            Mailbox(), lambda status: None
        )
    counts = [len(reader.sources) for reader in pool.readers]
    assert len(counts) == 3 and sum(counts) == 4 * SHARE and max(counts) - min(counts) <= 1
