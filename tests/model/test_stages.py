"""From a transformer to its members at toy size: each stage goes on from the last, and a run that is killed loses nothing but time."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.cache import SequenceCache
from model.config import FULL
from model.families.infinitevl import InfiniteVL
from model.training import saving, start, table
from model.training import train as program
from model.training.objectives import Imitating, Matching, objective
from model.training.pair import Pair, paired
from model.training.saving import Saved, StageError
from model.training.stages import MATCHED, STAGES, TINY, Recipe, attentive, hybrid, mixture, policy
from model.training.trainer import Learner
from model.world.render import CLASSES, Assets
from model.world.tokenise import SKILLS

CPU = torch.device("cpu")
TICK = 15.0
"""Seconds that a step of learning takes by these tests' clock."""


class Strokes:
    """Paints noise: what is learned doesn't matter here."""

    def __init__(self, assets, device):
        self.gallery = assets.gallery

    def patches(self, sheet, seed, dtype):
        generator = torch.Generator().manual_seed(seed)
        steps = len(sheet.ground) // 2
        return (
            torch.randn(steps, 256, 1176, generator=generator),
            torch.randint(0, CLASSES, (steps, 256), generator=generator),
        )


@pytest.fixture(scope="module")
def assets():
    return Assets.load()


@pytest.fixture
def toy(assets, monkeypatch):
    """`toy(stage, out, origin, …)` learns a stage of four steps a minute by a clock of its own."""
    now = [0.0]
    learn = Learner.learn

    def learned(self, *given):
        now[0] += TICK
        return learn(self, *given)

    class Loaded:
        cluttered, gallery = staticmethod(lambda count: assets), assets.gallery

    monkeypatch.setattr(program, "Painter", Strokes)
    monkeypatch.setattr(program.Assets, "load", lambda: Loaded)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    monkeypatch.setattr(Learner, "learn", learned)

    def run(stage, out, origin=None, minutes=1.5, **changes):
        size = changes.pop("size", None if origin else "tiny")
        recipe = Recipe(
            stage, minutes, policy=changes.pop("policy", "base"), steps=4, questions=4, workers=0, probes=(0, 0), told=2,
            lr=STAGES[stage].lr, longest=changes.pop("longest", 4), warmup=4, saved=0.4, **changes,
        )  # fmt: skip
        program.train(recipe, out, None if origin is None else str(origin), CPU, size=size, clock=lambda: now[0])
        return out

    return run


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_each_stage_goes_on_from_the_one_before(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "mixture", lambda recipe: ((9.99, {4: 1.0}),))
    teacher = toy("teacher", tmp_path / "teacher")
    distil = toy("distil", tmp_path / "distil", teacher)
    tune = toy("tune", tmp_path / "tune", distil)
    assert Saved(teacher).config.decoder.layer_types == ("attention",) * 4
    assert {row["part"] for row in rows(distil)} == {"matching", "imitating"}
    for member in ("online", "offline", "window"):
        folder = toy("long", tmp_path / member, tune, policy=member, minutes=0.5)
        network = Saved(folder).network()
        assert network.config.policy == policy(member, TINY)
        assert network.config.decoder.layer_types == ("attention", "delta_net", "delta_net", "delta_net")
        assert all(torch.isfinite(p).all() for p in network.parameters())
    sit_them(tmp_path, monkeypatch)
    given, taught = Saved(distil).weights(), Saved(teacher).weights()
    assert torch.equal(given["visual.merger.ln_q.weight"], taught["visual.merger.ln_q.weight"])
    assert not torch.equal(given["model.layers.0.mlp.up_proj.weight"], taught["model.layers.0.mlp.up_proj.weight"])
    assert all(path.stat().st_size < 16e6 for path in tmp_path.rglob("*.safetensors"))


def sit_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are asked the same questions, whose table tells what each stream's counts say."""
    monkeypatch.setattr(table, "Painter", Strokes)
    names = ("online", "offline", "window", "tune", "teacher")
    networks = {name: Saved(folder / name).network() for name in names}
    found = table.ask(networks, CPU, {32: 3}, 0)
    assert set(found) == set(names)
    asked = {name: [[n for _, n in counts] for counts in found[name][32].values()] for name in names}
    assert all(counts == asked["online"] for counts in asked.values()) and len(asked["online"]) == 4
    assert asked["online"][0] == asked["online"][1] == [6, 6, 6]
    for name in ("first", "rest"):
        part = {key: x for key, x in found.items() if (key == "online") == (name == "first")}
        (folder / f"{name}.json").write_text(json.dumps(part))
    again = table.together([table.remembered(folder / f"{name}.json") for name in ("first", "rest")])
    assert again == found and list(again) == list(names)  # one device's table goes on with another's
    said = list(table.lines(found))
    assert [line.split("|")[1].strip() for line in said[2:7]] == list(names)
    assert list(table.by_minute([folder / "online"])) != []
    assert [saved.standing.stage for saved in table.way(folder / "online")] == ["teacher", "distil", "tune", "long"]


def test_tables_of_other_questions_are_not_put_together(tmp_path):
    counts = {"now": [[1, 2]], "memory": [[0, 3]]}
    part = {"a": {32: counts}}
    for other, wanted in (
        ({"b": {32: counts | {"memory": [[0, 4]]}}}, "b was asked other questions than a: ask both with the same"),
        ({"b": {128: counts}}, "b was asked other questions than a"),
        (part, "a is there twice"),
    ):
        with pytest.raises(StageError, match=wanted):
            table.together([part, other])
    for written in ("", "{}", "[1]", '{"a": {"32": {"now": [1]}}}', '{"a": {"long": {}}}'):
        (tmp_path / "table.json").write_text(written)
        with pytest.raises(StageError, match=r"table.json is not what a table wrote with --json") as told:
            table.remembered(tmp_path / "table.json")
        assert "\n" not in str(told.value)


def test_an_interval_is_of_streams_drawn_anew():
    alike = table.interval([[3, 4]] * 50)
    assert alike == (0.75, 0.75, 0.75)  # streams that are all the same leave no doubt
    share, low, high = table.interval([[4, 4], [0, 4]] * 50)
    assert share == 0.5 and 0.38 < low < 0.42 and 0.58 < high < 0.62  # ± 1.96 · .5 / 10
    worse = table.interval([[2, 4]] * 50, [[3, 4]] * 50)
    assert worse == (-0.25, -0.25, -0.25)
    assert table.told(table.interval([])) == "–"


def test_updates_that_are_left_out_are_told(tmp_path):
    curve = program.Curve(tmp_path / "curve.jsonl", [], {}, False)
    tally = torch.zeros(2, len(SKILLS))
    curve.recent += [torch.tensor([1.0, 0.5]), torch.tensor([3.0, torch.nan])]
    curve.fold(tally)
    again = program.Curve(tmp_path / "curve.jsonl", [], json.loads(json.dumps(curve.since())), False)
    again.recent += [torch.tensor([2.0, torch.inf]), torch.tensor([6.0, 1.5])]
    assert again.close(("loss",), tally) == {"loss": 3.0, "norm": 1.0, "unused": 2}
    again.recent += [torch.tensor([2.0, 0.25])]
    assert again.close(("loss",), tally) == {"loss": 2.0, "norm": 0.25}


def test_a_gradient_that_is_not_finite_is_left_out_and_named_in_the_curve(toy, tmp_path, monkeypatch):
    """It is NaN in one weight of one lesson: the curve names that weight, and all weights stay finite."""
    monkeypatch.setattr(program, "mixture", lambda recipe: ((9.99, {4: 1.0}),))
    differentiate, lessons = Learner.differentiate, []

    def struck(self, cuts, given):
        differentiate(self, cuts, given)
        lessons.append(given)
        if len(lessons) == 2:
            self.objective.model.model.layers[1].mlp.up_proj.weight.grad[0, 0] = torch.nan

    monkeypatch.setattr(Learner, "differentiate", struck)
    out = toy("tune", tmp_path / "tune", minutes=1.0)
    first, second = rows(out)
    assert first["unused"] == 1 and first["lost"] == {"model.layers.1.mlp.up_proj.weight": 1}
    assert "unused" not in second and "lost" not in second
    assert all(torch.isfinite(x).all() for x in Saved(out).weights("weights").values())


def test_attention_is_differentiated_by_other_kernels_than_cudnns(toy, tmp_path, monkeypatch):
    """Under a mask cuDNN's gradients of low scores are NaN on Hopper: none is recorded by it, and whoever else computes may have it."""
    monkeypatch.setattr(program, "mixture", lambda recipe: ((9.99, {4: 1.0}),))
    forward, allowed = SequenceCache.attend, set()

    def watched(self, *given):
        allowed.add(torch.backends.cuda.cudnn_sdp_enabled())
        return forward(self, *given)

    monkeypatch.setattr(SequenceCache, "attend", watched)
    toy("tune", tmp_path / "tune", minutes=0.5)
    assert allowed == {False} and torch.backends.cuda.cudnn_sdp_enabled()


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("stage", "moments_tried"),
    [
        ("distil", 2),
        pytest.param("distil", 999, marks=pytest.mark.nightly),
        pytest.param("tune", 999, marks=pytest.mark.nightly),
    ],
)
def test_a_run_killed_at_any_moment_goes_on_with_the_same_curve(toy, tmp_path, monkeypatch, stage, moments_tried):
    """Before, between and after each file that a save writes, replaces or deletes, and in the middle of learning: bit by bit."""
    monkeypatch.setattr(program, "mixture", lambda recipe: ((9.99, {4: 1.0}),))
    origin = toy("teacher", tmp_path / "teacher", minutes=0.5) if stage == "distil" else None
    moments = [0]
    fatal = [-1]

    def watched(function):
        def wrapped(*given, **named):
            moments[0] += 1
            if moments[0] == fatal[0]:
                raise Killed
            return function(*given, **named)

        return wrapped

    monkeypatch.setattr(saving, "save_file", watched(saving.save_file))
    for name in ("replace", "unlink", "write_text"):
        monkeypatch.setattr(Path, name, watched(getattr(Path, name)))
    monkeypatch.setattr(Learner, "average", watched(Learner.average))
    monkeypatch.setattr(Learner, "take", watched(Learner.take))
    whole = toy(stage, tmp_path / "whole", origin)
    count, expected = moments[0], {kind: Saved(whole).tensors(kind) for kind in ("weights", "mean", "moments")}
    curve = rows(whole)
    assert count > 20 and len(curve) == 3 and all(len(x) > 10 for x in expected.values())
    for moment in (*range(2, count, max(1, count // moments_tried)), count):
        out = tmp_path / f"killed-{moment}"
        moments[0], fatal[0] = 0, moment
        with pytest.raises(Killed):
            toy(stage, out, origin)
        fatal[0] = -1
        # In the last moments all is saved and only files of the save before are left to delete.
        over = (out / "state.json").is_file() and Saved(out).standing.minutes >= 1.5
        with pytest.raises(StageError, match="has had its") if over else nullcontext():
            toy(stage, out, origin)
        assert rows(out) == curve, moment
        for kind, tensors in expected.items():
            found = Saved(out).tensors(kind)
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[name].float(), x.float()) for name, x in tensors.items()), (moment, kind)
        named = {name for names in Saved(out).standing.files.values() for name in names}
        assert named == {path.name for path in out.glob("*.safetensors")}


def test_what_does_not_fit_is_told_in_a_line(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "mixture", lambda recipe: ((9.99, {4: 1.0}),))
    teacher = toy("teacher", tmp_path / "teacher", minutes=0.5)
    for said, wanted in (
        (("distil", tmp_path / "d"), "goes on from a teacher: name its folder with --from"),
        (
            ("distil", tmp_path / "d", tmp_path / "none"),
            "none is neither a stage's folder nor a teacher: .* is no folder here",
        ),
        (("distil", teacher, teacher), "holds the stage teacher, not distil: name another folder"),
        (("tune", tmp_path / "t", teacher), "holds the stage teacher: tune goes on from a distil"),
        (("teacher", teacher), "has had its 0.5 minutes of teacher: give it more with --total"),
        (("tune", tmp_path / "d", tmp_path), "holds no saved stage"),
        (("distil", tmp_path / "d", tmp_path), "neither a stage's folder nor a teacher"),
    ):
        with pytest.raises(StageError, match=wanted) as told:
            toy(*said)
        assert "\n" not in str(told.value)
    with pytest.raises(StageError, match="are over before learning begins"):
        toy("teacher", tmp_path / "brief", minutes=0.0)
    for path in (*teacher.glob("weights-*"), *teacher.glob("moments-*")):
        path.unlink()
    assert Saved(teacher).network() is not None  # what the next stage needs travels alone
    with pytest.raises(StageError, match=r"lacks weights-0.*copy the whole folder"):
        toy("teacher", teacher, total=9.0)
    wide = InfiniteVL(attentive(replace(TINY, decoder=replace(TINY.decoder, intermediate_size=128))))
    with pytest.raises(StageError, match="the teacher's intermediate_size is 128, the student's 96"):
        start.fitting(wide, hybrid(TINY))
    first = next(teacher.glob("mean-0.*"))
    first.write_bytes(first.read_bytes()[:1000])
    with pytest.raises(StageError, match=r"mean-0.*is damaged or cut short"):
        toy("distil", tmp_path / "d", teacher)
    first.unlink()
    with pytest.raises(StageError, match=r"lacks mean-0.*which state.json names: copy the whole folder"):
        toy("distil", tmp_path / "d", teacher)
    (teacher / "state.json").write_text('{"stage": ')
    with pytest.raises(StageError, match="is not what a stage saves"):
        toy("distil", tmp_path / "d", teacher)


def lesson(seed: int, streams: int = 2, steps: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    each, n = 3, 32
    rows = torch.arange(streams * each) * n + 9
    return {
        "patches": torch.randn(streams * steps, 256, 1176, generator=generator),
        "seconds": torch.arange(steps, dtype=torch.float64).expand(streams, -1),
        "tokens0": torch.randint(7, 2048, (streams, each, n), generator=generator),
        "rows0": rows,
        "targets0": torch.randint(7, 2048, rows.shape, generator=generator),
        "owner0": torch.arange(streams * each),
        "skill0": torch.zeros(streams * each, dtype=torch.int64),
    }


def test_a_pair_is_given_the_teachers_input_and_learns_from_what_it_gives_there():
    """The matching loss against each layer on its own, fed what transformers of layers would be: the teacher, layer by layer."""
    teacher, student = start.fresh(attentive(TINY), 1).train(), start.fresh(hybrid(TINY), 2).train()
    given = lesson(3)
    matching = Matching(student, teacher)
    loss, told = matching([4], given, torch.zeros(()))
    assert torch.equal(loss.detach(), told[0])
    loss.backward()
    learned = {name for name, p in matching.model.named_parameters() if p.grad is not None}
    assert learned and all(".student." in name for name in learned)
    assert {name for name, p in matching.model.named_parameters() if ".student." in name} == learned
    inputs: list[tuple[int, torch.Tensor, torch.Tensor | None]] = []
    for i, layer in enumerate(teacher.model.layers):
        layer.self_attn.register_forward_hook(lambda m, x, y, i=i: inputs.append((i, x[0].detach(), y)))
    with torch.no_grad():
        seen = teacher.visual(given["patches"], 16, 16).unflatten(0, (2, -1))
        memory = teacher.forward(seen, (16, 16), given["seconds"])
        teacher.answer(given["tokens0"], given["seconds"][:, -1], (16, 16), memory)
        cache = SequenceCache(student.config.decoder, FULL, 2, CPU, torch.float32)
        errors = []
        for number, (i, x, y) in enumerate(inputs):
            if number == len(teacher.model.layers):
                cache = cache.branch(3)
            if student.config.decoder.layer_types[i] == "delta_net":
                z = student.model.layers[i].self_attn(x, None, cache)
                if not (number < 4 and i == 3):  # of the last layer only what is remembered is needed while watching
                    errors.append((z - y).square().mean() / y.square().mean())
    torch.testing.assert_close(loss.detach(), torch.stack(errors).mean(), rtol=1e-4, atol=0)


def test_imitation_ends_where_the_logits_agree_and_only_the_student_learns():
    teacher = start.fresh(attentive(TINY), 1)
    same, other = (Imitating(start.fresh(attentive(TINY), seed), teacher) for seed in (1, 2))
    given = lesson(4)
    nothing, far = (made([4], given, torch.zeros(()))[0] for made in (same, other))
    assert abs(nothing.item()) < 1e-6 < 0.01 < far.item()
    far.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is None for p in other.model.visual.parameters())
    assert other.model.model.embed_tokens.weight.grad is not None


class Captured(TorchDispatchMode):
    """Refuses what a CUDA graph can't hold: a word from the device to the host, or a tensor made of the host's numbers."""

    def __torch_dispatch__(self, function, types, given=(), named=None):
        name = str(function)
        assert not name.startswith(("aten._local_scalar_dense", "aten.lift_fresh", "aten.nonzero")), name
        return function(*given, **named or {})


@pytest.mark.parametrize("part", ["matching", "imitating", "answering", "online", "offline", "window"])
def test_learning_can_be_captured_as_a_graph(part):
    """Each objective and each member, after a first time that fills what is kept; streams so long that Offline chooses blocks."""
    teacher = start.fresh(attentive(TINY), 1)
    network = start.taught(Recipe("distil", 1), teacher, "").network
    if part in ("online", "offline", "window"):
        network = InfiniteVL(hybrid(TINY).with_policy(policy(part, TINY)))
    made = objective(part if part in ("matching", "imitating") else "answering", network, teacher, True)
    given = lesson(3, streams=2, steps=24) | {"guided": torch.zeros(1, dtype=torch.int64)}

    def learn():
        made([24], given, torch.ones(()))[0].backward()

    learn()
    with Captured():
        learn()


def test_paired_weights_are_the_teachers_and_the_students():
    teacher, student = start.fresh(attentive(TINY), 1), start.fresh(hybrid(TINY), 2)
    model = paired(teacher, student)
    pair = model.model.layers[2].self_attn
    assert isinstance(pair, Pair) and not isinstance(model.model.layers[0].self_attn, Pair)
    assert torch.equal(pair.teacher.q_proj.weight, teacher.model.layers[2].self_attn.q_proj.weight)
    assert torch.equal(pair.student.q_proj.weight, student.model.layers[2].self_attn.q_proj.weight)
    assert torch.equal(model.model.layers[2].mlp.up_proj.weight, teacher.model.layers[2].mlp.up_proj.weight)


def test_long_streams_are_one_frame_in_five():
    ((_, shares),) = mixture(Recipe("long", 1, longest=512))
    assert sum(shares.values()) == pytest.approx(1) and max(shares) == 512
    assert sum(share for steps, share in shares.items() if steps > 64) == pytest.approx(0.2)
    assert all(max(shares) <= 64 for _, shares in mixture(Recipe("teacher", 1)))
    assert 0 < MATCHED < 1
