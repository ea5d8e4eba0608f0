"""What a stream keeps: eq. 8 over the ring, and that steps, batches and padding are only ways to get there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import FULL, AttentionPolicy, InfiniteVLConfig
from model.infinitevl import InfiniteVL
from model.memory import SequenceMemory
from model.rope import rotate, rotation
from model.state import SlotMemory, Snapshot, StreamState

from .small import DECODER, build, error, patches, small

ATTENTION = replace(DECODER, num_hidden_layers=1, layer_types=("attention",))
CONFIG = small()
GRID = (6, 8)
MODEL = build(CONFIG)
QUESTION = [2, 5, 900, 17, 6, 44, 2047, 3, 3, 8, 1000, 77, 12, 5]
Brute = tuple[Tensor, Tensor, Tensor, Tensor]


def seconds(*times: float) -> Tensor:
    return torch.tensor(times, dtype=torch.float64)


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
        memory = SlotMemory(state, at, positions)
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
)
@settings(deadline=None, max_examples=25)
def test_ring_shows_what_eq_8_shows(sinks: int, window: int, sizes: list[int], slots: list[int]) -> None:
    """Every query of 300 tokens: before the ring is full, while it wraps for the first time, and many turns later."""
    policy = AttentionPolicy(sinks, window)
    drawn = draw(len(slots), 300, seed=window)
    found = attended(drawn, small(decoder=ATTENTION, policy=policy), pieces_of(300, sizes), slots)
    assert error(found, brute_force(drawn, policy)) <= 1e-5


@given(sinks=st.integers(0, 15), window=st.integers(1, 40), sizes=st.lists(st.integers(1, 100), min_size=1, max_size=4))
@settings(deadline=None, max_examples=20)
def test_sequence_shows_what_eq_8_shows(sinks: int, window: int, sizes: list[int]) -> None:
    policy = AttentionPolicy(sinks, window)
    drawn, parts, outputs = draw(2, 300), pieces_of(300, sizes), []
    memory = SequenceMemory(ATTENTION, policy, 2, torch.device("cpu"), torch.float32)
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

    def __init__(self, model: InfiniteVL = MODEL, slots: int = 4) -> None:
        self.model = model
        self.state = StreamState.allocate(model.config, slots)

    @torch.no_grad()
    def open(self, *slots: int) -> None:
        for slot in slots:
            self.state.reset(slot)
        self.model.open(self.state, torch.tensor(slots))

    @torch.no_grad()
    def see(self, slots: list[int], pictures: Tensor, times: list[float]) -> None:
        self.model.see(pictures, GRID, seconds(*times), self.state, torch.tensor(slots))

    @torch.no_grad()
    def read(self, slots: list[int], tokens: list[list[int]], counts: list[int] | None = None) -> Tensor:
        padded = None if counts is None else torch.tensor(counts)
        return self.model.read(torch.tensor(tokens), self.state, torch.tensor(slots), padded)

    def watch(self, slot: int, frames: int, seed: int, rate: float = 2.0) -> None:
        """A whole stream from its start."""
        self.open(slot)
        for i, picture in enumerate(film(frames, seed)):
            self.see([slot], picture[None], [i / rate])


def film(frames: int, seed: int) -> Tensor:
    return patches(CONFIG.vision, frames, grid=GRID, seed=seed)


def same(found: Snapshot, wanted: Snapshot) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


def near(found: Snapshot, wanted: Snapshot) -> bool:
    """The same cursors exactly, the same contents within 1e-4."""
    contents = ("delta", "inputs", "keys", "values")
    return all(
        error(found[name], wanted[name]) <= 1e-4 if name in contents else torch.equal(found[name], wanted[name])
        for name in wanted
    )


@torch.no_grad()
def test_window_longer_than_the_stream_is_full_attention() -> None:
    answers = []
    for policy in (AttentionPolicy(sinks=6, window=200), replace(FULL, context=200)):
        model = InfiniteVL(small(policy=policy))
        model.load_state_dict(MODEL.state_dict())
        life = Life(model)
        life.watch(0, 12, seed=1)
        answers.append(life.read([0], [QUESTION]))
    assert error(*answers) <= 1e-4
    shorter = Life()
    shorter.watch(0, 12, seed=1)
    assert error(shorter.read([0], [QUESTION]), answers[1]) > 1e-2


@torch.no_grad()
def test_frames_one_by_one_are_all_at_once() -> None:
    """Through slots and as one differentiable sequence, two streams several windows long, and questions after them."""
    pictures, times = torch.stack((film(15, 1), film(15, 2))), [0.4 * i for i in range(15)]
    life = Life()
    life.open(2, 1)
    for i, time in enumerate(times):
        life.see([2, 1], pictures[:, i], [time, time])
    whole = seconds(*times).expand(2, -1)
    memory = MODEL.watch(pictures, GRID, whole)
    wanted = MODEL.answer(torch.tensor([[QUESTION, QUESTION[::-1]]] * 2), whole[:, -1], GRID, memory)
    for question, tokens in enumerate((QUESTION, QUESTION[::-1])):
        life.state.fork(2, 0)
        life.state.fork(1, 3)
        assert error(life.read([0, 3], [tokens, tokens]), wanted[:, question, -1]) <= 1e-4


@torch.no_grad()
def test_streams_of_different_ages_in_a_batch_are_each_alone() -> None:
    """One has just opened, one is in its first window, one has wrapped its ring many times; each in its own time."""
    ages, together, alone = {0: 0, 3: 2, 1: 14}, Life(), Life()
    for life in (together, alone):
        for slot, frames in ages.items():
            life.watch(slot, frames, seed=slot, rate=0.5 + slot)
    slots, more = [3, 1, 0], {slot: film(6, 10 + slot) for slot in ages}
    for i in range(6):
        times = [ages[slot] / (0.5 + slot) + 0.7 * i for slot in slots]
        together.see(slots, torch.stack([more[slot][i] for slot in slots]), times)
        for slot, time in zip(slots, times, strict=True):
            alone.see([slot], more[slot][i][None], [time])
    for slot in slots:
        assert near(together.state.snapshot(slot), alone.state.snapshot(slot))
    batched = together.read(slots, [QUESTION] * 3)
    for row, slot in enumerate(slots):
        assert error(batched[row], alone.read([slot], [QUESTION])[0]) <= 1e-4


@pytest.mark.parametrize("counts", [[1, 14, 3], [12, 13, 11], [14, 14, 1], [30, 2, 12]], ids=str)
@torch.no_grad()
def test_padding_does_nothing(counts: list[int]) -> None:
    """Questions of unlike lengths read together, some of whose pieces are padding from end to end."""
    slots, ages = [2, 0, 3], [0, 3, 9]
    padded, exact = Life(), Life()
    for life in (padded, exact):
        for slot, frames in zip(slots, ages, strict=True):
            life.watch(slot, frames, seed=slot)
    questions = [[(7 * i + 13 * row) % 2048 for i in range(count)] for row, count in enumerate(counts)]
    longest = max(counts)
    found = padded.read(slots, [[*tokens, *[999] * (longest - len(tokens))] for tokens in questions], counts)
    for row, (slot, tokens) in enumerate(zip(slots, questions, strict=True)):
        assert error(found[row], exact.read([slot], [tokens])[0]) <= 1e-4
        assert near(padded.state.snapshot(slot), exact.state.snapshot(slot))
    again = padded.read(slots, [[5], [6], [7]])
    for row, slot in enumerate(slots):
        assert error(again[row], exact.read([slot], [[5 + row]])[0]) <= 1e-4


@pytest.mark.parametrize("frames", [0, 1, 9])
@torch.no_grad()
def test_tokens_one_by_one_are_prefilled(frames: int) -> None:
    whole, single = Life(), Life()
    for life in (whole, single):
        life.watch(1, frames, seed=3)
    tokens = [*QUESTION, *QUESTION]
    prefilled = whole.read([1], [tokens])
    for token in tokens:
        last = single.read([1], [[token]])
    assert error(last, prefilled) <= 1e-4
    assert near(single.state.snapshot(1), whole.state.snapshot(1))


asked = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 20), st.integers(0, 6)), min_size=1, max_size=5)


@given(questions=asked)
@settings(deadline=None, max_examples=10)
def test_questions_leave_the_stream_as_it_was(questions: list[tuple[int, int, int]]) -> None:
    """Questions of any length forked at any frame, decoded together between frames, some dropped midway: not one bit differs."""
    quiet, busy = Life(slots=7), Life(slots=7)
    for life in (quiet, busy):
        life.open(0, 1)
    speaking: dict[int, int] = {}
    for i, pictures in enumerate(zip(film(9, 1), film(9, 2), strict=True)):
        for slot, (frame, length, answer) in enumerate(questions, 2):
            if frame == i:
                busy.state.fork(i % 2, slot)
                busy.read([slot], [QUESTION[:length]])
                speaking[slot] = answer
        open_answers = [slot for slot, left in speaking.items() if left]
        if open_answers:
            busy.read(open_answers, [[9]] * len(open_answers))
            speaking = {slot: left - 1 for slot, left in speaking.items() if left}
        for slot in [slot for slot, left in speaking.items() if not left]:
            busy.state.reset(slot)
        for life in (quiet, busy):
            life.see([0, 1], torch.stack(pictures), [0.5 * i, 0.3 * i])
    for slot in (0, 1):
        assert same(busy.state.snapshot(slot), quiet.state.snapshot(slot))


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
    picture, time = film(1, 8), [frames / 2]
    answers = []
    for holder, slot in ((life, 2), (life, 0), (other, 1)):
        holder.see([slot], picture, time)
        answers.append(holder.read([slot], [QUESTION]))
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    assert same(other.state.snapshot(1), life.state.snapshot(2))


def test_snapshot_is_a_copy() -> None:
    life = Life()
    life.watch(0, 2, seed=1)
    taken = life.state.snapshot(0)
    kept = {name: part.clone() for name, part in taken.items()}
    life.see([0], film(1, 2), [1.0])
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
