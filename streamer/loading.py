"""The configured model on its way into the engine, and what is said where the device can't hold it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import torch

from model import AttentionPolicy, CapacityError, Runner, load_runner
from model.checkpoint import read_config
from model.config import PRESETS
from model.policy import RetrievalPolicy
from model.serving.catalogue import dtypes, fit, known, outline
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
    sizes = {one.name: one.config for one in known()} | PRESETS
    if model.name not in sizes and not Path(model.name).is_dir():
        return
    settings = sizes.get(model.name) or read_config(Path(model.name))
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


async def start(engine: Engine, config: Config) -> None:
    """Starts the engine. Raises AssistantError where the device's memory is too small for what is configured."""
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


def threads(device: str) -> int:
    """CPU threads of the model: half the cores, as the others decode and talk; one beside a GPU, where more spin in vain."""
    return max(1, len(os.sched_getaffinity(0)) // 2) if device == "cpu" else 1


def pace(config: Config) -> Pace:
    """How fast answers are spoken."""
    return Pace(floor=config.answers.floor_tokens_per_second, ceiling=config.answers.ceiling_tokens_per_second)
