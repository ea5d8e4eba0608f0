"""A CPU's pictures are as large as it has time for at the rate that the model was trained with."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model.config import PRESETS, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.serving import int8, picture_size
from model.serving.int8 import to_int8
from tests.tiny_qwen import TINY_QWEN


def whole_of(config: InfiniteVLConfig) -> InfiniteVL:
    with torch.device("meta"):
        return InfiniteVL(config)


def of(name: str) -> InfiniteVL:
    return whole_of(PRESETS[name])


@pytest.mark.parametrize(("tokens", "billions"), [(196, 201.5), (100, 102.5), (49, 52.5), (25, 29.5)])
def test_a_steps_cost_is_what_the_sizes_give(tokens: int, billions: float) -> None:
    """The 0.8B's, by hand: 403, 205, 105 and 59 GFLOP, two a multiplication; attention to the longer window comes on top."""
    model = of("qwen3.5-0.8b")
    narrow = replace(model.config, policy=replace(model.config.policy, window=2048))
    model.config = narrow
    assert picture_size.step_products(model, tokens) / 1e9 == pytest.approx(billions, rel=0.08)


@pytest.mark.parametrize(("gigaflops", "tokens"), [(1000, 196), (400, 100), (200, 49), (110, 25), (5, 25)])
def test_the_largest_that_is_affordable(gigaflops: float, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_size, "products_per_second", lambda config, precision, dtype: gigaflops * 1e9 / 2)
    assert picture_size.affordable_tokens(of("qwen3.5-0.8b")) == tokens
    assert picture_size.affordable_tokens(of("nano")) == PRESETS["nano"].tokens_per_frame


@pytest.mark.skipif(
    int8.ENGINE not in torch.backends.quantized.supported_engines, reason="torch has no int8 products for this machine"
)
def test_the_speed_is_that_of_whole_steps_in_the_numbers_that_are_computed_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that says how long the steps of a short model take; which is put into int8 where that is asked for."""
    put, config = [], PRESETS[TINY_QWEN["name"]]
    seconds = iter((2.0, 1.0))

    def timed(step: Callable[[], None]) -> float:
        step()
        return next(seconds)

    monkeypatch.setattr(picture_size, "fastest", timed)

    def pack(model: InfiniteVL) -> None:
        """As where int8 always pays: the weights are gone then, and the work is the same."""
        put.append(model.config)
        to_int8(model)
        assert picture_size.step_products(model, 25) < 0.9 * picture_size.step_products(whole_of(model.config), 25)

    monkeypatch.setattr(int8, "choose", lambda weight, bias, rows: int8.Choice(True, True))
    monkeypatch.setattr(picture_size, "to_int8", pack)
    plain, quick = (picture_size.products_per_second(config, how) for how in ("model", "int8"))
    assert quick == 2 * plain
    assert put == [picture_size.short(config)]
    whole = PRESETS["qwen3.5-0.8b"]
    few = picture_size.short(whole)
    assert few.decoder.layer_types == whole.decoder.layer_types[:4] and few.vision.depth == 1
    assert few.decoder.hidden_size == whole.decoder.hidden_size and few.policy == whole.policy
