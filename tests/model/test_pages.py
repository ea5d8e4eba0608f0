"""Histories that grow in shared pages: as whole sequences, forked, and put back from outside."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from model.cache import SequenceCache
from model.config import ConfigError
from model.pages import FullError
from model.policy import RetrievalPolicy
from model.serving.runner import load_runner
from model.state import StreamState

from .small import build, error, small
from .test_retrieval import SHORT

CONFIG = small(policy=replace(SHORT, context=800))
MODEL = build(CONFIG)
N = 700
"""Tokens: three pages, the last in part."""
X = torch.randn(2, N, 48, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def taken(state: StreamState, slots: list[int], x: Tensor, start: int, counts: list[int] | None = None) -> Tensor:
    positions = torch.arange(start, start + x.shape[1]).expand(3, len(x), -1)
    hidden = MODEL.advance(x, positions, state, torch.tensor(slots), None if counts is None else torch.tensor(counts))
    assert hidden is not None
    return hidden


@cache
@torch.no_grad()
def whole() -> Tensor:
    cache = SequenceCache(CONFIG.decoder, CONFIG.policy, 2, X.device, X.dtype)
    hidden = MODEL.model(X, torch.arange(N).expand(3, 2, -1), cache)
    assert isinstance(hidden, Tensor)
    return hidden


def test_pages_are_as_whole_sequences() -> None:
    """Two streams side by side, in pieces of many sizes, one token alone among them."""
    state, found, start = StreamState.allocate(CONFIG, 3), [], 0
    for size in (256, 1, 1, 60, 7, 200, 100, 75):
        found.append(taken(state, [2, 0], X[:, start : start + size], start))
        start += size
    assert start == N
    assert error(torch.cat(found, 1), whole().double()) <= 1e-4


def test_what_is_not_in_the_pool_is_fetched_from_the_host() -> None:
    """Two pages on the device for two streams of three, and for a fork: the same, to the bit of what is kept outside."""
    state, other, start = StreamState.allocate(CONFIG, 3), StreamState.allocate(CONFIG, 3), 0
    assert state.pages is not None and other.pages is not None
    state.pages.resident, found = 4, list[Tensor]()
    for size in (200, 1, 60, 7, 200, 1, 131, 100):
        part = X[:, start : start + size]
        found.append(taken(state, [2, 0], part, start))
        taken(other, [2, 0], part, start)
        start += size
    assert start == N and sum(frame < 0 for frame in state.pages.frames) == 2 and state.pages._held == 4
    assert error(torch.cat(found, 1), whole().double()) <= 1e-4
    for slot in (2, 0):
        assert torch.equal(state.pages.rows(slot, 0, N), other.pages.rows(slot, 0, N))
    state.pages.resident = 2
    state.reset(0)
    state.fork(2, 1)
    forks = [taken(each, [1], X[1:, :50], N) for each in (state, other) if each is state or not other.fork(2, 1)]
    assert error(forks[0], forks[1].double()) <= 1e-4
    state.reset(1)
    state.reset(2)
    state.pages.shrink()
    assert not state.pages.users and not state.pages._held
    state.pages.resident = 1
    with pytest.raises(FullError, match="1 pages of 256 tokens are too few for one call"):
        taken(state, [0], X[:1, :300], 0)


def test_padding_is_not_taken() -> None:
    state = StreamState.allocate(CONFIG, 2)
    found = taken(state, [1, 0], X[:, :300], 0, [300, 210])
    assert error(found[1, :210], whole()[1, :210].double()) <= 1e-4
    rest = taken(state, [0], X[1:, 210:], 210)
    assert error(rest[0], whole()[1, 210:].double()) <= 1e-4


def test_a_fork_shares_pages_and_leaves_them_alone() -> None:
    state = StreamState.allocate(CONFIG, 2)
    assert state.pages is not None
    taken(state, [0], X[:1, :600], 0)
    state.fork(0, 1)
    assert len([users for users in state.pages.users if users]) == 3
    taken(state, [1], X[1:, 600:], 600)  # something else
    assert len([users for users in state.pages.users if users]) == 4
    assert error(taken(state, [0], X[:1, 600:], 600)[0], whole()[0, 600:].double()) <= 1e-4
    state.reset(1)
    state.reset(0)
    assert not any(state.pages.users)


def test_a_history_is_put_back() -> None:
    state, other = StreamState.allocate(CONFIG, 2), StreamState.allocate(CONFIG, 1)
    taken(state, [1], X[:1, :600], 0)
    snapshot = state.snapshot(1)
    other.restore(0, snapshot)
    assert error(taken(other, [0], X[:1, 600:], 600)[0], whole()[0, 600:].double()) <= 1e-4
    with pytest.raises(ConfigError, match="tokens"):
        other.restore(0, {**snapshot, "tokens": snapshot["tokens"][:5]})


def test_a_history_ends() -> None:
    state = StreamState.allocate(CONFIG, 1)
    taken(state, [0], X[:1], 0)
    with pytest.raises(FullError, match="700 tokens has no room for 101 more: 800 are kept"):
        taken(state, [0], X[:1, :101], N)
    taken(state, [0], X[:1, :100], N)


def test_what_is_attended_is_noted() -> None:
    """Shares of each layer's and head's attention, by block, of those that were seen alone."""
    state = StreamState.allocate(CONFIG, 2)
    assert state.pages is not None
    taken(state, [0], X[:1, :600], 0)
    state.pages.watch(0)
    taken(state, [0], X[:1, 600:640], 600)
    noted = state.pages.unwatch(0)
    assert len(noted) == 20
    assert float(noted.sum()) == pytest.approx(2 * 4, abs=1e-3)
    assert 1 + 3 <= int((noted > 0).sum()) <= 1 + 2 * 2 * 3 + 3


def test_steps_together_are_as_one_by_one() -> None:
    """On a CPU too several steps of one stream are taken at once, beside another stream's."""
    policy, generator = RetrievalPolicy(window_size=96, topk=2, dense_len=100), torch.Generator().manual_seed(2)
    pictures = torch.randint(0, 256, (7, 2, 112, 112, 3), generator=generator, dtype=torch.uint8).numpy()
    steps = [(slot, list(pictures[i]), i * 0.75) for i, slot in enumerate((0, 0, 0, 1, 0, 0, 1))]
    kept = []
    for sizes in ([1] * 7, [5, 2], [7]):
        runner = load_runner("nano", slots=2, policy=policy)
        assert runner.backend.most_steps == 8
        for slot in (0, 1):
            runner.open(slot, 112, 112)
        for some in (steps[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))):
            slots, shown, moments = zip(*some, strict=True)
            assert runner.see(slots, shown, moments) == [True] * len(some)
        kept.append([runner.snapshot(slot) for slot in (0, 1)])
    for other in kept[1:]:
        for one, same in zip(kept[0], other, strict=True):
            assert one.keys() == same.keys() and len(one["tokens"]) in (1 + 5 * 64, 1 + 2 * 64)
            for name, part in one.items():
                assert torch.allclose(part.float(), same[name].float(), atol=1e-4), name


def test_the_nano_reads_and_answers_under_it() -> None:
    """Short of the threshold everything is seen, so that its answer is Base's."""
    answers = []
    for policy in (RetrievalPolicy(), RetrievalPolicy(window_size=96, topk=2, dense_len=0), None):
        runner = load_runner("nano", slots=2, policy=policy)
        runner.open(0, 224, 224)
        generator = torch.Generator().manual_seed(1)
        for step in range(4):
            pictures = torch.randint(0, 256, (2, 224, 224, 3), generator=generator, dtype=torch.uint8).numpy()
            assert runner.see([0], [list(pictures)], [float(step)]) == [True]
        runner.fork(0, 1)
        question = runner.tokenizer.prompt.question("What colour is the circle?", "", (), False)
        answers.append(runner.read([1], [question])[1][0].clone())
        assert int(runner.state.length[0]) == 1 + 4 * 64
    base, sparse, online = answers
    assert error(base, online.double()) <= 1e-4  # 257 tokens: the window has not left anything out yet
    assert error(sparse, online.double()) > 1e-3
