"""The configured model on its way into the engine, and what is said where the device can't hold it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from pathlib import Path

import torch

from model import AttentionPolicy, CapacityError, Runner, load_runner
from model.checkpoint import locate, read_config
from model.config import PRESETS, InfiniteVLConfig
from model.policy import RetrievalPolicy
from model.serving.catalogue import dtypes, fit, known, outline
from model.serving.streams import steps
from streamer.config import Config
from streamer.engine.engine import Engine
from streamer.engine.pace import Pace
from streamer.errors import AssistantError


def load(config: Config) -> Runner:
    """The configured model with its slots. Raises AssistantError, CheckpointError, ConfigError, CapacityError."""
    model, slots = config.model, config.limits.streams + config.limits.answers
    if model.device == "cuda" and not torch.cuda.is_available():
        raise AssistantError("no_device", "model.device cuda: no CUDA device is to be had here; set it to cpu.")
    check_weights(config)
    if model.device == "cuda":
        torch.cuda.set_stream(steps())  # of this thread alone
    attention = model.attention
    runner = load_runner(
        model.name,
        device=model.device,
        dtype=model.dtype,
        slots=slots,
        random_weights=model.random_weights,
        policy=None if attention is None else AttentionPolicy(attention.sinks, attention.window, attention.context),
        position_horizon=model.position_horizon,
        frames_per_step=model.frames_per_step,
        picture_tokens=model.picture_tokens,
    )
    if isinstance(runner.config.policy, RetrievalPolicy):
        raise AssistantError(
            "grows_forever",
            f"Model {model.name} keeps every key of what it has seen, which a live stream has no end of: "
            "set model.attention {sinks, window}, or read recordings with streamer index.",
        )
    return runner


def check_weights(config: Config) -> None:
    """Raises AssistantError where the model's weights alone are more than the device's free memory, and names what fits.

    A repository that is not known is judged once it is here, by the slots that no longer fit beside it. Raises CheckpointError.
    """
    model, slots = config.model, config.limits.streams + config.limits.answers
    device = torch.device(model.device)
    settings = sizes(model.name)
    if settings is None:
        return
    found = fit(outline(settings), model.dtype, device, slots)
    if found.free is None or found.weights <= found.free:
        return
    fitting = (
        f"{one.name} fits in {dtype}"
        for one in reversed(known())
        for dtype in dtypes(device)
        if not fit(outline(one.config), dtype, device, slots).missing
    )
    mend = next(fitting, "nothing that streamer models lists fits here")
    raise AssistantError(
        "no_memory",
        f"Model {model.name}: its weights take {found.weights / 1e9:.1f} GB in {model.dtype}, {found.free / 1e9:.1f} GB of memory "
        f"are free and {(found.weights - found.free) / 1e9:.1f} GB are missing; {mend}.",
    )


def sizes(name: str) -> InfiniteVLConfig | None:
    """What is known of a model before anything is downloaded: None of a repository that is not listed. Raises CheckpointError."""
    listed = {one.name: one.config for one in known()} | PRESETS
    if name in listed:
        return listed[name]
    return read_config(Path(name)) if Path(name).is_dir() else None


async def start(engine: Engine, config: Config) -> None:
    """Starts the engine. Raises AssistantError where the device is too small for what is configured."""
    name, limits = config.model.name, config.limits
    try:
        await asyncio.wrap_future(engine.start())
    except CapacityError as error:
        mend = (
            "Free some of it, or choose a smaller model or attention window."
            if error.fit < 2
            else f"Lower limits.streams ({limits.streams}) and limits.answers ({limits.answers}) to {error.fit} "
            "together, or free some of it."
        )
        raise AssistantError("no_memory", f"Model {name}: {error}. {mend}") from None
    except torch.OutOfMemoryError as error:
        raise AssistantError(
            "no_memory",
            f"Model {name} has too little of the device's memory ({str(error).splitlines()[0]}): lower limits.streams "
            "or limits.answers, or free some of it.",
        ) from None
    except Exception as error:
        if type(error).__name__ != "OutOfResources":  # Triton's, which a machine without a GPU does not have
            raise
        lack = str(error).removeprefix("out of resource: ").partition(". Reducing")[0]
        raise AssistantError(
            "no_device",
            f"Model {name} can't run on this card ({lack}): its kernels are cut for the shared memory of an H100 or H200; "
            "use such a card, or set model.device to cpu.",
        ) from None


def engine_threads(config: Config) -> int:
    """CPU threads of the configured model, as chosen or by what it is. Raises CheckpointError."""
    model = config.model
    if model.threads is not None:
        return model.threads
    if model.device != "cpu":
        return threads(model.device, None)
    check_weights(config)
    return threads(model.device, sizes(model.name) or read_config(locate(model.name)))


def threads(device: str, settings: InfiniteVLConfig | None) -> int:
    """CPU threads for a model of these sizes on this machine."""
    usable = os.sched_getaffinity(0)
    return share(device, settings is not None and settings.frames_per_second is not None, len(usable), cores(usable))


def share(device: str, slow: bool, usable: int, whole: int) -> int:
    """CPU threads of a model, where `usable` processors are, on `whole` cores; `slow` says that a step a second is its rate.

    A model of 25 frames a second leaves half to what decodes and talks, and to its own vision tower, which is a step ahead on a
    thread of its own. One of a step a second takes every core: decoding two frames a second wants next to nothing, a step and a
    token are twice as soon on two cores, and the tower has no room beside them nor needs it. Two
    processors of one core share what multiplies: they count once.
    Beside a GPU it is one, where more spin in vain.
    """
    if device != "cpu":
        return 1
    return whole if slow else max(1, usable // 2)


def cores(usable: Collection[int], topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that these processors are of; each is one where the system does not tell."""
    found = set()
    for cpu in usable:
        try:
            found.add((topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            found.add(str(cpu))
    return len(found)


def pace(config: Config) -> Pace:
    """How fast answers are spoken."""
    return Pace(floor=config.answers.floor_tokens_per_second, ceiling=config.answers.ceiling_tokens_per_second)
