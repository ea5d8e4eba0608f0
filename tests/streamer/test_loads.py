"""What is asked of an H100 and of a laptop, on the virtual clock with the costs recorded there: frames in time beside open answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamer.engine.decisions import FrameStep

from .loads import BF16, FP8, LAPTOP, PHASES, RATE, Device, begin, curve, load
from .world import World

HOSTS = [(1.0, 0.0), (2.0, 0.8), (3.0, 0.8)]
"""Milliseconds that the host adds to a step, and for each of its streams."""


@pytest.mark.parametrize(("device", "cameras"), [(BF16, 4), (FP8, 6)], ids=["bf16", "fp8"])
@pytest.mark.parametrize("phases", PHASES)
@pytest.mark.parametrize("host", HOSTS)
def test_cameras_are_in_time_beside_four_open_answers(
    device: Device, cameras: int, phases: str, host: tuple[float, float]
) -> None:
    """With little time left a step takes all that wait: what the batch saves is what the answers speak in."""
    figures = load(replace(device, host=host[0], upload=host[1]), cameras, 4, phases, seconds=30)
    assert figures.missed <= 0.001
    assert figures.first <= 0.06 and figures.first_worst <= 0.15
    assert figures.slowest >= 10


@pytest.mark.parametrize(("device", "cameras"), [(BF16, 4), (FP8, 6)], ids=["bf16", "fp8"])
@pytest.mark.parametrize("phases", PHASES)
@pytest.mark.parametrize("host", HOSTS[:2])
def test_they_are_so_where_frames_and_steps_vary(
    device: Device, cameras: int, phases: str, host: tuple[float, float]
) -> None:
    figures = load(replace(device, host=host[0], upload=host[1]), cameras, 4, phases, seconds=30, jitter=0.1)
    assert figures.missed <= 0.01
    assert figures.first <= 0.1 and figures.first_worst <= 0.25


@pytest.mark.parametrize("phases", PHASES)
def test_eight_cameras_that_just_fit_are_all_seen_beside_three_answers(phases: str) -> None:
    """They take 37.8 of every 40 ms: batches of four would cost a twentieth more for each, more than there is."""
    figures = load(FP8, 8, 3, phases, seconds=30)
    assert figures.missed <= 0.001
    assert figures.first <= 0.1 and figures.first_worst <= 0.25
    assert figures.slowest >= 4


@pytest.mark.parametrize("phases", PHASES)
@pytest.mark.parametrize("jitter", [0.0, 0.1])
@pytest.mark.parametrize(
    ("device", "cameras"),
    [
        pytest.param(FP8, 10, id="ten in fp8"),
        pytest.param(replace(FP8, host=2.0, upload=0.8), 8, id="eight in fp8, slow host"),
        pytest.param(replace(FP8, host=3.0, upload=0.8), 10, id="ten in fp8, slower host"),
        pytest.param(replace(BF16, host=2.0, upload=0.8), 5, id="five in bf16, slow host"),
        pytest.param(LAPTOP, 2, id="two on a laptop"),
    ],
)
def test_overload_drops_little_more_than_it_must(device: Device, cameras: int, phases: str, jitter: float) -> None:
    """Answers have their floor, all that is seen is in time, and hardly more is lost than the best batches could not see."""
    kept_open = 3
    figures = load(device, cameras, kept_open, phases, seconds=30, jitter=jitter)
    frames, tokens = curve(device.frames, device.host, device.upload), curve(device.tokens, device.host)
    each = min(frames(n) / n for n in range(1, cameras + 1)) / device.frames_per_step
    answers = 4 * tokens(kept_open) + 2 * (device.question + device.host) / 1000
    must = 1 - (1 - answers) / (each * 25 * cameras * (1 + jitter / 2))
    assert figures.missed <= max(0.0, must) + 0.055
    assert figures.late <= 0.001
    assert figures.slowest >= 3.7


def test_one_camera_leaves_eight_answers_their_pace() -> None:
    figures = load(BF16, 1, 8, seconds=30)
    assert figures.missed == 0
    assert figures.first <= 0.06 and figures.first_worst <= 0.15
    assert figures.slowest >= 29


def test_a_laptop_sees_every_frame_beside_three_answers() -> None:
    figures = load(LAPTOP, 1, 3, seconds=30)
    assert figures.missed == 0
    assert figures.first <= 0.1 and figures.first_worst <= 0.25
    assert figures.slowest >= 15


def lockstep(device: Device, cameras: int) -> World:
    """Cameras that all show their frames at once, beside four answers that are always open; nothing has run yet."""
    world = begin(device, None, 0, 0.0)
    for i in range(cameras):
        world.camera(f"cam{i}", RATE, 30, deadline=device.deadline)
    for i in range(4):
        world.asker(f"open{i}", 30, question=20, length=1_000)
    return world


def slowest(world: World) -> float:
    return min(len(times) for answer, times in world.tokens.items() if answer.startswith("open")) / 30


@pytest.mark.parametrize(("device", "cameras"), [(BF16, 4), (FP8, 4), (FP8, 6)], ids=["bf16", "four in fp8", "fp8"])
def test_cameras_in_lockstep_share_one_step(device: Device, cameras: int) -> None:
    """Three or four at once cost hardly more each, but leave one or two for a step of their own, which does."""
    world = lockstep(replace(device, upload=0.8), cameras)
    world.run(30)
    assert {len(step.frames) for when, step in world.steps if isinstance(step, FrameStep) and when > 2} == {cameras}
    assert not world.drops and max(lag for i in range(cameras) for lag in world.lags(f"cam{i}")) <= 0.04
    assert slowest(world) >= 28


def test_a_recording_joins_the_steps_of_cameras_in_lockstep() -> None:
    """The cameras stay in time, the answers near their ceiling, and the recording goes faster than life."""
    world = lockstep(FP8, 5)
    world.recording("tape", 30)
    world.run(30)
    assert not world.drops and max(lag for i in range(5) for lag in world.lags(f"cam{i}")) <= 0.08
    assert len(world.seen["tape"]) / 30 >= 36
    assert slowest(world) >= 27
