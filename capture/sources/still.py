"""A still's URL, as half of all surveillance cameras have one: asked for again and again; one that moves is a recording."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import numpy as np

from capture.image import decode_image, moves
from capture.lifecycle import PLAYED
from capture.source import SourceError
from capture.sources.base import Over, SourceShell
from capture.sources.picture import play

STILL_RATE = 1.0
"""Pictures a second that are asked for where nothing else is configured."""
MOST_BYTES = 32 * 2**20


class StillPoll:
    """Hands over a still, and asks for the next one a period after the last was asked for.

    What the server says is unchanged (304, to the ETag or date of the last answer), or comes as the same bytes, is handed over
    as it was, without being decoded again: so is seen that the camera is there, and that its picture is frozen.
    """

    def __init__(self, source: SourceShell, generation: int) -> None:
        self.source, self.generation = source, generation
        self.period = 1 / (source.options.fps or STILL_RATE)
        self.asked = time.monotonic()
        self.data = b""
        self.pixels: np.ndarray | None = None
        self.conditions: dict[str, str] = {}
        self.failing: float | None = None
        """Since when, monotonic, no answer was a picture."""

    def wait(self) -> bool:
        """Waits until the next still is due; whether it is wanted then."""
        now = time.monotonic()
        self.asked = max(self.asked + self.period, now)
        with self.source.held(self.generation):
            over = self.source.ended.wait(self.asked - now)
        return not over and self.source.wanted(self.generation)

    def take(self, answer: httpx.Response, chunks: Iterator[bytes]) -> bool:
        """Hands over what an answer brings; whether more is wanted."""
        arrived = time.monotonic()
        self.source.lifecycle.heard(self.generation, arrived)
        if answer.status_code != httpx.codes.NOT_MODIFIED:
            data = bytearray()
            for chunk in chunks:
                data += chunk
                if len(data) > MOST_BYTES:
                    raise SourceError(f"its pictures have more than {MOST_BYTES >> 20} MiB: ask for smaller ones")
                if not self.source.wanted(self.generation):
                    return False
            if data != self.data:
                self.data, self.pixels = bytes(data), None
                if moves(self.data):
                    play(self.source, self.generation, self.data)
                    raise Over(PLAYED)
            said = {
                "If-None-Match": answer.headers.get("ETag"),
                "If-Modified-Since": answer.headers.get("Last-Modified"),
            }
            self.conditions = {name: value for name, value in said.items() if value}
        try:
            wanted = self.source.deliver(self.generation, self.picture, None, arrived)
        except SourceError as error:
            self.source.damaged += 1
            self.conditions = {}
            self.failing = arrived if self.failing is None else self.failing
            if arrived - self.failing >= self.source.options.patience.stall:
                # Not told by the lifecycle, for which no time passes between two stills.
                raise SourceError(f"its answers are no pictures any more: {error}") from None
            return True
        self.failing = None
        return wanted

    def picture(self) -> np.ndarray:
        """The last still as uint8 [H, W, 3] RGB."""
        if self.pixels is None:
            self.pixels = decode_image(self.data, self.source.options.largest_side)
        return self.pixels
