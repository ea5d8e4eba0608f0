"""What is decoded at several places of a file at once is what its source hands over from beginning to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capture import SourceError, State
from capture.sources import spans as sources
from capture.sources.spans import Picture, Span, decoded, decoders, plan
from tests.capture.lab import Watcher, render, wait_for

SIDE = 160
FRAMES = 150
CLIPS: dict[str, dict[str, Any]] = {
    "low latency": {},
    "pictures out of order": {"encoder": {"preset": "veryfast", "bf": "3", "b-pyramid": "normal"}},
    "open groups": {"encoder": {"preset": "veryfast", "bf": "3", "x264-params": "open-gop=1"}},
    "key frames alone": {"key": 1},
    "HEVC": {"codec": "libx265", "encoder": {"preset": "ultrafast", "x265-params": "log-level=error:pools=1"}},
    "VP9": {"codec": "libvpx-vp9", "name": "clip.webm", "encoder": {"deadline": "realtime", "cpu-used": "8"}},
    "Matroska": {"name": "clip.mkv", "encoder": {"preset": "veryfast", "bf": "3"}},
    "gaps": {"times": lambda n: n + 40 * (n // 60) + 7 * (n // 9)},
    "pixels that are not square": {"aspect": Fraction(4, 3)},
}


def clip(folder: Path, name: str = "clip.mp4", **how: Any) -> Path:
    return render(folder / name, FRAMES, **{"key": 25, **how})


def decode(path: Path, spans: Sequence[Span], side: int, count: int) -> Iterator[Picture]:
    with decoders(path, side, count) as processes:
        yield from sources.decode(processes, spans)


def sequential(path: Path, fps: float) -> list[tuple[float, np.ndarray]]:
    watcher = Watcher(str(path), policy="every", fps=fps, largest_side=SIDE, realtime=False)
    watcher.until(State.ENDED)
    seen = [(frame.time, frame.pixels) for frame in watcher.frames()]
    watcher.source.stop()
    return seen


@pytest.mark.parametrize("kind", CLIPS)
def test_spans_are_the_file(kind: str, tmp_path: Path) -> None:
    path = clip(tmp_path, **CLIPS[kind])
    for fps in (2.0, 7.0, 25.0):
        spans = plan(path, fps, SIDE)
        assert spans is not None and len(spans) > 1
        found, wanted = list(decode(path, spans, SIDE, 2)), sequential(path, fps)
        assert [time for time, _ in found] == pytest.approx([time for time, _ in wanted], abs=1e-6)
        for (_, one), (_, other) in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def torn(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


UNFIT: dict[str, Callable[[Path], Path]] = {
    "a transport stream": lambda folder: clip(folder, "clip.ts"),
    "AVI": lambda folder: clip(folder, "clip.avi"),
    "one key frame": lambda folder: clip(folder, key=1_000),
    "torn": lambda folder: torn(clip(folder, options={"movflags": "+faststart"})),
    "no video": lambda folder: Path(__file__),
    "pictures renewed bit by bit": lambda folder: clip(folder, encoder={"x264-params": "intra-refresh=1:bframes=0"}),
    "slides": lambda folder: clip(folder, times=lambda n: n if n < 100 else 25 * 700 * n),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_files_that_must_be_read_from_their_beginning(kind: str, tmp_path: Path) -> None:
    assert plan(UNFIT[kind](tmp_path), 2.0, SIDE) is None


def test_a_file_of_few_key_frames_is_not_held_whole(tmp_path: Path) -> None:
    path = clip(tmp_path, key=140)
    assert plan(path, 25.0, SIDE) is None
    assert [len(span.wanted) for span in plan(path, 2.0, SIDE) or []] == [12, 1]


def test_what_is_damaged_is_missing(tmp_path: Path) -> None:
    path = clip(tmp_path)
    whole = plan(path, 25.0, SIDE)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = b"\0" * 400
    path.write_bytes(data)
    spans = plan(path, 25.0, SIDE)
    assert spans == whole and spans is not None
    found = [time for time, _ in decode(path, spans, SIDE, 2)]
    assert FRAMES - 25 <= len(found) <= FRAMES and found == sorted(found)


def children() -> set[int]:
    """The processes that this one has begun and that are still there."""
    found = Path("/proc/self/task").glob("*/children")
    return {int(each) for path in found for each in path.read_text().split()}


def test_who_has_seen_enough_leaves_no_process(tmp_path: Path) -> None:
    before = children()
    path = clip(tmp_path)
    spans = plan(path, 25.0, SIDE)
    assert spans is not None
    pictures = decode(path, spans, SIDE, 2)
    assert len(list(islice(pictures, 3))) == 3
    pictures.close()  # type: ignore[attr-defined]
    # multiprocessing's own tracker of resources stays, for whoever comes next.
    wait_for(lambda: len(children() - before) <= 1)


def test_who_is_interrupted_and_who_is_killed(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of a terminal, and is for the one that was begun there; for want of memory any is killed."""
    path = clip(tmp_path)
    spans = plan(path, 25.0, SIDE)
    assert spans is not None
    for what, message in ((signal.SIGINT, None), (signal.SIGKILL, "was killed")):
        pictures = decode(path, spans, SIDE, 1)
        next(pictures)
        for each in active_children():
            assert each.pid is not None
            os.kill(each.pid, what)
        if message is None:
            assert len(list(pictures)) == FRAMES - 1
        else:
            with pytest.raises(SourceError, match=message):
                list(pictures)


def test_another_file_in_its_place_is_refused(tmp_path: Path) -> None:
    path = clip(tmp_path)
    spans, stat = plan(path, 25.0, SIDE), path.stat()
    assert spans is not None
    path.rename(tmp_path / "other.mp4")
    clip(tmp_path)
    with pytest.raises(SourceError, match="replaced"):
        decoded(path, SIDE, (stat.st_dev, stat.st_ino), spans[0])


KILLED = """
import os, sys
from pathlib import Path
from capture.sources.spans import decode, decoders, plan

def main():
    path = Path(sys.argv[1])
    with decoders(path, 160, 2) as processes:
        next(decode(processes, plan(path, 25.0, 160)))
        for each in Path("/proc/self/task").glob("*/children"):
            print(*each.read_text().split(), flush=True)
        os.kill(os.getpid(), 9)

if __name__ == "__main__":
    main()
"""


def test_no_process_outlives_a_kill(tmp_path: Path) -> None:
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, str(program), str(clip(tmp_path))], capture_output=True, text=True, env=environment
    )
    left = [int(each) for each in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(left) >= 2, done.stderr
    wait_for(lambda: not any(Path(f"/proc/{each}").exists() and not ended(each) for each in left))


def ended(process: int) -> bool:
    """Whether a process has ended, though nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    path = clip(tmp_path)
    spans = plan(path, 2.0, SIDE)
    assert spans is not None
    path.unlink()
    with pytest.raises(OSError):
        list(decode(path, spans, SIDE, 2))
