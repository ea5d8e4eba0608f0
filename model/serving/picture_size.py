"""How large a machine's pictures may be, so that it has time for every step of a stream at the rate that the model was trained with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from model.checkpoint import kept_dtype
from model.config import InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.serving.catalogue import outline
from model.serving.int8 import to_int8
from model.serving.quantize import Precision
from model.state import StreamState

SIDES = (14, 10, 7, 5)
"""Tokens along a square picture, the largest first: 448, 320, 224 and 160 pixels for patches of 16."""
SHARE = 0.7
"""Of a step's period, what may go to the step; the rest is for answers."""
LAYERS, BLOCKS, VOCABULARY = 4, 1, 512
"""Of the model that is timed: one period of its layers, and no more tokens than a step needs."""
SIDE = SIDES[-1]
TRIES = 2


def affordable_tokens(model: InfiniteVL, precision: Precision = "model") -> int:
    """The most tokens of a picture whose steps this CPU takes as fast as they come, by its measured speed at them.

    That is of what `precision` will make of the weights, which are still as they were loaded. Where even the smallest picture is
    too much, that one's; a model trained with any rate keeps its own number.
    """
    config = model.config
    if config.frames_per_second is None:
        return config.tokens_per_frame
    period = config.frames_per_step / config.frames_per_second
    speed = products_per_second(config, precision, model.model.embed_tokens.weight.dtype)
    for side in SIDES:
        if side * side <= config.tokens_per_frame and step_products(model, side * side) / speed <= SHARE * period:
            return side * side
    return SIDES[-1] ** 2


def step_products(model: InfiniteVL, tokens: int) -> float:
    """Multiplications of a step whose picture has so many tokens: of weights, and of attention in the tower and to the window."""
    config, vision = model.config, model.config.vision
    rows, patches = tokens + config.step_text, tokens * vision.spatial_merge_size**2
    seeing = sum(x.numel() for x in model.visual.blocks.parameters()) * patches
    seeing += sum(x.numel() for x in model.visual.merger.parameters()) * tokens
    seeing += 2 * patches**2 * vision.hidden_size * vision.depth
    decoder = config.decoder
    keys = config.policy.sinks + config.policy.ring_size(config.step_tokens)
    attending = (
        2 * rows * keys * decoder.num_attention_heads * decoder.head_dim * decoder.layer_types.count("attention")
    )
    seeing += attending
    return float(seeing + rows * sum(x.numel() for x in model.model.layers.parameters()))


def short(config: InfiniteVLConfig) -> InfiniteVLConfig:
    """The same sizes with few layers."""
    kinds = config.decoder.layer_types[:LAYERS]
    decoder = replace(config.decoder, num_hidden_layers=len(kinds), layer_types=kinds, vocab_size=VOCABULARY)
    vision = replace(config.vision, depth=BLOCKS)
    return replace(config, decoder=decoder, vision=vision, tokens_per_frame=SIDE**2, position_cap=None)


@torch.inference_mode()
def products_per_second(
    config: InfiniteVLConfig, precision: Precision = "model", dtype: torch.dtype = torch.float32
) -> float:
    """Multiplications a second that whole steps of these sizes reach on this CPU, with all that is between the products.

    That is about half of what the products alone reach. A short model takes the steps.
    """
    config = short(config)
    model = outline(config)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        weight = torch.full(parameter.shape, 0.01, dtype=kept_dtype(config.decoder, name, dtype))
        setattr(model.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
    model.eval().fuse()
    work = step_products(model, SIDE**2)  # before int8, whose packed weights are no parameters
    if precision == "int8":
        to_int8(model)
    state, slots = StreamState.allocate(config, 1, "cpu", dtype), torch.zeros(1, dtype=torch.int64)
    vision = config.vision
    grid = (SIDE * vision.spatial_merge_size, SIDE * vision.spatial_merge_size)
    patches = torch.full((1, grid[0] * grid[1], vision.patch_dim), 0.5, dtype=dtype)
    text = torch.zeros(1, 2 + config.step_text, dtype=torch.int64)

    def step() -> None:
        model.ingest(model.encode(patches, grid), grid, torch.zeros(1, dtype=torch.float64), state, slots, text)

    return work / fastest(step)


def fastest(do: Callable[[], None]) -> float:
    """Seconds of the fastest of a few runs, behind one that warms up."""
    times = []
    for _ in range(1 + TRIES):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return min(times[1:])
