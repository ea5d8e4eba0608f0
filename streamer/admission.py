"""Whether one more stream is taken on: a source that opens, a slot for its memory, and time for its frames."""

from __future__ import annotations

import asyncio

from capture import Source, SourceError
from streamer.config import LimitsConfig, StreamConfig, WebRtcConfig
from streamer.engine.engine import Engine
from streamer.engine.stream import Stream, configured_source
from streamer.errors import AssistantError

MANY, CORES = 4, 8
"""Streams and cores from which on they are decoded beside the engine's process, whose thread would wait for theirs."""
SPARED = 2
"""Cores that are left to the engine and the rest of the daemon."""


def reading_processes(asked: int | None, streams: int, cores: int) -> int:
    """How many processes at most read the sources of so many streams; 0 is none, `asked` what the configuration says."""
    if asked is not None:
        return asked
    return cores - SPARED if streams >= MANY and cores >= CORES else 0


async def opened(config: StreamConfig, webrtc: WebRtcConfig, *, kept: bool, readers: int = 0) -> Source:
    """A configured stream's source; `kept` says that there is a state folder. See `SourceOptions.readers`.

    Raises AssistantError: bad_source, bad_option for what is to be recorded where nothing is kept.
    """
    if config.record and not kept:
        raise AssistantError(
            "bad_option",
            f"Stream {config.name!r} is to be recorded, but nothing is kept: name storage.folder, or leave out record.",
        )
    try:
        return await asyncio.to_thread(configured_source, config, webrtc, readers)
    except SourceError as error:
        raise AssistantError("bad_source", f"Stream {config.name!r} can't be watched: {error}") from None


async def full(engine: Engine, most: int) -> str:
    """Says that all slots for streams are taken, and whether memory has room for more."""
    runner = engine.runner
    each, more = runner.state_bytes / 1e6, await asyncio.wrap_future(engine.call(lambda: runner.more_slots))
    mend = (
        "or raise limits.streams."
        if more is None
        else f"or raise limits.streams: free memory holds {more} more."
        if more
        else "or, as free memory holds no slot more, raise limits.streams and lower limits.answers by as many."
    )
    return f"All {most} slots for streams are taken, 1 of {each:.1f} MB is missing: detach a stream {mend}"


async def admit(engine: Engine, limits: LimitsConfig, stream: Stream) -> None:
    """Refuses a stream that the device has no time for, where admission is by measured cost.

    Raises AssistantError: too_many_frames.
    """
    if limits.admission == "slots" or stream.terms.every:
        return
    capacity, demand = await asyncio.wrap_future(engine.load())
    missing = demand + stream.expected_rate - capacity
    if missing > 0:
        raise AssistantError(
            "too_many_frames",
            f"The device sees {capacity:.0f} frames a second, streams bring {demand:.0f}, and {stream.name!r} would "
            f"bring {stream.expected_rate:.0f}: {missing:.0f} are missing. Detach a stream, set a lower fps, or set "
            "limits.admission to slots.",
        )
