"""Which stream of a card work goes to: a model's steps have one of their own, whichever thread adds to them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

BESIDE = -2
"""Priority of the streams that copies beside the steps have.

PyTorch hands out 32 streams of a priority in turn, for ever. One of the usual priority may be that in which graphs are captured,
where nothing else may go meanwhile; one of the steps' may be theirs.
"""


@cache
def steps() -> torch.cuda.Stream:
    """The stream of this process's models: decoders have the default one, and what waits for a picture must not wait for steps."""
    return torch.cuda.Stream(priority=-1)


def in_line(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """While this lasts, work goes to a stream. Without one, on a CPU, nothing is asked of PyTorch, which would begin CUDA."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)
