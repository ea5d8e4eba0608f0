"""What engines have room for, and which of them a stream fits best: sorted by what is free, so that thousands cost little. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

SECOND = 1_000.0
"""Milliseconds that a device has in a second."""
HEADROOM = 0.15
"""The share of each device that is left free for what comes back from a lost one, and for what costs more than it did."""
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a device takes, in measured milliseconds, for a frame, a watch's look and a token of an answer."""

    frame_ms: float
    look_ms: float = 0.0
    token_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Wish:
    """A stream to be watched: frames, looks of watches and tokens of answers a second that it is expected to bring.

    A higher `priority` displaces lower ones where there is no room. `engine` is the only one that may have it, `labels` are
    those that an engine must have.
    """

    stream: str
    fps: float
    looks: float = 0.0
    tokens: float = 0.0
    priority: int = 1
    engine: str | None = None
    labels: Labels = frozenset()

    def need(self, costs: Costs) -> float:
        """Milliseconds a second on such a device."""
        return self.fps * costs.frame_ms + self.looks * costs.look_ms + self.tokens * costs.token_ms


@dataclass(slots=True)
class Engine:
    """One engine: what it costs there, `slots` for streams' memory, and what it holds or is about to."""

    name: str
    costs: Costs
    slots: int
    labels: Labels = frozenset()
    until: float = 0.0
    """When its lease runs out."""
    draining: bool = False
    wishes: dict[str, Wish] = field(default_factory=dict)
    _load: float = 0.0

    @property
    def load(self) -> float:
        """Milliseconds a second that its streams take."""
        return self._load

    @property
    def free(self) -> float:
        """Milliseconds a second until the device is full, headroom and all."""
        return SECOND - self._load

    def put(self, wish: Wish) -> None:
        self.wishes[wish.stream] = wish
        self._load += wish.need(self.costs)

    def take(self, stream: str) -> None:
        self._load -= self.wishes.pop(stream).need(self.costs)
        if not self.wishes:
            self._load = 0.0  # what rounding left

    def measured(self, costs: Costs) -> None:
        self.costs = costs
        self._load = math.fsum(wish.need(costs) for wish in self.wishes.values())


Class = tuple[Costs, Labels]


@lru_cache(4_096)
def rounded(costs: Costs) -> Costs:
    """Costs in steps of 5 %, upwards: devices that differ by less are one kind, and what is measured anew changes little."""

    def up(value: float) -> float:
        return 1.05 ** math.ceil(math.log(value, 1.05) - 1e-9) if value > 0 else 0.0

    return Costs(up(costs.frame_ms), up(costs.look_ms), up(costs.token_ms))


class Room:
    """All engines, and of each kind those that may take more, in order of what they have free."""

    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}
        self._open: dict[Class, list[tuple[float, str]]] = {}
        self._listed: dict[str, tuple[Class, float]] = {}

    def add(self, engine: Engine) -> None:
        self.engines[engine.name] = engine
        self._list(engine)

    def remove(self, name: str) -> Engine:
        engine = self.engines.pop(name)
        self._unlist(name)
        return engine

    def put(self, name: str, wish: Wish) -> None:
        """A stream is this engine's, or is promised to it."""
        engine = self.engines[name]
        engine.put(wish)
        self._list(engine)

    def take(self, name: str, stream: str) -> None:
        engine = self.engines[name]
        engine.take(stream)
        self._list(engine)

    def drain(self, name: str, draining: bool) -> None:
        engine = self.engines[name]
        engine.draining = draining
        self._list(engine)

    def measured(self, name: str, costs: Costs) -> None:
        engine = self.engines[name]
        if engine.costs != costs:
            engine.measured(costs)
            self._list(engine)

    def fits(self, engine: Engine, wish: Wish, *, headroom: bool) -> bool:
        """Whether an engine may take a stream; `headroom` lets it use what is kept for that."""
        return (
            not engine.draining
            and len(engine.wishes) < engine.slots
            and wish.labels <= engine.labels
            and wish.engine in (None, engine.name)
            and wish.need(engine.costs) <= engine.free - (0.0 if headroom else HEADROOM * SECOND)
        )

    def best(self, wish: Wish, *, headroom: bool = False, but: frozenset[str] = frozenset()) -> str | None:
        """The engine that a stream leaves the least free on, none `but` those; None where there is no room."""
        if wish.engine is not None:
            engine = self.engines.get(wish.engine)
            found = engine is not None and wish.engine not in but and self.fits(engine, wish, headroom=headroom)
            return wish.engine if found else None
        best: tuple[float, str] | None = None
        kept = 0.0 if headroom else HEADROOM * SECOND
        for (costs, labels), listed in self._open.items():
            if not wish.labels <= labels:
                continue
            need = wish.need(costs)
            for free, name in _from(listed, need + kept):
                if name in but:
                    continue
                if best is None or free - need < best[0]:
                    best = free - need, name
                break
        return None if best is None else best[1]

    def _list(self, engine: Engine) -> None:
        self._unlist(engine.name)
        if not engine.draining and len(engine.wishes) < engine.slots:
            kind = engine.costs, engine.labels
            insort(self._open.setdefault(kind, []), (engine.free, engine.name))
            self._listed[engine.name] = kind, engine.free

    def _unlist(self, name: str) -> None:
        if (found := self._listed.pop(name, None)) is not None:
            kind, free = found
            listed = self._open[kind]
            del listed[bisect_left(listed, (free, name))]
            if not listed:
                del self._open[kind]


def _from(listed: list[tuple[float, str]], least: float) -> Iterator[tuple[float, str]]:
    for index in range(bisect_left(listed, (least, "")), len(listed)):
        yield listed[index]
