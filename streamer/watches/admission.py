"""Whether a watch can be made now: whether the device has time for it, and the model an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from model import ConfigError as ModelConfigError
from model.serving.grammar import Grammar
from protocols.question import Question
from streamer.engine.engine import Engine
from streamer.engine.shown import part
from streamer.errors import AssistantError
from streamer.watch_config import WatchConfig
from streamer.watches.asked import question_of
from streamer.watches.post import SURE

Tokens = Callable[[Question], list[int]]
Compile = Callable[[Question], Awaitable[Grammar | None]]


async def admit(engine: Engine, config: WatchConfig, others: int) -> None:
    """Raises AssistantError where the device has no time for a look as often as is wanted, beside frames and other looks."""
    if config.when == "changes":
        return
    scheduler, more = engine.scheduler, len(config.streams)

    def load() -> tuple[float, float]:
        frames, most = scheduler.demand() / scheduler.capacity(), scheduler.answer_slots
        return frames + scheduler.looks.load(most), frames + scheduler.looks.load(most, more, config.every)

    now, then = await asyncio.wrap_future(engine.call(load))
    if then > 1 and others:
        raise AssistantError(
            "too_many_watches",
            f"Watch {config.name!r} would have the device work {then:.0%} of its time, {now:.0%} is taken by frames and "
            f"{others} looks of other watches: raise every ({config.every:g} s), or remove a watch.",
        )


async def try_out(engine: Engine, config: WatchConfig, tokens: Tokens, compile: Compile) -> None:
    """Raises AssistantError where the model, asked now, answers with neither yes nor no, or can't keep to the format."""
    if config.when == "changes":
        await compile(question_of(config, config.streams[0]))
        return
    runner, executor = engine.runner, engine.executor
    asked = tokens(Question(config.question, config.streams[0]))

    def look() -> float:
        stream = executor.streams.get(config.streams[0])
        if stream is None or stream.newest is None or not stream.opened or not executor.free_answers:
            return 1.0
        shown = None if config.only is None else part(stream.newest.pixels, config.only)
        return runner.judge(stream.slot, executor.free_answers[-1:], [asked], [shown])[0].sure

    try:
        sure = await asyncio.wrap_future(engine.call(look))
    except ModelConfigError as error:
        raise AssistantError("no_yes_or_no", f"No yes and no here: {error}.") from None
    if sure < SURE:
        raise AssistantError(
            "no_yes_or_no",
            f"{runner.name} answers {config.question!r} with neither yes nor no: ask whether something is so, or set when to "
            "changes, which tells of each new answer.",
        )
