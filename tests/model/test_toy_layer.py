"""A kind of layer that this file alone knows, with a state of its own: it streams, forks, is kept and comes back like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model import ConfigError, Runner, Sampling, Snapshot
from model.cache import Cache
from model.config import AttentionPolicy, DecoderConfig
from model.layers.mixer import Mixer
from model.ops.rope import Rotation
from model.preprocess import patchify
from model.state import DECLARED, Part, StreamState
from model.tokenizer import Tokenizer

from .small import DECODER, build, error, picture, small

PRIOR = 3


class RunningMean(Mixer, kind="running_mean"):
    """The mean of all tokens so far, as if `PRIOR` zeros had come before, and of the last two."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    @staticmethod
    def declare(config: DecoderConfig, policy: AttentionPolicy, step: int) -> tuple[Part, ...]:
        return (
            Part("total", (config.hidden_size,), torch.float32),
            Part("number", (), torch.int64, initial=PRIOR),
            Part("before", (1, config.hidden_size)),
        )

    def forward(self, x: Tensor, rotation: Rotation, cache: Cache, outputs: bool = True) -> Tensor:
        pair = cache.extend(self.layer, "before", x)
        real = cache.mask(torch.ones_like(x[..., :1]))[..., 0].long()
        total = cache.load(self.layer, "total")[:, None] + cache.mask(x).float().cumsum(1)
        number = cache.load(self.layer, "number")[:, None] + real.cumsum(1)
        cache.store(self.layer, "total", total[:, -1])
        cache.store(self.layer, "number", number[:, -1])
        mixed: Tensor = self.o_proj((total / number[..., None]).to(x.dtype) + (pair[:, 1:] + pair[:, :-1]) / 2)
        return mixed


CONFIG = small(
    decoder=replace(
        DECODER,
        num_hidden_layers=5,
        layer_types=("attention", "running_mean", "delta_net", "running_mean", "attention"),
    )
)
MEANS = 1, 3


def pool() -> Runner:
    tokenizer = Tokenizer.load(Path("model/nano/tokenizer.json"), CONFIG)
    return Runner("toy", build(CONFIG), tokenizer, 4, trained=False)


def film(runner: Runner, slot: int, frames: int, seed: int = 0) -> None:
    runner.open(slot, 90, 160)
    for i in range(frames):
        assert runner.see([slot], [[picture(90, 160, seed + i)]], [i / 2]) == [True]


def same(found: Snapshot, expected: Snapshot) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@torch.no_grad()
def test_it_streams_as_the_whole_sequence_does() -> None:
    """Frame by frame and token by token over slots, a padded question among them, against one differentiable pass."""
    runner = pool()
    film(runner, 2, 9)
    runner.fork(2, 0)
    grid, prompt = runner.grids[2], runner.tokenizer.encode_question("where is it?")
    said = [runner.read([0], [prompt])[1]]
    for token in (7, 1900, 12):
        said.append(runner.read([0], [[token]])[1])
    frames = torch.stack([patchify(CONFIG, [picture(90, 160, i)], grid) for i in range(9)])
    seconds = torch.arange(9, dtype=torch.float64)[None] / 2
    cache = runner.model.watch(frames[None], grid, seconds)
    whole = runner.model.answer(torch.tensor([[[*prompt, 7, 1900, 12]]]), seconds[:, -1], grid, cache)[0, 0]
    assert error(torch.cat(said), whole[len(prompt) - 1 :]) <= 1e-5
    state = runner.state
    assert state.number.tolist() == [(PRIOR + state.length).tolist()] * len(MEANS)
    for layer in MEANS:
        assert error(state.of(layer, "total")[2], cache.load(layer, "total")[0]) <= 1e-5


def test_it_is_forked_kept_and_restored_to_the_bit() -> None:
    runner, other = pool(), pool()
    film(runner, 0, 5)
    film(other, 3, 2, seed=50)
    kept = runner.snapshot(0)
    assert kept["total"].shape == (len(MEANS), CONFIG.decoder.hidden_size) and kept["number"].dtype == torch.int64
    runner.fork(0, 1)
    other.restore(3, kept)
    prompt = runner.tokenizer.encode_question("what?")
    answers = []
    for holder, slot in ((runner, 1), (other, 3)):
        tokens = [holder.prefill(slot, prompt)]
        tokens += holder.decode([slot], tokens, [Sampling()])
        answers.append(tokens)
    assert answers[0] == answers[1] and same(runner.snapshot(1), other.snapshot(3))
    assert same(runner.snapshot(0), kept), "a question leaves the stream alone"
    runner.reset(0)
    assert (runner.state.number[:, 0] == PRIOR).all() and not runner.state.total[:, 0].any()
    with pytest.raises(ConfigError, match="snapshot's total has shape"):
        runner.restore(0, kept | {"total": kept["total"][:1]})


def test_what_is_declared_askew_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    clash = replace(CONFIG.decoder, layer_types=("attention", "running_mean", "delta_net", "clash", "attention"))
    with pytest.raises(ConfigError, match="layer_types names 'clash': it may hold attention, delta_net"):
        StreamState.allocate(small(decoder=clash), 1)
    monkeypatch.setitem(DECLARED, "clash", lambda *_: (Part("total", (1,)),))
    with pytest.raises(ConfigError, match=r"layer 3 \(clash\) declares a state 'total' unlike an earlier layer's"):
        StreamState.allocate(small(decoder=clash), 1)
