"""`push://NAME`: frames that a program or a client hands in."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace

import numpy as np

from capture.image import decode_image
from capture.source import SourceError, SourceOptions
from capture.sources.base import SourceShell


class PushSource(SourceShell):
    """Waits, as long as it takes, for whoever pushes; whoever falls silent makes it stall, and may go on at any time."""

    def __init__(self, url: str, options: SourceOptions) -> None:
        patient = replace(options.patience, open=math.inf, give_up=math.inf)
        super().__init__(url, replace(options, patience=patient), endless=True, live=True)
        self.pushing = threading.Lock()

    def open(self, generation: int) -> None:
        """See `SourceShell.open`: the pusher brings its own thread."""
        self.lifecycle.reason = "waits for the first pushed frame"

    def push(self, pixels: np.ndarray, timestamp: float | None = None) -> None:
        """Takes one frame, uint8 [H, W, 3] RGB, with its time in seconds of the pusher's clock; copies it and never waits.

        Raises SourceError for anything else. A full mailbox drops a frame, which is counted there.
        """
        pixels = np.asarray(pixels)  # a picture of another library, or what is none
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise SourceError(
                f"a pushed frame must be uint8 [height, width, 3] RGB, not {pixels.dtype} {list(pixels.shape)}"
            )
        if timestamp is not None and not math.isfinite(timestamp):
            raise SourceError(f"a pushed frame's timestamp must be a number of seconds, not {timestamp}")
        with self.pushing:
            generation, now = self.lifecycle.generation, time.monotonic()
            self.deliver(generation, lambda: np.array(pixels, order="C"), timestamp, now, waits=False)

    def push_jpeg(self, data: bytes, timestamp: float | None = None) -> None:
        """Takes one frame as a JPEG or another picture's file; decodes in the caller's thread. Raises SourceError as `push` does."""
        self.push(decode_image(data, self.options.largest_side), timestamp)
