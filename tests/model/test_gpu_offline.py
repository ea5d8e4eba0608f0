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
from model.ops.retrieval import Whole, pool
from model.ops.retrieval import retrieve as plain
from model.pages import Held
from model.policy import RetrievalPolicy
from model.state import StreamState

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

if torch.cuda.is_available():
    from model.ops.kernels.retrieval import choose, retrieve
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
