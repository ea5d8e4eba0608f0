"""A watch's question as the engine asks it, again and again, and whether there is anything new to ask it of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from capture import Frame
from capture.gate import difference
from model.serving.yes_no import YesNo
from streamer.engine.shown import Part

SETTLES = 2.0
"""Seconds after a change for which a picture is looked at though it stands: the model's mind follows what it sees."""
LONGEST = 10.0
"""Seconds after which a picture is looked at though nothing has changed: a question may be about what was."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look was at: a stream's newest frame, its capture in Unix seconds, and how often the stream had begun anew."""

    frame: Frame
    captured: float
    generation: int


class Onlooker(Protocol):
    """Who is told what a watch's looks find; called from the engine's thread, and must not block."""

    def looked(self, seen: Seen, answer: YesNo) -> None: ...

    def unchanged(self, seen: Seen) -> None:
        """The picture shows what the last look saw, and was not looked at."""

    def failed(self, error: str) -> None:
        """A look failed; `error` is one line."""


@dataclass(frozen=True)
class Standing:
    """A watch on one stream: its question's whole prompt, asked `every` so many seconds.

    `change` is the least `difference` of two pictures that is one (levels of 255 in the most changed part); None looks always.
    With `only` it is asked of that part of the newest picture, in a state that has seen nothing else.
    """

    watch: str
    stream: str
    tokens: list[int]
    every: float
    change: float | None
    listener: Onlooker
    only: Part | None = None


@dataclass
class Scene:
    """What a stream shows: since when it has stood still, and when each watch looked at it."""

    changed: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    thumbnails: dict[str, np.ndarray] = field(default_factory=dict)

    def news(self, standing: Standing, picture: np.ndarray, captured: float) -> bool:
        """Whether a watch should look at what was captured then: it has changed lately, or long not been looked at.

        `picture` is the `thumbnail` of the part that it looks at.
        """
        if standing.change is None:
            return True
        name = standing.watch
        before = self.thumbnails.get(name)
        if before is None or difference(before, picture) >= standing.change:
            self.thumbnails[name], self.changed[name] = picture, captured
        last = self.last.get(name, float("-inf"))
        return last < self.changed[name] + SETTLES or captured - last >= LONGEST

    def forget(self, watch: str) -> None:
        """A watch is no more."""
        for known in (self.changed, self.last, self.thumbnails):
            known.pop(watch, None)

    def looked(self, watch: str, captured: float) -> None:
        """A watch has looked at the picture captured then."""
        self.last[watch] = captured
