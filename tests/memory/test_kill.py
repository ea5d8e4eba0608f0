"""Pull the plug and it still knows: the real daemon, killed at random moments and started again on the same state folder.

`python -m tests.memory.test_kill KILLS [--nano] [--power] [--failing SHARE] [--seed N] [--seconds N]`
kills so often and prints what was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from model.world.objects import Thing
from tests.memory.disk import Disk
from tests.memory.pictures import painted
from tests.memory.plug import STREAMS, Plug, jpeg

MOST_LOST = 10.0
"""Seconds of memory that a kill may cost, with a snapshot every 5 s."""
TRIES = 2
"""Numbers that are shown before each kill at most, should the first not be read."""


async def pull(plug: Plug, kills: int, *, shown: bool = False, seconds: float = float("inf")) -> Plug:
    """Kills so often, or until so many seconds are over; between two kills a number is `shown`. After the last it is not started."""
    chance, until = random.Random(plug.chance.random()), time.monotonic() + seconds
    numbers = [str(chance.randrange(10, 100)) for _ in range((kills - 1) * TRIES if shown else 0)]
    empty, *pictures = map(jpeg, painted([None, *(Thing("number", each) for each in numbers)])) if shown else [b""]
    showing = [(number, picture, empty) for number, picture in zip(numbers, pictures, strict=True)]
    await plug.round(None)
    for n in range(kills - 1):
        if time.monotonic() > until:
            break
        now = showing[n * TRIES : (n + 1) * TRIES]
        await plug.round(chance.uniform(0.0, 11.0) if kills > 2 else 6.0, now)
        worst = max(plug.lost[-STREAMS + 1 :])
        told = f"{plug.known} of {plug.asked_about} numbers known"
        print(f"kill {n + 2}: lost {worst:.1f} s, {plug.rows} rows told again, {told}", file=sys.stderr, flush=True)
    return plug


@pytest.mark.slow
def test_two_kills_cost_no_more_than_a_client_was_told(tmp_path: Path) -> None:
    """It is told of a snapshot every 5 s: how many seconds those are on a busy machine, the nightly one measures."""
    with Plug(tmp_path, 1, nano=False) as plug:
        asyncio.run(asyncio.wait_for(pull(plug, 2), 280))
    assert len(plug.lost) == len(plug.saved_at.keys() - {"door"}) == STREAMS - 1 and not plug.unreadable
    assert plug.interval == 5


@pytest.mark.nightly
@pytest.mark.timeout(3_000)
@pytest.mark.parametrize("case", ["plain", "power", "syncs"])
def test_many_kills(case: str, tmp_path: Path) -> None:
    found = measure(tmp_path, 34, seed=1, nano=case == "plain", power=case != "plain", failing=0.2 * (case == "syncs"))
    assert found["most_lost_s"] < MOST_LOST and found["facts"][0] == found["facts"][1]
    assert not found["unreadable"] and found["rows"] > 100


def measure(
    folder: Path, kills: int, *, seed: int, nano: bool, power: bool, failing: float, seconds: float = float("inf")
) -> dict[str, Any]:
    disk = Disk(folder, folder / "state", losing=True) if power or failing else None
    with Plug(folder, seed, nano=nano, disk=disk, failing=failing) as plug:
        try:
            asyncio.run(pull(plug, kills, shown=nano, seconds=seconds))
        except BaseException:
            print(plug.log.read_text()[-3000:], file=sys.stderr)
            raise
    lost, ready = sorted(plug.lost), sorted(plug.ready)
    return {
        "kills": plug.rounds - 1,
        "streams": STREAMS,
        "most_lost_s": round(lost[-1], 2),
        "median_lost_s": round(lost[len(lost) // 2], 2),
        "most_ready_s": round(ready[-1], 2),
        "median_ready_s": round(ready[len(ready) // 2], 2),
        "rows": plug.rows,
        "facts": (plug.known, plug.asked_about),
        "writes_lost": plug.writes_lost,
        "unreadable": plug.unreadable,
        "faults": plug.log.read_text().count("can be kept now"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nano", action="store_true")
    parser.add_argument("--power", action="store_true")
    parser.add_argument("--failing", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after so many no more kills begin")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # no daemon is left behind
    with tempfile.TemporaryDirectory() as place:
        print(measure(Path(place), **vars(options)))
