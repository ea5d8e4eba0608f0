"""How large a machine's pictures may be, so that it has time for every step of a stream at the rate that the model was trained with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from model.families.infinitevl import InfiniteVL
from model.serving.int8 import fastest, pack, product
from model.serving.quantize import Precision

SIDES = (14, 10, 7, 5)
"""Tokens along a square picture, the largest first: 448, 320, 224 and 160 pixels for patches of 16."""
SHARE = 0.7
"""Of a step's period, what may go to the step; the rest is for answers."""
ROWS = 64


def affordable_tokens(model: InfiniteVL, precision: Precision = "model") -> int:
    """The most tokens of a picture whose steps this CPU takes as fast as they come, by its measured speed at products.

    Those are what `precision` will make of the weights, which are still as they were loaded. Where even the smallest picture is
    too much, that one's; a model trained with any rate keeps its own number.
    """
    config = model.config
    if config.frames_per_second is None:
        return config.tokens_per_frame
    period = config.frames_per_step / config.frames_per_second
    speed = products_per_second(model, precision)
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


@torch.inference_mode()
def products_per_second(model: InfiniteVL, precision: Precision = "model") -> float:
    """Multiplications a second of a step's largest product, the best of a few."""
    mlp = model.model.layers[0].mlp
    weight = next(x for x in mlp.parameters() if x.dim() == 2)  # type: ignore[union-attr]
    x = weight.new_ones(ROWS, weight.shape[1])
    ways: list[Callable[[], object]] = [partial(F.linear, x, weight)]
    if precision == "int8":  # which is taken where it is faster
        ways.append(partial(product, x, pack(weight), None))
    return ROWS * weight.numel() / min(fastest(*ways))
