"""What a watch is told to look for, and when it tells: one entry of `watches` in the configuration, and what clients send."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from streamer.fields import Name, Number, Seconds, Section
from streamer.hours import Hours

OPEN_QUESTION = re.compile(r"\W*(what|which|who|whose|whom|where|when|why|how)\b", re.IGNORECASE)
"""How questions begin in English whose answer is neither yes nor no."""
Patience = Annotated[Number, Field(ge=0, le=86_400, description="seconds")]
Probability = Annotated[Number, Field(gt=0, lt=1)]


Shares = tuple[Number, Number, Number, Number]


def _inside(rectangle: Shares) -> Shares:
    left, top, right, bottom = rectangle
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            "is no rectangle inside of the picture: write left, top, right and bottom in shares of it, "
            "such as [0.5, 0, 1, 0.5] for its upper right quarter"
        )
    return rectangle


Rectangle = Annotated[Shares, AfterValidator(_inside)]


def _described(value: object) -> object:
    if not isinstance(value, bool | str):
        raise ValueError("is no question: write one in quotes, or true or false")
    return value


def _hours(text: str) -> str:
    Hours.parse(text)
    return text


class WatchConfig(Section):
    """A standing question, and when its answer is an event."""

    name: Name
    streams: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    question: Annotated[str, Field(min_length=1, max_length=2_000)]
    """In plain words, such as "Is someone at the gate?"."""
    when: Literal["becomes_true", "becomes_false", "both", "changes"] = "becomes_true"
    """`changes` is for answers that are words or numbers; the others ask for yes or no."""
    format: dict[str, Any] | None = None
    """The JSON schema of the answer, with `when: changes`."""
    every: Annotated[Seconds, Field(ge=0.05)] = 0.5
    """Seconds between two looks."""
    hold: Patience = 0.0
    """Seconds that it must be so before it is believed."""
    release: Patience = 0.0
    """Seconds that it must not be so before that is believed."""
    cooldown: Patience = 0.0
    """Seconds after an event that was sent in which no other is."""
    rise: Probability = 0.6
    """The probability of yes from which on it is so …"""
    fall: Probability = 0.4
    """… until it has fallen to this."""
    quiet: tuple[Annotated[str, AfterValidator(_hours)], ...] = ()
    """Hours in which nothing is told, such as 22:00-06:00, where this machine is."""
    severity: Literal["info", "warning", "critical"] = "info"
    change: Annotated[Number, Field(gt=0, le=255)] | None = 3.0
    """A picture that differs from the last one by less (levels of 255 in the most changed part) is not looked at again; null
    looks at every one."""
    outputs: tuple[Name, ...] | None = None
    """Names of those that are told; unset is all."""
    only: Rectangle | None = None
    """The part of the picture that is looked at: left, top, right and bottom in shares of it. It is seen as a picture of its own, as
    it is now and without what was before; unset is all of it, with the stream's memory."""
    describe: Annotated[bool | Annotated[str, Field(min_length=1, max_length=2_000)], BeforeValidator(_described)] = (
        False
    )
    """Once an event is told, ask "What do you see?", or what stands here, of the picture that decided, and tell the answer as
    `watch.described`."""
    clip_before: Annotated[Number, Field(ge=0, le=60)] = 5.0
    """Seconds of the recording that are shown from before an event's beginning …"""
    clip_after: Annotated[Number, Field(ge=0, le=60)] = 10.0
    """… until so many after it was decided."""

    @model_validator(mode="after")
    def _reachable(self) -> WatchConfig:
        if self.name == "events":
            raise ValueError("name 'events' is where events of all watches are told: choose another")
        if not self.question.strip():
            raise ValueError("question has no words: write what is looked for, such as 'Is someone at the gate?'")
        if self.fall > self.rise:
            raise ValueError(
                f"fall {self.fall:g} is above rise {self.rise:g}, so that it would be both at once: lower fall or raise rise"
            )
        if self.when != "changes" and OPEN_QUESTION.match(self.question):
            raise ValueError(
                f"question {self.question[:80]!r} is not answered with yes or no: set when to changes, which tells of each new "
                "answer, or ask whether something is so"
            )
        if self.when != "changes" and self.format is not None:
            raise ValueError("format is the shape of an answer that changes: set when to changes, or leave it out")
        if len(set(self.streams)) < len(self.streams):
            raise ValueError(f"streams {', '.join(self.streams)} has one more than once: name each once")
        return self


def check_names(watches: Sequence[WatchConfig], streams: Sequence[str], outputs: Sequence[str]) -> None:
    """Raises ValueError for two watches of one name, and for one that names a stream or an output that there is not."""
    names = [watch.name for watch in watches]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"watches has {', '.join(twice)} more than once: give every watch a name of its own")
    for i, watch in enumerate(watches):
        for key, known, what in (("streams", streams, "stream of this configuration"), ("outputs", outputs, "output")):
            for name in getattr(watch, key) or ():
                if name not in known:
                    there = ", ".join(known) or "none"
                    raise ValueError(f"watches[{i}].{key}: {name!r} is no {what}; there are: {there}")
