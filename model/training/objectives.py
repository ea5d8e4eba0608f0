"""What a stage learns by: answers, the teacher's layers, or the teacher's logits. Each takes a whole lesson and gives its loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cache import SequenceCache
from model.checkpoint import KEPT_FLOAT32
from model.families.infinitevl import InfiniteVL
from model.training.pair import Pair, paired
from model.world.render import CLASSES
from model.world.tokenise import SKILLS

GRID = (16, 16)
Given = dict[str, Tensor]


class Objective(nn.Module):
    """A model and what it learns by. `tally` [2, skills] counts right answers and questions since it was cleared."""

    LOSSES: ClassVar[tuple[str, ...]] = ()
    """What `forward` tells, in order, as the curve calls it."""

    tally: Tensor

    def __init__(self, model: InfiniteVL, frozen: bool) -> None:
        super().__init__()
        self.model, self.frozen = model, frozen
        self.shown: list[InfiniteVL] = []  # a teacher beside it, no part of what learns
        model.train()
        model.visual.requires_grad_(not frozen)
        self.register_buffer("tally", torch.zeros(2, len(SKILLS)), persistent=False)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves all that is computed with."""
        for module in (self, *self.shown):
            module.to(device, dtype)
            for name, p in module.named_parameters():
                if name.endswith(KEPT_FLOAT32):
                    p.data = p.data.float()
        self.tally = self.tally.float()

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """What it learns, by the names under which it is saved."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def whole(self) -> dict[str, Tensor]:
        """All weights of the model that is learned, by the same names."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def see(self, given: Given) -> Tensor:
        """What the tower makes of a lesson's patches, [steps of all streams, tokens, hidden]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            seen: Tensor = self.model.visual(given["patches"], *GRID)
        return seen

    def count(self, logits: Tensor, given: Given, i: int) -> None:
        """Counts the questions of round `i` whose whole answer is the most likely one."""
        targets, skill = given[f"targets{i}"], given[f"skill{i}"]
        with torch.no_grad():
            hit = ((logits.argmax(-1) == targets) | (targets < 0)).float()
            right = torch.ones(len(skill) + 1, device=logits.device)
            right = right.scatter_reduce(0, given[f"owner{i}"], hit, "amin")[:-1]
            self.tally[0].scatter_add_(0, skill, right)
            self.tally[1].scatter_add_(0, skill, torch.ones_like(right))

    def forward(self, cuts: list[int], given: Given, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a lesson whose questions are asked after `cuts` steps, and what is told of it, detached [len(LOSSES)].

        `weight` [] is the guiding loss's.
        """
        raise NotImplementedError


def rounds(model: InfiniteVL, x: Tensor, cuts: list[int], given: Given) -> Any:
    """By round of questions: its number and the logits of its answers, [rows, vocabulary]."""
    seconds = given["seconds"]
    memory: SequenceCache | None = None
    start = 0
    for i, steps in enumerate(cuts):
        part = slice(start, steps)
        memory = model.forward(x[:, part], GRID, seconds[:, part], memory)
        yield i, model.answer(given[f"tokens{i}"], seconds[:, steps - 1], GRID, memory, given[f"rows{i}"])
        start = steps


class Answering(Objective):
    """Answers to questions, and where the tower learns too, what each patch shows (a head of its own, which is not shipped)."""

    LOSSES = ("loss", "guiding")

    def __init__(self, model: InfiniteVL, frozen: bool) -> None:
        super().__init__(model, frozen)
        self.guide = nn.Linear(model.config.decoder.hidden_size, 4 * CLASSES)
        self.guide.requires_grad_(not frozen)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """See `Objective.trained`."""
        extra = [] if self.frozen else [("extra." + name, p) for name, p in self.guide.named_parameters()]
        return super().trained() + extra

    def forward(self, cuts: list[int], given: Given, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective.forward`."""
        seen = self.see(given)
        losses = []
        for i, logits in rounds(self.model, seen.unflatten(0, (len(given["seconds"]), -1)), cuts, given):
            losses.append(F.cross_entropy(logits, given[f"targets{i}"]))
            self.count(logits, given, i)
        loss = torch.stack(losses).mean()
        if self.frozen:
            return loss, torch.stack((loss.detach(), torch.zeros_like(loss)))
        half = seen.unflatten(0, (-1, 2)).index_select(1, given["guided"]).flatten(0, 1)
        label = given["labels"].unflatten(0, (-1, 2)).index_select(1, given["guided"]).flatten()
        error = F.cross_entropy(self.guide(half).view(-1, CLASSES).float(), label, reduction="none")
        something = (label > 0).float()
        guiding = (error * something).sum() / (something.sum() + 1) + 0.3 * (error * (1 - something)).mean()
        return loss + weight * guiding, torch.stack((loss.detach(), guiding.detach()))


class Matching(Objective):
    """Fresh Gated DeltaNets give what the teacher's attention gives of the same input: mean squared error, over its variance."""

    LOSSES = ("matching",)

    def __init__(self, student: InfiniteVL, teacher: InfiniteVL) -> None:
        super().__init__(paired(teacher, student), True)
        self.model.requires_grad_(False)
        self.pairs = [module for module in self.model.modules() if isinstance(module, Pair)]
        for pair in self.pairs:
            pair.student.requires_grad_(True)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """See `Objective.trained`."""
        return [(name.replace(".student.", "."), p) for name, p in super().trained()]

    def whole(self) -> dict[str, Tensor]:
        """See `Objective.whole`."""
        weights = super().whole().items()
        return {name.replace(".student.", "."): p for name, p in weights if ".teacher." not in name}

    def forward(self, cuts: list[int], given: Given, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective.forward`; what is answered here is the teacher's and isn't counted."""
        for pair in self.pairs:
            pair.errors.clear()
        for _ in rounds(self.model, self.see(given).unflatten(0, (len(given["seconds"]), -1)), cuts, given):
            pass
        loss = torch.stack([error for pair in self.pairs for error in pair.errors]).mean()
        return loss, loss.detach()[None]


class Imitating(Objective):
    """The student's answers are as likely as the teacher's: Kullback-Leibler divergence from the teacher's logits to its own."""

    LOSSES = ("divergence",)

    def __init__(self, model: InfiniteVL, teacher: InfiniteVL) -> None:
        super().__init__(model, True)
        self.shown = [teacher.requires_grad_(False).train()]

    def forward(self, cuts: list[int], given: Given, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective.forward`."""
        x = self.see(given).unflatten(0, (len(given["seconds"]), -1))
        with torch.no_grad():
            taught = [logits.log_softmax(-1) for _, logits in rounds(self.shown[0], x, cuts, given)]
        losses = []
        for i, logits in rounds(self.model, x, cuts, given):
            self.count(logits, given, i)
            far = F.kl_div(logits.log_softmax(-1), taught[i], reduction="none", log_target=True).sum(-1)
            asked = (given[f"targets{i}"] >= 0).float()
            losses.append((far * asked).sum() / asked.sum())
        loss = torch.stack(losses).mean()
        return loss, loss.detach()[None]


def objective(part: str, network: InfiniteVL, teacher: InfiniteVL | None, frozen: bool) -> Objective:
    """What a part of a stage learns by: "answering", or of a distillation "matching" or "imitating"."""
    if part == "answering":
        return Answering(network, frozen)
    assert teacher is not None
    return Matching(network, teacher) if part == "matching" else Imitating(network, teacher)
