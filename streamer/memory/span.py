"""A span of the past that is asked about: all that the model saw in it, as it was recorded, for a state that has seen nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from streamer.errors import AssistantError
from streamer.memory.footage import Piece, pieces
from streamer.memory.moments import read_moment, written
from streamer.memory.recording import SEGMENT_SECONDS, Recordings, Segment
from streamer.memory.replay import Plan
from streamer.memory.segment import Shown
from streamer.memory.timeline import Entry

WHOLE_SECONDS = 2.5
"""Seconds that a span may lack and count as whole: what came last is still on its way to the disk."""


@dataclass(slots=True)
class Span:
    """A span that was asked about, and what of it the answer speaks of; all in Unix seconds.

    `missing` are seconds that were not recorded; the newest frame that is to be seen was captured at `ends`, `shown` have been.
    """

    since: float
    until: float
    reached: float
    begins: float | None = None
    ends: float | None = None
    missing: float = 0.0
    shown: int = 0
    cited: list[Entry] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """As every wire shows it."""
        unseen = self.missing + (0.0 if self.ends is None else max(self.ends - self.reached, 0.0))
        return {
            "asked": written(self.until),
            "reached": written(self.reached),
            "how": "replayed" if unseen <= WHOLE_SECONDS else "replayed in part",
            "before_s": round(max(self.until - self.reached, 0.0), 3),
            "asked_from": written(self.since),
            "from": written(self.since if self.begins is None else self.begins),
            "frames": self.shown,
            "missing_s": round(unseen, 3),
            "entries": [each.view() for each in self.cited],
        }


def read_span(since: str | float | None, until: str | float | None, now: float, longest: float) -> tuple[float, float]:
    """A span in Unix seconds; without an end it goes up to now. Raises AssistantError: bad_moment, bad_span."""
    if since is None:
        raise AssistantError("bad_span", "A span needs a beginning: give from, too.")
    try:
        begin, end = (
            read_moment(each, now) if isinstance(each, str) else each
            for each in (since, now if until is None else until)
        )
    except ValueError as error:
        raise AssistantError("bad_moment", f"The span's moment {error}.") from None
    if not begin < end <= now:
        raise AssistantError(
            "bad_span",
            f"The span from {written(begin)} to {written(end)} is none of the past: from must come before to, and to "
            "before now.",
        )
    if end - begin > longest:
        raise AssistantError(
            "bad_span",
            f"The span has {end - begin:.0f} s, and {longest:g} s are shown at most (storage.span): ask about a part of "
            "it, or read all of it once with streamer index --stream.",
        )
    return begin, end


def missing(segments: Sequence[Segment], since: float, until: float) -> float:
    """Seconds of a span that none of these segments holds. Pure."""
    out, reached = 0.0, since
    for each in sorted(segments, key=lambda each: each.begins):
        out += max(min(each.begins, until) - reached, 0.0)
        reached = max(reached, each.ends)
    return out + max(until - reached, 0.0)


def plan_span(run: Sequence[Piece], since: float, until: float) -> Plan:
    """All that the model saw from `since` to `until`, in order and together as it was then. Pure.

    Times begin at 0. They run as the model was told then, and where its memory was begun anew meanwhile, or time went by without
    it, as the clock did.
    """
    frames: dict[str, dict[int, Shown]] = {}
    for piece in run:
        known = frames.setdefault(piece.notes.facts.run, {})
        known.update((each.sequence, each) for each in piece.notes.frames)
    steps: list[tuple[tuple[Shown, float], ...]] = []
    before: tuple[tuple[str, int], float, float] | None = None
    now = 0.0
    for piece in run:
        name = piece.notes.facts.run
        for step in piece.notes.steps:
            found = [(frames[name][sequence], time) for sequence, time in step.frames if sequence in frames[name]]
            if len(found) < len(step.frames) or found[0][0].wall < since or found[-1][0].wall > until:
                continue
            out: list[tuple[Shown, float]] = []
            for shown, time in found:
                life = (name, step.generation)
                if before is not None:
                    passed = time - before[1] if before[0] == life else shown.wall - before[2]
                    now += max(passed, 0.0)
                before = (life, time, shown.wall)
                out.append((shown, now))
            steps.append(tuple(out))
    return Plan(list(run), steps, complete=True)


def find_span(recordings: Recordings, stream: str, since: float, until: float) -> Plan:
    """The plan of what is recorded of a span; waits for the disk."""
    # The last steps are noted a little after their frames, which may be in the segment after.
    segments = recordings.of(stream, since - 1.5 * SEGMENT_SECONDS, until + 1.5 * SEGMENT_SECONDS)
    return plan_span(pieces(segments), since, until)


def lack(recordings: Recordings, stream: str, since: float, until: float) -> AssistantError:
    """Why there is nothing to show of a span."""
    kept = recordings.of(stream)
    if not kept:
        return AssistantError("no_recording", f"Nothing is recorded of stream {stream!r}: set record to true for it.")
    begins, ends = written(kept[0].begins), written(kept[-1].ends)
    return AssistantError(
        "no_recording",
        f"Nothing that stream {stream!r} saw from {written(since)} to {written(until)} is recorded: what is kept is from "
        f"{begins} to {ends}.",
    )
