"""Attention that retrieves, over pages: the choice of blocks by the scores of spans, then the last tokens and the blocks chosen.

The formula is `model.ops.retrieval`'s. A tile's rows are the queries of one head of keys, so that what is loaded serves its whole
group; the blocks that a query chose serve that query alone, since its neighbours choose others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.kernels.attention import EVER, LOG2E, attend_tile
from model.ops.kernels.span_scores import COUNTED, Held, ended_spans, load_queries, score
from model.policy import RetrievalPolicy

SHARES = 1 << 30
"""Bytes of the scores that are kept at once, and of what is likely among them: a long call is taken in pieces of queries."""
MOST = 4_096
"""Queries of such a piece."""
TILE = 256
"""Blocks that a program of one warp looks at at once, then of those that it kept, as swept on an H200 at 65,536 to 850,000 tokens."""

REGISTERS = 64
"""Of a thread that chooses: with as few, 32 programs share a processor, and their choice takes 7 % less time than with 96."""


class Cut(NamedTuple):
    """How a kernel over keys is cut: keys a tile, warps, tiles in flight."""

    keys: int
    warps: int
    stages: int


NEAR, FAR = (Cut(64, 4, 2), Cut(32, 4, 2)), (Cut(32, 1, 3), Cut(32, 4, 2))
"""Of whole tiles of rows, and of one query as swept on an H200 at 262,144 tokens; in bfloat16 and in float32."""


@triton.jit
def block_keys(
    row, number, blocks, room, ended,
    INIT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, RATIO: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Of each block the largest share that a span which touches it has, as a number in the same order; below 0 where it can't be chosen.

    Bits of floats that are not negative stand in the order of their values; all that is below 0 is 0. Where WHOLE every span has
    ended, and every block can be chosen.
    """
    best = tl.full(number.shape, -1.0, tl.float32)
    before: tl.constexpr = KERNEL // STRIDE - 1
    for touching in tl.static_range(RATIO + before):
        at = number + (touching - before) // RATIO
        place = row + (touching - before) % RATIO * room + at
        if WHOLE:
            best = tl.maximum(best, tl.load(place))
        else:
            # A span's share is read, whatever it is, before it is asked whether it counts: so a thread reads several at once.
            share = tl.load(place, mask=(at >= 0) & (at < room), other=-1.0)
            best = tl.maximum(best, tl.where((at >= 0) & (number * RATIO + (touching - before) < ended), share, -1.0))
    key = tl.where(best >= 0, best.to(tl.int32, bitcast=True) + 1, 0)
    if not WHOLE:
        key = tl.where((number >= INIT) & (number < blocks), key, -1)
    return key


@triton.jit
def bound(crests, SEGMENTS: tl.constexpr, TILE: tl.constexpr):
    """What as many keys as there are SEGMENTS are at least, of which each has one of these, the best at their places of a tile."""
    best = tl.max(tl.reshape(crests, (TILE // SEGMENTS, SEGMENTS)), 0)
    return tl.maximum(tl.min(best, 0), 0)


@triton.jit
def sift(
    row, keys, numbers, tile, crests, low, found, blocks, room, ended,
    INIT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, RATIO: tl.constexpr, WHOLE: tl.constexpr,
    SEGMENTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Keeps of a tile of blocks those that may be among the best."""
    number = tile * TILE + tl.arange(0, TILE)
    key = block_keys(row, number, blocks, room, ended, INIT, KERNEL, STRIDE, RATIO, WHOLE)
    crests = tl.maximum(crests, key)
    if tile & (tile - 1) == 0:  # the later, the less a tile raises it
        low = bound(crests, SEGMENTS, TILE)
    kept = key >= low
    count = tl.cumsum(kept.to(tl.int32), 0)
    tl.store(keys + found + count - 1, key, mask=kept)
    tl.store(numbers + found + count - 1, number, mask=kept)
    return crests, low, found + tl.max(count, 0)


@triton.jit
def at_least(keys, held, found, bound, HELD: tl.constexpr):
    """How many of the `found` keys, of which the first are `held`, are `bound` or more."""
    total = (held >= bound).to(tl.int32)
    for tile in range(1, tl.cdiv(found, HELD)):
        at = tile * HELD + tl.arange(0, HELD)
        total += (tl.load(keys + at, mask=at < found, other=-1) >= bound).to(tl.int32)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=COUNTED)
def choose_kernel(
    shares, table, likely, chosen, places, counts, first, n, room, window,
    SIZE: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, INIT: tl.constexpr, TOP: tl.constexpr,
    SEGMENTS: tl.constexpr, MOST: tl.constexpr, TILE: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """The numbers of the blocks that a query sees beside the last tokens, in their order, where they lie, and how many they are.

    Blocks pass once, a tile at a time, and few are kept in `likely`: SEGMENTS, TOP or more, have each a best so far, and what is
    less than all of these is not among the TOP best. Of equal ones the earlier are taken.
    """
    step, group = tl.program_id(0), tl.program_id(1)
    index, own = first + step, (group * n + step).to(tl.int64)
    ratio: tl.constexpr = SIZE // STRIDE
    blocks = tl.maximum(index - window + SIZE, 0) // SIZE
    ended = ended_spans(index, KERNEL, STRIDE)
    row, keys = shares + own * (ratio * room), likely + own * (2 * room)
    numbers = keys + room
    crests, low, found = tl.full((TILE,), -1, tl.int32), 0, 0
    tiles, early = tl.cdiv(blocks, TILE), tl.cdiv(INIT + 1, TILE)
    whole = tl.maximum(tl.minimum(blocks, ended // ratio) // TILE, early)
    for tile in range(0, tl.minimum(early, tiles)):
        crests, low, found = sift(
            row, keys, numbers, tile, crests, low, found, blocks, room, ended,
            INIT, KERNEL, STRIDE, ratio, False, SEGMENTS, TILE,
        )  # fmt: skip
    for tile in range(early, whole):
        crests, low, found = sift(
            row, keys, numbers, tile, crests, low, found, blocks, room, ended,
            INIT, KERNEL, STRIDE, ratio, True, SEGMENTS, TILE,
        )  # fmt: skip
    for tile in range(whole, tiles):
        crests, low, found = sift(
            row, keys, numbers, tile, crests, low, found, blocks, room, ended,
            INIT, KERNEL, STRIDE, ratio, False, SEGMENTS, TILE,
        )  # fmt: skip
    low, high = bound(crests, SEGMENTS, TILE), tl.maximum(tl.max(crests, 0), 0) + 1
    tl.debug_barrier()  # what one thread kept is read by others
    entry = tl.arange(0, HELD)
    held = tl.load(keys + entry, mask=entry < found, other=-1)
    # The least key among the TOP best, found by halving, without sorting.
    while high - low > 1:
        middle = low + (high - low) // 2
        more = at_least(keys, held, found, middle, HELD)
        low = tl.where(more >= TOP, middle, low)
        high = tl.where(more == TOP, middle + 1, tl.where(more > TOP, high, middle))
    spare = TOP - at_least(keys, held, found, low + 1, HELD)  # for those that are equal to it
    to = own * (INIT + TOP)
    entry = tl.arange(0, MOST)
    count = tl.minimum(INIT, index // SIZE + 1)
    tl.store(chosen + to + entry, entry, mask=entry < count)
    equal_before = 0
    for tile in range(tl.cdiv(found, HELD)):
        at = tile * HELD + tl.arange(0, HELD)
        key = tl.load(keys + at, mask=at < found, other=-1)
        equal = (key == low).to(tl.int32)
        equals = equal_before + tl.cumsum(equal, 0)
        seen = (key > low) | ((equal > 0) & (equals <= spare))
        place = count + tl.cumsum(seen.to(tl.int32), 0)
        tl.store(chosen + to + place - 1, tl.load(numbers + at, mask=seen, other=0), mask=seen)
        equal_before, count = tl.max(equals, 0), tl.max(place, 0)
    tl.store(counts + own, count)
    tl.debug_barrier()
    picked = tl.load(chosen + to + entry, mask=entry < count, other=0)
    tl.store(places + to + entry, tl.load(table + picked, mask=entry < count, other=0), mask=entry < count)


@triton.jit(do_not_specialize=COUNTED)
def near_kernel(
    q, keys, values, table, out, tops, norms, first, n, stride, group_stride, window, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The last `window` tokens of each query; where WHOLE that is all it sees, else what is not divided by its norm yet."""
    block, group = tl.program_id(0), tl.program_id(1)
    rows, row, step = load_queries(q, block, group, n, stride, GROUP, HEAD, ROWS)
    d = tl.arange(0, HEAD)[None, :]
    keys += group * group_stride
    values += group * group_stride
    acc = tl.zeros((ROWS, HEAD), tl.float32)
    top = tl.full((ROWS,), -1e30, tl.float32)
    norm = tl.zeros((ROWS,), tl.float32)
    index, early_step = first + step, first + block * ROWS // GROUP
    newest = first + tl.minimum((block * ROWS + ROWS - 1) // GROUP, n - 1)
    # Of the tiles those in the middle are seen whole by every query.
    low, high = tl.maximum(early_step - window + 1, 0) // KEYS, newest // KEYS + 1
    whole = tl.minimum(tl.cdiv(tl.maximum(newest - window + 1, 0), KEYS), high)
    partly = tl.minimum(tl.maximum((early_step + 1) // KEYS, whole), high)
    column = tl.arange(0, KEYS)
    for tile in range(whole, partly):
        token = tile * KEYS + column
        at = tl.load(table + token // SIZE).to(tl.int64) * SIZE + token % SIZE
        k, v = tl.load(keys + at[:, None] * HEAD + d), tl.load(values + at[:, None] * HEAD + d)
        acc, top, norm = attend_tile(rows, k, v, acc, top, norm, token, scale, False, PRECISION)
    early = whole - low
    for edge in range(0, early + high - partly):
        token = tl.where(edge < early, low + edge, partly + edge - early) * KEYS + column
        here = token <= newest
        at = tl.load(table + token // SIZE, mask=here, other=0).to(tl.int64) * SIZE + token % SIZE
        k = tl.load(keys + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        v = tl.load(values + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        age = index[:, None] - token[None, :]
        acc, top, norm = attend_tile(rows, k, v, acc, top, norm, (age >= 0) & (age < window), scale, True, PRECISION)
    total = n * GROUP
    to = step.to(tl.int64) * (tl.num_programs(1) * GROUP) + group * GROUP + row % GROUP
    real = row < total
    if WHOLE:
        acc = acc / tl.where(norm > 0, norm, 1.0)[:, None]
    else:
        tl.store(tops + to, top, mask=real)
        tl.store(norms + to, norm, mask=real)
    tl.store(out + to[:, None] * HEAD + d, acc.to(out.dtype.element_ty), mask=real[:, None])


@triton.jit(do_not_specialize=COUNTED)
def far_kernel(
    q, keys, values, chosen, places, counts, near, tops, norms, out, first, n, stride, group_stride, window, scale,
    GROUP: tl.constexpr, HEAD: tl.constexpr, SIZE: tl.constexpr, MOST: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The blocks that one query chose, after its last tokens: the whole attention."""
    step, group = tl.program_id(0), tl.program_id(1)
    index = first + step
    row = tl.arange(0, ROWS)
    real = row < GROUP
    d = tl.arange(0, HEAD)[None, :]
    head = group * GROUP + row
    rows = tl.load(q + step.to(tl.int64) * stride + head[:, None] * HEAD + d, mask=real[:, None], other=0.0)
    keys += group * group_stride
    values += group * group_stride
    to = step.to(tl.int64) * (tl.num_programs(1) * GROUP) + head
    acc = tl.load(near + to[:, None] * HEAD + d, mask=real[:, None], other=0.0)
    top = tl.load(tops + to, mask=real, other=-1e30)
    norm = tl.load(norms + to, mask=real, other=0.0)
    own = group * n + step
    count = tl.load(counts + own)
    chosen += own.to(tl.int64) * MOST
    places += own.to(tl.int64) * MOST
    column = tl.arange(0, KEYS)
    for tile in range(tl.cdiv(count * SIZE, KEYS)):
        flat = tile * KEYS + column
        entry = flat // SIZE
        here = entry < count
        at = tl.load(places + entry, mask=here, other=0).to(tl.int64) * SIZE + flat % SIZE
        k = tl.load(keys + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        v = tl.load(values + at[:, None] * HEAD + d, mask=here[:, None], other=0.0)
        number = tl.load(chosen + entry, mask=here, other=0)
        shown = here & (index - (number * SIZE + flat % SIZE) >= window)
        acc, top, norm = attend_tile(rows, k, v, acc, top, norm, shown[None, :] & real[:, None], scale, True, PRECISION)
    acc = acc / tl.where(norm > 0, norm, 1.0)[:, None]
    tl.store(out + to[:, None] * HEAD + d, acc.to(out.dtype.element_ty), mask=real[:, None])


def retrieve(q: Tensor, first: int, held: Held, policy: RetrievalPolicy) -> Tensor:
    """Attention of `q` [n, heads, head], the tokens from index `first` on, over what `held` keeps with them in it.

    The last axis of `q` and all of `held` are contiguous; heads of a group are a power of two. Returns [n, heads, head], as
    `model.ops.retrieval.retrieve`.
    """
    out = torch.empty(q.shape, device=q.device, dtype=q.dtype)
    start, stop = first, first + len(q)
    each = 4 * held.keys.shape[0] * (policy.ratio + 2) * max(1, held.pooled.shape[2])
    most = max(16, min(MOST, SHARES // each))
    while start < stop:
        end = policy.dense_len if start < policy.dense_len < stop else stop
        # Pieces of one size, or nearly so: kernels are compiled for how they are cut.
        pieces = triton.cdiv(end - start, most)
        end = min(end, start + 16 * triton.cdiv(triton.cdiv(end - start, pieces), 16))
        part = slice(start - first, end - first)
        _attend(q[part], start, held, policy, out[part])
        start = end
    return out


def _attend(q: Tensor, first: int, held: Held, policy: RetrievalPolicy, out: Tensor) -> None:
    n, heads, head = q.shape
    groups, device = held.keys.shape[0], q.device
    group, scale = heads // groups, head**-0.5 * LOG2E
    wide = q.dtype == torch.float32
    precision = "tf32x3" if wide else "tf32"
    sizes = {"GROUP": group, "HEAD": head, "PRECISION": precision}
    lines = max(16, min(32 if wide else 128, triton.next_power_of_2(n * group)))
    tiles = triton.cdiv(n * group, lines)
    dense = first < policy.dense_len
    window = EVER if dense else policy.window_size
    near = out if dense else torch.empty(n, heads, head, device=device)
    tops, norms = torch.empty(2, n, heads, device=device)
    group_stride = held.keys.stride(0)
    cut = NEAR[wide]
    near_kernel[(tiles, groups)](
        q, held.keys, held.values, held.table, near, tops, norms, first, n, q.stride(0), group_stride, window, scale,
        **sizes, SIZE=policy.block_size, ROWS=lines, KEYS=cut.keys, WHOLE=dense,
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    if dense:
        return
    chosen, places, counts = choose(q, first, held, policy)
    cut = FAR[wide]
    far_kernel[(n, groups)](
        q, held.keys, held.values, chosen, places, counts, near, tops, norms, out, first, n, q.stride(0),
        group_stride, window, scale, **sizes, SIZE=policy.block_size, MOST=chosen.shape[-1],
        ROWS=max(16, group), KEYS=cut.keys, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


def choose(q: Tensor, first: int, held: Held, policy: RetrievalPolicy) -> tuple[Tensor, Tensor, Tensor]:
    """Which blocks each of `q` [n, heads, head] from `first` on sees beside the last tokens.

    Returns their numbers in order and their places in the pool, both int32 [groups, n, init_blocks + topk], and how many of
    these are meant, int32 [groups, n].
    """
    n, groups, device = len(q), held.keys.shape[0], q.device
    chosen, places = torch.empty(2, groups, n, policy.init_blocks + policy.topk, device=device, dtype=torch.int32)
    counts = torch.empty(groups, n, device=device, dtype=torch.int32)
    shares = score(q, first, held, policy)
    segments = triton.next_power_of_2(policy.topk)
    room = shares.shape[-1]
    likely = torch.empty(groups, n, 2, room, device=device, dtype=torch.int32)
    choose_kernel[(n, groups)](
        shares, held.table, likely, chosen, places, counts, first, n, room, policy.window_size,
        SIZE=policy.block_size, KERNEL=policy.kernel_size, STRIDE=policy.kernel_stride, INIT=policy.init_blocks,
        TOP=policy.topk, SEGMENTS=segments, MOST=triton.next_power_of_2(chosen.shape[-1]), TILE=max(TILE, segments),
        HELD=TILE, num_warps=1, maxnreg=REGISTERS,
    )  # fmt: skip
    return chosen, places, counts
