"""The forms that answers are asked for in, compiled beside the event loop and the engine, in time or not at all."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from model.serving.grammar import Grammar, GrammarError, Grammars
from protocols.question import JsonSchema
from streamer.errors import AssistantError

COMPILE_SECONDS = 1.0


class Forms:
    """Compiles on two threads of its own: one slow form does not hold up the others."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, "forms")

    async def compile(self, grammars: Grammars, form: JsonSchema) -> Grammar:
        """Raises AssistantError: bad_format, with what is wrong and where, or that it took longer than a second."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, grammars.prepare)
        work = loop.run_in_executor(self._pool, grammars.schema, form.schema)
        try:
            return await asyncio.wait_for(work, COMPILE_SECONDS)
        except GrammarError as error:
            wrong = str(error)
        except TimeoutError:
            wrong = f"it takes longer than {COMPILE_SECONDS:g} s to compile: make it smaller"
        raise AssistantError("bad_format", f"Invalid value for '{form.param}': {wrong}.", form.param) from None
