"""The same few held-out questions, asked whenever a run saves: what has been learned by when, for curves that are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.evaluation.score import MEMORY, NOW, Exam, Marks, Paper, compose, correct, watch
from model.families.infinitevl import InfiniteVL
from model.tokenizer import Tokenizer
from model.training.stages import Recipe
from model.training.trainer import Learner
from model.world.questions import Question
from model.world.render import Painter
from model.world.scene import Profile

SEED = 4096
ASKED = 6
"""Questions of a scene."""


@contextmanager
def served(learner: Learner) -> Iterator[InfiniteVL]:
    """The learner's model with the running mean of its weights, as it would be served."""
    optimizer = learner.optimizer
    masters = {name: x.clone() for name, x in optimizer.weights().items()}
    optimizer.load(dict(zip(optimizer.names, learner.mean, strict=True)))
    model = learner.objective.model.eval()
    try:
        yield model
    finally:
        model.train()
        optimizer.load(masters)


class Probe:
    """Questions about now in 32 frames and about what is gone in 128, of as many scenes as the recipe says."""

    def __init__(self, recipe: Recipe, painter: Painter, tokenizer: Tokenizer) -> None:
        now, memory = recipe.probes
        self.painter, self.tokenizer, self.policy = painter, tokenizer, recipe.policy
        self.papers = [
            paper
            for paper in (
                Paper("now 32", 16, now, ASKED, NOW, Profile()),
                Paper("memory 128", 64, memory, ASKED, MEMORY, Profile(things=(1, 8))),
            )
            if paper.streams
        ]
        self.kept: dict[str, tuple[Tensor, Tensor, list[list[Question]]]] = {}

    @torch.no_grad()
    def ask(self, learner: Learner) -> dict[str, list[int]]:
        """Right answers and questions, by paper."""
        found = {}
        with served(learner) as model:
            exam = Exam(model, self.painter, self.tokenizer, Marks(), tqdm(disable=True))
            for paper in self.papers:
                if paper.name not in self.kept:
                    chances = [np.random.default_rng((SEED, paper.steps, i)) for i in range(paper.streams)]
                    scenes, asked = compose(paper, chances, self.painter.gallery, self.tokenizer)
                    seconds = torch.from_numpy(np.stack([scene.seconds for scene in scenes])).to(exam.device)
                    self.kept[paper.name] = exam.patches(scenes, SEED), seconds, asked
                patches, seconds, asked = self.kept[paper.name]
                right = correct(model, watch(model, patches, seconds, None), seconds[:, -1], asked, self.tokenizer)
                found[paper.name] = [sum(map(sum, right)), sum(map(len, right))]
        return found
