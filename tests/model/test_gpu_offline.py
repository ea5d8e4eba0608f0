"""Attention that retrieves on a GPU: its kernels and the fused path beside plain torch, which `test_retrieval` holds to an oracle.

Needs CUDA and triton.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PRESETS, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.ops.retrieval import Whole, attended, pool
from model.ops.retrieval import retrieve as plain
from model.pages import Held
from model.policy import RetrievalPolicy
from model.state import StreamState

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

if torch.cuda.is_available():
    from model.ops.kernels import retrieval
    from model.ops.kernels.retrieval import choose, retrieve
    from model.ops.kernels.retrieval_token import Past, retrieve_token
    from model.ops.kernels.span_scores import score
    from model.serving.backends import Eager
    from model.serving.fused import FastInfiniteVL
    from model.serving.growing import Growing

SHORT = RetrievalPolicy(window_size=256, topk=8, dense_len=640)
"""Blocks and spans of the usual sizes, of few of them."""
GRID = (16, 16)


class Words:
    """A stream's opening, and no words around grids."""

    opening: Sequence[int] = (5,)
    after: Sequence[int] = ()

    def before(self, seconds: float) -> list[int]:
        return []


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        yield


def ratio(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def draw(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q [n, 16, 128], k and v [n, 2, 128]; keys change slowly, as those of a picture's neighbours do."""
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(n, heads, 128, device="cuda", generator=generator) for heads in (16, 2, 2))
    slow = torch.randn(n // 8 + 1, 2, 128, device="cuda", generator=generator).repeat_interleave(8, 0)[:n]
    return (q / 2).to(dtype), (k / 2 + slow).to(dtype), v.to(dtype)


def hold(k: Tensor, v: Tensor, policy: RetrievalPolicy) -> Held:
    """In a pool in which the blocks lie anyhow."""
    blocks = -(-len(k) // policy.block_size)
    table = torch.randperm(blocks + 5, generator=torch.Generator().manual_seed(1))[:blocks].cuda()
    kept = []
    for x in (k, v):
        rows = F.pad(x.transpose(0, 1), (0, 0, 0, -len(k) % policy.block_size)).unflatten(1, (-1, policy.block_size))
        pages = torch.full((2, blocks + 5, policy.block_size, 128), float("nan"), device="cuda", dtype=k.dtype)
        pages[:, table] = rows
        kept.append(pages)
    return Held(kept[0], kept[1], table.int(), by_phase(pool(k.transpose(0, 1), policy), policy).to(k.dtype))


def by_phase(pooled: Tensor, policy: RetrievalPolicy) -> Tensor:
    """[groups, spans, head] to [groups, spans a block, blocks, head]."""
    whole = F.pad(pooled, (0, 0, 0, -pooled.shape[1] % policy.ratio), value=float("nan"))
    return whole.unflatten(1, (-1, policy.ratio)).transpose(1, 2).contiguous()


@pytest.mark.parametrize("n", [200, 640, 641, 700, 2_000, 5_003])
def test_kernels_are_plain_torch_in_float32(n: int) -> None:
    """Before the threshold, at it, after it; whole, in pieces, and the last token alone."""
    q, k, v = draw(n, torch.float32)
    wanted = plain(q, 0, Whole(k, v, SHORT), SHORT)
    found = retrieve(q, 0, hold(k, v, SHORT), SHORT)
    assert ratio(found, wanted) <= 1e-4
    cuts = [0, n // 3, n // 2 + 1, n - 1, n]
    parts = [retrieve(q[a:b], a, hold(k[:b], v[:b], SHORT), SHORT) for a, b in pairwise(cuts) if b > a]
    assert ratio(torch.cat(parts), found) <= 1e-5


def test_all_blocks_are_all_there_is() -> None:
    n = 3_000
    q, k, v = draw(n, torch.float32)
    every = replace(SHORT, topk=128)
    rows = [x.transpose(0, 1)[None] for x in (q, k, v)]
    mixed = F.scaled_dot_product_attention(rows[0], rows[1], rows[2], is_causal=True, enable_gqa=True)
    whole = mixed[0].transpose(0, 1)
    assert ratio(retrieve(q, 0, hold(k, v, every), every), whole) <= 1e-4


def test_bfloat16_chooses_nearly_the_same() -> None:
    """Of blocks whose scores differ by less than rounding either may be taken."""
    n = 6_000
    q, k, v = draw(n, torch.bfloat16)
    held = hold(k, v, SHORT)
    exactly = Held(
        held.keys.float(), held.values.float(), held.table, by_phase(pool(k.float().transpose(0, 1), SHORT), SHORT)
    )
    numbers, _, counts = choose(q[1_000:], 1_000, held, SHORT)
    wanted, _, same = choose(q[1_000:].float(), 1_000, exactly, SHORT)
    assert torch.equal(counts, same)
    full = counts == numbers.shape[-1]
    shared = (numbers[full][:, :, None] == wanted[full][:, None, :]).any(-1).float().mean()
    found = retrieve(q, 0, held, SHORT)
    error = ratio(found, plain(q.float(), 0, Whole(k.float(), v.float(), SHORT), SHORT))
    print(f"bf16 retrieval: {float(shared):.4f} of the blocks are the same, error {error:.4f}")
    assert shared >= 0.98
    assert error <= 0.05


@pytest.mark.parametrize("n", [1, 16, 600, 2_048])
def test_scores_at_full_length(n: int) -> None:
    """Of bfloat16 numbers, but summed in float32: what each span of 262,144 tokens has of the last queries' attention."""
    policy, length = RetrievalPolicy(), 262_144
    q, k, _ = draw(length, torch.bfloat16)
    q = q[-n:].contiguous()
    pooled = pool(k.float().transpose(0, 1), policy).bfloat16()
    held = Held(
        k[None, :32].expand(2, -1, -1, -1), k, k, by_phase(pooled, policy)
    )  # of which the pooled keys alone are read
    shares = score(q, length - n, held, policy).transpose(-1, -2).flatten(-2)[..., : pooled.shape[1]]
    ended = (torch.arange(length - n, length, device="cuda") - policy.kernel_size) // policy.kernel_stride + 1
    number = torch.arange(pooled.shape[1], device="cuda")
    for group in range(2):
        for part in range(0, n, 64):
            heads = q[part : part + 64, 8 * group : 8 * group + 8].float()
            weights = torch.einsum("nhd,sd->nhs", heads, pooled[group].float()) * 128**-0.5
            hidden = number >= ended[part : part + 64, None]
            wanted = weights.masked_fill(hidden[:, None], float("-inf")).softmax(-1).sum(1)
            found = shares[group, part : part + 64].masked_fill(hidden, 0.0)
            assert ratio(found, wanted) <= 1e-4
            least = wanted.topk(64, -1).values[:, -1:]
            assert ((found >= least * 0.999).sum(-1) >= 64).all()


def best_by_sorting(shares: Tensor, first: int, policy: RetrievalPolicy) -> list[list[list[int]]]:
    """By group and query the blocks that `choose` is to find, from shares [groups, n, spans a block, blocks] that any others follow."""
    index = torch.arange(first, first + shares.shape[1], device="cuda")
    ended = (index - policy.kernel_size) // policy.kernel_stride + 1
    flat = shares.transpose(-1, -2).flatten(-2)
    flat = flat.masked_fill(torch.arange(flat.shape[-1], device="cuda") >= ended[:, None], -1.0)
    before = policy.kernel_size // policy.kernel_stride - 1
    best = F.pad(flat, (before, 0), value=-1.0).unfold(-1, before + policy.ratio, policy.ratio).amax(-1)
    number = torch.arange(best.shape[-1], device="cuda")
    eligible = (number >= policy.init_blocks) & (number * policy.block_size <= index[:, None] - policy.window_size)
    order = best.masked_fill(~eligible, -2.0).sort(dim=-1, descending=True, stable=True).indices[..., : policy.topk]
    return [
        [
            sorted([*range(policy.init_blocks), *(each for each in row.tolist() if eligible[i, each])])
            for i, row in enumerate(rows)
        ]
        for rows in order
    ]


@pytest.mark.parametrize("kind", ["any", "ties", "all alike"])
@pytest.mark.parametrize(("length", "n"), [(2_300, 40), (6_000, 40), (70_000, 24), (262_144, 8), (900_000, 3)])
def test_the_choice_is_that_of_sorting(length: int, n: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among few blocks and many, of which a program looks at some at a time."""
    policy, first = RetrievalPolicy(), length - n
    blocks = -(-length // policy.block_size)
    shares = torch.rand(2, n, 2, 16 * (blocks // 16 + 1), generator=torch.Generator().manual_seed(3)).cuda() ** 20
    shares = {"any": shares, "ties": (8 * shares).floor(), "all alike": torch.zeros_like(shares)}[kind]
    wanted = best_by_sorting(shares, first, policy)
    monkeypatch.setattr(retrieval, "score", lambda *given: shares)
    table = torch.randperm(blocks, generator=torch.Generator().manual_seed(4)).int().cuda()
    nothing = torch.zeros(2, 0, 32, 128, device="cuda")
    held = Held(nothing, nothing, table, nothing)
    chosen, places, counts = choose(torch.zeros(n, 16, 128, device="cuda"), first, held, policy)
    found = [
        [row[:count].tolist() for row, count in zip(*each, strict=True)] for each in zip(chosen, counts, strict=True)
    ]
    assert found == wanted
    for group in range(2):
        for row, place in zip(found[group], places[group], strict=True):
            assert place[: len(row)].tolist() == table[row].tolist()


def test_ties_go_to_the_earlier_block() -> None:
    """A picture that stands still, or comes again: whole numbers, which any order of adding leaves alike."""
    for period in (1, 32, 48):
        q, k, v = draw(3_000, torch.float32)
        q, k = (2 * q).round(), k[:period].round().repeat(3_000 // period + 1, 1, 1)[:3_000].contiguous()
        assert ratio(retrieve(q, 0, hold(k, v, SHORT), SHORT), plain(q, 0, Whole(k, v, SHORT), SHORT)) <= 1e-4


def lay(k: Tensor, v: Tensor, policy: RetrievalPolicy, blocks: int) -> Past:
    """In pages of 8 blocks that lie anyhow, keys and values otherwise than pooled keys; the last token is the one that asks."""
    page, generator = 8 * policy.block_size, torch.Generator().manual_seed(1)
    count, strides = -(-len(k) // page), 8 * policy.ratio
    frames, numbers = (torch.randperm(count + 3, generator=generator)[:count].cuda() for _ in range(2))
    kept = []
    for x in (k, v):
        rows = F.pad(x.transpose(0, 1), (0, 0, 0, -len(k) % page)).unflatten(1, (-1, page))
        pages = torch.full((2, count + 3, page, 128), float("nan"), device="cuda", dtype=k.dtype)
        pages[:, frames] = rows
        kept.append(pages.view(2, -1, policy.block_size, 128))
    spans = pool(k.transpose(0, 1), policy)
    spans = F.pad(spans, (0, 0, policy.kernel_size // policy.kernel_stride - 1, 0))
    rows = F.pad(spans, (0, 0, 0, -spans.shape[1] % strides)).unflatten(1, (-1, strides))
    pooled = torch.full((2, count + 3, strides, 128), float("nan"), device="cuda")
    pooled[:, numbers[: rows.shape[1]]] = rows
    starts = torch.tensor([len(k) - 1], device="cuda")
    return Past(kept[0], kept[1], pooled.flatten(1, 2), frames.int(), numbers.int(), starts, blocks, page)


@pytest.mark.parametrize("index", [0, 31, 255, 639, 640, 641, 2_000, 5_002])
@pytest.mark.parametrize("blocks", [512, 8_192])
def test_a_token_alone_is_plain_torch(index: int, blocks: int) -> None:
    """As many blocks as there may be, not as there are, cut the kernels; what it attends to is noted by block."""
    q, k, v = (x[: index + 1] for x in draw(5_008, torch.float32))
    history = Whole(k, v, SHORT)
    noted, one = torch.zeros(2, blocks, device="cuda"), torch.ones(1, device="cuda", dtype=torch.int64)
    past = lay(k, v, SHORT, blocks)
    found = retrieve_token(q[index:].contiguous(), past, SHORT, (noted, one, one))
    retrieve_token(q[index:].contiguous(), past, SHORT, (noted, one, 0 * one))  # padding
    assert ratio(found, plain(q[index:], index, history, SHORT)) <= 1e-4
    wanted = attended(q[index:], index, history, SHORT)
    assert ratio(noted[1, : len(wanted)], wanted) <= 1e-4
    assert not noted[0].any() and not noted[1, len(wanted) :].any()


def test_a_token_alone_is_as_a_piece_in_bfloat16() -> None:
    """At full length: other kernels, the same numbers."""
    policy, length = RetrievalPolicy(), 262_144
    q, k, v = draw(length, torch.bfloat16)
    pieces = retrieve(q[-1:], length - 1, hold(k, v, policy), policy)
    assert ratio(retrieve_token(q[-1:].contiguous(), lay(k, v, policy, 8_192), policy), pieces) <= 1e-2


def cut(dtype: torch.dtype) -> InfiniteVL:
    """The 4B's widths in 8 layers and 3 vision blocks."""
    whole = PRESETS["4b"]
    decoder = replace(whole.decoder, num_hidden_layers=8, layer_types=whole.decoder.layer_types[:8], vocab_size=4096)
    vision = replace(whole.vision, depth=3, fullatt_block_indexes=(1,))
    config: InfiniteVLConfig = replace(
        whole, vision=vision, decoder=decoder, policy=SHORT, tokens_per_frame=64, vision_start_token_id=5
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = InfiniteVL(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model = model.to(dtype).eval().requires_grad_(False)
    model.fuse()
    return model


def test_the_fused_path_is_the_plain_one_in_float32() -> None:
    model = cut(torch.float32)
    states = [StreamState.allocate(model.config, 3, "cuda", torch.float32) for _ in range(2)]
    ways = Eager(model, Words(), states[0]), Growing(FastInfiniteVL(model), Words(), states[1])
    for way in ways:
        way.open(0)
    generator = torch.Generator("cuda").manual_seed(1)
    for i in range(24):
        patches = torch.randn(1, GRID[0] * GRID[1], model.config.vision.patch_dim, device="cuda", generator=generator)
        encoded = [way.steps.encode(patches, GRID) for way in ways]
        assert ratio(encoded[1], encoded[0]) <= 1e-4
        for way in ways:
            assert way.ingest([0], encoded[0], [i * 0.5], GRID)() == [True]
    for state in states:
        state.fork(0, 1)
    words = [int(x) for x in torch.randint(10, 4000, (50,), generator=torch.Generator().manual_seed(2))]
    for part in (words[:40], *([word] for word in words[40:])):
        logits = [way.read([1], [part])[1] for way in ways]
        assert ratio(logits[1], logits[0]) <= 1e-4
    assert states[0].pages is not None and states[1].pages is not None
    assert states[0].pages.lengths == states[1].pages.lengths
    for slot in (0, 1):
        rows = [state.pages.rows(slot, 0, state.pages.lengths[slot]) for state in states if state.pages]
        assert ratio(rows[1], rows[0]) <= 1e-4
    for name, x, _ in states[0].tensors():
        y = states[1].held[name]
        assert torch.equal(x, y) if x.dtype == torch.int64 else ratio(y, x) <= 1e-4, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_is_the_same_kernels_to_the_bit(dtype: torch.dtype) -> None:
    """Across the threshold, the end of pages, of one graph and of the pool; noted and not, two slots in turn."""
    model = cut(dtype)
    states = [StreamState.allocate(model.config, 3, "cuda", dtype) for _ in range(2)]
    graphed, alone = (Growing(FastInfiniteVL(model), Words(), state) for state in states)
    alone.graphed = False
    generator = torch.Generator().manual_seed(3)

    def words(n: int) -> list[int]:
        return [int(x) for x in torch.randint(10, 4000, (n,), generator=generator)]

    for way, state in zip((graphed, alone), states, strict=True):
        generator.manual_seed(3)
        way.open(0)
        way.read([0], [words(500)])
        state.fork(0, 1)
        way.read([1], [words(130)])
        assert state.pages is not None
        state.pages.watch(1)
    for i in range(150):
        slots, parts = ([1, 0] if i % 3 else [1]), [[word] for word in words(2)]
        rows = [way.read(slots, parts[: len(slots)])[1] for way in (graphed, alone)]
        assert rows[0].isfinite().all() and torch.equal(*rows), i
    for name, x, _ in states[0].tensors():
        assert torch.equal(x, states[1].held[name]), name
    first, second = (state.pages for state in states)
    assert first is not None and second is not None and first.lengths == second.lengths == [601, 781, 0]
    for slot in (0, 1):
        assert torch.equal(*(pages.rows(slot, 0, pages.lengths[slot]) for pages in (first, second)))
    noted = [pages.unwatch(1) for pages in (first, second)]
    assert len(noted[0]) == 25 and ratio(noted[0], noted[1]) <= 1e-5
    assert graphed.graphs and not alone.graphs


def test_steps_together_are_as_one_by_one() -> None:
    model = cut(torch.float32)
    states = [StreamState.allocate(model.config, 2, "cuda", torch.float32) for _ in range(2)]
    ways = [Growing(FastInfiniteVL(model), Words(), state) for state in states]
    generator = torch.Generator("cuda").manual_seed(1)
    pictures = torch.randn(20, GRID[0] * GRID[1], model.config.vision.patch_dim, device="cuda", generator=generator)
    encoded, seconds = ways[0].steps.encode(pictures, GRID), [0.5 * i + 7 * (i > 9) for i in range(20)]
    for way, most in zip(ways, (1, 8), strict=True):
        way.open(0)
        for i in range(0, 20, most):
            x, moments = encoded[i : i + most].clone(), seconds[i : i + most]  # what is taken is written over
            assert all(way.ingest([0] * len(x), x, moments, GRID)())
    assert states[0].pages is not None and states[1].pages is not None
    rows = [state.pages.rows(0, 0, 1 + 20 * 64) for state in states if state.pages]
    assert ratio(rows[1], rows[0]) <= 1e-4
    for name, x, _ in states[0].tensors():
        y = states[1].held[name]
        assert torch.equal(x, y) if x.dtype == torch.int64 else ratio(y, x) <= 1e-4, name
