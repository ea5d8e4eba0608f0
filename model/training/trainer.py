"""Training by wall clock: lengths grow, the learning rate falls, and what is learnt can be taken up again."""

from __future__ import annotations

import csv
import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from model.config import InfiniteVLConfig
from model.training.twin import Twin

PART_BYTES = 14 * 2**20
"""Weights are saved in files of at most this size."""


@dataclass(frozen=True)
class Lengths:
    """Up to `until` (a share of the whole time), streams have these many steps with these probabilities."""

    until: float
    shares: dict[int, float]


@dataclass(frozen=True)
class Plan:
    """A training run. `steps` frame steps make an update, whatever the streams' length."""

    minutes: float = 16.0
    steps: int = 1024
    rate: float = 1.2e-3
    last_rate: float = 2e-5
    warm_up: int = 100
    weight_decay: float = 0.05
    seed: int = 20261123
    curriculum: tuple[Lengths, ...] = (
        Lengths(0.08, {4: 0.5, 8: 0.5}),
        Lengths(0.30, {4: 0.2, 8: 0.3, 16: 0.3, 32: 0.2}),
        Lengths(1.00, {4: 0.08, 8: 0.15, 16: 0.25, 32: 0.27, 64: 0.2, 128: 0.05}),
    )

    def lengths(self, done: float) -> dict[int, float]:
        """The shares of lengths when `done` of the whole time has passed."""
        return next(stage.shares for stage in self.curriculum if done <= stage.until or stage is self.curriculum[-1])

    def questions(self, length: int) -> int:
        """Questions asked of each stream: enough that short streams don't waste the sight, few enough that long ones fit."""
        return max(8, min(length, 64))

    def learning_rate(self, done: float, update: int) -> float:
        """Warm-up by updates, then a cosine by wall clock."""
        cosine = self.last_rate + (self.rate - self.last_rate) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return cosine * min(1.0, (update + 1) / self.warm_up)


class Lessons(Protocol):
    """Where streams and questions come from."""

    def batch(self, streams: int, steps: int, questions: int, done: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """patches [streams, steps, grid patches, patch_dim], seconds float64 [streams, steps], tokens and targets int64
        [streams, questions, n] (targets[..., i] follows tokens[..., i]; -100 where nothing is to be learnt)."""
        ...


class Trainer:
    """One training run, which may be interrupted: `elapsed` counts productive seconds over all its sessions."""

    def __init__(
        self,
        config: InfiniteVLConfig,
        plan: Plan,
        lessons: Lessons,
        out: Path,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.plan, self.lessons, self.out, self.device = config, plan, lessons, out, device
        self.twin = Twin(config, device, dtype, plan.rate, plan.weight_decay, plan.seed)
        self.random = random.Random(plan.seed)
        self.elapsed, self.update, self.since_start = 0.0, 0, 0
        self.rows: list[dict[str, float]] = []
        side = int(config.tokens_per_frame**0.5) * config.vision.spatial_merge_size
        self.grid = (side, side)

    def loss(self, length: int, done: float) -> tuple[Tensor, Tensor]:
        """Mean loss over the answers' tokens of one batch, and the share of them that greedy decoding gets right."""
        streams = max(1, self.plan.steps // length)
        patches, seconds, tokens, targets = self.lessons.batch(streams, length, self.plan.questions(length), done)
        memory = self.twin.model.watch(patches, self.grid, seconds)
        logits = self.twin.model.answer(tokens, seconds[:, -1], self.grid, memory)
        wanted = targets != -100
        chosen, aims = logits[wanted], targets[wanted]
        return F.cross_entropy(chosen, aims), (chosen.detach().argmax(-1) == aims).float().mean()

    def warm(self) -> None:
        """Runs every length once, forward and back, so that kernels are built before the clock starts."""
        for length in sorted({length for stage in self.plan.curriculum for length in stage.shares}):
            begin = time.monotonic()
            self.loss(length, 0.0)[0].backward()
            for parameter in self.twin.parameters:
                parameter.grad = None
            self.finish_work()
            tqdm.write(f"warm-up: {length} steps a stream, {time.monotonic() - begin:.1f} s")

    def finish_work(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def train(self, minutes: float) -> None:
        """Trains for `minutes` more of the plan's, or to its end."""
        whole, begun = self.plan.minutes * 60, self.elapsed
        until = min(whole, begun + minutes * 60)
        start = time.monotonic()
        recent: list[tuple[int, Tensor, Tensor, Tensor]] = []
        last = start
        with tqdm(total=round(until - begun), unit="s", mininterval=5) as bar:
            while self.elapsed < until:
                done = self.elapsed / whole
                shares = self.plan.lengths(done)
                length = self.random.choices(list(shares), list(shares.values()))[0]
                loss, right = self.loss(length, done)
                loss.backward()
                norm = self.twin.step(self.plan.learning_rate(done, self.since_start))
                recent.append((length, loss.detach(), right, norm))
                self.update += 1
                self.since_start += 1
                if len(recent) == 50:
                    self.finish_work()
                    now = time.monotonic()
                    self.note(recent, now - last, done)
                    bar.set_postfix_str(f"loss {self.rows[-1]['loss']:.3f} right {self.rows[-1]['right']:.3f}")
                    recent, last = [], now
                self.elapsed = begun + time.monotonic() - start
                bar.update(round(self.elapsed - begun) - bar.n)

    def note(self, recent: list[tuple[int, Tensor, Tensor, Tensor]], seconds: float, done: float) -> None:
        """Adds a row to the log: means over the last updates."""
        _, *columns = zip(*recent, strict=True)
        loss, right, norm = (float(torch.stack(column).mean()) for column in columns)
        self.rows.append({
            "update": self.update, "minutes": self.elapsed / 60, "done": done, "loss": loss, "right": right, "gradient_norm": norm,
            "learning_rate": self.plan.learning_rate(done, self.since_start), "steps_per_second": len(recent) * self.plan.steps / seconds,
        })  # fmt: skip
        if len(self.rows) % 10 == 0:
            tqdm.write("  ".join(f"{key} {value:.4g}" for key, value in self.rows[-1].items()))

    def save(self) -> None:
        """Writes weights (float16, in parts), progress and log into `out`."""
        self.out.mkdir(parents=True, exist_ok=True)
        parts: list[dict[str, Tensor]] = [{}]
        size = 0
        for name, master in self.twin.state().items():
            tensor = master.to("cpu", torch.float16) if master.ndim >= 2 else master.to("cpu", copy=True)
            if size + tensor.nbytes > PART_BYTES:
                parts.append({})
                size = 0
            parts[-1][name] = tensor.contiguous()
            size += tensor.nbytes
        for i, part in enumerate(parts):
            save_file(part, self.out / f"weights-{i}.safetensors")
        progress: dict[str, Any] = {
            "elapsed": self.elapsed,
            "update": self.update,
            "parts": len(parts),
            "plan": asdict(self.plan),
        }
        (self.out / "progress.json").write_text(json.dumps(progress, indent=1))
        if self.rows:
            with (self.out / "log.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                writer.writeheader()
                writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in self.rows)

    def resume(self, folder: Path) -> None:
        """Takes up what `save` wrote; the optimizer's moments begin anew, under a short warm-up."""
        progress = json.loads((folder / "progress.json").read_text())
        weights: dict[str, Tensor] = {}
        for i in range(progress["parts"]):
            weights |= load_file(folder / f"weights-{i}.safetensors")
        self.twin.load({name: tensor.float().to(self.device) for name, tensor in weights.items()})
        self.elapsed, self.update = progress["elapsed"], progress["update"]
        self.random.seed(self.plan.seed + self.update)
        log = folder / "log.csv"
        if log.is_file():
            with log.open() as file:
                self.rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
