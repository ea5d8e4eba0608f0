"""What outlasts the process, as configured: the state folder with its budgets, and what is noted of a stream."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from streamer.fields import Bytes, Number, Seconds, Section, Whole


class NotesConfig(Section):
    """What is noted of a stream in its timeline, in time that no question needs."""

    question: Annotated[str, Field(min_length=1, max_length=1_000)] = "What is happening?"
    every: Seconds = 60.0
    """Seconds between two notes; what differs from the last one is kept."""
    change: Annotated[Number, Field(gt=0, le=255)] | None = 25.0
    """A picture that differs from the last note's by this much (levels of 255 in the most changed part) is noted before."""


class StorageConfig(Section):
    """What outlasts the process, and how much of the disk it may take."""

    folder: Annotated[str, Field(min_length=1)] | None = None
    """Where all of it is; unset keeps nothing, except that `streamer run` sets $XDG_STATE_HOME/streamer."""
    every: Seconds = 5.0
    """Seconds between two snapshots of a stream."""
    write_rate: Bytes = 20_000_000
    """Bytes a second that snapshots may write in all; where they would be more, they are taken less often."""
    snapshots: Bytes = 10_000_000_000
    """Bytes that all snapshots may take, shared fairly among streams."""
    recordings: Annotated[Whole, Field(ge=1_000_000)] = 50_000_000_000
    """Bytes that the recordings of all streams may take; the oldest go first."""
    recording_hours: Annotated[Number, Field(gt=0, le=87_600)] = 168.0
    """Hours after which a recording goes, and links to it end."""
    indexes: Bytes = 20_000_000_000
    """Bytes that the indexes of recordings may take; beyond them `streamer index` makes no more."""
    replay: Seconds = 10.0
    """Seconds of recorded video that an answer about the past is shown at most; beyond them the nearest snapshot answers."""
    span: Annotated[Seconds, Field(le=86_400)] = 300.0
    """Seconds that a question about a span (from … to …) may ask to be shown again."""
    timeline: Annotated[Whole, Field(ge=100_000)] = 1_000_000_000
    """Bytes that the timelines of all streams may take, with their stills; the oldest entries go first."""
    timeline_hours: Annotated[Number, Field(gt=0, le=876_000)] = 720.0
    """Hours after which an entry of a timeline goes, an event of a watch with its picture (links to it end with it), and what is kept
    of a stream that is watched no more."""
