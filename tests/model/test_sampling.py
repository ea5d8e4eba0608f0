"""Choosing tokens: greedy, temperature, the likeliest few, nucleus and seeds."""

from collections import Counter

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from model.serving.sampling import Sampling, draw

LOGITS = torch.tensor([1.0, 3.0, 2.0, -4.0, 2.5])
CPU = torch.device("cpu")


def drawn(sampling: Sampling, n: int) -> list[int]:
    generator = sampling.generator(CPU)
    return [draw(LOGITS, sampling, generator) for _ in range(n)]


def test_greedy_takes_the_largest() -> None:
    assert Sampling().generator(CPU) is None
    assert drawn(Sampling(), 3) == [1, 1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_shapes_the_frequencies(temperature: float) -> None:
    n = 4000
    counts = Counter(drawn(Sampling(temperature, seed=1), n))
    expected = (LOGITS / temperature).softmax(-1)
    for token, probability in enumerate(expected.tolist()):
        assert abs(counts[token] / n - probability) < 4 * (probability * (1 - probability) / n) ** 0.5 + 1e-3


@pytest.mark.parametrize(("top_p", "tokens"), [(0.0, {1}), (0.4, {1}), (0.6, {1, 4}), (0.9, {1, 2, 4})])
def test_nucleus_is_the_fewest_tokens_that_reach_the_mass(top_p: float, tokens: set[int]) -> None:
    """Their probabilities are .46, .28, .17, .06 and less."""
    assert set(drawn(Sampling(1.0, top_p, seed=2), 300)) == tokens


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_the_coldest_temperatures_are_greedy(temperature: float) -> None:
    assert set(drawn(Sampling(temperature, seed=3), 20)) == {1}


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (3, 1.0), (3, 0.5), (4, 0.9), (5, 0.9), (99, 1.0)])
def test_the_likeliest_few_come_before_their_nucleus(top_k: int, top_p: float) -> None:
    """As transformers draws: temperature, then top-k, then top-p of what that leaves."""
    oracle = LogitsProcessorList([TemperatureLogitsWarper(2.0), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)])
    expected = oracle(torch.zeros(1, 1, dtype=torch.long), LOGITS[None]).softmax(-1)[0].tolist()
    n = 4000
    counts = Counter(drawn(Sampling(2.0, top_p, 5, top_k), n))
    assert set(counts) == {token for token, probability in enumerate(expected) if probability > 0}
    for token, probability in enumerate(expected):
        assert abs(counts[token] / n - probability) < 4 * (probability * (1 - probability) / n) ** 0.5 + 1e-3


def test_a_seed_repeats_an_answer() -> None:
    first, second, other = (drawn(Sampling(2.0, seed=seed), 40) for seed in (7, 7, 8))
    assert first == second != other
    assert drawn(Sampling(2.0), 40) != drawn(Sampling(2.0), 40)


def test_what_was_said_is_less_likely_said_again() -> None:
    """Greedy or not; the logits stay as they were."""
    logits = torch.tensor([1.0, 3.0, 2.0])
    how = Sampling(presence_penalty=1.5)
    assert (
        draw(logits, how, None) == 1 and draw(logits, how, None, {1}) == 2 and draw(logits, how, None, {0, 1, 2}) == 1
    )
    assert logits.tolist() == [1.0, 3.0, 2.0]
