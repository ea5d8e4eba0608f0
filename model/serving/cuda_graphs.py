"""One CUDA graph per shape: frame steps, questions and decoding over a fixed pool of slots, replayed with one copy in, one out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.families.family import Framing
from model.preprocess import arrange, fit_all
from model.serving.backends import Encoding, Finite, Grid, Pictures, step_text
from model.serving.fused import FastInfiniteVL
from model.state import StreamState

DECODE_BATCHES = (1, 2, 4, 8, 16)
QUESTION_LENGTHS = (16, 32, 64, 128, 256)
FRAME_BATCHES = 8

Call = Callable[[Tensor], tuple[Tensor, ...]]


class Step:
    """A call captured at fixed shapes. Its small inputs are one int64 tensor, `words`, that `run` copies in from pinned memory."""

    def __init__(self, call: Call, words: Tensor, pool: Any) -> None:
        self.host = words.clone().pin_memory()
        self.copied = torch.cuda.Event()
        self.words = words.cuda()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            call(self.words)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # Another thread may be fitting pictures meanwhile, which is none of this capture's business.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.outputs = call(self.words)

    def run(self, words: Tensor) -> tuple[Tensor, ...]:
        """Replays with `words` int64, of the shape captured; read what it returns before the next run of any step.

        Where a run before has not begun on the device yet, the host waits until it has.
        """
        self.copied.synchronize()
        self.host.copy_(words)
        self.words.copy_(self.host, non_blocking=True)
        self.copied.record()
        self.graph.replay()
        return self.outputs


class Fitted(NamedTuple):
    """Pictures on the card, uint8 [streams, frames, 3, H, W], once `ready` has come to pass there."""

    pixels: Tensor
    ready: torch.cuda.Event


class Graphs:
    """The model's calls as graphs, captured when first needed: a `Backend`. The state's last slot takes what padding writes."""

    frame_sizes: Sequence[int] = range(1, FRAME_BATCHES + 1)
    most_steps = 1
    deferred = True

    def __init__(self, model: FastInfiniteVL, framing: Framing, state: StreamState) -> None:
        self.model, self.framing, self.state, self.config = model, framing, state, model.config
        self.spare = state.slots - 1
        self.pool = torch.cuda.graph_pool_handle()
        self.steps: dict[tuple[int, ...], Step] = {}
        self.pixels: dict[tuple[int, ...], Tensor] = {}
        self.aside = torch.cuda.Stream()

    @property
    def made(self) -> int:
        """See `Backend.made`."""
        return len(self.steps)

    def frame_step(self, batch: int, grid: Grid) -> Step:
        """The step of `batch` streams whose frames lie in `self.pixels` at the same key, uint8 [batch, frames, 3, H, W].

        Words are [slots, seconds, and where a step has text: how many tokens before the grid, how many in all, tokens…].
        """
        key = (batch, *grid)
        if key not in self.steps:
            patch = self.config.vision.patch_size
            shape = (batch, self.config.frames_per_step, 3, grid[0] * patch, grid[1] * patch)
            pixels = self.pixels[key] = torch.zeros(shape, dtype=torch.uint8, device="cuda")
            dtype, told = self.state.dtype, self.config.step_text

            def call(words: Tensor) -> tuple[Tensor, ...]:
                slots, seconds, text = words[0], words[1].view(torch.float64), words[2:].T if told else None
                self.model.see(arrange(self.config, pixels, dtype), grid, seconds, self.state, slots, text)
                return (self.state.finite(slots),)

            words = torch.zeros(4 + told if told else 2, batch, dtype=torch.int64)
            words[0] = self.spare
            self.steps[key] = Step(call, words, self.pool)
        return self.steps[key]

    def read_step(self, batch: int, length: int) -> Step:
        """The step that reads `length` tokens into each of `batch` slots; words are [slots, counts, tokens…]."""
        key = (batch, length)
        if key not in self.steps:

            def call(words: Tensor) -> tuple[Tensor, ...]:
                logits = self.model.read(words[2:].T.contiguous(), self.state, words[0], words[1])
                return logits.argmax(-1), logits

            words = torch.zeros(2 + length, batch, dtype=torch.int64)
            words[0] = self.spare
            self.steps[key] = Step(call, words, self.pool)
        return self.steps[key]

    def open(self, slot: int) -> None:
        """See `Backend.open`."""
        self.read([slot], [list(self.framing.opening)])
        self.state.begin(torch.tensor([slot], device="cuda"))

    def encode(self, pictures: Pictures, grid: Grid) -> Fitted:
        """See `Backend.encode`: fits the pictures on a stream of their own, beside the step that runs meanwhile.

        The vision tower is in the graph of the step.
        """
        frames = self.config.frames_per_step
        every = [some[min(i, len(some) - 1)] for some in pictures for i in range(frames)]
        with torch.cuda.stream(self.aside):
            pixels = fit_all(self.config, every, grid, "cuda").unflatten(0, (-1, frames))
            ready = torch.cuda.Event()
            ready.record()
        return Fitted(pixels, ready)

    def ingest(self, slots: Sequence[int], encoding: Encoding, seconds: Sequence[float], grid: Grid) -> Finite:
        """See `Backend.ingest`; more than `FRAME_BATCHES` streams go in several steps."""
        assert isinstance(encoding, Fitted)
        torch.cuda.current_stream().wait_event(encoding.ready)
        finite: list[bool] = []
        told: Finite = list
        for first in range(0, len(slots), FRAME_BATCHES):
            finite += told()
            part = slice(first, first + FRAME_BATCHES)
            batch = len(slots[part])
            step = self.frame_step(batch, grid)
            self.pixels[(batch, *grid)].copy_(encoding.pixels[part])
            times = torch.tensor(seconds[part], dtype=torch.float64).view(torch.int64)
            words, text = (
                torch.stack((torch.tensor(slots[part]), times)),
                step_text(self.framing, self.config, seconds[part]),
            )
            words = words if text is None else torch.cat((words, text.T))
            told = to_be_told(step.run(words)[0])

        def end(pixels: Tensor = encoding.pixels) -> list[bool]:
            # Only when the step has ended may the pictures' memory go back to their own stream.
            return finite + told()

        return end

    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """See `Backend.read`; one slot may be given more tokens than a step holds."""
        longest = max(len(part) for part in tokens)
        room = self.config.step_tokens
        if longest > room:
            assert len(slots) == 1
            for first in range(0, longest, room):
                result = self.read(slots, [tokens[0][first : first + room]])
            return result
        batch = next(size for size in (*DECODE_BATCHES, len(slots)) if size >= len(slots))
        length = (
            1 if longest == 1 else min(room, next(size for size in (*QUESTION_LENGTHS, longest) if size >= longest))
        )
        words = torch.zeros(2 + length, batch, dtype=torch.int64)
        words[0] = self.spare
        for column, (slot, part) in enumerate(zip(slots, tokens, strict=True)):
            words[0, column], words[1, column] = slot, len(part)
            words[2 : 2 + len(part), column] = torch.tensor(part)
        greedy, logits = self.read_step(batch, length).run(words)
        return greedy[: len(slots)], logits[: len(slots)]


def to_be_told(finite: Tensor) -> Finite:
    """What a step that was just begun tells of its streams, bool [streams], at its end.

    It is waited for by an event: while a thread waits in a copy to memory that is not pinned, no other thread's work gets to the
    card. Memory and event are of this step alone, as the next may have begun behind it.
    """
    told = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True)
    told.copy_(finite, non_blocking=True)
    ended = torch.cuda.Event()
    ended.record()

    def wait() -> list[bool]:
        ended.synchronize()
        every: list[bool] = told.tolist()
        return every

    return wait
