"""The hybrid, whole: frames and a question through slots and as sequences, against the float64 loop of the formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import FULL, AttentionPolicy, InfiniteVLConfig
from model.infinitevl import InfiniteVL
from model.memory import SequenceMemory
from model.state import StreamState

from . import formulas
from .small import DECODER, build, error, patches, small

GRID = (4, 6)
ROWS, COLUMNS = 2, 3
SECONDS = [0.0, 0.04, 1.5, 2.0, 4.0, 5.0, 5.9]
QUESTION = [2, 5, 900, 17, 6, 44, 2047]
SLOT = torch.tensor([0])


def told(model: InfiniteVL) -> Tensor:
    """Logits [question, vocabulary] of the question, a token at a time, after the frames one by one."""
    state = StreamState.allocate(model.config, 1)
    model.open(state, SLOT)
    pictures = patches(model.config.vision, len(SECONDS), grid=GRID)
    for picture, second in zip(pictures, SECONDS, strict=True):
        model.see(picture[None], GRID, torch.tensor([second], dtype=torch.float64), state, SLOT)
    return torch.cat([model.read(torch.tensor([[token]]), state, SLOT) for token in QUESTION])


def looped(model: InfiniteVL) -> Tensor:
    """The same by the formulas, with positions by the streaming convention: time steps are half seconds, in whole seconds."""
    horizon = model.config.position_horizon
    cap = 10**9 if horizon is None else int(2 * horizon)
    where, shifts = [(0, 0, 0)], [0]
    time = 0
    for second in SECONDS:
        time = 2 * int(second)
        where += [(1 + time, 1 + row, 1 + column) for row in range(ROWS) for column in range(COLUMNS)]
        shifts += [max(0, time - cap)] * (ROWS * COLUMNS)
    shift = max(0, time - cap)
    begin = 1 + max(time - shift, ROWS - 1, COLUMNS - 1) + 1
    where += [(begin + i + shift, begin + i, begin + i) for i in range(len(QUESTION))]
    shifts += [shift] * len(QUESTION)
    pictures = model.visual(patches(model.config.vision, len(SECONDS), grid=GRID), *GRID).flatten(0, 1)
    embed = model.model.embed_tokens
    x = torch.cat((embed(torch.tensor([1])), pictures, embed(torch.tensor(QUESTION))))
    return formulas.logits(model, x, torch.tensor(where).T, shifts)[-len(QUESTION) :]


ONLINE = AttentionPolicy(sinks=5, window=11)
V1 = AttentionPolicy(sinks=0, window=9)
LAYERS = {
    "online": small(policy=ONLINE, tokens_per_frame=6),
    "online, horizon 2 s": small(policy=ONLINE, tokens_per_frame=6, position_horizon=2.0),
    "v1": small(policy=V1, tokens_per_frame=6),
    "base": small(policy=replace(FULL, context=64), tokens_per_frame=6),
    "untied": small(policy=ONLINE, tokens_per_frame=6, decoder=replace(DECODER, tie_word_embeddings=False)),
}


@pytest.mark.parametrize("config", LAYERS.values(), ids=LAYERS.keys())
@torch.no_grad()
def test_a_stream_and_a_question_are_the_formulas(config: InfiniteVLConfig) -> None:
    model = build(config)
    oracle = looped(model)
    assert error(told(model), oracle) <= 1e-4
    model.fuse()
    assert error(told(model), oracle) <= 1e-4


@pytest.mark.parametrize("config", [LAYERS["online"], LAYERS["v1"], LAYERS["base"]], ids=["online", "v1", "base"])
@torch.no_grad()
def test_sequences_are_the_formulas(config: InfiniteVLConfig) -> None:
    """The differentiable form, whole and in segments."""
    model = build(config)
    oracle = looped(model)
    pictures = patches(config.vision, len(SECONDS), grid=GRID)[None]
    seconds, tokens = torch.tensor([SECONDS], dtype=torch.float64), torch.tensor([[QUESTION]])
    for segments in ([7], [1, 4, 2]):
        memory: SequenceMemory | None = None
        for some, times in zip(pictures.split(segments, 1), seconds.split(segments, 1), strict=True):
            memory = model.watch(some, GRID, times, memory)
        assert memory is not None
        assert error(model.answer(tokens, seconds[:, -1], GRID, memory)[0, 0], oracle) <= 1e-4
