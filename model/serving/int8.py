"""Matrix products of a CPU in int8, where it is faster at them than in float32: weights scaled an output, inputs a row.

Torch's own kernel, FBGEMM's. Inputs are kept to seven bits: without VNNI eight may overflow.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ConfigError
from model.ops.linear import JointLinear

if TYPE_CHECKING:
    from model.families.infinitevl import InfiniteVL

ENGINE = "fbgemm"
TRIES = 12
"""Runs of a product, of which the fastest counts: of fewer, on a machine that does other things, float32 has won by chance."""
WORTH = 0.95
"""Times what float32 takes that int8 may take at most to be chosen: equally fast is not worth the rounding."""
LEVELS = 63
"""Of an input's magnitude: seven bits with its sign."""


class Choice(NamedTuple):
    """Where int8 is faster: for single tokens, for the rows of a step."""

    few: bool
    many: bool


class Int8Linear(nn.Module):
    """A linear map of `weight` float32 [out, in] in int8; rows for which `choice` says otherwise go through the weight itself."""

    weight: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, choice: Choice) -> None:
        super().__init__()
        self.choice, self.bias = choice, bias if bias is None else nn.Parameter(bias, requires_grad=False)
        self.weight = None if all(choice) else nn.Parameter(weight, requires_grad=False)
        self.packed = pack(weight)

    def forward(self, x: Tensor) -> Tensor:
        """`x` float32 [..., rows, in] to [..., rows, out]."""
        chosen = self.choice.few if x.shape[-2] == 1 else self.choice.many
        if chosen or self.weight is None:
            return product(x, self.packed, self.bias)
        return F.linear(x, self.weight, self.bias)


class Int8Joint(Int8Linear):
    """Several linear maps of one input as one product: a `JointLinear` that has been fused."""

    def __init__(self, joint: JointLinear, choice: Choice) -> None:
        assert joint.weight is not None
        super().__init__(joint.weight, joint.bias, choice)
        self.sizes = joint.sizes

    def forward(self, x: Tensor) -> Any:
        """As `JointLinear.forward`."""
        return super().forward(x).split(self.sizes, -1)


def product(x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
    """`x` float32 [..., in], each row scaled by its largest magnitude, by packed weights: float32 [..., out]."""
    scale = x.abs().amax(-1, keepdim=True).clamp_(min=1e-12)
    op = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    y: Tensor = op(x / scale, 1 / LEVELS, LEVELS + 1, packed)
    return y.mul_(scale) if bias is None else torch.addcmul(bias, y, scale)


def pack(weight: Tensor) -> Any:
    """`weight` float32 [out, in] in int8, each row's largest magnitude 127, laid out for the kernel."""
    scales = weight.abs().amax(1).clamp(min=1e-12).double() / 127
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        with warnings.catch_warnings():
            # That quantized tensors are deprecated is known; packed ones have no other door.
            warnings.simplefilter("ignore")
            zero = torch.zeros(len(weight), dtype=torch.int64)
            rows = torch.quantize_per_channel(weight.contiguous(), scales, zero, 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(rows, None)
    finally:
        torch.backends.quantized.engine = before


def choose(weight: Tensor, bias: Tensor | None, rows: int) -> Choice:
    """How a product is fastest on this machine now, at one row and at `rows`."""
    packed = pack(weight)

    def pays(count: int) -> bool:
        x = torch.randn(count, weight.shape[1])
        ours, plain = fastest(partial(product, x, packed, bias), partial(F.linear, x, weight, bias))
        return ours < WORTH * plain

    return Choice(pays(1), pays(rows))


def fastest(*ways: Callable[[], object]) -> list[float]:
    """The fewest seconds that each of `ways` takes once it is warm, tried in turn: whatever else the machine does meets all of them."""
    took = [float("inf")] * len(ways)
    for turn in range(1 + TRIES):
        for i, do in enumerate(ways):
            began = time.perf_counter()
            do()
            if turn:
                took[i] = min(took[i], time.perf_counter() - began)
    return took


def check() -> None:
    """Raises ConfigError where torch has no int8 products for this machine."""
    if ENGINE not in torch.backends.quantized.supported_engines:
        raise ConfigError("dtype 'int8' needs an x86 CPU, for which torch has int8 products: choose float32")


@torch.no_grad()
def to_int8(model: InfiniteVL) -> dict[tuple[int, ...], Choice]:
    """Puts a fused model's products into int8 where a measurement now says that it pays; where it always does, the weights go.

    Returns what was chosen by shape: (rows of a step, out, in).
    """
    tokens, merge = model.config.tokens_per_frame, model.config.vision.spatial_merge_size
    chosen: dict[tuple[int, ...], Choice] = {}

    def choice(weight: Tensor, bias: Tensor | None, rows: int) -> Choice | None:
        key = (rows, *weight.shape)
        if key not in chosen:
            chosen[key] = choose(weight, bias, rows)
        return chosen[key] if any(chosen[key]) else None

    head = (model.model.embed_tokens if model.lm_head is None else model.lm_head).weight
    if choose(head, None, 1).few:
        model.output, model.lm_head = Int8Linear(head, None, Choice(True, True)), None
    for name, module in list(model.named_modules()):
        rows = tokens * merge**2 if name.startswith("visual.blocks") else tokens
        joints = [part for part in module.children() if isinstance(part, JointLinear)]
        joined = [part for joint in joints for part in joint.parts]
        for child, part in list(module.named_children()):
            if part in joined or part is model.lm_head:
                continue
            if isinstance(part, JointLinear) and part.weight is not None:
                found = choice(part.weight, part.bias, rows)
                if found is not None:
                    setattr(module, child, Int8Joint(part, found))
                    for inner in [key for key, linear in module.named_children() if linear in part.parts]:
                        setattr(module, inner, None)  # a view of the joint weight
            elif isinstance(part, nn.Linear):
                found = choice(part.weight, part.bias, rows)
                if found is not None:
                    setattr(module, child, Int8Linear(part.weight.detach(), part.bias, found))
            elif isinstance(kernel := getattr(part, "proj", None), nn.Conv3d):  # the patches' embedding
                weight = kernel.weight.flatten(1)
                found = choice(weight, kernel.bias, tokens * merge**2)
                if found is not None:
                    setattr(module, child, Int8Linear(weight, kernel.bias, found))
    return chosen
