"""Which engine watches which stream: events and a clock in, orders out. Pure.

A stream has one owner at a time, by epoch: each owner has it in a higher epoch than the one before. An engine may act on its
streams while its lease lasts, which is renewed as long as it is heard of. Once `LEASE` and a margin have gone by without, it
has stopped by its own clock, and its streams are given to others; sooner only where it is certain that it is no more. A stream
that moves is first let go by its owner, with a snapshot, and then given to the next, for which room is kept meanwhile.

Whoever carries orders out repeats each until it is done or refused, or its engine is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from streamer.cluster.room import HEADROOM, SECOND, Costs, Engine, Labels, Room, Wish, rounded

LEASE = 4.0
"""Seconds that an engine may act without being heard of."""
MARGIN = 0.5
"""Seconds beyond that before its streams are given to others: clocks of two machines don't run alike."""
MOST_MOVES = 8
"""Streams that leave one engine at once."""
REBALANCE_SECONDS, SETTLED_SECONDS, HORIZON_SECONDS = 10.0, 60.0, 60.0
"""How often overloaded engines are looked for, how long a stream stays where it is, and within how long a move must pay."""
GAP_SECONDS = 1.0
"""What a move may cost a stream."""
SHUNNED_SECONDS = 10.0
"""How long an engine that refused a stream is not asked again."""
LOOKED_THROUGH = 256
"""Streams of lower priority that are looked at to make room for one."""


@dataclass(frozen=True, slots=True)
class Own:
    """An engine has a stream from now on, with the memory that the engine `before` left of it."""

    stream: str
    engine: str
    epoch: int
    before: str | None


@dataclass(frozen=True, slots=True)
class Release:
    """An engine is to let a stream go: `forget` what it knows, or keep it in a snapshot for the next one."""

    stream: str
    engine: str
    epoch: int
    forget: bool = False


Order = Own | Release
State = Literal["waiting", "owned", "leaving"]


@dataclass(slots=True)
class Placed:
    """A stream and where it is: `target` is the engine that it is promised to while it leaves another."""

    wish: Wish
    since: float
    state: State = "waiting"
    engine: str | None = None
    """Who has it; while it waits, who had it last."""
    epoch: int = 0
    target: str | None = None
    displaced: bool = False
    """It was watched before, and may use the headroom."""
    unwanted: bool = False
    why: str = ""
    """Why it waits."""
    shunned: dict[str, float] = field(default_factory=dict)
    """Until when engines that refused it are not asked."""
    makes_room: tuple[Placed, ...] = ()
    """Streams of lower priority that leave for it."""

    @property
    def name(self) -> str:
        return self.wish.stream


class Placement:
    """All streams and engines. Each event is a method; `turn` returns what is to be done by now, and is to be called often."""

    def __init__(self, lease: float = LEASE) -> None:
        self.lease = lease
        self.room = Room()
        self.streams: dict[str, Placed] = {}
        self.epoch = 0
        """The highest that was ever given, to whatever stream: a stream that is removed and comes again begins above what was."""
        self.moves = 0
        """Streams that went from one engine to another, for whatever reason."""
        self.placed = 0
        self._waiting: dict[str, None] = {}
        self._orders: list[Order] = []
        self._freed = False
        self._balanced = float("-inf")
        self._soonest = float("inf")
        """No engine's lease runs out before."""
        self._draining: set[str] = set()
        self._ranks: dict[int, dict[str, None]] = {}
        """Owned streams by priority."""
        self._making: dict[str, Placed] = {}
        """Who waits for others to leave, by the engine that they leave."""
        self._leaving: dict[str, set[str]] = {}
        """Streams that leave an engine, by engine."""

    # Engines

    def joined(self, name: str, costs: Costs, slots: int, now: float, labels: Labels = frozenset()) -> None:
        """An engine that has no streams is there. Raises ValueError where one of that name is there already."""
        if name in self.room.engines:
            raise ValueError(f"engine {name!r} is there already")
        self.room.add(Engine(name, rounded(costs), slots, labels, now + self.lease))
        self._soonest = min(self._soonest, now + self.lease)
        self._draining.discard(name)
        self._freed = True

    def renewed(self, name: str, now: float) -> bool:
        """An engine was heard of; False where it is no longer one of ours, and must begin anew."""
        engine = self.room.engines.get(name)
        if engine is None:
            return False
        engine.until = max(engine.until, now + self.lease)
        return True

    def measured(self, name: str, costs: Costs) -> None:
        """What frames, looks and tokens cost an engine now."""
        engine = self.room.engines.get(name)
        if engine is not None and engine.costs != rounded(costs):
            self.room.measured(name, rounded(costs))
            self._freed = True

    def gone(self, name: str, now: float) -> None:
        """It is certain that an engine does nothing any more."""
        if name not in self.room.engines:
            return
        engine = self.room.remove(name)
        self._leaving.pop(name, None)
        for stream in list(engine.wishes):
            placed = self.streams[stream]
            if placed.target == name:
                placed.target = None  # it is still where it was, or waits for the owner's end
            elif placed.unwanted:
                self._forget(placed)
            else:
                target, placed.target = placed.target, None
                self._wait(placed, now, f"engine {name} is gone")
                if target is not None:
                    self._give(placed, target, now, promised=True)

    def drain(self, name: str, draining: bool = True) -> None:
        """An engine is to be emptied, or may have streams again. Raises KeyError."""
        self.room.drain(name, draining)
        (self._draining.add if draining else self._draining.discard)(name)
        self._freed = True

    # Streams

    def want(self, wish: Wish, now: float) -> None:
        """A stream is to be watched; one that is already may have changed."""
        placed = self.streams.get(wish.stream)
        if placed is None:
            placed = self.streams[wish.stream] = Placed(wish, now)
            self._waiting[wish.stream] = None
            self._try(placed, now)
            return
        placed.unwanted = False
        for engine in {placed.engine, placed.target} - {None}:
            if engine in self.room.engines and wish.stream in self.room.engines[engine].wishes:
                self.room.take(engine, wish.stream)
                self.room.put(engine, wish)
        self._unrank(placed)
        placed.wish = wish
        self._freed = True
        if placed.state == "owned" and placed.engine is not None:
            self._rank(placed)
            owner = self.room.engines[placed.engine]
            if wish.engine not in (None, owner.name) or not wish.labels <= owner.labels:
                self._move_some(owner.name, [wish.stream])

    def unwant(self, name: str, now: float) -> None:
        """A stream is no longer to be watched, and forgotten. Raises KeyError."""
        placed = self.streams[name]
        placed.unwanted = True
        if placed.target is not None:
            self.room.take(placed.target, name)
            placed.target = None
        if placed.state == "waiting":
            self._forget(placed)
        elif placed.state == "owned":
            self._leave(placed, None, forget=True)

    def restored(self, wish: Wish, engine: str | None, epoch: int, now: float) -> None:
        """What is known of a stream from before this placement began. Its engine, if it is there, still has it."""
        placed = self.streams[wish.stream] = Placed(wish, now, engine=engine, epoch=epoch, displaced=engine is not None)
        self.epoch = max(self.epoch, epoch)
        if engine is not None and engine in self.room.engines:
            placed.state = "owned"
            self.room.put(engine, wish)
            self._rank(placed)
        else:
            self._waiting[wish.stream] = None
            self._freed = True

    def move(self, name: str, engine: str | None, now: float) -> str | None:
        """Moves a stream to an engine, or to wherever it fits best; returns why it can't be moved. Raises KeyError."""
        placed = self.streams[name]
        if placed.state != "owned" or placed.engine is None:
            return f"{name} is {placed.state}"
        if engine is not None:
            if engine not in self.room.engines:
                return f"there is no engine {engine!r}; there are: {', '.join(self.room.engines) or 'none'}"
            if engine == placed.engine:
                return f"{name} is there already"
            if not self.room.fits(self.room.engines[engine], placed.wish, headroom=True):
                return f"engine {engine} has no room for {name}: {self.shortage(placed.wish, engine)}"
        target = engine or self.room.best(placed.wish, headroom=True, but=frozenset([placed.engine]))
        if target is None:
            return f"no other engine has room for {name}"
        self._leave(placed, target)
        return None

    def released(self, name: str, epoch: int, now: float) -> None:
        """An engine let a stream go."""
        placed = self.streams.get(name)
        if placed is None or placed.state != "leaving" or placed.epoch != epoch or placed.engine is None:
            return
        self._leaving.get(placed.engine, set()).discard(name)
        self.room.take(placed.engine, name)
        self._freed = True
        if placed.unwanted:
            self._forget(placed)
            return
        target, placed.target = placed.target, None
        self._wait(placed, now, "it made room for another of higher priority" if target is None else "it moves")
        if target is not None:
            self._give(placed, target, now, promised=True)

    def refused(self, name: str, epoch: int, why: str, now: float) -> None:
        """An engine could not take a stream that it was given."""
        placed = self.streams.get(name)
        if placed is None or placed.state != "owned" or placed.epoch != epoch or placed.engine is None:
            return
        self.room.take(placed.engine, name)
        placed.shunned[placed.engine] = now + SHUNNED_SECONDS
        self._wait(placed, now, why)

    def lost(self, name: str, epoch: int, now: float) -> None:
        """An engine that is there has a stream no longer: its lease had run out meanwhile."""
        placed = self.streams.get(name)
        if placed is not None and placed.state == "owned" and placed.epoch == epoch and placed.engine is not None:
            self.room.take(placed.engine, name)
            self._wait(placed, now, f"engine {placed.engine} had lost it")

    # Time

    def turn(self, now: float) -> list[Order]:
        """What has become due: engines whose lease ran out, streams that wait, engines to empty, engines that have too much."""
        if self._soonest + MARGIN < now:
            for name in [name for name, engine in self.room.engines.items() if engine.until + MARGIN < now]:
                self.gone(name, now)
            self._soonest = min((each.until for each in self.room.engines.values()), default=float("inf"))
        if self._freed and self._waiting:
            self._freed = False
            self._place_waiting(now)
        for name in self._draining & self.room.engines.keys():
            self._move_some(name, list(self.room.engines[name].wishes))
        if now - self._balanced >= REBALANCE_SECONDS:
            self._balanced = now
            for engine in [each for each in self.room.engines.values() if each.free < 0]:
                self._relieve(engine, now)
            self._freed = self._freed or any(self.streams[name].shunned for name in self._waiting)
        orders, self._orders = self._orders, []
        return [order for order in orders if self.stands(order)]

    def stands(self, order: Order) -> bool:
        """Whether an order is still to be carried out: its engine may have gone and come again meanwhile."""
        placed, wanted = self.streams.get(order.stream), "owned" if isinstance(order, Own) else "leaving"
        return placed is not None and (placed.epoch, placed.engine, placed.state) == (order.epoch, order.engine, wanted)

    def shortage(self, wish: Wish, engine: str | None = None) -> str:
        """Why there is no room for a stream: which resource, how much of it, and what would make room."""
        if wish.engine is not None and wish.engine not in self.room.engines:
            there = ", ".join(self.room.engines) or "none"
            return f"it is pinned to engine {wish.engine!r}, which is not there; there are: {there}"
        asked = engine or wish.engine
        fit = [each for each in self.room.engines.values() if asked in (None, each.name) and wish.labels <= each.labels]
        if not self.room.engines:
            return "no engine is there: start one"
        if not fit:
            wanted = ", ".join(f"{key}: {value}" for key, value in sorted(wish.labels))
            return f"no engine has the labels {{{wanted}}}: start one, or change the rule"
        up = [each for each in fit if not each.draining]
        if not up:
            return "all its engines are being drained: end that, or start another"
        slots = [each for each in up if len(each.wishes) < each.slots]
        if not slots:
            return f"all {sum(each.slots for each in up)} slots for streams' memory are taken: raise limits.streams or start an engine"
        best = max(slots, key=lambda each: each.free - wish.need(each.costs))
        missing = wish.need(best.costs) - (best.free - HEADROOM * SECOND)
        if missing <= 0:
            return "an engine that has room refused it a moment ago"
        return (
            f"{missing:.0f} ms of each second are missing on engine {best.name}, the best of {len(slots)}: lower its fps by "
            f"{missing / best.costs.frame_ms:.1f}, remove a stream, or start an engine"
        )

    def _place_waiting(self, now: float) -> None:
        """In order of priority, and the largest first; what differs in nothing from one that found no room is not tried."""
        waiting = sorted(
            map(self.streams.__getitem__, self._waiting),
            key=lambda each: (-each.wish.priority, -each.wish.fps, each.since),
        )
        vain: set[tuple[object, ...]] = set()
        for placed in waiting:
            wish = placed.wish
            kind = wish.fps, wish.looks, wish.tokens, wish.engine, wish.labels, wish.priority, placed.displaced
            if placed.shunned or kind not in vain:
                if not self._try(placed, now) and not placed.shunned:
                    vain.add(kind)
            else:
                placed.why = "there is no room for it, as for others like it"

    def _try(self, placed: Placed, now: float) -> bool:
        placed.shunned = {name: until for name, until in placed.shunned.items() if until > now}
        self._making = {
            engine: who for engine, who in self._making.items() if who.state == "waiting" and not who.unwanted
        }
        # What leaves an engine for one of higher priority leaves it for that one alone.
        kept = (
            name for name, who in self._making.items() if who is not placed and who.wish.priority > placed.wish.priority
        )
        but = frozenset([*placed.shunned, *kept])
        target = self.room.best(placed.wish, headroom=placed.displaced, but=but)
        if target is not None:
            self._give(placed, target, now)
            return True
        if not self._displace(placed, but):
            placed.why = self.shortage(placed.wish)
        return False

    def _give(self, placed: Placed, engine: str, now: float, *, promised: bool = False) -> None:
        if not promised:
            self.room.put(engine, placed.wish)
        elif engine not in self.room.engines:
            return
        self._waiting.pop(placed.name, None)
        before, placed.engine = placed.engine, engine
        self.moves += before not in (None, engine)
        self.placed += 1
        self.epoch += 1
        placed.state, placed.epoch, placed.since, placed.why = "owned", self.epoch, now, ""
        placed.displaced, placed.makes_room = True, ()
        self._rank(placed)
        self._orders.append(Own(placed.name, engine, placed.epoch, before))

    def _leave(self, placed: Placed, target: str | None, *, forget: bool = False) -> None:
        assert placed.engine is not None
        self._unrank(placed)
        if target is not None:
            self.room.put(target, placed.wish)
        placed.state, placed.target = "leaving", target
        self._leaving.setdefault(placed.engine, set()).add(placed.name)
        self._orders.append(Release(placed.name, placed.engine, placed.epoch, forget))

    def _wait(self, placed: Placed, now: float, why: str) -> None:
        self._unrank(placed)
        placed.state, placed.since, placed.why = "waiting", now, why
        self._waiting[placed.name] = None
        self._freed = True

    def _forget(self, placed: Placed) -> None:
        self._unrank(placed)
        self._waiting.pop(placed.name, None)
        del self.streams[placed.name]

    def _rank(self, placed: Placed) -> None:
        self._ranks.setdefault(placed.wish.priority, {})[placed.name] = None

    def _unrank(self, placed: Placed) -> None:
        rank = self._ranks.get(placed.wish.priority, {})
        if rank.pop(placed.name, 0) is None and not rank:
            del self._ranks[placed.wish.priority]

    def _displace(self, placed: Placed, but: frozenset[str]) -> bool:
        """Has streams of lower priority make room on one engine; whether they do. They leave once, however often it is tried."""
        wish = placed.wish
        lower = sorted(rank for rank in self._ranks if rank < wish.priority)
        if not lower:
            return False
        if any(each.state == "leaving" for each in placed.makes_room):
            return True
        self._making = {engine: who for engine, who in self._making.items() if who is not placed}
        going: dict[str, list[Placed]] = {}
        for name in islice((name for rank in lower for name in self._ranks[rank]), LOOKED_THROUGH):
            other = self.streams[name]
            engine = self.room.engines[str(other.engine)]
            if (
                engine.name in but
                or engine.draining
                or not wish.labels <= engine.labels
                or wish.engine not in (None, engine.name)
            ):
                continue
            chosen = going.setdefault(engine.name, [])
            chosen.append(other)
            freed = sum(each.wish.need(engine.costs) for each in chosen)
            if wish.need(engine.costs) <= engine.free - HEADROOM * SECOND + freed:
                for each in chosen:
                    self._leave(each, None)
                placed.makes_room, self._making[engine.name] = tuple(chosen), placed
                placed.why = f"others of lower priority make room on engine {engine.name}"
                return True
        return False

    def _relieve(self, engine: Engine, now: float) -> None:
        """Moves streams away from an engine that has more than it can do, as far as that pays."""
        missed = 1 - SECOND / engine.load
        rate = sum(wish.fps for wish in engine.wishes.values()) * missed
        over = -engine.free
        going = []
        for wish in sorted(engine.wishes.values(), key=lambda each: (each.priority, -each.need(engine.costs))):
            placed = self.streams[wish.stream]
            pays = HORIZON_SECONDS * rate > GAP_SECONDS * wish.fps
            if over > 0 and pays and placed.engine == engine.name and now - placed.since >= SETTLED_SECONDS:
                going.append(wish.stream)
                over -= wish.need(engine.costs)
        self._move_some(engine.name, going)

    def _move_some(self, name: str, streams: Iterable[str]) -> None:
        """Moves those of an engine's streams for which another has room, `MOST_MOVES` at once."""
        leaving = self._leaving.setdefault(name, set())
        vain = set()
        for stream in streams:
            if len(leaving) >= MOST_MOVES:
                return
            placed = self.streams[stream]
            kind = placed.wish.fps, placed.wish.engine, placed.wish.labels
            if placed.state != "owned" or placed.engine != name or kind in vain:
                continue
            target = self.room.best(placed.wish, headroom=True, but=frozenset([name]))
            if target is None:
                vain.add(kind)
            else:
                self._leave(placed, target)
