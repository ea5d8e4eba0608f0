"""What rate of steps to expect of a checkpoint on this machine before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.config import PRESETS, InfiniteVLConfig
from model.serving import picture_size
from model.serving.catalogue import Dtype, outline
from model.serving.picture_size import SHARE, SIDES, fastest, step_products

SAMPLE = "qwen3.5-0.8b"
REACHED = 0.6
"""Of a GPU's speed at one large product, what whole steps of these models reach (an H200: 490 of 790 TFLOP/s)."""
LARGE = 8192


@dataclass(frozen=True)
class Expectation:
    """Steps a second with square pictures of `side` pixels; `trained` a second are what the model was trained with."""

    side: int
    rate: float
    trained: float


@torch.inference_mode()
def products_per_second(
    device: torch.device, dtype: Dtype = "float32", config: InfiniteVLConfig | None = None
) -> float:
    """Multiplications a second that whole steps reach, with all that is between the products: on a CPU in `dtype`, on a GPU in bfloat16.

    Without a GPU a short model of `config`'s sizes (the smallest checkpoint's) takes steps, as one that is loaded has its pictures'
    size chosen; a GPU's kernels would take longer to compile than to run.
    """
    if device.type == "cuda":
        x = torch.ones(LARGE, LARGE, device=device, dtype=torch.bfloat16)

        def multiply() -> None:
            torch.mm(x, x)
            torch.cuda.synchronize(device)

        return REACHED * LARGE**3 / fastest(multiply)
    return picture_size.products_per_second(config or PRESETS[SAMPLE], "int8" if dtype == "int8" else "model")


def expect(config: InfiniteVLConfig, speed: float) -> Expectation:
    """The largest pictures that a model has time for at its trained rate, else the smallest, and the rate of their steps."""
    unit = config.vision.patch_size * config.vision.spatial_merge_size
    trained = (config.frames_per_second or config.frames_per_step) / config.frames_per_step
    model = outline(config)
    rates = [(side, speed / step_products(model, side**2)) for side in SIDES]
    side, rate = next((each for each in rates if each[1] * SHARE >= trained), rates[-1])
    return Expectation(side * unit, rate, trained)
