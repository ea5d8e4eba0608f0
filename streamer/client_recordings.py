"""Recordings of a running daemon over the wire: what `streamer.client` can do with them, with and without an event loop."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

T = TypeVar("T")


class AsyncRecorded(ABC):
    """The calls about recordings. All raise ClientError."""

    @abstractmethod
    async def _fetch(
        self, path: str, method: str = "GET", body: Mapping[str, Any] | Path | None = None, **query: str | None
    ) -> bytes: ...

    async def recordings(self) -> list[dict[str, Any]]:
        """One dictionary a recording: name, state (waiting, reading, ready, broken off), seconds (read) of (all), bytes, note, …"""
        told: dict[str, Any] = json.loads(await self._fetch("recordings"))
        recordings: list[dict[str, Any]] = told["recordings"]
        return recordings

    async def index(self, video: str | Path, *, name: str | None = None, fps: float = 2.0) -> dict[str, Any]:
        """Sends a video file, which the daemon begins to read; the recording's facts. Raises OSError too."""
        path = Path(video)
        told = await self._fetch("recordings", "POST", path, name=name or path.name, fps=f"{fps:g}")
        facts: dict[str, Any] = json.loads(told)
        return facts

    async def index_stream(self, stream: str, since: str, until: str = "now", *, fps: float = 2.0) -> dict[str, Any]:
        """Has the daemon read what it recorded of a stream, from one moment to another; the recording's facts."""
        span = {"stream": stream, "from": since, "to": until, "fps": fps}
        facts: dict[str, Any] = json.loads(await self._fetch("recordings", "POST", span))
        return facts

    async def remove_recording(self, name: str) -> None:
        """Removes a recording's index, and the file that was sent."""
        await self._fetch(f"recordings/{quote(name, safe='')}", "DELETE")


class Recorded(ABC):
    """The same calls, blocking."""

    @property
    @abstractmethod
    def _calls(self) -> AsyncRecorded: ...

    @abstractmethod
    def _run(self, call: Callable[[], Awaitable[T]]) -> T: ...

    def recordings(self) -> list[dict[str, Any]]:
        """As `AsyncRecorded.recordings`."""
        return self._run(self._calls.recordings)

    def index(self, video: str | Path, **options: Any) -> dict[str, Any]:
        """As `AsyncRecorded.index`."""
        return self._run(lambda: self._calls.index(video, **options))

    def index_stream(self, stream: str, since: str, until: str = "now", *, fps: float = 2.0) -> dict[str, Any]:
        """As `AsyncRecorded.index_stream`."""
        return self._run(lambda: self._calls.index_stream(stream, since, until, fps=fps))

    def remove_recording(self, name: str) -> None:
        """As `AsyncRecorded.remove_recording`."""
        self._run(lambda: self._calls.remove_recording(name))
