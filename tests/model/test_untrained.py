"""Presets with random weights: the sizes of the preset, the special tokens and words of the tokenizer that they are run with."""

import pytest
import torch

from model import Sampling, load_runner
from model.config import PRESETS
from model.serving.random_weights import random_config, random_vocabulary
from model.serving.runner import NANO
from model.tokenizer import Tokenizer

from .small import of_another_tokenizer, picture

PATH = NANO / "tokenizer.json"


@pytest.mark.parametrize("name", ["nano", "4b", "qwen3.5-0.8b"])
def test_every_token_that_a_preset_can_give_is_text(name: str) -> None:
    config = random_config(name)
    tokenizer = Tokenizer(random_vocabulary(PATH, config), config)
    assert config.decoder == PRESETS[name].decoder and config.vision == PRESETS[name].vision
    silent = {token for token in range(config.decoder.vocab_size) if not tokenizer.spelling(token)}
    assert silent == tokenizer.specials and len(silent) < 10
    own = Tokenizer.load(PATH, PRESETS["nano"])
    assert tokenizer.encode("What is on w5, the 4821 or EXIT?") == own.encode("What is on w5, the 4821 or EXIT?")


def test_a_preset_of_another_tokenizer_answers_in_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the 4B's, whose special tokens lie beyond the nano's vocabulary."""
    monkeypatch.setitem(PRESETS, "other", of_another_tokenizer())
    runner = load_runner("other", slots=2, random_weights=True)
    runner.open(0, 64, 64)
    runner.see([0], [[picture(64, 64, 1)] * runner.frames_per_step], [0.0])
    runner.fork(0, 1)
    token = runner.prefill(1, runner.tokenizer.encode_question("What is it?"))
    said = [token, *runner.decode([1], [token], [Sampling()])]
    assert runner.tokenizer.decode(said) and torch.isfinite(runner.state.delta).all()
