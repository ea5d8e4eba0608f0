import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.config import nano
from model.preprocess import patchify
from model.serving.runner import NANO
from model.tokenizer import Tokenizer
from model.training.dataset import TOKENIZER, Curriculum, prepare
from model.training.objectives import objective
from model.training.optimizer import orthogonalise
from model.training.saving import Saved
from model.training.stages import Recipe, mixture
from model.training.start import begin
from model.training.train import train
from model.training.trainer import Learner
from model.world.distractors import films, outline
from model.world.generate import draw_scene
from model.world.layout import layout, text_width
from model.world.motion import CREEP, creep
from model.world.objects import HELD_OUT_SHAPES, NAMES, WORDS
from model.world.phrasings import HELD_OUT, NOTHING, PHRASES
from model.world.questions import WEIGHTS, Examiner
from model.world.render import ASSETS, CLASSES, CLIP, Assets, Painter
from model.world.scene import CLEAR, PROCEDURAL, SLOTS, Profile, Scene
from model.world.tokenise import LENGTH


@pytest.fixture(scope="module")
def assets():
    return Assets.load()


@pytest.fixture(scope="module")
def painter(assets):
    return Painter(assets, "cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TOKENIZER, nano())


def test_training_goes_on_from_an_exported_checkpoint_as_from_the_run_it_is_of(tmp_path):
    """All but the guiding head and the optimizer's moments, which are not exported; the running mean begins at the weights."""
    recipe = Recipe("tune", 1, policy="online", steps=8, questions=8)
    start = begin(recipe, tmp_path / "out", str(NANO))
    state = json.loads((NANO / "training" / "state.json").read_text())
    assert (start.standing.minutes, start.standing.step) == (state["minutes"], state["step"]) and recipe.total == 147.4
    assert start.standing.fresh == state["step"] and len(start.curve) == 1672
    learner = Learner(recipe, objective("answering", start.network, None, False), torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in learner.optimizer.weights().items()}
    learner.take(start.kinds)
    shipped, loaded = load_file(NANO / "model.safetensors"), learner.optimizer.weights()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, shipped[name].float() if name in shipped else before[name]), name
    assert {name for name in loaded if name not in shipped} == {"extra.weight", "extra.bias"}
    assert all(torch.equal(a, b) for a, b in zip(learner.mean, loaded.values(), strict=True))
    assert all(a is not b for a, b in zip(learner.mean, loaded.values(), strict=True))


def test_lessons_draw_their_scenes_by_the_profiles(assets, tokenizer, monkeypatch):
    for things in (0, 1):
        monkeypatch.setattr("model.training.dataset.PROFILES", ((1.0, Profile(things=(things, things))),))
        lesson = prepare((things,), 8, 6, 12, assets.gallery, tokenizer)
        assert len(lesson.sheet.kind) == 0 if things == 0 else 0 < len(lesson.sheet.kind) <= 6


def test_same_seed_same_world(assets, painter):
    pictures = [
        torch.cat(list(painter.paint(layout([draw_scene(np.random.default_rng(5), 4, "train", assets.gallery)]), 1)))
        for _ in range(2)
    ]
    assert torch.equal(*pictures)
    other = layout([draw_scene(np.random.default_rng(6), 4, "train", assets.gallery)])
    assert not torch.equal(pictures[0], torch.cat(list(painter.paint(other, 1))))


def test_pictures_are_of_what_they_are_called(assets, tmp_path):
    """Means of the opaque pixels tell whether names and pictures are one apart."""
    dominant = {
        "red": ("apple", "ladybug", "rose", "strawberry", "tomato"),
        "green": ("broccoli", "cactus", "clover", "crocodile", "frog", "pear", "tree"),
        "yellow": ("banana", "cheese", "lemon", "moon", "sun"),
        "blue": ("airplane", "dolphin", "dress", "umbrella", "whale"),
        "grey": ("ant", "elephant", "koala", "panda", "spider", "zebra"),
    }
    for colour, names in dominant.items():
        for name in names:
            picture = assets.sprites[NAMES.index(name)].astype(float)
            red, green, blue = (picture[..., i][picture[..., 3] > 128].mean() for i in range(3))
            found = {
                "grey": max(red, green, blue) - min(red, green, blue) < 30,
                "yellow": red > 180 and green > 130 and blue < 120,
                "red": red > green + 60 and red > blue + 60,
                "green": green > red and green > blue,
                "blue": blue > red + 10 and blue > green,
            }
            assert found[colour], (name, colour, red, green, blue)
    with np.load(ASSETS) as file:
        content = dict(file)
    content["names"] = np.roll(content["names"], 1)
    np.savez(tmp_path / "rolled.npz", **content)
    with pytest.raises(ValueError, match=r"rolled.npz.*pack it again"):
        Assets.load(tmp_path / "rolled.npz")


def test_text_is_as_wide_as_it_is_believed_to_be(assets, painter):
    """Else what counts as seen would be cut off at the picture's edge."""
    rng, wide = np.random.default_rng(3), Profile(things=(4, 4), text=1.0)
    scenes = [draw_scene(rng, 12, split, assets.gallery, wide) for split in ("train", "test") for _ in range(8)]
    visits = [visit for scene in scenes for visit in scene.visits]
    columns = painter.sheet(layout(scenes))["columns"]
    for visit, row in zip(visits, columns, strict=True):
        believed = text_width(visit.thing, visit.look.font, assets.gallery)
        assert abs(int((row >= 0).sum()) / assets.glyphs.shape[2] - believed) <= 0.05
        assert max(visit.half) <= 1.0


def test_painted_patches_are_those_that_serving_makes(assets, painter):
    sheet = layout([draw_scene(np.random.default_rng(1), 2, "train", assets.gallery)])
    pictures = torch.cat(list(painter.paint(sheet, 3))).permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).numpy()
    patches, labels = painter.patches(sheet, 3, torch.float32)
    for step in range(2):
        served = patchify(nano(), [pictures[2 * step], pictures[2 * step + 1]], (16, 16))
        torch.testing.assert_close(patches[step], served, atol=1e-5, rtol=0)
    assert labels.shape == (2, 256) and int(labels.max()) < CLASSES


def test_scenes_keep_their_promises(assets):
    rng = np.random.default_rng(2)
    for _ in range(60):
        scene = draw_scene(rng, 24, "train", assets.gallery)
        for visit in scene.visits:
            assert visit.visible.max() >= CLEAR
            assert scene.early or visit.start >= 2
            assert (visit.thing.name, visit.thing.colour) not in HELD_OUT_SHAPES
            assert visit.look.font in assets.gallery.fonts["train"]
        busy = np.zeros((48, SLOTS), int)
        for visit in scene.visits:
            busy[visit.start : visit.stop, visit.slot] += 1
        assert busy.max(initial=0) <= 1
        assert (np.diff(scene.seconds) >= 0).all()


@pytest.mark.parametrize("shape", [(3, 24, 64), (3, 64, 24)])
def test_updates_are_made_nearly_orthogonal(shape):
    """As far as five steps of Newton and Schulz go: singular values of three decades come to about one, directions stay."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -2, 24).expand(3, -1)
    found = orthogonalise(u * values[:, None] @ v).float()
    spread = torch.linalg.svdvals(found)
    assert spread.min() > 0.5 and spread.max() < 1.3
    assert torch.nn.functional.cosine_similarity(found.flatten(1), (u @ v).flatten(1)).min() > 0.97


def test_what_creeps_moves_along_an_axis_at_its_pace_until_the_edge():
    rng = np.random.default_rng(6)
    for _ in range(60):
        frames, half = int(rng.integers(8, 120)), (0.2, 0.3)
        line = creep(rng, frames, half, rng.uniform(-0.5, 0.5, 2))
        steps = np.abs(np.diff(line, axis=0))
        along = int(np.argmax(steps[0]))
        pace = steps[0, along]
        assert CREEP[0] * 0.99 <= pace <= CREEP[1] * 1.01
        assert not steps[:, 1 - along].any()
        room = 0.97 - half[along]
        assert np.abs(line[:, along]).max() <= room + 1e-6
        slower = steps[:, along] < 0.99 * pace
        assert (np.abs(line[1:, along][slower]) > room - 1e-6).all()


def test_as_many_visits_are_returns_as_a_profile_says(assets):
    def share(profile: Profile) -> float:
        scenes = [draw_scene(np.random.default_rng((8, i)), 64, "train", assets.gallery, profile) for i in range(60)]
        later = [(scene.visits[:i], visit) for scene in scenes for i, visit in enumerate(scene.visits) if i]
        return sum(any(visit.thing == v.thing for v in before) for before, visit in later) / len(later)

    assert share(Profile(things=(4, 8), again=0.0)) < 0.05 < 0.3 < share(Profile(things=(4, 8), again=0.5)) < 0.6


def test_the_first_thing_comes_as_late_as_a_profile_says(assets):
    def begins(late: float) -> list[float]:
        scenes = [
            draw_scene(np.random.default_rng((7, i)), 64, "train", assets.gallery, Profile(things=(8, 8), late=late))
            for i in range(60)
        ]
        assert all(visit.stop <= 128 for scene in scenes for visit in scene.visits)
        return [min(visit.start for visit in scene.visits) / 128 for scene in scenes if scene.visits]

    usual, late = begins(0.0), begins(1.0)
    assert np.mean(usual) < 0.12 and 0.25 < np.mean(late) < 0.45
    assert max(late) > 0.5 and min(late) < 0.1
    assert np.mean(usual) < np.mean(begins(0.5)) < np.mean(late)


def test_the_background_changes_at_once_as_often_as_a_profile_says(assets):
    """The things are what they were, and before the cut all is; after it the background is another."""

    def scene(i: int, cut: float) -> Scene:
        return draw_scene(np.random.default_rng((9, i)), 32, "train", assets.gallery, Profile(things=(1, 3), cut=cut))

    def changes(cut: float) -> list[int]:
        found = []
        for i in range(60):
            plain, made = scene(i, 0.0), scene(i, cut)
            assert [(v.thing, v.start, v.stop) for v in plain.visits] == [
                (v.thing, v.start, v.stop) for v in made.visits
            ]
            other = (plain.ground != made.ground) | (plain.light != made.light).any(1)
            if other.any():
                at = int(np.argmax(other))
                assert 6 <= at <= 57 and (plain.ground_matrix[:at] == made.ground_matrix[:at]).all()
                assert other[at:].mean() > 0.9
                found.append(at)
        return found

    assert not changes(0.0) and len(changes(1.0)) == 60 and len(set(changes(1.0))) > 15
    assert 15 <= len(changes(0.5)) <= 45


def test_only_lengths_still_to_come_are_made_ready():
    stages = mixture(Recipe("tune", 1, longest=256))
    begun, late = (Curriculum(stages, 0, 1024, 0, progress) for progress in (0.0, 0.8))
    assert begun.lengths() == [4, 8, 16, 32, 64, 128, 256]
    drawn = {steps for _, (_, steps, _) in zip(range(300), late, strict=False)}
    assert drawn == set(late.lengths()) and 4 not in drawn
    ahead, resumed = (iter(Curriculum(stages, 0, 1024, first, 0.8)) for first in (0, 3))
    assert [next(ahead) for _ in range(6)][3:] == [next(resumed) for _ in range(3)]


def test_words_are_as_many_and_as_long_as_a_profile_says(assets):
    def written(**said: object) -> tuple[float, float, float]:
        """Share of words, of these the share that is on the list, and letters of the others."""
        rng, profile = np.random.default_rng(9), Profile(things=(4, 4), text=1.0, again=0.0, **said)
        scenes = [draw_scene(rng, 32, "train", assets.gallery, profile) for _ in range(600)]
        things = [visit.thing for scene in scenes for visit in scene.visits]
        words = [thing.name for thing in things if thing.kind == "word"]
        others = [len(word) for word in words if word not in WORDS]
        return len(words) / len(things), 1 - len(others) / len(words), float(np.mean(others))

    share, known, letters = written()
    assert 0.36 < share < 0.44 and 0.45 < known < 0.55 and 4.4 < letters < 4.7
    share, known, letters = written(words=0.7, known=0.3, lengths=(0.25, 0.4, 0.35))
    assert 0.66 < share < 0.74 and 0.26 < known < 0.34 and 4.95 < letters < 5.25


def test_text_is_as_small_as_a_profile_says(assets):
    def heights(**said: object) -> list[float]:
        rng, profile = np.random.default_rng(9), Profile(things=(4, 4), text=1.0, **said)
        scenes = [draw_scene(rng, 32, "train", assets.gallery, profile) for _ in range(200)]
        return [visit.look.size for scene in scenes for visit in scene.visits]

    usual, small = heights(), heights(sizes=(0.09, 0.12))
    assert 0.22 < max(usual) <= 0.24 and 0.11 < max(small) <= 0.12
    # A long word that would not fit is smaller still.
    assert np.mean([size >= 0.09 for size in small]) > 0.9 and np.mean([size >= 0.1 for size in usual]) > 0.9


def test_text_is_condensed_in_training_alone_and_other_things_less(assets):
    def widths(split: str, text: float) -> list[float]:
        rng, profile = np.random.default_rng(9), Profile(things=(4, 4), text=text)
        scenes = [draw_scene(rng, 32, split, assets.gallery, profile) for _ in range(200)]
        return [visit.look.stretch for scene in scenes for visit in scene.visits]

    written, others = widths("train", 1.0), widths("train", 0.0)
    assert 0.64 <= min(written) < 0.66 and 0.78 <= min(others) < 0.8
    assert max(written) <= 1.28 and max(others) <= 1.28 and max(others) > 1.26
    assert max(widths("test", 1.0)) == 1.0 and set(widths("test", 0.0)) == {1.0}


def test_scenes_with_things_that_creep_are_drawn(assets):
    rng, all_creep = np.random.default_rng(6), Profile(things=(2, 2), slow=1.0)
    visits = [v for _ in range(20) for v in draw_scene(rng, 24, "train", assets.gallery, all_creep).visits]
    moved = np.array([np.abs(np.diff(v.centre, axis=0)).max() for v in visits])
    assert len(visits) >= 20 and (moved >= CREEP[0] * 0.99).all() and (moved <= CREEP[1] * 1.01).all()


def test_answers_follow_the_scene(assets):
    rng = np.random.default_rng(3)
    checked = set()
    for _ in range(80):
        scene = draw_scene(rng, 24, "train", assets.gallery)
        examiner = Examiner(rng, scene, 23, "train")
        for question in examiner.ask(20, WEIGHTS):
            labels = [visit.thing.label for visit in scene.visits if visit.first <= 23]
            checked.add(question.skill)
            if question.skill == "how many":
                assert question.answer == str(len(set(labels)))
            if question.skill in ("first", "last") and not labels:
                assert (question.answer, question.kind) == (NOTHING, "never")
                checked.add("nothing yet")
            elif question.skill == "first":
                assert question.answer.endswith(labels[0])
            if question.skill == "has appeared" and question.answer == "yes":
                assert any(label.split()[-1].lower() in question.text.lower() for label in labels)
            if question.skill == "count":
                assert question.answer == str(sum(v.visible[23] >= CLEAR for v in scene.visits))
    assert checked == set(PHRASES) | {"nothing yet"}


def test_held_out_phrasings_are_never_taught(assets):
    rng = np.random.default_rng(4)
    held = {phrase for phrases in PHRASES.values() for phrase in phrases[-HELD_OUT:] if "{" not in phrase}
    taught = {phrase for phrases in PHRASES.values() for phrase in phrases[:-HELD_OUT]}
    assert not held & taught
    scene = draw_scene(rng, 24, "train", assets.gallery, Profile(things=(3, 6)))
    asked = {question.text for question in Examiner(rng, scene, 23, "train").ask(200, WEIGHTS)}
    assert not asked & held


def test_a_lesson_marks_exactly_the_answers(assets, tokenizer):
    lesson = prepare((1,), 16, 2, 16, assets.gallery, tokenizer)
    assert [round_.steps for round_ in lesson.rounds] == [8, 16]
    round_ = lesson.rounds[0]
    flat = round_.tokens.reshape(-1)
    assert (flat[round_.rows + 1] == round_.targets).all()
    assert (round_.owner == round_.rows // LENGTH).all()
    assert (round_.targets == tokenizer.turn_end).sum() == round_.tokens.shape[0] * round_.tokens.shape[1]


@pytest.mark.parametrize("text", ["Wo ist der Hund?", "数字は何ですか", "🙂 4821 EXIT\n", "the palm tree"])
def test_any_text_has_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_read_is_spelled(tokenizer):
    assert len(tokenizer.encode("4821")) == 4
    assert len(tokenizer.encode("EXIT")) == 4


@pytest.mark.slow
def test_a_run_told_to_end_saves_what_it_learned_and_another_goes_on_from_it(tmp_path, monkeypatch):
    """What a run has learned is not lost when its time is cut short."""
    learn = Learner.learn

    def learn_and_be_told(self, *given):
        result = learn(self, *given)
        signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(Learner, "learn", learn_and_be_told)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    weights = []
    try:
        for step in (1, 2):
            recipe = Recipe("tune", minutes=9, total=9, steps=4, questions=4, workers=0, probes=(0, 0), longest=4)
            train(recipe, tmp_path, None, torch.device("cpu"), size="tiny")
            assert json.loads((tmp_path / "state.json").read_text())["step"] == step
            weights.append(Saved(tmp_path).weights("weights"))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    first, second = weights
    assert first.keys() == second.keys() and any(not torch.equal(first[name], second[name]) for name in first)


def test_clutter_is_taught_and_nothing_held_out_is_in_it(assets):
    before, more = assets.gallery, assets.cluttered(3)
    after = more.gallery
    assert len(after.clips["train"]) == len(before.clips["train"]) + 3 and after.clips["train"].step == CLIP
    for kind in ("stills", "clips"):
        for old, new in zip(getattr(before, kind)["test"], getattr(after, kind)["test"], strict=True):
            assert (assets.grounds[old - PROCEDURAL] == more.grounds[new - PROCEDURAL]).all()
    first = after.clips["train"][-3] - PROCEDURAL
    made = more.grounds[first : first + 3 * CLIP].reshape(3, CLIP, *more.grounds.shape[1:])
    assert (assets.cluttered(3).grounds == more.grounds).all()
    taught = assets.grounds[before.stills["train"].start - PROCEDURAL : before.stills["train"].stop - PROCEDURAL]
    assert (made == films(taught, CLIP, 3).reshape(made.shape)).all()
    for clip in made:
        same = [(clip == still).all((0, 1)).mean() for still in taught]
        # Most of it is one of the taught photographs, and over that something moves.
        assert 0.3 < max(same) < 1.0 and (clip[0] != clip[-1]).any()


def test_pieces_of_clutter_have_no_name():
    """No outline is round: from its middle its reach varies."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        shows = outline(rng, 80, 80)[0]
        assert shows.min() == 0 and shows.max() == 1 and 0.1 < shows.mean() < 0.95
        y, x = np.nonzero(shows > 0.5)
        angle, radius = np.arctan2(y - 39.5, x - 39.5), np.hypot(y - 39.5, x - 39.5)
        reach = [radius[(angle >= a) & (angle < a + np.pi / 8)].max(initial=0) for a in np.arange(-8, 8) * np.pi / 8]
        assert max(reach) - min(reach) > 8
