"""Notes: the model is asked what is happening, in time to spare, and what differs from the last note is kept with its picture."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from capture import Frame
from capture.gate import difference, thumbnail
from capture.image import encode_jpeg
from protocols.question import Question
from streamer.engine.answer import Answer
from streamer.engine.stream import Stream, captured_wall
from streamer.errors import AssistantError
from streamer.memory.timeline import Timeline, Wanted
from streamer.storage_config import NotesConfig

log = logging.getLogger("streamer")
LOOK_SECONDS = 0.5
"""Seconds between two looks at whose note is due."""
SOONEST_SECONDS = 2.0
"""Seconds between two notes of a stream at least, however much its picture changes."""
PATIENCE = 4.0
"""Paces for which a note waits while the device has no time for all frames."""
NOTE_TOKENS = 48
"""Of a note at most."""
STILL_SIDE = 320
"""Pixels of the longer side of a note's picture."""


@dataclass(slots=True)
class NotePace:
    """When a stream's next note is due. Pure: times are seconds on one monotonic clock."""

    config: NotesConfig
    last: float = float("-inf")
    shown: np.ndarray | None = None
    """The picture's thumbnail at the last note."""

    def due(self, seen: np.ndarray, now: float, short: bool) -> bool:
        """Whether a note is to be taken of a picture with the thumbnail `seen`; where time is `short`, much later."""
        waited = now - self.last
        if short:
            return waited >= self.config.every * PATIENCE
        if waited >= self.config.every or self.shown is None:
            return True
        changed = self.config.change is not None and difference(self.shown, seen) >= self.config.change
        return changed and waited >= SOONEST_SECONDS

    def took(self, seen: np.ndarray, now: float) -> None:
        """A note was taken of this picture."""
        self.last, self.shown = now, seen


class Notes:
    """Takes notes of the streams that are configured so, one at a time. Lives on the assistant's event loop."""

    def __init__(self, timeline: Timeline, streams: Mapping[str, Stream]) -> None:
        """`streams` come and go."""
        self._timeline, self._streams = timeline, streams
        self._paces: dict[str, NotePace] = {}
        self._open: Answer | None = None

    async def run(self, ask: Callable[[Question], Answer], busy: Callable[[], bool]) -> None:
        """Until it is cancelled. `ask` puts a question to the model; `busy` says whether any answer is open."""
        self._ask = ask
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for name in self._paces.keys() - self._streams.keys():
                del self._paces[name]
            for name, config, frame in self._noted():
                if busy():
                    break
                await self._look(name, config, frame)

    def give_way(self) -> None:
        """Somebody asks, or what the note is of is forgotten: the open one is given up, and taken later."""
        answer, self._open = self._open, None
        if answer is not None:
            answer.cancel()

    def _noted(self) -> list[tuple[str, NotesConfig, Frame]]:
        """Streams of which notes are taken and which show something, whose note is oldest first."""
        out = []
        for name, stream in self._streams.items():
            config, frame = stream.config.notes, stream.newest
            if config is None or frame is None or not stream.opened:
                continue
            pace = self._paces.get(name)
            if pace is None or pace.config != config:
                self._paces[name] = NotePace(config)
            out.append((name, config, frame))
        return sorted(out, key=lambda each: self._paces[each[0]].last)

    async def _look(self, name: str, config: NotesConfig, frame: Frame) -> None:
        pace, seen, now = self._paces[name], thumbnail(frame.pixels), time.monotonic()
        if not pace.due(seen, now, any(stream.share < 1 for stream in self._streams.values())):
            return
        try:
            taken = await self._take(name, config, frame)
        except (AssistantError, sqlite3.Error) as error:
            log.warning("stream %s: no note could be taken: %s", name, error)
            taken = True
        if taken:
            pace.took(seen, now)

    async def _take(self, name: str, config: NotesConfig, frame: Frame) -> bool:
        """Asks, and keeps what is new; whether that came to its end."""
        place, at = self._timeline.place(captured_wall(frame)), self._streams[name].seen_until
        answer = self._open = self._ask(Question(config.question, name, max_tokens=NOTE_TOKENS))
        text = (await answer.text()).strip()
        if answer.finish_reason == "cancelled":
            return False
        last = await asyncio.to_thread(self._timeline.entries, Wanted(name, kinds=("note",)), 1)
        if answer.finish_reason == "failed":
            log.warning("stream %s: no note could be taken: %s", name, answer.error)
        elif text and not (last and same(last[0].text, text)):
            still = await asyncio.to_thread(encode_jpeg, frame.pixels, STILL_SIDE)
            if self._open is answer:
                facts = {"question": config.question}
                self._timeline.add("note", name, text, facts, place=place, time=at, still=still)
        self._open = None
        return True


def same(one: str, other: str) -> bool:
    """Whether two notes say the same, whatever their case, signs and spaces."""
    return re.findall(r"\w+", one.casefold()) == re.findall(r"\w+", other.casefold())
