"""What learns: an objective with its optimizer, one lesson at a time; on CUDA as one graph a length, on several devices together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from model.training.cuda import without_cudnn_attention
from model.training.dataset import Lesson
from model.training.objectives import Objective
from model.training.optimizer import Optimizer
from model.training.stages import Recipe

if TYPE_CHECKING:
    from model.training.sharding import ShardedOptimizer

ROWS = 7
"""Answer tokens a question that a round has room for, on the average."""


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
    """An objective with its optimizer."""

    def __init__(self, recipe: Recipe, objective: Objective, device: torch.device) -> None:
        self.recipe, self.device, self.objective = recipe, device, objective
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        learned = {name for name, _ in objective.trained()}
        self.frozen = {name: x.to(torch.float16) for name, x in objective.whole().items() if name not in learned}
        for name, x in objective.whole().items():
            if name in self.frozen:
                x.copy_(self.frozen[name])  # what is saved is what is learned with
        objective.place(device, torch.float32 if recipe.sharded else self.dtype)
        self.optimizer: Optimizer | ShardedOptimizer
        if recipe.sharded:
            from model.training.sharding import ShardedOptimizer, shard  # loads torch's compiler

            shard(objective, self.dtype)
            self.optimizer = ShardedOptimizer(objective.trained())
        else:
            self.optimizer = Optimizer(objective.trained(), recipe.devices)
        self.mean = [master.detach().clone() for master in self.optimizer.masters]
        self.weight = torch.zeros((), device=device)
        self.losses = torch.zeros(len(objective.LOSSES), device=device)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}
        self.pool: Any = None

    def upload(self, content: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """To the device, without waiting for it."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in content.items()}
        if self.device.type != "cuda":
            return tensors
        return {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in tensors.items()}

    def differentiate(self, cuts: list[int], given: dict[str, Tensor]) -> None:
        """Gradients of one lesson whose questions are asked after `cuts` steps; leaves what is told of it in `losses`."""
        self.optimizer.clear()
        with without_cudnn_attention():
            loss, told = self.objective(cuts, given, self.weight)
        loss.backward()
        self.losses.copy_(told)

    def learn(self, lesson: Lesson, patches: Tensor, labels: Tensor, lr: float, guide: float) -> Tensor:
        """One optimizer step. Returns the objective's losses and the gradient's norm, on the device."""
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

    def means(self) -> dict[str, Tensor]:
        """All weights of what is learned, as their running mean has them: whole, float32, on the CPU."""
        gather = self.optimizer.gather
        learned = {name: gather(x) for name, x in zip(self.optimizer.names, self.mean, strict=True)}
        return {name: x.float().cpu() for name, x in (self.frozen | learned).items()}

    def average(self) -> None:
        """Moves the running mean towards the weights."""
        self.optimizer.average(self.mean, 1 - self.recipe.mean)

    def agree(self) -> None:
        """All devices take the first one's weights: rounding may have set them apart."""
        if self.recipe.devices > 1 and not self.recipe.sharded:
            for master in self.optimizer.masters:
                dist.broadcast(master, 0)

    def snapshot(self) -> dict[str, dict[str, Tensor]]:
        """All that the learning needs to go on, by kind, narrow."""
        names = self.optimizer.names
        gather = self.optimizer.gather
        weights = {name: gather(x).to(torch.float16) for name, x in self.optimizer.weights().items()}
        mean = {name: gather(x).to(torch.float16) for name, x in zip(names, self.mean, strict=True)}
        return {"weights": weights, "mean": mean, "frozen": self.frozen, "moments": self.optimizer.moments()}

    def take(self, kinds: dict[str, dict[str, Tensor]]) -> None:
        """Goes on from a `snapshot`, this one's own as well: a run that is resumed goes on exactly as one that isn't.

        What it lacks stays as it is: of an exported checkpoint there are no moments and no guiding head.
        """
        self.optimizer.load(self.optimizer.weights() | kinds["weights"])
        mean = self.optimizer.weights() | kinds["mean"]
        for name, kept in zip(self.optimizer.names, self.mean, strict=True):
            self.optimizer.fill(kept, mean[name])
        if kinds.get("moments"):
            self.optimizer.restore(kinds["moments"])
