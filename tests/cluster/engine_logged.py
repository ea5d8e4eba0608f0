"""An engine that writes down every frame that it takes into a stream's state: `python -m tests.cluster.engine_logged FILE`.

A line a frame: the machine's monotonic clock, which all its processes share, the process, the stream, the frame's number, and the
epoch in which the engine has the stream.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from streamer.cluster.engine import main
from streamer.cluster.holder import Holder
from streamer.engine.stream import Stream

LOG = Path(sys.argv[1]).open("a", buffering=1)  # noqa: SIM115 - for as long as the process lives
HOLDERS: list[Holder] = []
saw, began = Stream.saw, Holder.begin


def logged(self: Stream, frames: Any, now: float) -> None:
    saw(self, frames, now)
    epoch = HOLDERS[0]._seen.get(self.name, 0)
    for frame in frames:
        LOG.write(f"{time.monotonic():.6f} {os.getpid()} {self.name} {frame.sequence} {epoch}\n")


def begin(self: Holder) -> None:
    HOLDERS.append(self)
    began(self)


if __name__ == "__main__":
    Stream.saw, Holder.begin = logged, begin  # type: ignore[method-assign]
    sys.exit(main())
