"""What no step can go below: with these kernels (the same matrix products, delta rule and attention alone, in a graph), and at all.

Physics is what the card itself allows: a step's operations at the rate that it measures for their type, or the bytes that it
must move at its measured bandwidth, whichever takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.kernels.activation import Activation
from model.ops.kernels.attention import attend
from model.ops.kernels.delta_rule import delta_rule
from model.ops.kernels.norm import quantize
from model.serving.fused import FastInfiniteVL
from model.serving.quantize import Matrix
from model.state import StreamState

PICTURE = 448
"""Pixels a side of the frames that are measured."""


def replayed(call: Callable[[], object], seconds: float = 0.4) -> float:
    """Milliseconds of one replay of `call` captured as a graph: the median of groups timed by events."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return timed(graph.replay, seconds)


def timed(call: Callable[[], object], seconds: float = 0.4) -> float:
    """Milliseconds of device time of one `call`, median over groups of five."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    torch.cuda.synchronize()
    spans: list[float] = []
    until = time.monotonic() + seconds
    while len(spans) < 3 or time.monotonic() < until:
        start.record()
        for _ in range(5):
            call()
        stop.record()
        stop.synchronize()
        spans.append(start.elapsed_time(stop) / 5)
    return float(np.median(spans))


def rows_of(matrix: Matrix, rows: int) -> Activation:
    """Random input for a product, in the form it takes."""
    weight = matrix.weight if isinstance(matrix.weight, Tensor) else matrix.weight.data
    x = torch.randn(rows, weight.shape[1], device="cuda", dtype=torch.bfloat16)
    return quantize(x) if matrix.fp8 else x


@dataclass(frozen=True)
class Peaks:
    """What this card does at best, measured on random data: operations a second by type, and bytes read and written a second."""

    bf16: float
    fp8: float
    bandwidth: float

    @classmethod
    def measured(cls) -> Peaks:
        side = 8192
        a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        left, right = quantize(a), quantize(b)

        def coarse() -> Tensor:
            return torch._scaled_mm(
                left.data, right.data.T, left.scales[:, None], right.scales[None],
                out_dtype=torch.bfloat16, use_fast_accum=True,
            )  # fmt: skip

        block = torch.randint(0, 256, (2 * 2**30,), dtype=torch.uint8, device="cuda")
        other = torch.empty_like(block)
        work = 2e3 * side**3
        return cls(
            work / timed(lambda: a @ b, 0.2),
            work / timed(coarse, 0.2),
            2e3 * block.nbytes / timed(lambda: other.copy_(block), 0.2),
        )


@dataclass
class Work:
    """Operations in bf16 and in fp8, and bytes that must be moved."""

    bf16: float = 0.0
    fp8: float = 0.0
    moved: float = 0.0

    def product(self, matrix: Matrix, rows: int) -> None:
        weight = matrix.weight if isinstance(matrix.weight, Tensor) else matrix.weight.data
        operations = 2.0 * rows * weight.numel()
        self.moved += weight.nbytes
        if matrix.fp8:
            self.fp8 += operations
        else:
            self.bf16 += operations

    def milliseconds(self, peaks: Peaks) -> float:
        return 1e3 * max(self.bf16 / peaks.bf16 + self.fp8 / peaks.fp8, self.moved / peaks.bandwidth)


class Floor:
    """Products, delta rule and attention alone, each on its own weights."""

    def __init__(self, fast: FastInfiniteVL, state: StreamState) -> None:
        self.fast, self.state, self.config = fast, state, fast.config
        vision = fast.config.vision
        self.patches = (PICTURE // vision.patch_size) ** 2
        self.pictured = self.patches // vision.spatial_merge_size**2
        self.tokens = self.pictured + fast.config.step_text
        """Of a frame: patches, tokens of its grid, and all that a step takes."""

    def products(self, matrices: list[Matrix], rows: int) -> Callable[[], None]:
        inputs: dict[tuple[int, bool], Activation] = {}
        for matrix in matrices:
            weight = matrix.weight if isinstance(matrix.weight, Tensor) else matrix.weight.data
            key = (weight.shape[1], matrix.fp8)
            if key not in inputs:
                inputs[key] = rows_of(matrix, rows)

        def call() -> None:
            for matrix in matrices:
                weight = matrix.weight if isinstance(matrix.weight, Tensor) else matrix.weight.data
                matrix(inputs[(weight.shape[1], matrix.fp8)])

        return call

    def decoder(self, last: bool) -> list[Matrix]:
        """The decoder's products; a frame step needs nothing of its `last` layer but what reaches the state."""
        found: list[Matrix] = []
        for i, layer in enumerate(self.fast.layers):
            found.append(layer.mixer.inward)
            if last or i + 1 < len(self.fast.layers):
                found += [layer.mixer.outward, layer.mlp.inward, layer.mlp.outward]
        return found

    def vision(self) -> list[Matrix]:
        return [m for b in self.fast.tower.blocks for m in (b.qkv, b.proj, b.mlp.inward, b.mlp.outward)]

    def merger(self) -> list[Matrix]:
        return [Matrix(layer.weight, layer.bias, "model") for layer in self.fast.tower.merger]

    def rules(self, batch: int, n: int) -> Callable[[], None]:
        config = self.config.decoder
        heads, value = config.num_linear_heads, config.linear_value_dim
        channels = 2 * config.linear_key_width + config.linear_value_width
        mixed = F.normalize(torch.randn(batch, n, channels, device="cuda"), dim=-1)
        mixed = mixed.bfloat16()
        decay, beta = -torch.rand(batch, n, heads, device="cuda"), torch.rand(batch, n, heads, device="cuda")
        slots = torch.arange(batch, device="cuda")

        def call() -> None:
            for state in self.state.delta:
                delta_rule(mixed, decay, beta, slots, state, heads, value)

        return call

    def attention(self, batch: int, n: int) -> Callable[[], None]:
        config, policy = self.config.decoder, self.config.policy
        width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        joint = torch.randn(batch, n, width, device="cuda", dtype=torch.bfloat16)
        turn = (torch.randn(batch, n, config.rotary_dim // 2, device="cuda"),) * 2
        sink_turn = (torch.randn(batch, max(1, policy.sinks), config.rotary_dim // 2, device="cuda"),) * 2
        slots = torch.arange(batch, device="cuda")
        starts, counts = torch.full_like(slots, 100_000), torch.full_like(slots, n)

        def call() -> None:
            for keys, values in zip(self.state.keys, self.state.values, strict=True):
                attend(joint, turn, sink_turn, slots, starts, counts, keys, values, config.num_attention_heads, policy)

        return call

    @property
    def window(self) -> int:
        """Patches that one of a block without full attention sees; in a tower without windows, all."""
        config = self.config.vision
        return (config.window_size // config.patch_size) ** 2 or self.patches

    def tower(self, batch: int) -> Callable[[], None]:
        config, patches = self.config.vision, self.patches
        head = config.hidden_size // config.num_heads
        qkv = torch.randn(3, batch, config.num_heads, patches, head, device="cuda", dtype=torch.bfloat16)
        window = self.window
        near = qkv.view(3, batch, config.num_heads, -1, window, head).transpose(2, 3).flatten(1, 2).contiguous()

        def call() -> None:
            for i in range(config.depth):
                F.scaled_dot_product_attention(*(qkv if i in config.fullatt_block_indexes else near))

        return call

    def past(self, work: Work, batch: int, n: int) -> None:
        """What the decoder's layers do with what they keep: the delta rule's three products of a state, attention's two of its rows."""
        decoder, state = self.config.decoder, self.state
        work.bf16 += 6.0 * batch * n * (state.delta[:, 0].numel())
        keys = state.keys[:, 0].numel() / decoder.num_key_value_heads
        work.bf16 += 4.0 * batch * n * keys * decoder.num_attention_heads
        per_slot = state.delta[:, 0].nbytes * 2 + state.keys[:, 0].nbytes + state.values[:, 0].nbytes
        work.moved += batch * per_slot

    def frame_work(self, batch: int) -> Work:
        """What a frame step must do; rows between its products could stay on the chip and are not counted."""
        config, work = self.config.vision, Work()
        patches, tokens = self.patches, self.tokens
        for matrices, rows in ((self.vision(), patches), (self.merger(), self.pictured), (self.decoder(False), tokens)):
            for matrix in matrices:
                work.product(matrix, batch * rows)
        full = len(config.fullatt_block_indexes)
        seen = full * patches + (config.depth - full) * min(self.window, patches)
        work.bf16 += 4.0 * batch * patches * config.hidden_size * seen
        self.past(work, batch, tokens)
        return work

    def token_work(self, batch: int) -> Work:
        """What a token of each of `batch` answers must do."""
        work = Work()
        for matrix in (*self.decoder(True), self.fast.head):
            work.product(matrix, batch)
        self.past(work, batch, 1)
        return work

    def frame(self, batch: int) -> float:
        """Milliseconds of a frame step's floor."""
        tokens = self.tokens
        calls = [
            self.products(self.vision(), batch * self.patches),
            self.products(self.merger(), batch * self.pictured),
            self.products(self.decoder(False), batch * tokens),
            self.rules(batch, tokens),
            self.attention(batch, tokens),
            self.tower(batch),
        ]
        parts = [replayed(call, 0.15) for call in calls]
        print(f"  floor of {batch}: " + " ".join(
            f"{name} {ms:.3f}" for name, ms in zip(("vision", "merger", "decoder", "delta", "attention", "tower"), parts, strict=True)
        ))  # fmt: skip
        return sum(parts)

    def token(self, batch: int) -> float:
        """Milliseconds of a decoding step's floor."""
        calls = [
            self.products([*self.decoder(True), self.fast.head], batch),
            self.rules(batch, 1),
            self.attention(batch, 1),
        ]
        parts = [replayed(call, 0.15) for call in calls]
        print(f"  floor of {batch} tokens: " + " ".join(f"{ms:.3f}" for ms in parts))
        return sum(parts)
