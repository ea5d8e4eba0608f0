"""How fast a long recording is read and asked at 4B sizes on a GPU: InfiniteVL-Offline, Base, and a transformer of those sizes.

`python -m tests.model.offline_speed [--lengths 65536 131072 262144] [--piece 8192]`; random weights, decoder only, bf16. The floor is the
products alone of the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from model.config import PRESETS, AttentionPolicy
from model.families.infinitevl import InfiniteVL
from model.policy import RetrievalPolicy
from model.serving.cursor_kernels import text_span
from model.serving.fused import FastInfiniteVL
from model.serving.growing import Growing
from model.serving.random_weights import random_config, random_model
from model.state import StreamState


class Words:
    """A stream's opening, and no words around grids."""

    opening: Sequence[int] = (5,)
    after: Sequence[int] = ()

    def before(self, seconds: float) -> list[int]:
        return []


def timed(do: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    do()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def reading(
    policy: AttentionPolicy, lengths: list[int], piece: int
) -> tuple[list[float], list[float], dict[str, float]]:
    """Seconds until each of `lengths` tokens are read; milliseconds of tokens at the end; where the last piece's time goes."""
    model: InfiniteVL = random_model(random_config("4b", policy=policy), "cuda", torch.bfloat16)
    state = StreamState.allocate(model.config, 2, "cuda", torch.bfloat16)
    fast = FastInfiniteVL(model)
    way = Growing(fast, Words(), state) if state.pages is not None else None
    slots, table = torch.tensor([0], device="cuda"), model.model.embed_tokens.weight
    counts = torch.tensor([piece], device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)

    def add() -> None:
        words = torch.randint(10, 100_000, (1, piece), device="cuda", generator=generator)
        with nullcontext() if way is None else way.extending(0, piece):
            span, x = text_span(words, table, state, slots, counts)
            fast.advance(x, span, state, outputs=False)

    marks: list[float] = []
    for _ in range(2):  # the first time compiles
        state.reset(0)
        done, seconds, marks = 0, 0.0, []
        for length in lengths:

            def on(length: int = length) -> None:
                nonlocal done
                while done < length:
                    add()
                    done += piece

            seconds += timed(on)
            marks.append(seconds)
    tokens: list[float] = []
    if way is not None:
        for _ in range(30):
            tokens.append(1000 * timed(lambda: way.read([0], [[77]])))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        add()
        torch.cuda.synchronize()
    parts: dict[str, float] = {}
    for event in profile.key_averages():
        parts[event.key[:40]] = event.device_time_total / 1000
    return marks, tokens[5:], dict(sorted(parts.items(), key=lambda item: -item[1])[:14])


def transformer(lengths: list[int], piece: int) -> list[float]:
    """A decoder of 36 attention layers of the same widths: its products and flash attention, nothing between them."""
    config = PRESETS["4b"].decoder
    width, heads, groups, head, inner = config.hidden_size, 16, 2, 128, config.intermediate_size
    weights = [
        torch.randn(a, b, device="cuda", dtype=torch.bfloat16) * 0.02
        for a, b in ((width, (heads + 2 * groups) * head), (heads * head, width), (width, 2 * inner), (inner, width))
    ]
    x = torch.randn(piece, width, device="cuda", dtype=torch.bfloat16)
    keys = torch.randn(1, groups, lengths[-1], head, device="cuda", dtype=torch.bfloat16)
    marks, seconds, done = [], 0.0, 0

    def layer(stop: int) -> None:
        q = (x @ weights[0])[:, : heads * head].view(piece, heads, head).transpose(0, 1)[None]
        k: Tensor = keys[:, :, :stop]
        mixed = F.scaled_dot_product_attention(q, k, k, causal_lower_right(piece, stop), enable_gqa=True)
        y = mixed[0].transpose(0, 1).reshape(piece, -1) @ weights[1]
        (y @ weights[2])[:, :inner] @ weights[3]

    layer(piece)
    for length in lengths:

        def on(length: int = length) -> None:
            nonlocal done
            while done < length:
                done += piece
                layer(done)

        seconds += 36 * timed(on)
        marks.append(seconds)
    return marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[65_536, 131_072, 262_144])
    parser.add_argument("--piece", type=int, default=8_192)
    parser.add_argument("--only", choices=["offline", "base", "transformer"])
    options = parser.parse_args()
    lengths, piece = options.lengths, options.piece
    with torch.inference_mode():
        if options.only in (None, "offline"):
            marks, tokens, parts = reading(RetrievalPolicy(context=2 * lengths[-1]), lengths, piece)
            print(
                "offline", [f"{x:.2f}" for x in marks], "s; a token", f"{statistics.median(tokens):.2f} ms", flush=True
            )
            print("  last piece, ms:", {key: round(value, 2) for key, value in parts.items()}, flush=True)
        torch.cuda.empty_cache()
        if options.only in (None, "base"):
            base = AttentionPolicy(sinks=0, window=None, context=lengths[-1] + 4 * piece)
            marks, _, _ = reading(base, lengths, piece)
            print("base", [f"{x:.2f}" for x in marks], "s", flush=True)
        torch.cuda.empty_cache()
        if options.only in (None, "transformer"):
            print("transformer", [f"{x:.2f}" for x in transformer(lengths, piece)], "s", flush=True)
    print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
