"""How streams come from another process and go to one: each is seen by one of them at a time, and what it knows goes along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from streamer.config import StreamConfig
from streamer.engine.answer import Answer
from streamer.engine.stream import StreamStatus
from streamer.errors import AssistantError
from streamer.memory.keeper import Keeper
from streamer.streams import Streams

ALONE = ("push", "whip", "camera", "v4l2")
"""Schemes of sources that only one process can have."""
BEGUN_SECONDS = 1.0
"""How long a stream that goes is kept for questions about it that have not been read yet."""
LOOK_SECONDS = 0.005


class Handover:
    """Everything is called on the assistant's event loop."""

    def __init__(
        self,
        streams: Streams,
        answers: Mapping[str, Answer],
        cancel: Callable[[Answer], None],
        keeper: Callable[[], Keeper | None],
        trouble: Callable[[], str | None],
    ) -> None:
        """`answers` are those that are open, by id; `trouble` says why nothing can be attached."""
        self._streams, self._answers, self._cancel = streams, answers, cancel
        self._keeper, self._trouble = keeper, trouble

    def lease(self, lasts: Callable[[], bool]) -> None:
        """Has streams that come from now on seen for as long as it `lasts`, which the engine's thread asks too."""
        self._streams.lasts = lasts

    async def prepare(self, config: StreamConfig, seconds: float) -> bool:
        """Opens the source of a stream that will come, while another process still sees it; whether it brought a picture in time.

        None of its frames are seen before `take_over`. Raises AssistantError: bad_source.
        """
        scheme = config.source.partition(":")[0].lower()
        if scheme in ALONE or config.record or config.policy == "every" or config.name in self._streams:
            return False
        stream = await self._streams.prepare(config)
        end = asyncio.get_running_loop().time() + seconds
        while not stream.mailbox.received and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(LOOK_SECONDS)
        if not stream.mailbox.received:
            await self.unprepare(config.name)
            return False
        return True

    async def unprepare(self, name: str) -> None:
        """Closes what `prepare` opened, where the stream has not come."""
        await self._streams.unprepare(name)

    async def take_over(self, config: StreamConfig) -> StreamStatus:
        """Watches a stream that another process watched before, with the memory of it that is kept here.

        It is not watched after a restart: whoever shares streams out says so again. Raises AssistantError as `Assistant.attach`.
        """
        if (trouble := self._trouble()) is not None:
            raise AssistantError("not_ready", f"No stream can be attached now: {trouble}.")
        return await self._streams.attach(config)

    async def hand_over(self, name: str) -> None:
        """Lets a stream go with a snapshot of all that it has seen. Its answers that have begun go on here.

        Raises AssistantError: unknown_stream.
        """
        stream, keeper = self._streams.named(name), self._keeper()
        await self._begun(name)
        if keeper is not None:
            await keeper.take_last(stream)
        await self.let_go(name)

    async def let_go(self, name: str) -> None:
        """Ends a stream for another process to watch; what is kept of it stays. Raises AssistantError: unknown_stream."""
        await self._streams.detach(name, waits=False)

    def hush(self) -> None:
        """Ends the open answers about streams as cancelled, those too that have gone elsewhere meanwhile."""
        for answer in [each for each in self._answers.values() if each.stream]:
            self._cancel(answer)

    async def _begun(self, name: str) -> None:
        """Waits until a stream's questions have been read; those that are not in time end as cancelled."""

        def waiting() -> list[Answer]:
            mine = [each for each in self._answers.values() if each.stream == name and each.moment is None]
            return [each for each in mine if each.usage.first_token_s is None]

        end = asyncio.get_running_loop().time() + BEGUN_SECONDS
        while waiting() and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(LOOK_SECONDS)
        for answer in waiting():
            self._cancel(answer)
