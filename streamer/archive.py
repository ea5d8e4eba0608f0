"""What is kept of streams, for Python: what happened, the stills and clips of what is recorded."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection
from pathlib import Path

from protocols.question import Question
from streamer.errors import AssistantError
from streamer.library import Library, Recollection
from streamer.memory.clips import Clips
from streamer.memory.keeper import Keeper
from streamer.memory.moments import read_moment
from streamer.memory.past import Recall
from streamer.memory.timeline import Entry, SearchError, Wanted, kinds_lack

KEEP = "start the daemon without --stateless, or set storage.folder"


class Archive:
    """The timeline and the recordings of an assistant's streams. Moments are Unix seconds, or as people write them."""

    def __init__(self, keeper: Callable[[], Keeper | None]) -> None:
        """`keeper` gives what outlasts the process, or None where nothing does."""
        self._keeper = keeper

    async def timeline(
        self,
        name: str,
        *,
        search: str | None = None,
        since: str | float = float("-inf"),
        until: str | float = float("inf"),
        kinds: Collection[str] = (),
        limit: int = 100,
    ) -> list[Entry]:
        """What happened to a stream, the newest first; `search` is for words, in the language of FTS5.

        `kinds` are of `streamer.memory.timeline.KINDS`; none means all. Raises AssistantError: not_remembered, bad_moment,
        bad_option, bad_search, storage.
        """
        kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        if (lack := kinds_lack(kinds)) is not None:
            raise AssistantError("bad_option", lack)
        wanted = Wanted(name, moment(since), moment(until), kinds, search)
        timeline = self._kept().timeline
        try:
            return await asyncio.to_thread(timeline.entries, wanted, limit)
        except SearchError as error:
            raise AssistantError("bad_search", f"{str(error)[0].upper()}{str(error)[1:]}.") from None
        except sqlite3.Error as error:
            raise AssistantError("storage", f"The timeline can't be read now: {error}.") from None

    async def still(self, name: str, at: str | float) -> bytes:
        """The picture that stood at a recorded moment, as JPEG. Raises AssistantError: not_remembered, bad_moment, no_recording."""
        picture, _ = await asyncio.to_thread(self._clips().still, name, moment(at))
        return picture

    async def clip(
        self, name: str, since: str | float, until: str | float, path: str | Path, *, encoded: bool = False
    ) -> Path:
        """Writes what was recorded of a span to `path`, an MP4; `encoded` makes it one that any browser plays.

        Raises AssistantError: not_remembered, bad_moment, bad_span, no_recording; OSError.
        """
        return await asyncio.to_thread(
            self._clips().save, name, moment(since), moment(until), Path(path), encoded=encoded
        )

    def _clips(self) -> Clips:
        return self._kept().clips

    def _kept(self) -> Keeper:
        keeper = self._keeper()
        if keeper is None:
            raise AssistantError("not_remembered", "Nothing of the past is kept here: set storage.folder to keep it.")
        return keeper


def recalled(
    keeper: Keeper | None, library: Library | None, stream: str, question: Question
) -> Recall | Recollection | None:
    """What brings back what a question is about; None where that is what its stream shows now.

    Raises AssistantError: not_remembered, unknown_recording, not_ready, bad_option, and as `Past.find`.
    """
    if question.recording is not None:
        if question.past or question.attachments:
            raise AssistantError(
                "bad_option", "A recording is asked about whole and alone: leave moments and pictures out."
            )
        if library is None:
            raise AssistantError("unknown_recording", f"No recordings are kept here: {KEEP}.")
        return library.asked(question.recording)
    if not question.past:
        return None
    if keeper is None:
        raise AssistantError("not_remembered", f"Nothing of the past is kept here: {KEEP}.")
    return keeper.past.find(stream, question)


def moment(given: str | float) -> float:
    """Unix seconds. Raises AssistantError: bad_moment."""
    try:
        return read_moment(given, time.time()) if isinstance(given, str) else given
    except ValueError as error:
        raise AssistantError("bad_moment", f"The moment {error}.") from None
