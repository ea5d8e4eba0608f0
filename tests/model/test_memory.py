"""What a stream keeps: eq. 8 over the ring at every length, and slots that can be copied to the bit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache import SequenceCache, SlotCache
from model.config import FULL, AttentionPolicy, InfiniteVLConfig
from model.ops.rope import rotate, rotation
from model.state import Snapshot, StreamState

from .small import DECODER, build, error, patches, small

ATTENTION = replace(DECODER, num_hidden_layers=1, layer_types=("attention",))
CONFIG = small()
GRID = (6, 8)
MODEL = build(CONFIG)
QUESTION = [2, 5, 900, 17, 6, 44, 2047, 3, 3, 8, 1000, 77, 12, 5]
Brute = tuple[Tensor, Tensor, Tensor, Tensor]


def draw(batch: int, n: int, seed: int = 0) -> Brute:
    """q, k and v of one attention layer and positions that grow unevenly, as frames' do."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, n, heads, 16, generator=generator) for heads in (4, 2, 2))
    return q, k, v, torch.randint(0, 3, (3, batch, n), generator=generator).cumsum(-1)


def brute_force(drawn: Brute, policy: AttentionPolicy) -> Tensor:
    """Eq. 8 over the whole stream with nothing ever forgotten, float64 [batch, n, heads, head]."""
    q, k, v, positions = drawn
    turn = rotation(positions, 16, ATTENTION.rope_theta, ATTENTION.mrope_section)
    q, k, v = rotate(q, turn).double(), rotate(k, turn).double(), v.double()
    k, v = (x.repeat_interleave(2, 2) for x in (k, v))
    n, window = q.shape[1], policy.window or 10**9
    hidden = torch.tensor([[not (j <= i and (j < policy.sinks or i - j < window)) for j in range(n)] for i in range(n)])
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(16)
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(hidden, -math.inf).softmax(-1), v)


def attended(drawn: Brute, config: InfiniteVLConfig, pieces: list[int], slots: list[int]) -> Tensor:
    """The same through the ring, in pieces of these lengths."""
    state, at = StreamState.allocate(config, 4), torch.tensor(slots)
    outputs = []
    for q, k, v, positions in zip(*(x.split(pieces, 1) for x in drawn[:3]), drawn[3].split(pieces, 2), strict=True):
        turn = rotation(positions, 16, ATTENTION.rope_theta, ATTENTION.mrope_section)
        memory = SlotCache(state, at, positions)
        outputs.append(memory.attend(0, rotate(q, turn), k, rotate(k, turn), v))
        memory.commit()
    return torch.cat(outputs, 1)


def pieces_of(n: int, sizes: list[int]) -> list[int]:
    """`n` in pieces of `sizes`, over and over."""
    parts: list[int] = []
    while sum(parts) < n:
        parts.append(min(sizes[len(parts) % len(sizes)], n - sum(parts)))
    return parts


@given(
    sinks=st.integers(0, 15),
    window=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    slots=st.sampled_from([[0], [3], [2, 0], [1, 3, 0]]),
    in_place=st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_ring_shows_what_eq_8_shows(
    sinks: int, window: int, sizes: list[int], slots: list[int], in_place: bool
) -> None:
    """Every query of 300 tokens: before the ring is full, while it wraps for the first time, and many turns later.

    Keys are copied, or read where they lie: a few in a block, so that there are blocks of which a query sees none.
    """
    policy = AttentionPolicy(sinks, window)
    drawn = draw(len(slots), 300, seed=window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.cache.IN_PLACE", 0 if in_place else 10**9)
        patch.setattr("model.ops.attention.SCORES", 48)
        found = attended(drawn, small(decoder=ATTENTION, policy=policy), pieces_of(300, sizes), slots)
    assert error(found, brute_force(drawn, policy)) <= 1e-5


@given(sinks=st.integers(0, 15), window=st.integers(1, 40), sizes=st.lists(st.integers(1, 100), min_size=1, max_size=4))
@settings(deadline=None, max_examples=20)
def test_sequence_shows_what_eq_8_shows(sinks: int, window: int, sizes: list[int]) -> None:
    policy = AttentionPolicy(sinks, window)
    drawn, parts, outputs = draw(2, 300), pieces_of(300, sizes), []
    memory = SequenceCache(ATTENTION, policy, 2, torch.device("cpu"), torch.float32)
    for q, k, v, positions in zip(*(x.split(parts, 1) for x in drawn[:3]), drawn[3].split(parts, 2), strict=True):
        turn = rotation(positions, 16, ATTENTION.rope_theta, ATTENTION.mrope_section)
        outputs.append(memory.attend(0, rotate(q, turn), k, rotate(k, turn), v))
        memory.advance(q.shape[1])
    assert error(torch.cat(outputs, 1), brute_force(drawn, policy)) <= 1e-5


def test_full_attention_shows_everything() -> None:
    policy, drawn = replace(FULL, context=300), draw(2, 300)
    found = attended(drawn, small(decoder=ATTENTION, policy=policy), pieces_of(300, [12, 1, 7]), [1, 0])
    assert error(found, brute_force(drawn, policy)) <= 1e-5


class Life:
    """Streams of `model` in the slots of one pool."""

    def __init__(self, slots: int = 4) -> None:
        self.state = StreamState.allocate(CONFIG, slots)

    @torch.no_grad()
    def see(self, slot: int, picture: Tensor, time: float) -> None:
        MODEL.see(picture[None], GRID, torch.tensor([time], dtype=torch.float64), self.state, torch.tensor([slot]))

    @torch.no_grad()
    def read(self, slot: int, tokens: list[int]) -> Tensor:
        return MODEL.read(torch.tensor([tokens]), self.state, torch.tensor([slot]))

    @torch.no_grad()
    def watch(self, slot: int, frames: int, seed: int) -> None:
        """A whole stream from its start."""
        self.state.reset(slot)
        MODEL.open(self.state, torch.tensor([slot]))
        for i, picture in enumerate(film(frames, seed)):
            self.see(slot, picture, i / 2)


def film(frames: int, seed: int) -> Tensor:
    return patches(CONFIG.vision, frames, grid=GRID, seed=seed)


def same(found: Snapshot, wanted: Snapshot) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


@pytest.mark.parametrize("frames", [0, 1, 8])
def test_fork_snapshot_and_restore_are_exact(frames: int) -> None:
    """And what goes on from them is exact too, in another slot and in another pool."""
    life, other = Life(), Life(slots=2)
    life.watch(2, frames, seed=5)
    taken = life.state.snapshot(2)
    life.watch(0, 11, seed=6)
    life.state.fork(2, 0)
    other.watch(1, 3, seed=7)
    other.state.restore(1, taken)
    assert same(life.state.snapshot(0), taken) and same(other.state.snapshot(1), taken)
    assert same(life.state.snapshot(2), taken)
    answers = []
    for holder, slot in ((life, 2), (life, 0), (other, 1)):
        holder.see(slot, film(1, 8)[0], frames / 2)
        answers.append(holder.read(slot, QUESTION))
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    assert same(other.state.snapshot(1), life.state.snapshot(2))


def test_snapshot_is_a_copy() -> None:
    life = Life()
    life.watch(0, 2, seed=1)
    taken = life.state.snapshot(0)
    kept = {name: part.clone() for name, part in taken.items()}
    life.see(0, film(1, 2)[0], 1.0)
    assert same(taken, kept) and not same(life.state.snapshot(0), kept)


def test_reset_slot_is_a_new_one_and_the_others_stay() -> None:
    life = Life()
    life.watch(0, 4, seed=1)
    life.watch(1, 9, seed=2)
    neighbour = life.state.snapshot(1)
    life.state.reset(0)
    assert same(life.state.snapshot(0), Life().state.snapshot(0))
    assert same(life.state.snapshot(1), neighbour)
    life.watch(0, 3, seed=3)
    fresh = Life()
    fresh.watch(0, 3, seed=3)
    assert same(life.state.snapshot(0), fresh.state.snapshot(0))
    assert same(life.state.snapshot(1), neighbour)


def foreign() -> dict[str, Snapshot]:
    """Snapshots that don't belong to `CONFIG`: of other sizes, of another policy, without a part."""
    wide = replace(DECODER, linear_head_dim=16)
    return {
        "delta has shape": StreamState.allocate(small(decoder=wide), 1).snapshot(0),
        "keys has shape": StreamState.allocate(small(policy=AttentionPolicy(6, 30)), 1).snapshot(0),
        "time is missing": {k: v for k, v in StreamState.allocate(CONFIG, 1).snapshot(0).items() if k != "time"},
    }


@pytest.mark.parametrize("said", foreign())
def test_foreign_snapshot_is_refused_and_the_slot_stays(said: str) -> None:
    life = Life()
    life.watch(1, 2, seed=1)
    before = life.state.snapshot(1)
    with pytest.raises(ValueError, match=f"snapshot's {said}.*restore it into the model it was taken from"):
        life.state.restore(1, foreign()[said])
    assert same(life.state.snapshot(1), before)
