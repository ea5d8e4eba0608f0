"""What lies between a snapshot and a moment, shown again as the model was shown it: the same pictures, pairs and times."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import av
import numpy as np

from capture.convert import Pictures
from streamer.memory.footage import Piece, decoded, picture, pieces
from streamer.memory.recording import SEGMENT_SECONDS, Recordings
from streamer.memory.segment import Shown
from streamer.memory.snapshot import Taken

AHEAD = 8
"""Steps whose pictures wait for the engine."""
PATIENCE = 60.0
"""Seconds after which nobody seems to want the rest."""
SAME = 0.5
"""Seconds by which two clocks' words about one frame's capture may differ."""


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """Frames that the model saw together: uint8 [H, W, 3] RGB pictures, their seconds of stream time, the newest's capture."""

    pixels: tuple[np.ndarray, ...]
    times: tuple[float, ...]
    wall: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps from a snapshot to a moment, or of a span: where each frame of each is recorded, and its seconds of stream time."""

    run: list[Piece]
    steps: list[tuple[tuple[Shown, float], ...]]
    complete: bool
    """Whether these are all that the model saw until the moment."""


def plan(run: Sequence[Piece], taken: Taken, moment: float) -> Plan | None:
    """What to show from a snapshot on up to `moment` (Unix seconds); None where it isn't recorded. Pure.

    It ends where a frame was not recorded, or where the stream's memory was begun anew.
    """
    frames: dict[str, dict[int, Shown]] = {}
    for piece in run:
        known = frames.setdefault(piece.notes.facts.run, {})
        known.update((each.sequence, each) for each in piece.notes.frames)
    for name, known in frames.items():
        last = known.get(taken.sequence)
        if last is None or abs(last.wall - taken.wall) > SAME:
            continue
        same = [piece for piece in run if piece.notes.facts.run == name]
        out: list[tuple[tuple[Shown, float], ...]] = []
        for step in (step for piece in same for step in piece.notes.steps):
            if step.frames[-1][0] <= taken.sequence:
                continue
            found = tuple((known[sequence], time) for sequence, time in step.frames if sequence in known)
            if found and found[-1][0].wall > moment:
                return Plan(same, out, complete=True)
            if len(found) < len(step.frames) or step.generation != taken.generation:
                return Plan(same, out, complete=False)
            out.append(found)
        return Plan(same, out, complete=True)
    return None


class Replay:
    """The steps of a plan, decoded by a thread of its own, a few ahead of the engine.

    `told` hears, from the engine's thread, which step is shown, and how many have been with it.
    """

    def __init__(self, made: Plan, told: Callable[[ReplayStep, int], None]) -> None:
        self.count = len(made.steps)
        """Steps in all."""
        self._plan, self._told = made, told
        self._taken = 0
        self._steps: queue.Queue[ReplayStep | None] = queue.Queue(AHEAD)
        self._closed = False
        self._ready = threading.Event()
        threading.Thread(target=self._run, name="replay", daemon=True).start()

    def prepare(self, timeout: float) -> None:
        """Waits until the first step is decoded, which may need all from the key frame before it."""
        self._ready.wait(timeout)

    def take(self) -> ReplayStep | None:
        """The next step; None where its pictures are not decoded yet. Raises EOFError where there are no more."""
        try:
            step = self._steps.get_nowait()
        except queue.Empty:
            return None
        if step is None:
            raise EOFError("what is recorded ends before the moment")
        self._taken += 1
        self._told(step, self._taken)
        return step

    def close(self) -> None:
        """Nobody wants the rest."""
        self._closed = True
        with suppress(queue.Empty):
            while True:
                self._steps.get_nowait()

    def _run(self) -> None:
        try:
            for step in _shown(self._plan):
                if not self._put(step):
                    return
        except (OSError, ValueError, av.error.FFmpegError):
            pass  # forgotten, or thinned, meanwhile
        self._put(None)

    def _put(self, step: ReplayStep | None) -> bool:
        until = time.monotonic() + PATIENCE
        while not self._closed and time.monotonic() < until:
            with suppress(queue.Full):
                self._steps.put(step, timeout=1)
                self._ready.set()
                return True
        self._ready.set()
        return False


def _shown(made: Plan) -> Iterator[ReplayStep]:
    """The steps, as soon as the last of their frames is decoded."""
    first = made.steps[0][0][0].segment
    wanted = {(shown.segment, shown.pts) for step in made.steps for shown, _ in step}
    ready: dict[tuple[int, int], np.ndarray] = {}
    makers: dict[int, Pictures] = {}
    waiting = iter(made.steps)
    step = next(waiting, None)
    # From the segment before on: a segment's first pictures may need what came before them.
    for each in decoded([piece for piece in made.run if piece.segment.number >= first - 1]):
        place = (each.piece.segment.number, each.pts)
        if place not in wanted:
            continue
        ready[place] = picture(each, makers)
        while step is not None and all((shown.segment, shown.pts) in ready for shown, _ in step):
            pixels = tuple(ready.pop((shown.segment, shown.pts)) for shown, _ in step)
            yield ReplayStep(pixels, tuple(time for _, time in step), step[-1][0].wall)
            step = next(waiting, None)
        if step is None:
            return


def find_replay(recordings: Recordings, stream: str, taken: Taken, moment: float) -> Plan | None:
    """The plan of what is recorded between a snapshot and a moment; waits for the disk. None where there is nothing to show."""
    # The last steps are noted a little after their frames, which may be in the segment after.
    segments = recordings.of(stream, taken.wall - 1.5 * SEGMENT_SECONDS, moment + 1.5 * SEGMENT_SECONDS)
    made = plan(pieces(segments), taken, moment)
    return made if made is not None and made.steps else None
