"""What learns: the model with its optimizer, one lesson at a time; on CUDA as one graph a length, on several devices together."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.checkpoint import WHOLE
from model.config import FULL, AttentionPolicy, nano
from model.families.infinitevl import InfiniteVL
from model.training.cuda import initialise
from model.training.dataset import Lesson
from model.training.optimizer import Optimizer
from model.world.render import CLASSES
from model.world.tokenise import SKILLS

GRID = (16, 16)
POLICIES = {"online": nano().policy, "window": AttentionPolicy(sinks=0, window=576), "base": FULL}
WEIGHT_FILES = 2
ROWS = 7
"""Answer tokens a question that a round has room for, on the average."""


@dataclass
class Recipe:
    """A run's configuration."""

    minutes: float
    """Wall-clock minutes of this run, warm-up and examination included."""
    total: float
    """Minutes of learning in the whole training, over all runs: what the learning rate and the lengths follow."""
    exam: float = 45.0
    """Seconds kept for the examination at the end."""
    seed: int = 0
    steps: int = 1024
    """Frame steps (of two frames) in a batch, over all devices."""
    questions: int = 1024
    lr: float = 3e-3
    warmup: int = 150
    rewarm: int = 60
    """Optimizer steps of warm-up, at the start and after a resume."""
    floor: float = 0.02
    """Learning rate at the end, as a share of `lr`."""
    guide: tuple[float, float] = (0.5, 0.2)
    """Weight of the guiding loss (what each patch shows) at the start and from a quarter of the training on."""
    mean: float = 0.99
    """Decay of the running mean of the weights, taken every 5 optimizer steps."""
    policy: str = "online"
    workers: int = 14
    """Processes that make lessons, for each device."""
    devices: int = 1


def padded(array: np.ndarray, size: int, value: int) -> np.ndarray:
    """`array` cut or filled up with `value` to `size`."""
    result = np.full(size, value, np.int64)
    result[: len(array)] = array[:size]
    return result


def arrays(lesson: Lesson) -> dict[str, np.ndarray]:
    """What a lesson gives to the network, in shapes that depend on its length alone."""
    found = {"seconds": lesson.seconds, "guided": np.array([lesson.seed % 2])}
    for i, r in enumerate(lesson.rounds):
        room, count = ROWS * len(r.skill), len(r.skill)
        found |= {
            f"tokens{i}": r.tokens, f"rows{i}": padded(r.rows, room, 0), f"targets{i}": padded(r.targets, room, -100),
            f"owner{i}": padded(r.owner, room, count), f"skill{i}": r.skill,
        }  # fmt: skip
    return found


class Learner:
    """The model with its optimizer."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(recipe.seed)
        config = nano().with_policy(POLICIES[recipe.policy])
        self.model = InfiniteVL(config)
        initialise(self.model)
        self.guide = nn.Linear(config.decoder.hidden_size, 4 * CLASSES)
        for module in (self.model, self.guide):
            module.to(device, self.dtype)
        for name, p in self.model.named_parameters():
            if name.endswith(("A_log", "dt_bias")):
                p.data = p.data.float()
        self.optimizer = Optimizer(self.model, self.guide, recipe.devices)
        self.mean = [master.clone() for master in self.optimizer.masters]
        self.tally = torch.zeros(2, len(SKILLS), device=device)
        self.weight, self.losses = torch.zeros((), device=device), torch.zeros(2, device=device)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}
        self.pool: Any = None

    def upload(self, content: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """To the device, without waiting for it."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in content.items()}
        if self.device.type != "cuda":
            return tensors
        return {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in tensors.items()}

    def answers(self, i: int, steps: int, given: dict[str, Tensor], memory: Any) -> Tensor:
        """Loss of round `i` of questions; counts whose whole answer is the most likely one."""
        seconds, targets, skill = given["seconds"], given[f"targets{i}"], given[f"skill{i}"]
        logits = self.model.answer(given[f"tokens{i}"], seconds[:, steps - 1], GRID, memory, given[f"rows{i}"])
        loss = F.cross_entropy(logits, targets)
        with torch.no_grad():
            hit = ((logits.argmax(-1) == targets) | (targets < 0)).float()
            right = torch.ones(len(skill) + 1, device=self.device)
            right = right.scatter_reduce(0, given[f"owner{i}"], hit, "amin")[:-1]
            self.tally[0].scatter_add_(0, skill, right)
            self.tally[1].scatter_add_(0, skill, torch.ones_like(right))
        return loss

    def differentiate(self, cuts: list[int], given: dict[str, Tensor]) -> None:
        """Gradients of one lesson whose questions are asked after `cuts` steps; leaves answer loss and guiding loss in `losses`."""
        self.optimizer.clear()
        seconds = given["seconds"]
        seen = self.model.visual(given["patches"], *GRID)
        x = seen.unflatten(0, (len(seconds), -1))
        memory, start, losses = None, 0, []
        for i, steps in enumerate(cuts):
            part = slice(start, steps)
            memory = self.model.forward(x[:, part], GRID, seconds[:, part], memory)
            losses.append(self.answers(i, steps, given, memory))
            start = steps
        loss = torch.stack(losses).mean()
        half = seen.unflatten(0, (-1, 2)).index_select(1, given["guided"]).flatten(0, 1)
        label = given["labels"].unflatten(0, (-1, 2)).index_select(1, given["guided"]).flatten()
        error = F.cross_entropy(self.guide(half).view(-1, CLASSES).float(), label, reduction="none")
        something = (label > 0).float()
        guiding = (error * something).sum() / (something.sum() + 1) + 0.3 * (error * (1 - something)).mean()
        (loss + self.weight * guiding).backward()
        self.losses.copy_(torch.stack((loss.detach(), guiding.detach())))

    def learn(self, lesson: Lesson, patches: Tensor, labels: Tensor, lr: float, guide: float) -> Tensor:
        """One optimizer step. Returns answer loss, guiding loss and gradient norm, on the device."""
        self.weight.fill_(guide)
        given = self.upload(arrays(lesson)) | {"patches": patches, "labels": labels}
        if lesson.steps in self.graphs:
            graph, kept = self.graphs[lesson.steps]
            for name, tensor in given.items():
                kept[name].copy_(tensor)
            graph.replay()
        else:
            self.differentiate([r.steps for r in lesson.rounds], given)
        if self.recipe.devices > 1:
            for room in self.optimizer.grads:
                dist.all_reduce(room)
        norm = self.optimizer.step(lr)
        return torch.cat((self.losses, norm[None]))

    def capture(self, lesson: Lesson, patches: Tensor, labels: Tensor) -> None:
        """Makes learning from lessons of this length one CUDA graph; learn from one of that length before."""
        given = self.upload(arrays(lesson)) | {"patches": patches, "labels": labels}
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
            self.room = {"patches": patches.clone(), "labels": labels.clone()}
        kept = {
            name: self.room.get(name, tensor).clone() if name not in self.room else self.room[name]
            for name, tensor in given.items()
        }
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
            self.differentiate([r.steps for r in lesson.rounds], kept)
        self.graphs[lesson.steps] = graph, kept

    def average(self) -> None:
        """Moves the running mean towards the weights; devices agree on the weights."""
        torch._foreach_lerp_(self.mean, self.optimizer.masters, 1 - self.recipe.mean)

    def agree(self) -> None:
        """All devices take the first one's weights: rounding may have set them apart."""
        if self.recipe.devices > 1:
            for master in self.optimizer.masters:
                dist.broadcast(master, 0)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Weights and running mean as float16 in `WEIGHT_FILES` files each, and where the training stands."""
        names = self.optimizer.names
        for kind, tensors in (("weights", self.optimizer.masters), ("mean", self.mean)):
            half = sum(t.numel() for t in tensors) / WEIGHT_FILES
            ends = list(itertools.accumulate(t.numel() for t in tensors))
            for part in range(WEIGHT_FILES):
                mine = [i for i, end in enumerate(ends) if part == min(WEIGHT_FILES - 1, int((end - 1) / half))]
                content = {names[i]: tensors[i].to(torch.float16) for i in mine}
                save_file(content, str(folder / f"{kind}-{part}.safetensors"))
        (folder / "state.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> dict[str, Any]:
        """Goes on from `save`, or from the checkpoint that was exported of a run (whose guiding head begins anew).

        Returns where the training stood.
        """
        self.optimizer.load(self.optimizer.weights() | read_weights(folder, "weights", self.device))
        mean = self.optimizer.weights() | read_weights(folder, "mean", self.device)
        self.mean = [mean[name].float().clone() for name in self.optimizer.names]
        state: dict[str, Any] = json.loads((record(folder) / "state.json").read_text())
        return state


def record(folder: Path) -> Path:
    """Where a run, or the checkpoint exported of it, keeps its log and state."""
    return folder / "training" if (folder / WHOLE).exists() else folder


def read_weights(folder: Path, kind: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A run's "weights" or "mean" by name; an exported checkpoint's are both."""
    if (folder / WHOLE).exists():
        return load_file(str(folder / WHOLE), device=str(device))
    weights: dict[str, Tensor] = {}
    for part in range(WEIGHT_FILES):
        weights |= load_file(str(folder / f"{kind}-{part}.safetensors"), device=str(device))
    return weights
