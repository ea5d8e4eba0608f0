"""What rate of steps to expect of a checkpoint on this machine before it is loaded: a short model of that make is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from model.config import PRESETS, InfiniteVLConfig
from model.serving.catalogue import Dtype, outline
from model.serving.int8 import to_int8
from model.serving.picture_size import SHARE, SIDES, step_products
from model.state import StreamState

SAMPLE = "qwen3.5-0.8b"
LAYERS, BLOCKS, VOCABULARY = 4, 1, 512
"""Of the sample: one period of its layers, and no more tokens than a step needs."""
SIDE = SIDES[-1]
TRIES = 2
REACHED = 0.6
"""Of a GPU's speed at one large product, what whole steps of these models reach (an H200: 490 of 790 TFLOP/s)."""
LARGE = 8192


@dataclass(frozen=True)
class Expectation:
    """Steps a second with square pictures of `side` pixels; `trained` a second are what the model was trained with."""

    side: int
    rate: float
    trained: float


def sample() -> InfiniteVLConfig:
    """The smallest checkpoint's sizes, with few layers."""
    whole = PRESETS[SAMPLE]
    decoder = replace(
        whole.decoder,
        num_hidden_layers=LAYERS,
        layer_types=whole.decoder.layer_types[:LAYERS],
        vocab_size=VOCABULARY,
    )
    return replace(
        whole, decoder=decoder, vision=replace(whole.vision, depth=BLOCKS), tokens_per_frame=SIDE**2, position_cap=None
    )


@torch.inference_mode()
def products_per_second(
    device: torch.device, dtype: Dtype = "float32", config: InfiniteVLConfig | None = None
) -> float:
    """Multiplications a second that whole steps reach, with all that is between the products: on a CPU in `dtype`, on a GPU in bfloat16.

    Without a GPU a model of `config`'s sizes (the `sample`) takes steps; a GPU's kernels would take longer to compile than to run.
    """
    if device.type == "cuda":
        x = torch.ones(LARGE, LARGE, device=device, dtype=torch.bfloat16)

        def multiply() -> None:
            torch.mm(x, x)
            torch.cuda.synchronize(device)

        return REACHED * LARGE**3 / _fastest(multiply)
    config = config or sample()
    model = outline(config)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(torch.full(parameter.shape, 0.01), requires_grad=False))
    model.eval().fuse()
    if dtype == "int8":
        to_int8(model)
    state, slots = StreamState.allocate(config, 1, "cpu", torch.float32), torch.zeros(1, dtype=torch.int64)
    vision = config.vision
    grid = (SIDE * vision.spatial_merge_size, SIDE * vision.spatial_merge_size)
    patches = torch.full((1, grid[0] * grid[1], vision.patch_dim), 0.5)
    text = torch.zeros(1, 2 + config.step_text, dtype=torch.int64)

    def step() -> None:
        model.ingest(model.encode(patches, grid), grid, torch.zeros(1, dtype=torch.float64), state, slots, text)

    return step_products(model, SIDE**2) / _fastest(step)


def _fastest(do: Callable[[], None]) -> float:
    """Seconds of the fastest of a few runs, behind one that warms up."""
    times = []
    for _ in range(1 + TRIES):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def expect(config: InfiniteVLConfig, speed: float) -> Expectation:
    """The largest pictures that a model has time for at its trained rate, else the smallest, and the rate of their steps."""
    unit = config.vision.patch_size * config.vision.spatial_merge_size
    trained = (config.frames_per_second or config.frames_per_step) / config.frames_per_step
    model = outline(config)
    rates = [(side, speed / step_products(model, side**2)) for side in SIDES]
    side, rate = next((each for each in rates if each[1] * SHARE >= trained), rates[-1])
    return Expectation(side * unit, rate, trained)
