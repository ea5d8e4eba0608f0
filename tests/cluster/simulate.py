"""A fleet past any machine at hand, on a virtual clock: `python -m tests.cluster.simulate [CAMERAS …]`.

The placement is the one that runs; engines are played. Ten cameras a device, devices of three kinds with costs as measured,
twenty to a rack. Within the first hour all cameras come; then some come and go, a hundredth of the devices fails a day (half
of them are certain to be dead at once, of the rest nothing is heard) and is back ten minutes later, and one rack is lost for
an hour. A frame is in time if its stream is owned by an engine that lives and has no more to do than it can.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamer.cluster.placement import Own, Placement, Release
from streamer.cluster.room import SECOND, Costs, Wish

KINDS = (
    ("H200 fp8, 4B", Costs(29.1 / 16, 2.5, 2.47 / 8), 60, 0.1),
    ("H100 bf16, 4B", Costs(53.2 / 8, 4.0, 4.33 / 8), 40, 0.5),
    ("two CPU cores, nano", Costs(25.0, 10.0, 8.0), 20, 0.4),
)
"""What a frame, a look and a token cost (benchmarks.md), slots, and the share of devices."""
CAMERAS = ((1.0, 0.0, 0.5), (2.0, 0.5, 0.3), (5.0, 1.0, 0.15), (25.0, 0.0, 0.05))
"""Frames and looks a second, and the share of cameras."""
TURN, RENEW = 0.5, 2.0
RACK = 20
MOVING, OPENING = 0.2, 0.4
"""Seconds that a snapshot's writing takes, and that a stream's opening with it does."""


@dataclass
class Result:
    cameras: int
    devices: int
    hours: float
    frames: float = 0.0
    in_time: float = 0.0
    decisions: int = 0
    seconds: float = 0.0
    """Of one core of this machine, in the placement alone."""
    renewals: int = 0
    renewing: float = 0.0
    """The same for engines that were heard of."""
    to_place: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    moves: int = 0
    most_waiting: int = 0

    def facts(self) -> dict[str, Any]:
        def part(values: list[float], share: float) -> float | None:
            return round(sorted(values)[min(len(values) - 1, int(len(values) * share))], 2) if values else None

        return {
            "cameras": self.cameras,
            "devices": self.devices,
            "hours": self.hours,
            "frames_in_time": round(self.in_time / self.frames, 6),
            "moves_an_hour": round(self.moves / self.hours, 1),
            "seconds_to_place_p50_p99": [part(self.to_place, 0.5), part(self.to_place, 0.99)],
            "seconds_to_be_back_p50_p99_most": [part(self.back, 0.5), part(self.back, 0.99), part(self.back, 1.0)],
            "decisions": self.decisions,
            "decisions_a_second": round(self.decisions / self.seconds),
            "placement_seconds": round(self.seconds, 2),
            "renewals_a_second": round(self.renewals / max(self.renewing, 1e-9)),
            "most_waiting": self.most_waiting,
        }


class Simulation:
    """Events in a heap; the placement's orders take effect after the seconds that they take."""

    def __init__(self, cameras: int, hours: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.placement = Placement()
        self.result = Result(cameras, max(3, cameras // 10), hours)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._alive: dict[str, bool] = {}
        self._working: dict[str, set[str]] = {}
        """By engine, streams that it sees."""
        self._asked: dict[str, float] = {}
        self._lost: dict[str, float] = {}
        self._rates: dict[str, float] = {}

    def run(self) -> Result:
        result, hours = self.result, self.result.hours
        for number in range(result.devices):
            self._join(f"device-{number}", self._kind(number))
        for number in range(result.cameras):
            self._at(self.random.uniform(0, 3600), lambda n=number: self._come(f"camera-{n}"))  # type: ignore[misc]
        for _ in range(int(result.cameras * 0.01 * hours)):
            when = self.random.uniform(3600, hours * 3600)
            self._at(when, lambda: self._go(f"camera-{self.random.randrange(result.cameras)}"))
        for _ in range(max(1, round(result.devices * 0.01 * hours / 24))):
            self._at(
                self.random.uniform(3600, hours * 3600), lambda: self._fail(self.random.randrange(result.devices), 600)
            )
        rack = range(0, min(RACK, result.devices // 4))
        self._at(hours * 1800, lambda: [self._fail(number, 3600) for number in rack] and None)
        end, turned, renewed = hours * 3600, 0.0, 0.0
        while self.now < end:
            due = min(self._events[0][0] if self._events else end, turned + TURN)
            self.now = due
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            if self.now >= turned + TURN:
                turned = self.now
                if self.now >= renewed + RENEW:
                    renewed = self.now
                    self._count(RENEW)
                    self._renew()
                self._turn()
        result.moves = self.placement.moves
        return result

    def _kind(self, number: int) -> int:
        share, at = number * 0.618034 % 1, 0.0
        for kind, (*_, part) in enumerate(KINDS):
            at += part
            if share < at:
                return kind
        return len(KINDS) - 1

    def _at(self, when: float, do: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, do))

    def _timed(self, do: Callable[[], Any]) -> Any:
        began = time.thread_time()
        try:
            return do()
        finally:
            self.result.seconds += time.thread_time() - began

    def _join(self, name: str, kind: int) -> None:
        if name in self.placement.room.engines:  # it failed unheard and is back before that was known
            self._timed(lambda: self.placement.gone(name, self.now))
        self._alive[name] = True
        self._working[name] = set()
        _, costs, slots, _ = KINDS[kind]
        self._timed(lambda: self.placement.joined(name, costs, slots, self.now))

    def _come(self, name: str) -> None:
        at, draw = 0.0, self.random.random()
        for fps, looks, share in CAMERAS:  # noqa: B007
            at += share
            if draw < at:
                break
        self._asked[name], self._rates[name] = self.now, fps
        wish = Wish(name, fps, looks, 0.2)
        self._timed(lambda: self.placement.want(wish, self.now))

    def _go(self, name: str) -> None:
        """A camera goes, and another comes for it a minute later."""
        if name in self._rates and name in self.placement.streams:
            self._rates.pop(name)
            self._timed(lambda: self.placement.unwant(name, self.now))
            self._at(self.now + 60, lambda: self._come(name))

    def _fail(self, number: int, seconds: float) -> None:
        name = f"device-{number}"
        if not self._alive.get(name):
            return
        self._alive[name] = False
        for stream in self._working[name]:
            self._lost[stream] = self.now
        self._working[name] = set()
        if self.random.random() < 0.5:
            self._at(self.now + 0.5, lambda: self._timed(lambda: self.placement.gone(name, self.now)))
        self._at(self.now + seconds, lambda: self._join(name, self._kind(number)))

    def _renew(self) -> None:
        alive, placement, now = self._alive, self.placement, self.now
        began = time.thread_time()
        for name in list(placement.room.engines):
            if alive[name]:
                placement.renewed(name, now)
                self.result.renewals += 1
        self.result.renewing += time.thread_time() - began

    def _turn(self) -> None:
        orders = self._timed(lambda: self.placement.turn(self.now))
        self.result.decisions += len(orders)
        self.result.most_waiting = max(self.result.most_waiting, len(self.placement._waiting))
        for order in orders:
            if isinstance(order, Own):
                self._at(self.now + OPENING, lambda order=order: self._owned(order))  # type: ignore[misc]
            elif self._alive[order.engine]:
                self._at(self.now + MOVING, lambda order=order: self._released(order))  # type: ignore[misc]

    def _owned(self, order: Own) -> None:
        placed = self.placement.streams.get(order.stream)
        if placed is None or placed.epoch != order.epoch or not self._alive[order.engine]:
            return
        self._working[order.engine].add(order.stream)
        if (since := self._lost.pop(order.stream, None)) is not None:
            self.result.back.append(self.now - since)
        elif (asked := self._asked.pop(order.stream, None)) is not None:
            self.result.to_place.append(self.now - asked)

    def _released(self, order: Release) -> None:
        self._working[order.engine].discard(order.stream)
        self._timed(lambda: self.placement.released(order.stream, order.epoch, self.now))

    def _count(self, seconds: float) -> None:
        self.result.frames += seconds * sum(self._rates.values())
        for name, streams in self._working.items():
            engine = self.placement.room.engines.get(name)
            share = min(1.0, SECOND / engine.load) if engine is not None and engine.load else 1.0
            self.result.in_time += seconds * share * sum(self._rates.get(stream, 0.0) for stream in streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cameras", type=int, nargs="*", default=[10_000])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for cameras in given.cameras:
        began = time.monotonic()
        facts = Simulation(cameras, given.hours, given.seed).run().facts()
        print(json.dumps({**facts, "simulated_in_s": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
