"""Qwen3.5's speed on a CUDA device, beside its floor, and what is wanted of it on an H200: `python -m tests.model.qwen_speed`.

Steps of two frames at 448², a window of 2,304 that has wrapped, random weights. `--warm` only compiles what the table needs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from model.config import PRESETS, AttentionPolicy, InfiniteVLConfig
from model.serving.floor import Floor, Peaks, timed
from model.serving.quantize import Precision
from model.serving.random_weights import random_model
from model.serving.roofline import Bench, Table

SIZES = ("0.8b", "2b", "4b", "9b")
POLICY = AttentionPolicy(sinks=256, window=2048)
SEEN = 2560
"""Keys that the floor's attention sees."""
FLOOR = {
    "bf16 1": (2.27, 3.66, 5.77, 8.57), "fp8 1": (1.97, 2.82, 4.25, 5.64),
    "bf16 8": (8e3 / 1086, 8e3 / 474, 8e3 / 249, 8e3 / 152), "fp8 8": (8e3 / 1404, 8e3 / 722, 8e3 / 379, 8e3 / 235),
}  # fmt: skip
"""Milliseconds of a step as measured on 29 November 2026."""
MUST = {
    "bf16 1": tuple(1.35 * ms for ms in FLOOR["bf16 1"]),
    "bf16 8": (8e3 / 880, 8e3 / 380, 8e3 / 205, 8e3 / 125), "fp8 8": (8e3 / 1050, 8e3 / 560, 8e3 / 320, 8e3 / 195),
    "bf16 token 1": (float("nan"), 1.7, 3.0, 4.9),
}  # fmt: skip
BYTES = (0.35, 0.88, 1.96, 3.69)
"""Milliseconds in which a token's weights are read at 4.3 TB/s in bfloat16."""


class QwenFloor(Floor):
    """The floor with PyTorch's own attention over the window's keys in place of our kernel."""

    def attention(self, batch: int, n: int) -> Callable[[], None]:
        config = self.config.decoder
        shape = batch, config.num_attention_heads, n, config.head_dim
        q = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        k, v = torch.randn(2, batch, config.num_key_value_heads, SEEN, 256, device="cuda", dtype=torch.bfloat16)
        layers = config.layer_types.count("attention") - (n > 1)

        def call() -> None:
            for _ in range(layers):
                F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        return call


@dataclass
class Line:
    what: str
    ms: float
    measured: float
    told: float
    must: float
    rate: str

    @property
    def missed(self) -> bool:
        return self.ms > self.must

    def __str__(self) -> str:
        met = "" if self.must != self.must else ("MISSED" if self.missed else "met")
        return (
            f"{self.what:22s} {self.ms:7.3f} ms  floor now {self.measured:7.3f} (x{self.ms / self.measured:4.2f})"
            f"  floor told {self.told:6.2f}  must {self.must:6.2f} {met:6s} {self.rate}"
        )


def configuration(size: str, warm: bool) -> InfiniteVLConfig:
    config = replace(PRESETS[f"qwen3.5-{size}"], policy=POLICY)
    if not warm:
        return config
    decoder = replace(config.decoder, num_hidden_layers=8, layer_types=config.decoder.layer_types[:8])
    return replace(config, decoder=decoder, vision=replace(config.vision, depth=2))


def measure(size: str, precision: Precision, bench: Bench, table: Table, warm: bool) -> list[Line]:
    """The lines of one size in one precision."""
    column, tag = SIZES.index(size), "fp8" if precision == "fp8" else "bf16"
    floor = QwenFloor(bench.fast, bench.state)
    lines = []
    for kind, batch in (("", 1), ("", 8), ("token ", 1), ("token ", 8)):
        step = bench.graphs.read_step(batch, 1) if kind else bench.graphs.frame_step(batch, bench.grid)
        bench.aim(step, batch)
        if warm:
            continue
        ms = timed(step.graph.replay, 0.3)
        key, none = f"{tag} {kind}{batch}", (float("nan"),) * 4
        told = (BYTES if kind and tag == "bf16" else FLOOR.get(key, none))[column]
        measured = floor.token(batch) if kind else floor.frame(batch)
        what = "tokens/s" if kind else "steps/s"
        lines.append(
            Line(f"{size} {key}", ms, measured, told, MUST.get(key, none)[column], f"{1e3 * batch / ms:.0f} {what}")
        )
        print(f"[{time.monotonic() - table.began:4.0f} s] {lines[-1]}", flush=True)
    return lines


def profiles(size: str, bench: Bench) -> None:
    """Where a step and a token go, four lines and more of each."""
    for name, step in (
        ("a step of 1", bench.graphs.frame_step(1, bench.grid)),
        ("a step of 8", bench.graphs.frame_step(8, bench.grid)),
        ("a token", bench.graphs.read_step(1, 1)),
    ):
        bench.profile(f"{size} {bench.tag}, {name}", step.graph.replay, rows=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=SIZES, help=" ".join(SIZES))
    parser.add_argument("--budget-seconds", type=float, default=170)
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the daemon has it beside a GPU
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    lines: list[Line] = []
    with torch.inference_mode():
        table = Table(options.budget_seconds, Peaks(8e14, 1.5e15, 4.3e12) if options.warm else Peaks.measured())
        print(
            f"measured: {table.peaks.bf16 / 1e12:.0f} TFLOP/s, fp8 {table.peaks.fp8 / 1e12:.0f}, {table.peaks.bandwidth / 1e12:.2f} TB/s"
        )
        for size in options.sizes:
            if table.late():
                print(f"{size} left out: no time")
                continue
            with table.part(size):
                model = random_model(configuration(size, options.warm), "cuda", torch.bfloat16)
                precisions: tuple[Precision, ...] = ("model", "fp8")
                for precision in precisions:
                    bench = Bench(model, precision, slots=10)
                    bench.fill(1 if options.warm else 8)
                    found = measure(size, precision, bench, table, options.warm)
                    lines += found
                    if any(line.missed for line in found):
                        profiles(size, bench)
                    del bench
                    torch.cuda.empty_cache()
                del model
                torch.cuda.empty_cache()
    print("\n" + "\n".join(map(str, lines)))
    print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
