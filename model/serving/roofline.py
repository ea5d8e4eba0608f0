"""Measures a model on a CUDA device beside its floor: the same matrix products, delta rule and attention alone, in a graph.

`python -m model.serving.roofline --preset 4b` prints one table; weights are random, which cost what real ones do.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PRESETS, AttentionPolicy, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.ops.kernels.activation import Activation
from model.ops.kernels.attention import attend
from model.ops.kernels.delta_rule import delta_rule
from model.ops.kernels.norm import quantize
from model.serving.cuda_graphs import Graphs
from model.serving.fused import FastInfiniteVL
from model.serving.quantize import Matrix, Precision
from model.serving.random_weights import random_model
from model.state import StreamState

SIDE = 32
"""Patches a side of a 448×448 frame."""


@dataclass
class Row:
    """One line of the table, in milliseconds."""

    what: str
    step: float
    floor: float
    note: str = ""


@dataclass
class Table:
    """What has been measured, and the time there is left to measure more."""

    budget: float
    began: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, step: float, floor: float = float("nan"), note: str = "") -> None:
        self.rows.append(Row(what, step, floor, note))
        print(f"[{time.monotonic() - self.began:5.0f} s] {self.line(self.rows[-1])}", flush=True)

    @staticmethod
    def line(row: Row) -> str:
        return (
            f"{row.what:44s} {row.step:8.3f} ms  floor {row.floor:7.3f}  ratio {row.step / row.floor:5.2f}  {row.note}"
        )

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the run: its failure is printed and costs no other part."""
        try:
            yield
        except Exception:
            print(f"--- {name} failed", flush=True)
            traceback.print_exc()
            torch.cuda.synchronize()

    def late(self, share: float = 1.0) -> bool:
        return time.monotonic() - self.began > self.budget * share


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


class Floor:
    """What no step can go below with these kernels: products, delta rule and attention alone, each on its own weights."""

    def __init__(self, fast: FastInfiniteVL, state: StreamState) -> None:
        self.fast, self.state, self.config = fast, state, fast.config

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
        return [m for b in self.fast.blocks for m in (b.qkv, b.proj, b.mlp.inward, b.mlp.outward)]

    def merger(self) -> list[Matrix]:
        layers = [layer for layer in self.fast.model.visual.merger.mlp if isinstance(layer, torch.nn.Linear)]
        return [Matrix(layer.weight, layer.bias, "model") for layer in layers]

    def rules(self, batch: int, n: int) -> Callable[[], None]:
        config = self.config.decoder
        heads, value = config.num_linear_heads, config.linear_value_dim
        mixed = F.normalize(torch.randn(batch, n, heads * (2 * config.linear_head_dim + value), device="cuda"), dim=-1)
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
        turn = (torch.randn(batch, n, config.head_dim // 2, device="cuda"),) * 2
        sink_turn = (torch.randn(batch, max(1, policy.sinks), config.head_dim // 2, device="cuda"),) * 2
        slots = torch.arange(batch, device="cuda")
        starts, counts = torch.full_like(slots, 100_000), torch.full_like(slots, n)

        def call() -> None:
            for keys, values in zip(self.state.keys, self.state.values, strict=True):
                attend(joint, turn, sink_turn, slots, starts, counts, keys, values, config.num_attention_heads, policy)

        return call

    def look(self, batch: int) -> Callable[[], None]:
        config = self.config.vision
        head, patches = config.hidden_size // config.num_heads, SIDE * SIDE
        qkv = torch.randn(3, batch, config.num_heads, patches, head, device="cuda", dtype=torch.bfloat16)
        window = (config.window_size // config.patch_size) ** 2
        near = qkv.view(3, batch, config.num_heads, -1, window, head).transpose(2, 3).flatten(1, 2).contiguous()

        def call() -> None:
            for i in range(config.depth):
                F.scaled_dot_product_attention(*(qkv if i in config.fullatt_block_indexes else near))

        return call

    def frame(self, batch: int) -> float:
        """Milliseconds of a frame step's floor."""
        tokens = SIDE * SIDE // self.config.vision.spatial_merge_size**2
        calls = [
            self.products(self.vision(), batch * SIDE * SIDE),
            self.products(self.merger(), batch * tokens),
            self.products(self.decoder(False), batch * tokens),
            self.rules(batch, tokens),
            self.attention(batch, tokens),
            self.look(batch),
        ]
        parts = [replayed(call, 0.15) for call in calls]
        print(f"  floor of {batch}: " + " ".join(
            f"{name} {ms:.3f}" for name, ms in zip(("vision", "merger", "decoder", "delta", "attention", "look"), parts, strict=True)
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


def frames_like(batch: int, config: InfiniteVLConfig, side: int = 448) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(config.frames_per_step)]
        for _ in range(batch)
    ]


class Bench:
    """One model in one precision over a pool of slots, with its graphs and its floor."""

    def __init__(self, model: InfiniteVL, precision: Precision, slots: int = 18) -> None:
        self.config = model.config
        self.fast = FastInfiniteVL(model, precision)
        self.state = StreamState.allocate(model.config, slots, "cuda", torch.bfloat16)
        self.graphs = Graphs(self.fast, self.state)
        self.floor = Floor(self.fast, self.state)
        self.tag = "fp8" if precision == "fp8" else "bf16"

    def fill(self, slots: int) -> None:
        """Opens streams and feeds them until every ring has wrapped."""
        wrap = self.config.policy.ring_size(self.config.step_tokens) // self.config.tokens_per_frame + 3
        for slot in range(slots):
            self.graphs.read([slot], [[self.config.vision_start_token_id]])
            self.state.begin(torch.tensor([slot], device="cuda"))
        for first in range(0, slots, 8):
            chosen = list(range(first, min(first + 8, slots)))
            frames = frames_like(len(chosen), self.config)
            for i in range(wrap):
                fine = self.graphs.ingest(chosen, frames, [0.04 * i] * len(chosen), (SIDE, SIDE))
            assert all(fine), "a state is not finite"

    def frame(self, batch: int, table: Table, name: str = "") -> float:
        step = self.graphs.frame_step(batch, (SIDE, SIDE))
        words = step.words.clone()
        words[0] = torch.arange(batch, device="cuda")
        step.words.copy_(words)
        ms = timed(step.graph.replay)
        floor = self.floor.frame(batch)
        per = self.config.frames_per_step
        table.add(f"frame step {name}{self.tag} batch {batch}", ms, floor, f"{per * batch / ms * 1e3:.0f} frames/s")
        return ms

    def whole(self, batch: int, table: Table, side: int) -> None:
        """A step as the runner calls it: upload, resize, replay, result."""
        frames = frames_like(batch, self.config, side)
        chosen = list(range(batch))
        self.graphs.ingest(chosen, frames, [10.0] * batch, (SIDE, SIDE))
        began = time.perf_counter()
        for _ in range(10):
            self.graphs.ingest(chosen, frames, [10.0] * batch, (SIDE, SIDE))
        ms = (time.perf_counter() - began) * 100
        table.add(
            f"see() from the host, {side}², {self.tag} batch {batch}", ms, note=f"{batch / ms * 1e3:.0f} frames/s"
        )

    def token(self, batch: int, table: Table) -> None:
        step = self.graphs.read_step(batch, 1)
        words = step.words.clone()
        words[0], words[1] = torch.arange(batch, device="cuda"), 1
        step.words.copy_(words)
        ms = timed(step.graph.replay)
        table.add(f"decode {self.tag} {batch} answers", ms, self.floor.token(batch), f"{batch / ms * 1e3:.0f} tokens/s")

    def question(self, length: int, table: Table) -> None:
        step = self.graphs.read_step(1, length)
        step.words.copy_(torch.ones_like(step.words))
        step.words[1] = length
        table.add(f"question of {length} tokens {self.tag}", timed(step.graph.replay))

    def fork(self, table: Table) -> None:
        table.add(
            "fork, device", timed(lambda: self.state.fork(0, 9)), note=f"{self.state.bytes_per_slot / 1e6:.1f} MB"
        )
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(20):
            self.state.fork(0, 9)
            torch.cuda.synchronize()
        table.add("fork, host", (time.perf_counter() - began) * 50)

    def ages(self, table: Table) -> None:
        """The same step at a young and a very old age."""
        step = self.graphs.frame_step(1, (SIDE, SIDE))
        step.words.zero_()
        for name, length in (("1,000", 256_000), ("20,000", 5_120_000), ("10⁸", 256 * 10**8)):
            self.state.length.fill_(length)
            self.state.time.fill_(length // 128)
            before = torch.cuda.memory_allocated()
            ms = timed(step.graph.replay)
            table.add(f"frame step at frame {name}", ms, note=f"{torch.cuda.memory_allocated() - before} B more")

    def profile(self, name: str, step: Callable[[], object], rows: int = 22) -> None:
        from torch.profiler import ProfilerActivity, profile

        step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            step()
            torch.cuda.synchronize()
        events = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)
        total = sum(e.self_device_time_total for e in events)
        print(f"--- profile of {name}: {total / 1e3:.3f} ms in {sum(e.count for e in events)} kernels")
        for event in events[:rows]:
            print(f"  {event.self_device_time_total:8.0f} us {event.count:5d}x  {event.key[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="4b", choices=sorted(PRESETS))
    parser.add_argument("--budget-seconds", type=float, default=170)
    parser.add_argument("--profile", action="store_true", help="also print the kernels of a step")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the daemon has it beside a GPU
    table = Table(options.budget_seconds)
    config = PRESETS[options.preset]
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    with torch.inference_mode():
        model = random_model(config, "cuda", torch.bfloat16)
        print(
            f"[{time.monotonic() - table.began:5.0f} s] model, {torch.cuda.memory_allocated() / 1e9:.1f} GB", flush=True
        )
        measure(model, table, options.profile)
    print("\n" + "\n".join(table.line(row) for row in table.rows))
    print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


def measure(model: InfiniteVL, table: Table, profiled: bool) -> None:
    """The whole table, in the order of what must be known first."""
    plain = Bench(model, "model")
    with table.part("fill"):
        plain.fill(8)
    with table.part("frame"):
        plain.frame(1, table)
    with table.part("token"):
        plain.token(1, table)
    if profiled:
        with table.part("profile"):
            plain.profile("a frame step", plain.graphs.frame_step(1, (SIDE, SIDE)).graph.replay)
            plain.profile("a token", plain.graphs.read_step(1, 1).graph.replay)
    with table.part("batches"):
        for batch in (4, 5, 8):
            plain.frame(batch, table)
    with table.part("tokens"):
        for batch in (4, 8, 16):
            plain.token(batch, table)
        plain.question(32, table)
    with table.part("fork"):
        plain.fork(table)
    with table.part("whole"):
        plain.whole(1, table, 448)
        plain.whole(5, table, 720)
    with table.part("ages"):
        plain.ages(table)
    del plain
    torch.cuda.empty_cache()
    if table.late(0.7):
        return
    with table.part("fp8"):
        coarse = Bench(model, "fp8")
        coarse.fill(8)
        for batch in (1, 4, 8):
            coarse.frame(batch, table)
        coarse.token(1, table)
        coarse.token(8, table)
        if profiled:
            coarse.profile("a frame step in fp8", coarse.graphs.frame_step(1, (SIDE, SIDE)).graph.replay)
        del coarse
        torch.cuda.empty_cache()
    if table.late(0.85):
        return
    with table.part("window 8192"):
        model.config = model.config.with_policy(AttentionPolicy(sinks=0, window=8192))
        Bench(model, "model", slots=4).frame(1, table, "window 8192 ")
    with table.part("paired"):
        model.config = replace(model.config, policy=AttentionPolicy(), frames_per_step=2)
        paired = Bench(model, "fp8", slots=10)
        paired.frame(8, table, "paired ")


if __name__ == "__main__":
    main()
