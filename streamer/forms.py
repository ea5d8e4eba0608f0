"""The forms that answers are asked for in, compiled beside the event loop and the engine, in time or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from model import Runner
from model.serving.grammar import Grammar, Grammars
from protocols.question import Question
from streamer.errors import AssistantError
from streamer.prompt import tool_of_model

COMPILE_SECONDS = 10.0
"""Seconds by the clock that a form may wait and be compiled; what one may cost is bounded where it is compiled, in a core's time."""
T = TypeVar("T")


class Forms:
    """Compiles on two threads of its own: one slow form does not hold up the others."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, "forms")

    async def compile(self, model: Runner, question: Question) -> Grammar | None:
        """None where the answer is free, though it may call tools.

        Raises AssistantError: no_tools, and bad_format with what is wrong and where, or that it took too long.
        """
        grammars, form = model.grammars, question.format
        if form is not None and not question.tools:
            return await self._in_time(grammars, lambda: grammars.schema(form.schema), form.param)
        spelling = model.tokenizer.prompt.tools
        if spelling is None:
            raise AssistantError(
                "no_tools", f"{model.name} (family {model.config.family}) calls no tools: leave them out.", "tools"
            )
        if form is not None:
            raise AssistantError(
                "bad_format",
                "An answer can't keep to a format while it may call tools: set tool_choice to 'none'.",
                "tool_choice",
            )
        tools = [tool_of_model(tool) for tool in question.tools]
        for told, tool in zip(question.tools, tools, strict=True):
            await self._in_time(grammars, partial(grammars.check, tool.parameters, strict=question.call), told.param)
            if question.call:
                await self._in_time(grammars, partial(spelling.grammar, [tool]), told.param)
        if not question.call:
            return None
        return await self._in_time(grammars, lambda: grammars.lark(spelling.grammar(tools)), "tools")

    async def _in_time(self, grammars: Grammars, do: Callable[[], T], param: str) -> T:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, grammars.prepare)
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._pool, do), COMPILE_SECONDS)
        except ValueError as error:
            wrong = str(error)
        except TimeoutError:
            wrong = f"it takes longer than {COMPILE_SECONDS:g} s to compile: make it smaller"
        raise AssistantError("bad_format", f"Invalid value for '{param}': {wrong}.", param) from None
