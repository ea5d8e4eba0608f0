"""When watches are looked at, on a virtual clock: below frames, with a floor ahead of answers, and evenly where time is short."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from streamer.engine.decisions import Look
from streamer.engine.looks import FLOOR, Looks
from streamer.engine.pace import Pace
from streamer.engine.shown import Part, part
from streamer.engine.standing import LONGEST, SETTLES, Scene, Standing

from .world import World


def watched(world: World, streams: dict[str, int], every: float = 0.5) -> None:
    for stream, count in streams.items():
        for i in range(count):
            world.scheduler.looks.add(stream, f"w{i}", every, 0.0)


def looks(world: World, begin: float = 0.0) -> dict[tuple[str, str], list[float]]:
    out: dict[tuple[str, str], list[float]] = {}
    for when, step in world.steps:
        if isinstance(step, Look) and when >= begin:
            for watch in step.watches:
                out.setdefault((step.stream, watch), []).append(when)
    return out


def test_all_watches_of_a_stream_share_a_step_twice_a_second_and_no_frame_is_lost() -> None:
    world = World(frames=lambda n: 0.01 * n, look=lambda n: 0.01 + 0.001 * n)
    for name in "abcd":
        world.camera(name, 15, 20)
    watched(world, dict.fromkeys("abcd", 5))
    world.run(21)
    assert not world.drops
    assert all(len(times) >= 1.9 * 19 for times in looks(world, 1.0).values()) and len(looks(world)) == 20
    sizes = [len(step.watches) for when, step in world.steps if isinstance(step, Look) and when > 1]
    assert min(sizes) == 5


def test_frames_come_before_looks_which_keep_their_floor() -> None:
    """Frames alone want more time than there is, and answers are open: each watch is looked at every two seconds or so."""
    world = World(frames=lambda n: 0.06 * n, look=lambda n: 0.02 * n, pace=Pace(floor=4, ceiling=30))
    world.camera("a", 25, 30)
    world.asker("talk", 30)
    watched(world, {"a": 3})
    world.run(31)
    assert len(looks(world, 2.0)) == 3
    for times in looks(world, 2.0).values():
        apart = [b - a for a, b in pairwise(times)]
        assert max(apart) < FLOOR + 0.5 and len(times) >= 11


def test_looks_slow_down_evenly_where_there_is_no_time_for_all() -> None:
    world = World(frames=lambda n: 0.02 * n, look=lambda n: 0.05 * n, answer_slots=4)
    for name in "ab":
        world.camera(name, 10, 40)
    watched(world, {"a": 8, "b": 4})
    world.run(41)
    counts = [len(times) for times in looks(world, 5.0).values()]
    assert len(counts) == 12 and min(counts) > 0.7 * max(counts)
    assert max(counts) < 1.8 * 35 and not world.drops


def test_nothing_new_is_not_looked_at_and_nothing_spins() -> None:
    world = World()
    world.camera("a", 10, 1)
    watched(world, {"a": 1})
    world.run(30)
    assert 2 <= len(looks(world)["a", "w0"]) <= 4


def test_looks_take_no_slot_that_an_answer_has() -> None:
    world = World(answer_slots=2)
    world.camera("a", 5, 20)
    watched(world, {"a": 4})
    for name in ("one", "two"):
        world.asker(name, 20, length=200)
    world.run(21)
    assert max(len(step.watches) for _, step in world.steps if isinstance(step, Look)) <= 2
    assert len(looks(world)) == 4 and all(len(times) > 7 for times in looks(world).values())


def test_a_picture_that_stands_is_looked_at_until_it_has_settled_and_seldom_after() -> None:
    class Nobody:
        """Hears nothing, as nothing is looked at here."""

    scene, still = Scene(), np.zeros((40, 40), np.int16)
    standing = Standing("w", "a", [], 0.5, 3.0, Nobody())  # type: ignore[arg-type]
    when = []
    for i in range(60):
        now = i * 0.5
        picture = still + (5 if now >= 20 else 0) + int(i % 2)  # a little noise all along
        if scene.news(standing, picture, now):
            scene.looked("w", now)
            when.append(now)
    settled = [now for now in when if now <= 19]
    assert settled[-2:] == [SETTLES, SETTLES + LONGEST] and 20.0 in when and 20.5 in when


@pytest.mark.parametrize(
    ("only", "shape"),
    [(None, (8, 10)), ((0.5, 0, 1, 0.5), (4, 5)), ((0.0, 0.99, 0.01, 1), (1, 1)), ((0, 0, 0.26, 1), (8, 3))],
)
def test_a_part_of_a_picture_is_its_own_pixels(only: Part | None, shape: tuple[int, int]) -> None:
    picture = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)
    found = part(picture, only)
    left, top = (0, 0) if only is None else (int(only[0] * 10), int(only[1] * 8))
    assert found.shape[:2] == shape and (found[0, 0] == picture[top, left]).all()


def test_slow_changes_add_up() -> None:
    scene = Scene()
    standing = Standing("w", "a", [], 0.5, 3.0, None)  # type: ignore[arg-type]
    seen = []
    for i in range(200):
        if scene.news(standing, np.full((40, 40), i // 10, np.int16), i * 0.1):
            scene.looked("w", i * 0.1)
            seen.append(i // 10)
    assert {3, 6, 9, 12} <= set(seen)


def asked(looks: Looks, now: float) -> tuple[str, ...]:
    found = looks.next(now, 1.0, 8)
    return () if found is None else found.watches


def test_watches_that_are_nearly_due_share_a_step_of_their_stream() -> None:
    looks = Looks()
    looks.add("a", "early", 0.5, 0.0)
    looks.add("a", "late", 0.5, 0.1)
    looks.seen("a")
    assert asked(looks, 0.0) == ("early", "late")
    looks.seen("a")
    assert asked(looks, 0.3) == () and asked(looks, 0.5) == ("early", "late")


def test_there_is_no_look_without_a_frame_since_the_last() -> None:
    looks = Looks()
    looks.add("a", "w", 0.5, 0.0)
    assert asked(looks, 1.0) == ()
    looks.seen("a")
    assert asked(looks, 1.0) == ("w",) and asked(looks, 9.0) == ()


def test_looks_that_there_was_no_time_for_are_not_made_up_for() -> None:
    looks = Looks()
    looks.add("a", "w", 0.5, 0.0)
    looks.seen("a")
    assert asked(looks, 0.0) == ("w",)
    looks.seen("a")
    assert asked(looks, 10.0) == ("w",)
    looks.seen("a")
    assert asked(looks, 10.2) == ("w",)  # a little late, and then at its pace
    looks.seen("a")
    assert asked(looks, 10.4) == () and asked(looks, 10.5) == ("w",)
