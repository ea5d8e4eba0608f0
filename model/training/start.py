"""Where a stage begins or goes on: what learns, who teaches it, and what was saved. Whatever does not fit is told here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import CheckpointError, load_checkpoint
from model.config import InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.training.cuda import initialise
from model.training.saving import STATE, Saved, put, tidy
from model.training.stages import MATCHED, SIZES, STAGES, Recipe, StageError, Standing, attentive, hybrid, policy
from model.training.teacher import read_teacher


@dataclass
class Start:
    """`kinds` is what a `Learner` takes to go on (see `Learner.snapshot`), empty at a beginning."""

    network: InfiniteVL
    standing: Standing
    teacher: InfiniteVL | None = None
    kinds: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)


def part_of(stage: str, progress: float) -> str:
    """Which objective a stage has, at this share of its minutes."""
    if stage != "distil":
        return "answering"
    return "matching" if progress < MATCHED else "imitating"


def begin(recipe: Recipe, out: Path, origin: str | None, size: str | None = None, tower: Path | None = None) -> Start:
    """What `out` saved, where there is something, else the stage's beginning from `origin`, or from nothing. Raises StageError.

    `size` is of what begins from nothing, `tower` a checkpoint whose vision tower it takes and keeps (`recipe.frozen` tells so).
    """
    stage = STAGES[recipe.stage]
    if (out / STATE).is_file():
        saved = Saved(out)
        same(saved, recipe, f"--out {out}")
        tidy(out, saved.standing)
        return resumed(saved, recipe, origin)
    if origin is None and not stage.alone:
        raise StageError(f"{stage.name} goes on from a {stage.after}: name its folder with --from")
    if origin is None:
        return from_nothing(recipe, SIZES[size or "nano"], tower)
    if size or tower:
        raise StageError(f"--size and --tower are of what begins from nothing: {origin} brings its own")
    if stage.name == "distil" and not holds_stage(origin):
        teacher, vocabulary = read_teacher(origin)
        recipe.vocabulary = str(vocabulary)
        return taught(recipe, teacher, origin)
    saved = Saved(Path(origin))
    if saved.standing.stage == stage.name:
        same(saved, recipe, f"--from {origin}")
        return resumed(saved, recipe, None)
    if saved.standing.stage != stage.after:
        wanted = f"a {stage.after}" if stage.after else "nothing or a teacher"
        raise StageError(f"--from {origin} holds the stage {saved.standing.stage}: {stage.name} goes on from {wanted}")
    recipe.frozen = bool(saved.standing.recipe.get("frozen"))
    if stage.name == "distil":
        return taught(recipe, saved.network(), origin)
    config = saved.config.with_policy(policy(recipe.policy, saved.config))
    network = InfiniteVL(config)
    put(network, saved.weights(), origin)
    return Start(network, standing(recipe, network, origin))


def holds_stage(folder: str) -> bool:
    """Whether a stage or what was exported of one is there."""
    return (Path(folder) / STATE).is_file() or (Path(folder) / "training" / STATE).is_file()


def standing(recipe: Recipe, network: InfiniteVL, origin: str | None) -> Standing:
    """A stage at its beginning."""
    part = part_of(recipe.stage, 0.0)
    return Standing(recipe.stage, recipe.policy, part=part, origin=origin, config=network.config.to_dict())


def same(saved: Saved, recipe: Recipe, where: str) -> None:
    """Raises StageError where `saved` is of another stage or policy."""
    found = saved.standing
    if found.stage != recipe.stage:
        raise StageError(f"{where} holds the stage {found.stage}, not {recipe.stage}: name another folder")
    if found.policy != recipe.policy:
        raise StageError(f"{where} learns with the policy {found.policy}, not {recipe.policy}: name another folder")


def resumed(saved: Saved, recipe: Recipe, origin: str | None) -> Start:
    """Where `saved` stands."""
    found = saved.standing
    recipe.frozen = bool(found.recipe.get("frozen"))
    recipe.vocabulary = found.recipe.get("vocabulary") or None  # type: ignore[assignment]
    recipe.total = recipe.total or found.total
    network = InfiniteVL(saved.config)
    put(network, saved.weights("weights"), str(saved.folder))
    teacher = None
    if recipe.stage == "distil":
        teacher = teacher_of(str(origin or found.origin))
        fitting(teacher, network.config)
    kinds = {kind: saved.tensors(kind) for kind in ("weights", "mean", "moments")}
    if not kinds["moments"]:
        found.fresh = found.step
    return Start(network, found, teacher, kinds, saved.curve())


def teacher_of(origin: str) -> InfiniteVL:
    """A teacher by its folder or its name on the hub. Raises StageError."""
    if holds_stage(origin):
        return Saved(Path(origin)).network()
    return read_teacher(origin)[0]


def fresh(config: InfiniteVLConfig, seed: int) -> InfiniteVL:
    """A model with starting weights."""
    torch.manual_seed(seed)
    network = InfiniteVL(config)
    initialise(network)
    return network


def from_nothing(recipe: Recipe, config: InfiniteVLConfig, tower: Path | None) -> Start:
    """A teacher, or a hybrid that has none."""
    config = attentive(config) if recipe.stage == "teacher" else config.with_policy(policy(recipe.policy, config))
    network = fresh(config, recipe.seed)
    if tower is not None:
        recipe.frozen = True
        try:
            known, _ = load_checkpoint(tower)
        except CheckpointError as error:
            raise StageError(f"--tower: {error}") from None
        weights = {f"visual.{name}": p.detach() for name, p in known.visual.named_parameters()}
        put(network, dict(network.named_parameters()) | weights, f"--tower {tower}")
    return Start(network, standing(recipe, network, None))


def taught(recipe: Recipe, teacher: InfiniteVL, origin: str) -> Start:
    """A distillation at its beginning: the teacher's weights, Gated DeltaNets anew."""
    config = hybrid(teacher.config)
    fitting(teacher, config)
    network = fresh(config, recipe.seed)
    known, replaced = dict(teacher.named_parameters()), config.decoder.layer_types
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            layer = name.split(".")[2] if ".layers." in name and ".self_attn." in name else None
            if layer is None or replaced[int(layer)] == "attention":
                parameter.copy_(known[name])
    return Start(network, standing(recipe, network, origin), teacher)


def fitting(teacher: InfiniteVL, config: InfiniteVLConfig) -> None:
    """Raises StageError where `teacher` can't teach a model of `config`."""
    ours, theirs = config.decoder, teacher.config.decoder
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim",
    ):  # fmt: skip
        if getattr(ours, name) != getattr(theirs, name):
            raise StageError(
                f"the teacher's {name} is {getattr(theirs, name)}, the student's {getattr(ours, name)}: distil from a"
                " teacher of its sizes"
            )
    if set(theirs.layer_types) != {"attention"}:
        raise StageError("the teacher has layers that are not attention: distil from a teacher, whose every layer is")
