"""Frame steps between their decision and their end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from capture import Frame
from model.serving.runner import Encoded
from streamer.engine.decisions import FrameStep
from streamer.engine.stream import Stream

Batch = list[tuple[Stream, tuple[Frame, ...]]]
Looked = Future[tuple[Encoded, float]]
"""What was seen in the pictures of a step, and the seconds that this took."""


@dataclass
class Looking:
    """A frame step whose pictures are being looked at, on another thread, which takes so many seconds.

    `submitted` is the time on the clock, `began` the same less the seconds that answers had taken by then.
    """

    step: FrameStep[Frame]
    batch: Batch
    submitted: float
    began: float
    looked: Looked


@dataclass
class Running:
    """A frame step that runs on a device beside the host since `began`; `end` waits for it.

    The next one is decided at `due`: as late as leaves time to look at it and to begin it, so that what comes until then can
    share it.
    """

    looking: Looking
    end: Callable[[], None]
    began: float
    due: float


def pictures(batch: Batch) -> list[list[np.ndarray]]:
    """The pixels of a batch's frames, as the runner takes them."""
    return [[frame.pixels for frame in frames] for _, frames in batch]
