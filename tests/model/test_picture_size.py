"""A CPU's pictures are as large as it has time for at the rate that the model was trained with."""

from dataclasses import replace

import pytest
import torch

from model.config import PRESETS
from model.families.infinitevl import InfiniteVL
from model.serving import int8, picture_size

from .small import build, small


def of(name: str) -> InfiniteVL:
    with torch.device("meta"):
        return InfiniteVL(PRESETS[name])


@pytest.mark.parametrize(("tokens", "billions"), [(196, 201.5), (100, 102.5), (49, 52.5), (25, 29.5)])
def test_a_steps_cost_is_what_the_sizes_give(tokens: int, billions: float) -> None:
    """The 0.8B's, by hand: 403, 205, 105 and 59 GFLOP, two a multiplication; attention to the longer window comes on top."""
    model = of("qwen3.5-0.8b")
    narrow = replace(model.config, policy=replace(model.config.policy, window=2048))
    model.config = narrow
    assert picture_size.step_products(model, tokens) / 1e9 == pytest.approx(billions, rel=0.08)


@pytest.mark.parametrize(("gigaflops", "tokens"), [(1000, 196), (400, 100), (200, 49), (110, 25), (5, 25)])
def test_the_largest_that_is_affordable(gigaflops: float, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_size, "products_per_second", lambda model, precision: gigaflops * 1e9 / 2)
    assert picture_size.affordable_tokens(of("qwen3.5-0.8b")) == tokens
    assert picture_size.affordable_tokens(of("nano")) == PRESETS["nano"].tokens_per_frame


@pytest.mark.skipif(
    int8.ENGINE not in torch.backends.quantized.supported_engines, reason="torch has no int8 products for this machine"
)
def test_the_speed_is_that_of_the_numbers_that_are_computed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says: int8 takes half as long as float32, where it is asked for."""
    took = iter([[2.0], [2.0, 1.0], [2.0, 3.0]])
    monkeypatch.setattr(picture_size, "fastest", lambda *ways: next(took))
    model = build(small())
    plain, quick, slow = (picture_size.products_per_second(model, how) for how in ("model", "int8", "int8"))
    assert quick == 2 * plain and slow == plain
