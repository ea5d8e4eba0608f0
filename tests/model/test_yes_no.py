"""Yes or no, read from logits: against every spelling counted in plain torch, and batches against questions one by one."""

import numpy as np
import pytest
import torch

from model import load_runner
from model.serving.calibration import Calibration
from model.serving.yes_no import YesNoReader
from tests.tiny import TINY

QUESTIONS = ["Is there a banana?", "Has a red circle appeared on the left?", "Is it dark?"]


@pytest.fixture(scope="module")
def runner():
    runner = load_runner("nano", slots=5)
    runner.calibration = Calibration()
    runner.open(0, 180, 320)
    for i in range(3):
        frame = np.random.default_rng(i).integers(0, 255, (180, 320, 3), np.uint8)
        runner.see([0], [[frame] * runner.frames_per_step], [0.1 * i])
    return runner


def test_all_spellings_count_and_no_others(runner) -> None:
    reader = runner.yes_no
    spelt = {runner.tokenizer.spelling(int(t)) for t in (*reader.yes, *reader.no)}
    assert {b"yes", b"no"} <= spelt and all(each.strip(b" .,!'\"").lower() in (b"yes", b"no") for each in spelt)


def test_many_spellings_are_summed() -> None:
    class Words:
        """A vocabulary of ten tokens."""

        words = (b"yes", b" Yes", b"YES", b"no", b" No", b"yesterday", b"not", b"\xff", b"", b"the")

        def spelling(self, token: int) -> bytes:
            return self.words[token]

    reader = YesNoReader(Words(), 10, torch.device("cpu"))  # type: ignore[arg-type]
    logits = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    shares = logits.softmax(-1)
    for read, row in zip(reader.read(logits), shares.tolist(), strict=True):
        yes, no = sum(row[:3]), sum(row[3:5])
        assert read == pytest.approx((yes / (yes + no), yes + no), abs=1e-6)


def test_a_calibration_moves_the_probability_and_not_how_sure_it_is(runner) -> None:
    tokens = runner.tokenizer.encode_question(QUESTIONS[0])
    (before,) = runner.judge(0, [1], [tokens])
    reader = YesNoReader(runner.tokenizer, runner.config.decoder.vocab_size, runner.device, Calibration(0.5, -1.0))
    runner.fork(0, 1)
    (after,) = reader.read(runner.read([1], [tokens])[1])
    expected = torch.tensor(before.probability).double().logit() * 0.5 - 1.0
    assert after == pytest.approx((float(expected.sigmoid()), before.sure), rel=1e-3, abs=1e-5)


def test_a_batch_of_questions_of_several_lengths_is_as_each_alone(runner) -> None:
    prompts = [runner.tokenizer.encode_question(each) for each in QUESTIONS]
    assert len({len(each) for each in prompts}) > 1
    before = runner.snapshot(0)
    together = runner.judge(0, [1, 2, 3], prompts)
    for prompt, found in zip(prompts, together, strict=True):
        assert runner.judge(0, [4], [prompt])[0] == pytest.approx(found, rel=1e-3, abs=1e-5)
        runner.fork(0, 4)
        logits = runner.model.read(torch.tensor([prompt]), runner.state, torch.tensor([4]))[0]
        shares = torch.softmax(logits.double(), -1)
        yes, no = shares[runner.yes_no.yes].sum(), shares[runner.yes_no.no].sum()
        assert found == pytest.approx((float(yes / (yes + no)), float(yes + no)), rel=1e-3, abs=1e-5)
    after = runner.snapshot(0)
    assert all(torch.equal(before[name], after[name]) for name in before), "a look leaves no trace in its stream"


def test_a_part_is_asked_of_a_state_that_has_seen_nothing_else(runner) -> None:
    part = np.random.default_rng(3).integers(0, 255, (60, 90, 3), np.uint8)
    prompt = runner.tokenizer.encode_question(QUESTIONS[0])
    runner.open(4, 60, 90)
    runner.see([4], [[part]], [0.0])
    alone, whole = runner.judge(4, [1], [prompt])[0], runner.judge(0, [1], [prompt])[0]
    both = runner.judge(0, [1, 2], [prompt, prompt], [None, part])
    assert both[0] == pytest.approx(whole, rel=1e-3, abs=1e-5) and both[1] == pytest.approx(alone, rel=1e-3, abs=1e-5)
    assert alone.probability != pytest.approx(whole.probability, rel=1e-3)


def test_the_nano_is_sure_of_what_it_was_taught_alone(runner) -> None:
    taught, open_ended = (runner.tokenizer.encode_question(each) for each in ("Is there a banana?", "What is there?"))
    known, unknown = runner.judge(0, [1, 2], [taught, open_ended])
    assert known.sure > 0.95 and unknown.sure < 0.1


def test_an_untrained_model_gives_probabilities_too() -> None:
    runner = load_runner(TINY["name"], slots=3, random_weights=True)
    runner.open(0, 48, 64)
    (found,) = runner.judge(0, [1], [runner.tokenizer.encode_question("Is it dark?")])
    assert 0 <= found.probability <= 1 and 0 <= found.sure <= 1
