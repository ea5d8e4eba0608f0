"""Teachers of true size, by tiny ones of random weights: read by transformers, distilled, and sharded between processes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from model.serving.runner import NANO
from model.training import start
from model.training.objectives import objective
from model.training.stages import TINY, Recipe, StageError, attentive
from model.training.teacher import read_teacher
from tests.ports import free_port

from .qwen import qwen
from .test_stages import lesson

BARE = replace(TINY, vision=replace(TINY.vision, position_table=0))


def hub_teacher(folder: Path, **changes: int) -> Path:
    """A folder as the hub has it: transformers' Qwen2.5-VL with random weights, and a tokenizer."""
    config = replace(BARE, decoder=replace(BARE.decoder, **changes))
    qwen(start.fresh(attentive(config), 5)).save_pretrained(folder)
    shutil.copy(NANO / "tokenizer.json", folder)
    return folder


def test_a_teacher_of_the_hub_is_read_with_its_weights_and_taught_from(tmp_path):
    folder = hub_teacher(tmp_path / "hub")
    teacher, vocabulary = read_teacher(str(folder))
    assert vocabulary == folder / "tokenizer.json"
    wanted = dict(start.fresh(attentive(BARE), 5).named_parameters())
    found = dict(teacher.named_parameters())
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], x) for name, x in wanted.items())
    recipe = Recipe("distil", 1)
    begun = start.begin(recipe, tmp_path / "out", str(folder))
    assert recipe.vocabulary == str(vocabulary)
    assert begun.network.config.decoder.layer_types == ("attention", *("delta_net",) * 3)
    assert torch.equal(begun.network.model.layers[2].mlp.up_proj.weight, wanted["model.layers.2.mlp.up_proj.weight"])


def test_a_teacher_that_does_not_fit_is_told_in_a_line(tmp_path):
    folder = hub_teacher(tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text())
    for said, change in (
        (
            "the teacher has 6 layers",
            lambda c: c["text_config"].update(num_hidden_layers=6, layer_types=["full_attention"] * 6),
        ),
        ("patch_size is 16: the made world is painted for 14", lambda c: c["vision_config"].update(patch_size=16)),
        ("must sum to half of head_dim", lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[1, 2, 3])),
        ("is a llama: a teacher is a qwen2_5_vl", lambda c: c.update(model_type="llama")),
    ):
        changed = json.loads(json.dumps(config))
        change(changed)
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(StageError, match=said) as told:
            read_teacher(str(folder))
        assert "\n" not in str(told.value)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(StageError, match=r"tokenizer.json has no"):
        read_teacher(str(folder))


def test_a_gradient_that_is_not_finite_is_left_out_of_shared_weights_too():
    from model.training.sharding import ShardedOptimizer

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = ShardedOptimizer([("weight", weight)])
    for gradient, moved in (([1.0, torch.nan, 1.0], False), ([1.0, 1.0, torch.inf], False), ([1.0, 1.0, 1.0], True)):
        optimizer.clear()
        weight.grad = torch.tensor(gradient)
        norm = optimizer.step(0.1)
        assert bool(norm.isfinite()) is moved
        assert bool((weight < 1).all()) is moved and bool(weight.isfinite().all())


def learned(part: str, sharded: bool, devices: int) -> dict[str, torch.Tensor]:
    """Weights after three steps of a tiny model's learning."""
    from model.training.trainer import Learner

    teacher = start.fresh(attentive(BARE), 1)
    begun = start.taught(Recipe("distil", 1), teacher, "")
    recipe = Recipe("distil", 1, devices=devices, sharded=sharded, mean=0.5)
    learner = Learner(recipe, objective(part, begun.network, teacher, True), torch.device("cpu"))
    if not sharded:
        from model.training.sharding import ShardedOptimizer

        learner.optimizer = ShardedOptimizer(learner.objective.trained())
        learner.mean = [p.detach().clone() for p in learner.optimizer.masters]
    for step in range(3):
        if step == 2:  # what is saved is enough to go on
            kinds = learner.snapshot()
            learner.optimizer.adam.state.clear()
            learner.take(kinds)
        learner.differentiate([4], lesson(step))
        learner.optimizer.step(1e-3)
        learner.average()
    names = learner.optimizer.names
    return {name: learner.optimizer.gather(x).detach().clone() for name, x in zip(names, learner.mean, strict=True)}


def shared(rank: int, devices: int, port: int, out: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=devices)
    torch.save({part: learned(part, True, devices) for part in ("matching", "imitating")}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.nightly
def test_two_processes_that_share_a_model_learn_what_one_does(tmp_path):
    """Both are given the same lessons, so that the mean of their gradients is one's; FSDP2 over gloo."""
    port = free_port()
    code = "import sys; from tests.model.test_sharding import shared; shared(int(sys.argv[1]), 2, int(sys.argv[2]), sys.argv[3])"
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen([*command, str(rank), str(port), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=250) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for part in ("matching", "imitating"):
        wanted = learned(part, False, 1)
        assert first[part].keys() == wanted.keys() == second[part].keys()
        for name, x in wanted.items():
            assert torch.equal(first[part][name], second[part][name]), name
            torch.testing.assert_close(first[part][name], x, rtol=1e-4, atol=2e-6, msg=name)
