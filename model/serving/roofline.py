"""Measures a model on a CUDA device beside its floor (see `model.serving.floor`).

`python -m model.serving.roofline --preset 4b` prints one table; weights are random, which cost what real ones do.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from model.config import PRESETS, AttentionPolicy, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.serving.backends import step_text
from model.serving.cuda_graphs import Graphs, Step
from model.serving.floor import PICTURE, Floor, Peaks, Work, timed
from model.serving.fused import FastInfiniteVL
from model.serving.quantize import Precision, share_no_sums
from model.serving.random_weights import random_model
from model.state import StreamState


@dataclass
class Row:
    """One line of the table, in milliseconds."""

    what: str
    step: float
    floor: float
    physics: float
    note: str = ""


@dataclass
class Table:
    """What has been measured, and the time there is left to measure more."""

    budget: float
    peaks: Peaks
    began: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)

    def add(
        self, what: str, step: float, floor: float = float("nan"), work: Work | None = None, note: str = ""
    ) -> None:
        physics = float("nan") if work is None else work.milliseconds(self.peaks)
        self.rows.append(Row(what, step, floor, physics, note))
        print(f"[{time.monotonic() - self.began:5.0f} s] {self.line(self.rows[-1])}", flush=True)

    @staticmethod
    def line(row: Row) -> str:
        return (
            f"{row.what:40s} {row.step:8.3f} ms  floor {row.floor:7.3f} ratio {row.step / row.floor:5.2f}  "
            f"physics {row.physics:7.3f} ratio {row.step / row.physics:5.2f}  {row.note}"
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


def frames_like(batch: int, config: InfiniteVLConfig, side: int = PICTURE) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(config.frames_per_step)]
        for _ in range(batch)
    ]


class Words:
    """Framing of the lengths that a family's own has; which words they are costs nothing."""

    def __init__(self, config: InfiniteVLConfig) -> None:
        told = config.step_text > 0
        self.opening: Sequence[int] = (1, 2, 3) if told else (1,)
        self.after: Sequence[int] = (1,) if told else ()
        self.lead = [1] * (config.step_text - 3) if told else []

    def before(self, seconds: float) -> list[int]:
        return self.lead


class Bench:
    """One model in one precision over a pool of slots, with its graphs and its floor."""

    def __init__(self, model: InfiniteVL, precision: Precision, slots: int = 18) -> None:
        self.config = model.config
        self.fast = FastInfiniteVL(model, precision)
        self.state = StreamState.allocate(model.config, slots, "cuda", torch.bfloat16)
        self.graphs = Graphs(self.fast, Words(model.config), self.state)
        self.grid = (PICTURE // model.config.vision.patch_size,) * 2
        self.floor = Floor(self.fast, self.state)
        self.tag = "fp8" if precision == "fp8" else "bf16"

    def fill(self, slots: int) -> None:
        """Opens streams and feeds them until every ring has wrapped."""
        wrap = self.config.policy.ring_size(self.config.step_tokens) // self.config.tokens_per_frame + 3
        for slot in range(slots):
            self.graphs.open(slot)
        for first in range(0, slots, 8):
            chosen = list(range(first, min(first + 8, slots)))
            frames = frames_like(len(chosen), self.config)
            shown = self.graphs.encode(frames, self.grid)
            for i in range(wrap):
                fine = self.graphs.ingest(chosen, shown, [0.04 * i] * len(chosen), self.grid)()
            assert all(fine), "a state is not finite"

    def aim(self, step: Step, batch: int) -> None:
        """Points a frame step at the first streams, or a reading step with a token for each of them."""
        words = torch.zeros_like(step.words)
        words[0], words[1] = torch.arange(batch, device="cuda"), 0 if len(words) == 2 else 1
        text = step_text(self.graphs.framing, self.config, [0.0] * batch)
        if text is not None and len(words) == 2 + text.shape[1]:
            words[1], words[2:] = 0, text.T.to(words.device)
        step.words.copy_(words)

    def frame(self, batch: int, table: Table, name: str = "") -> float:
        step = self.graphs.frame_step(batch, self.grid)
        self.aim(step, batch)
        ms = timed(step.graph.replay)
        per = self.config.frames_per_step
        table.add(
            f"frame step {name}{self.tag} batch {batch}",
            ms,
            self.floor.frame(batch),
            self.floor.frame_work(batch),
            f"{per * batch / ms * 1e3:.0f} frames/s",
        )
        return ms

    def whole(self, batch: int, table: Table, side: int) -> None:
        """A step as the runner calls it: upload, resize, replay, result."""
        frames = frames_like(batch, self.config, side)
        chosen = list(range(batch))
        for i in range(11):
            if i == 1:
                began = time.perf_counter()
            shown = self.graphs.encode(frames, self.grid)
            self.graphs.ingest(chosen, shown, [10.0] * batch, self.grid)()
        ms = (time.perf_counter() - began) * 100
        table.add(
            f"see() from the host, {side}², {self.tag} batch {batch}", ms, note=f"{batch / ms * 1e3:.0f} frames/s"
        )

    def token(self, batch: int, table: Table) -> None:
        step = self.graphs.read_step(batch, 1)
        self.aim(step, batch)
        ms = timed(step.graph.replay)
        table.add(
            f"decode {self.tag} {batch} answers",
            ms,
            self.floor.token(batch),
            self.floor.token_work(batch),
            f"{batch / ms * 1e3:.0f} tokens/s",
        )

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
        step = self.graphs.frame_step(1, self.grid)
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
    share_no_sums()
    config = PRESETS[options.preset]
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    with torch.inference_mode():
        table = Table(options.budget_seconds, peaks := Peaks.measured())
        print(
            f"measured: {peaks.bf16 / 1e12:.0f} TFLOP/s in bf16, {peaks.fp8 / 1e12:.0f} in fp8, "
            f"{peaks.bandwidth / 1e12:.2f} TB/s read and written"
        )
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
            plain.profile("a frame step", plain.graphs.frame_step(1, plain.grid).graph.replay)
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
            coarse.profile("a frame step in fp8", coarse.graphs.frame_step(1, coarse.grid).graph.replay)
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
