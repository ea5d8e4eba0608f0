"""The runner on the CPU: pictures and questions in, tokens out, over a pool of slots."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from model import AttentionPolicy, ConfigError, Runner, Sampling, Snapshot, load_runner
from model.checkpoint import CheckpointError
from model.config import PRESETS, InfiniteVLConfig
from model.preprocess import choose_grid, patchify
from model.state import StreamState
from model.tokenizer import Tokenizer

from .small import build, error, picture, small

# Odd grids in up to 12 tokens, two pictures a step, a window of a few steps.
CONFIG = small(
    policy=AttentionPolicy(sinks=5, window=30), tokens_per_frame=12, frames_per_step=2, position_horizon=20.0
)


def pool(slots: int = 6, config: InfiniteVLConfig = CONFIG) -> Runner:
    tokenizer = Tokenizer.load(Path("model/nano/tokenizer.json"), config)
    return Runner("small", build(config), tokenizer, slots, trained=False)


def answer(runner: Runner, slot: int, question: str, n: int = 6, fork: int = 5) -> list[int]:
    """The first `n` tokens of a greedy answer, given in a fork."""
    runner.fork(slot, fork)
    tokens = [runner.prefill(fork, runner.tokenizer.encode_question(question))]
    while len(tokens) < n:
        tokens += runner.decode([fork], tokens[-1:], [Sampling()])
    runner.reset(fork)
    return tokens


def same(found: Snapshot, expected: Snapshot) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_greedy_answer_is_the_models_likeliest_tokens() -> None:
    runner = pool()
    runner.open(0, 90, 160)
    for i in range(4):
        runner.see([0], [[picture(90, 160, i), picture(90, 160, i + 50)]], [i / 2])
    prompt = runner.tokenizer.encode_question("where?")
    tokens = answer(runner, 0, "where?")
    for i, token in enumerate(tokens):
        runner.fork(0, 4)
        logits = runner.model.read(torch.tensor([prompt + tokens[:i]]), runner.state, torch.tensor([4]))
        assert int(logits.argmax()) == token


def test_a_step_is_the_models_over_the_pictures_patches() -> None:
    runner, index = pool(), torch.tensor([1])
    model, state, grid = build(CONFIG), StreamState.allocate(CONFIG, 2), choose_grid(CONFIG, 90, 160)
    runner.open(1, 90, 160)
    with torch.inference_mode():
        model.open(state, index)
        for i in range(3):
            pair = [picture(90, 160, i), picture(90, 160, i + 50)]
            runner.see([1], [pair], [1.5 * i])
            seconds = torch.tensor([1.5 * i], dtype=torch.float64)
            model.see(patchify(CONFIG, pair, grid)[None], grid, seconds, state, index)
    assert same(runner.snapshot(1), state.snapshot(1) | {"grid": torch.tensor(grid)})


def test_a_reset_slot_is_empty() -> None:
    runner = pool()
    runner.open(0, 90, 160)
    runner.see([0], [[picture(90, 160)]], [0.0])
    runner.reset(0)
    assert all(torch.equal(part, pool().state.snapshot(0)[name]) for name, part in runner.state.snapshot(0).items())


def test_streams_of_different_shapes_share_a_step() -> None:
    """Each ends up in the state that it has alone; one began earlier, one gives a lone picture."""
    together, alone = pool(), pool()
    shapes = {0: (90, 160), 3: (160, 90), 2: (120, 120)}
    for runner in (together, alone):
        for slot, (height, width) in shapes.items():
            runner.open(slot, height, width)
        runner.see([3], [[picture(160, 90, 77)]], [0.0])
    assert len({together.grids[slot] for slot in shapes}) == 3
    for i in range(5):
        frames = [[picture(*shape, seed=10 * i + slot)] * (1 + slot % 2) for slot, shape in shapes.items()]
        seconds = [float(i + slot) for slot in shapes]
        assert together.see(list(shapes), frames, seconds) == [True] * 3
        for slot, pictures, second in zip(shapes, frames, seconds, strict=True):
            alone.see([slot], [pictures], [second])
    for slot in shapes:
        found, expected = together.snapshot(slot), alone.snapshot(slot)
        assert error(found["delta"], expected["delta"]) <= 1e-4
        assert torch.equal(found["length"], expected["length"])
        assert answer(together, slot, "what?") == answer(alone, slot, "what?")


def test_a_lone_picture_is_repeated() -> None:
    once, twice = pool(1), pool(1)
    for runner, pictures in ((once, [picture(90, 160)]), (twice, [picture(90, 160)] * 2)):
        runner.open(0, 90, 160)
        runner.see([0], [pictures], [0.0])
    assert same(once.snapshot(0), twice.snapshot(0))


def test_questions_leave_streams_bit_identical() -> None:
    """Greedy and sampled, several at once and abandoned midway, beside a run of the same batches without any."""
    asked, quiet = pool(), pool()
    warm = Sampling(0.8, 0.9, seed=4)
    for step in range(12):
        for runner in (asked, quiet):
            if step == 0:
                runner.open(0, 90, 160)
                runner.open(1, 90, 160)
            runner.see([0, 1], [[picture(90, 160, step)], [picture(90, 160, step + 100)]], [step / 3, step / 2])
        if step % 4 == 0:
            asked.fork(0, 3)
            asked.fork(1, 4)
            tokens = [
                asked.prefill(3, asked.tokenizer.encode_question("what happened?")),
                asked.prefill(4, asked.tokenizer.encode_question("where?", "Say little."), warm),
            ]
        elif step % 4 < 3:
            tokens = asked.decode([3, 4], tokens, [Sampling(), warm])
        else:
            asked.reset(3)
    for slot in (0, 1):
        assert same(asked.snapshot(slot), quiet.snapshot(slot))


def test_pictures_may_be_encoded_beforehand() -> None:
    """On another thread, streams of two grids in one step: the same to the bit."""
    alone, beside = pool(), pool()
    shown = [[picture(90, 160, 1)], [picture(160, 90, 2)], [picture(90, 160, 3)]]
    for runner in (alone, beside):
        for slot, (first, *_) in enumerate(shown):
            runner.open(slot, *first.shape[:2])
    with ThreadPoolExecutor(1) as thread:
        encoded = thread.submit(beside.encode, [0, 1, 2], shown).result()
    assert len(encoded) == 2
    assert alone.see([0, 1, 2], shown, [0.0] * 3) == beside.see([0, 1, 2], shown, [0.0] * 3, encoded) == [True] * 3
    for slot in range(3):
        assert same(alone.snapshot(slot), beside.snapshot(slot))


def test_answers_of_a_batch_are_chosen_each_in_its_own_way() -> None:
    """Greedy, drawn and drawn with another seed, decoded together, say what each says alone; a seed says the same again."""
    runner = pool()
    runner.open(0, 90, 160)
    runner.see([0], [[picture(90, 160)]], [0.0])
    prompt = runner.tokenizer.encode_question("what?")

    def said(*ways: Sampling) -> list[list[int]]:
        slots = list(range(1, 1 + len(ways)))
        for slot in slots:
            runner.fork(0, slot)
        tokens = [[runner.prefill(slot, prompt, how)] for slot, how in zip(slots, ways, strict=True)]
        for _ in range(8):
            following = runner.decode(slots, [answer[-1] for answer in tokens], ways)
            tokens = [[*answer, token] for answer, token in zip(tokens, following, strict=True)]
        return tokens

    ways = Sampling(), Sampling(3.0, seed=1), Sampling(3.0, seed=2)
    together = said(*ways)
    assert together == [said(how)[0] for how in ways]
    assert len({tuple(answer[1:]) for answer in together}) == 3


def test_a_snapshot_takes_its_grid_along() -> None:
    runner = pool()
    runner.open(0, 160, 90)
    runner.see([0], [[picture(160, 90)]], [0.0])
    kept = runner.snapshot(0)
    runner.restore(2, kept)
    for slot in (0, 2):
        runner.see([slot], [[picture(160, 90, 5)]], [1.0])
    assert same(runner.snapshot(2), runner.snapshot(0))


def test_a_refused_snapshot_leaves_the_slot_as_it_was() -> None:
    runner = pool()
    runner.open(0, 160, 90)
    kept = runner.snapshot(0)
    with pytest.raises(ConfigError, match="snapshot's grid is missing"):
        runner.restore(
            0, {name: part for name, part in kept.items() if name != "grid"} | {"length": kept["length"] + 1}
        )
    with pytest.raises(ConfigError, match="snapshot's sink_positions has shape"):
        runner.restore(0, kept | {"length": kept["length"] + 1, "sink_positions": torch.zeros(3, 4)})
    assert same(runner.snapshot(0), kept)


def test_a_state_that_is_not_finite_is_told_for_its_stream_alone() -> None:
    runner = pool()
    for slot in (0, 1, 2):
        runner.open(slot, 90, 160)
    runner.state.delta[:, 1] = float("nan")
    told = runner.see([0, 1, 2], [[picture(90, 160, i)] for i in range(3)], [0.0] * 3)
    assert told == [True, False, True]
    runner.open(1, 90, 160)
    assert runner.see([1], [[picture(90, 160)]], [0.0]) == [True]


def test_state_bytes_are_what_a_slot_holds() -> None:
    runner = pool()
    before = runner.state_bytes
    runner.open(0, 90, 160)
    for i in range(20):
        runner.see([0], [[picture(90, 160, i)]], [float(i)])
    assert runner.state_bytes == before == sum(t.nbytes for _, t, _ in runner.state.tensors()) // runner.slots
    assert runner.more_slots is not None


def test_random_weights_are_seeded_and_said() -> None:
    first, second = (load_runner("nano", slots=1, random_weights=True) for _ in range(2))
    assert not first.trained
    for left, right in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_presets_run_on_random_weights_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", CONFIG)
    assert not load_runner("tiny", slots=1, random_weights=True).trained
    with pytest.raises(CheckpointError, match="preset 'tiny' has no weights of its own"):
        load_runner("tiny", slots=1)


def test_policy_and_horizon_are_choices() -> None:
    policy = AttentionPolicy(sinks=8, window=100)
    runner = load_runner("nano", slots=1, random_weights=True, policy=policy, position_horizon=33.0, frames_per_step=1)
    assert runner.config.policy == policy
    assert (runner.config.position_horizon, runner.frames_per_step) == (33.0, 1)
    with pytest.raises(ConfigError, match="position_horizon 1 s is shorter than the attention window's span of 2 s"):
        load_runner("nano", slots=1, random_weights=True, policy=policy, position_horizon=1.0)


def test_what_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(CheckpointError, match="preset '4b' has no weights of its own"):
        load_runner("4b")
    with pytest.raises(CheckpointError, match="is no folder here: name a checkpoint folder"):
        load_runner("nowhere")


def test_random_weights_keep_what_checkpoints_keep_in_float32() -> None:
    runner = load_runner("nano", dtype="bfloat16", slots=1, random_weights=True)
    kinds = {name.rsplit(".", 1)[-1]: p.dtype for name, p in runner.model.named_parameters()}
    assert kinds.pop("A_log") == kinds.pop("dt_bias") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
