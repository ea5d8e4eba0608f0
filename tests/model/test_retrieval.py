"""Attention that retrieves, beside an oracle that scores and masks token by token in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache import SequenceCache
from model.config import FULL, AttentionPolicy, ConfigError, parse_config
from model.ops import retrieval_tiles
from model.ops.retrieval import Whole, retrieve
from model.ops.retrieval_tiles import retrieve_in_tiles
from model.policy import RetrievalPolicy

from .small import build, error, small

SHORT = RetrievalPolicy(window_size=64, topk=3, dense_len=192)
"""Blocks and spans of the usual sizes, of few of them."""
WAYS = (retrieve, retrieve_in_tiles)
"""The plain one, and the one for many queries at once."""
Drawn = tuple[Tensor, Tensor, Tensor]


def draw(n: int, seed: int = 0) -> Drawn:
    """q [n, 4, 16], k and v [n, 2, 16]; keys change slowly, as those of a picture's neighbours do."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, heads, 16, generator=generator) for heads in (4, 2, 2))
    return 2 * q, k + 2 * torch.randn(n // 8 + 1, 2, 16, generator=generator).repeat_interleave(8, 0)[:n], v


def scored(q: Tensor, k: Tensor, i: int, policy: RetrievalPolicy) -> dict[int, float]:
    """What the blocks of `k` [n, head] that the query `q` [heads of the group, head] at `i` chooses among are to it, float64."""
    size, kernel, stride = policy.block_size, policy.kernel_size, policy.kernel_stride
    spans = [(s, s + kernel) for s in range(0, i + 1, stride) if s + kernel <= i]
    shares = torch.zeros(len(spans), dtype=torch.float64)
    if spans:
        pooled = torch.stack([k[begin:end].mean(0) for begin, end in spans])
        for head in q:
            shares += (pooled @ head / math.sqrt(len(head))).softmax(0)
    scores: dict[int, float] = {}
    for block in range(policy.init_blocks, i // size + 1):
        begin, end = block * size, (block + 1) * size
        if i - begin >= policy.window_size:
            touching = [float(x) for x, (a, b) in zip(shares, spans, strict=True) if a < end and b > begin]
            scores[block] = max(touching, default=-1.0)
    return scores


def best(scores: dict[int, float], policy: RetrievalPolicy) -> list[int]:
    """The blocks that are chosen by their scores."""
    return sorted(scores, key=lambda block: (-scores[block], block))[: policy.topk]


def clear(drawn: Drawn, i: int, policy: RetrievalPolicy) -> bool:
    """Whether float32 can only choose the same blocks for the query at `i`: none lies so near one that is chosen, unless it ties."""
    q, k, _ = (x.double() for x in drawn)
    several = q.shape[1] // k.shape[1]
    for group in range(k.shape[1]):
        scores = scored(q[i, group * several : (group + 1) * several], k[: i + 1, group], i, policy)
        chosen = best(scores, policy)
        others = [score for block, score in scores.items() if block not in chosen]
        if any(0 < scores[block] - other < 1e-4 * scores[block] for block in chosen for other in others):
            return False
    return True


def shown(q: Tensor, k: Tensor, i: int, policy: RetrievalPolicy) -> Tensor:
    """Which of the tokens up to `i` the query `q` [heads of the group, head] there sees of `k` [n, head], float64."""
    if i < policy.dense_len:
        return torch.ones(i + 1, dtype=torch.bool)
    size, chosen = policy.block_size, best(scored(q, k, i, policy), policy)
    seen = {*range(policy.init_blocks), *chosen}
    return torch.tensor([j // size in seen or i - j < policy.window_size for j in range(i + 1)])


def oracle(drawn: Drawn, policy: RetrievalPolicy, asked: list[int]) -> Tensor:
    """Attention of the queries `asked`, one token at a time, float64 [asked, heads, head]."""
    q, k, v = (x.double() for x in drawn)
    rows = []
    for i in asked:
        heads = []
        for head in range(q.shape[1]):
            group = head * k.shape[1] // q.shape[1]
            first = group * q.shape[1] // k.shape[1]
            mask = shown(q[i, first : first + q.shape[1] // k.shape[1]], k[: i + 1, group], i, policy)
            scores = k[: i + 1, group] @ q[i, head] / math.sqrt(q.shape[2])
            heads.append(scores.masked_fill(~mask, -math.inf).softmax(0) @ v[: i + 1, group])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def test_each_query_sees_what_the_oracle_shows() -> None:
    """At every length: before the threshold, at it, after it."""
    drawn = draw(420)
    q, k, v = drawn
    found, right = retrieve(q, 0, Whole(k, v, SHORT), SHORT), oracle(drawn, SHORT, list(range(420)))
    assert error(found, right) <= 1e-5
    assert error(retrieve_in_tiles(q, 0, Whole(k, v, SHORT), SHORT), right) <= 1e-5
    base = oracle(drawn, replace(SHORT, dense_len=10**9), [419])
    assert error(found[-1:], base) > 1e-2  # something was left out


def test_the_usual_numbers_around_their_threshold() -> None:
    policy, drawn = RetrievalPolicy(), draw(4170)
    q, k, v = drawn
    asked = [0, 31, 4095, 4126, 4127, 4128, 4129, 4130, 4159, 4160, 4169]
    found, right = retrieve(q, 0, Whole(k, v, policy), policy), oracle(drawn, policy, asked)
    assert error(found[asked], right) <= 1e-5
    assert error(retrieve_in_tiles(q, 0, Whole(k, v, policy), policy)[asked], right) <= 1e-5
    early = replace(policy, dense_len=0)
    assert (
        error(found[4127:4128], retrieve(q[4127:4128], 4127, Whole(k[:4128], v[:4128], early), early).double()) <= 1e-5
    )


@given(
    stride=st.integers(1, 5),
    block=st.integers(1, 3),
    kernel=st.integers(1, 3),
    init=st.integers(0, 2),
    window=st.integers(1, 30),
    topk=st.integers(1, 6),
    dense=st.integers(0, 60),
)
@settings(deadline=None, max_examples=8)
def test_any_numbers(stride: int, block: int, kernel: int, init: int, window: int, topk: int, dense: int) -> None:
    sizes = (block * stride, kernel * stride, stride)
    policy = RetrievalPolicy(0, None, 1024, *sizes, init, window, topk, dense)
    drawn = draw(90, seed=window)
    every = [*range(0, 90, 4), 89]
    asked = [i for i in every if i < dense or clear(drawn, i, policy)]
    assert len(asked) > len(every) / 2
    right = oracle(drawn, policy, asked)
    for way in WAYS:
        assert error(way(drawn[0], 0, Whole(*drawn[1:], policy), policy)[asked], right) <= 1e-5


@pytest.mark.parametrize("period", [1, 32, 48])
def test_ties_go_to_the_earlier_block(period: int) -> None:
    """A picture that stands still, or comes again: whole numbers, which any order of adding leaves alike."""
    q, k, v = draw(400, seed=period)
    k = k[:period].round().repeat(400 // period + 1, 1, 1)[:400]
    drawn = q.round(), k, v
    asked = list(range(192, 400, 9))
    right = oracle(drawn, SHORT, asked)
    for way in WAYS:
        assert error(way(drawn[0], 0, Whole(k, v, SHORT), SHORT)[asked], right) <= 1e-5


@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5))
@settings(deadline=None, max_examples=15)
def test_piecewise_is_as_whole(sizes: list[int]) -> None:
    """Each piece over a history that ends with it: what comes later is not looked at, and one token alone is as any other."""
    q, k, v = draw(420, seed=7)
    whole = retrieve(q, 0, Whole(k, v, SHORT), SHORT)
    parts, start = [], 0
    while start < 420:
        stop = min(start + sizes[len(parts) % len(sizes)], 420)
        way = WAYS[len(parts) % 2]
        parts.append(way(q[start:stop], start, Whole(k[:stop], v[:stop], SHORT), SHORT))
        start = stop
    assert error(torch.cat(parts), whole.double()) <= 1e-5


@pytest.mark.parametrize("together", [1, 70, 300])
def test_tiles_of_any_sizes_are_as_one(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few queries of a block or many, few tiles at once or all, tiles that are filled in part, bfloat16 as float32."""
    q, k, v = draw(420, seed=5)
    whole = retrieve(q, 0, Whole(k, v, SHORT), SHORT)
    monkeypatch.setattr(retrieval_tiles, "TOGETHER", together)
    monkeypatch.setattr(retrieval_tiles, "TILES", 3)
    for sizes in ((1,), (4, 64)):
        monkeypatch.setattr(retrieval_tiles, "SIZES", sizes)
        found = retrieve_in_tiles(q[150:], 150, Whole(k, v, SHORT), SHORT)
        assert error(found, whole[150:].double()) <= 1e-5
    half = [x.bfloat16() for x in (q, k, v)]
    found = retrieve_in_tiles(half[0], 0, Whole(half[1], half[2], SHORT), SHORT)
    exact = retrieve_in_tiles(half[0].float(), 0, Whole(half[1].float(), half[2].float(), SHORT), SHORT)
    assert found.dtype == torch.bfloat16 and error(found.float(), exact.double()) <= 5e-3


def test_enough_blocks_are_all_of_them() -> None:
    q, k, v = draw(420)
    policy = replace(SHORT, topk=420 // 32 + 1)
    right = oracle((q, k, v), replace(SHORT, dense_len=10**9), list(range(420)))
    for way in WAYS:
        assert error(way(q, 0, Whole(k, v, policy), policy), right) <= 1e-5


def test_gradients_go_through_what_is_seen() -> None:
    q, k, v = (x.requires_grad_() for x in draw(260))
    retrieve(q, 0, Whole(k, v, SHORT), SHORT)[-1].sum().backward()
    grad = v.grad
    assert grad is not None
    seen = grad.abs().sum((1, 2)) > 0
    assert bool(seen[:32].all() and seen[-64:].all())
    assert 32 + 64 + 3 * 32 <= int(seen.sum()) < 260


def test_a_decoder_retrieves() -> None:
    """The same weights: in pieces as whole, as Base where all blocks are chosen, and unlike it where they are not."""
    model, x = build(small(policy=SHORT)), torch.randn(2, 420, 48, generator=torch.Generator().manual_seed(3))
    positions = torch.arange(420).expand(3, 2, -1)

    @torch.no_grad()
    def decoded(policy: AttentionPolicy, sizes: list[int]) -> Tensor:
        cache = SequenceCache(model.config.decoder, policy, 2, x.device, x.dtype)
        outputs = []
        for part, at in zip(x.split(sizes, 1), positions.split(sizes, 2), strict=True):
            outputs.append(model.model(part, at, cache))
            cache.advance(part.shape[1])
        return torch.cat(outputs, 1)

    whole, base = decoded(SHORT, [420]), decoded(FULL, [420])
    assert error(decoded(SHORT, [100, 90, 1, 1, 200, 28]), whole.double()) <= 1e-4
    assert error(decoded(replace(SHORT, topk=99), [420]), base.double()) <= 1e-4
    assert error(whole, base.double()) > 1e-2


def test_configuration_is_told_and_read() -> None:
    config = small(policy=RetrievalPolicy(topk=7, context=5000))
    told = config.to_dict()
    assert told["sparse_config"] == {
        "block_size": 32, "kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "window_size": 2048, "topk": 7,
        "dense_len": 4128,
    }  # fmt: skip
    assert parse_config(told) == config
    for name, value in (("topk", 0), ("init_blocks", -1), ("kernel_stride", 7), ("block_size", "x")):
        with pytest.raises(ConfigError, match=rf"{name}.*{value}"):
            parse_config({**told, "sparse_config": {**told["sparse_config"], name: value}})
    with pytest.raises(ConfigError, match="takes no sinks"):
        RetrievalPolicy(sinks=3)
