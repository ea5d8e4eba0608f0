"""Watches of a running daemon over the wire: what `streamer.client` can do with them, with and without an event loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Feedback = Literal["right", "false_alarm"]
NEWS = frozenset({"started", "ended", "changed", "evidence", "described", "missed"})
"""What is told of watches unasked, after `watch.`."""


class AsyncWatching(ABC):
    """The calls about watches. All raise ClientError."""

    @abstractmethod
    async def _request(self, kind: str, reply: str, **fields: Any) -> dict[str, Any]: ...

    @abstractmethod
    def _told(self) -> AsyncGenerator[dict[str, Any], None]: ...

    async def add_watch(
        self, name: str, question: str, *, streams: Sequence[str] = (), **options: Any
    ) -> dict[str, Any]:
        """Asks a question again and again; with one stream, its name may be left out.

        `options` are the keys of a configured watch, such as `when="both"`, `hold=2` or `only=[0, 0, 0.5, 1]`. Returns its facts.
        """
        watch = {"name": name, "question": question, "streams": list(streams), **options}
        made: dict[str, Any] = (await self._request("watch.add", "watch.added", watch=watch))["watch"]
        return made

    async def watches(self) -> list[dict[str, Any]]:
        """One dictionary a watch: its keys, and what it knows of each of its `streams`."""
        watches: list[dict[str, Any]] = (await self._request("watch.list", "watch.listed"))["watches"]
        return watches

    async def change_watch(
        self, name: str, *, paused: bool | None = None, snooze: float | None = None, **options: Any
    ) -> dict[str, Any]:
        """Looks no more, or again; tells nothing for `snooze` seconds, 0 ends that; or has other `options`. Returns the watch's facts."""
        said = {"paused": paused, "snooze": snooze, "watch": options or None}
        given = {key: value for key, value in said.items() if value is not None}
        changed: dict[str, Any] = (await self._request("watch.update", "watch.updated", name=name, **given))["watch"]
        return changed

    async def remove_watch(self, name: str) -> None:
        """Ends a watch; its events stay."""
        await self._request("watch.remove", "watch.removed", name=name)

    async def mark(self, event: str, feedback: Feedback | None) -> None:
        """Says whether the event of this id was right or a false alarm; None takes it back."""
        await self._request("watch.feedback", "watch.judged", id=event, feedback=feedback)

    async def watch_events(self, after: str | None = None) -> AsyncGenerator[dict[str, Any], None]:
        """What watches tell, as it happens: `watch.started`, `.ended`, `.changed`, `.evidence`, `.described`.

        First whatever was told after the event whose id `after` is. A `watch.missed` says how many a slow reader has not heard.
        """
        given = {} if after is None else {"after": after}
        told = self._told()
        await self._request("watch.subscribe", "watch.subscribed", **given)
        async for event in told:
            yield event


class Watching(ABC):
    """The same calls, blocking."""

    @property
    @abstractmethod
    def _calls(self) -> AsyncWatching: ...

    @abstractmethod
    def _run(self, call: Callable[[], Awaitable[T]]) -> T: ...

    @abstractmethod
    def _each(self, items: AsyncGenerator[T, None]) -> Iterator[T]: ...

    def add_watch(self, name: str, question: str, **options: Any) -> dict[str, Any]:
        """As `AsyncWatching.add_watch`."""
        return self._run(lambda: self._calls.add_watch(name, question, **options))

    def watches(self) -> list[dict[str, Any]]:
        """As `AsyncWatching.watches`."""
        return self._run(lambda: self._calls.watches())

    def change_watch(self, name: str, **options: Any) -> dict[str, Any]:
        """As `AsyncWatching.change_watch`."""
        return self._run(lambda: self._calls.change_watch(name, **options))

    def remove_watch(self, name: str) -> None:
        """As `AsyncWatching.remove_watch`."""
        self._run(lambda: self._calls.remove_watch(name))

    def mark(self, event: str, feedback: Feedback | None) -> None:
        """As `AsyncWatching.mark`."""
        self._run(lambda: self._calls.mark(event, feedback))

    def watch_events(self, after: str | None = None) -> Iterator[dict[str, Any]]:
        """As `AsyncWatching.watch_events`; waits for each."""
        return self._each(self._calls.watch_events(after))
