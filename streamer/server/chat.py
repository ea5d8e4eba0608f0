"""`POST /v1/chat/completions`: one question, its answer whole or as server-sent events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from model.families.tools import CallBegun, CallParser, Spoken, Words
from protocols.chat import ChatRequest, StopSequences
from protocols.completion import ChatWriter
from streamer.assistant import Answer
from streamer.server.auth import Visitor
from streamer.server.errors import RequestError
from streamer.server.questions import Questions

BROKE = "The answer broke off."
SHUT_DOWN = "The daemon is shutting down."


async def complete(request: Request, asked: ChatRequest, visitor: Visitor, questions: Questions) -> Response:
    """Answers; a client that leaves ends its answer. Raises what `Questions.ask` raises."""
    writer = ChatWriter(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), asked.model, asked.include_usage)
    stop = StopSequences(asked.stop)
    async with AsyncExitStack() as stack:
        answer, _ = await stack.enter_async_context(questions.ask(visitor, asked.question))
        said = _Said(questions.call_parser(asked.question))
        if answer.moment is not None:
            writer = replace(writer, moment=answer.moment.facts())
        if asked.streaming:
            # The answer outlives this call: whoever sends the events lets it go.
            events = _events(writer, answer, stop, said, stack.pop_all())
            return StreamingResponse(events, media_type="text/event-stream")
        async with while_there(request, answer):
            pieces = [piece async for piece in _words(answer, stop)]
        text, thoughts = ("".join(words for thought, words in pieces if thought == kind) for kind in (False, True))
        said.feed(text)
        said.rest()
        if answer.finish_reason == "failed":
            raise RequestError("failed", answer.error or BROKE)
        usage = answer.usage
        tokens = usage.prompt_tokens, usage.completion_tokens
        reason = said.reason(_reason(answer, stop))
        whole = writer.whole(said.text, reason, *tokens, thoughts, usage.reasoning_tokens, said.calls)
        return JSONResponse(whole)


class _Said:
    """An answer's text and its calls (name, arguments), put together as they come."""

    def __init__(self, parser: CallParser | None) -> None:
        self.parser = parser
        self.text = ""
        self.calls: list[tuple[str, str]] = []

    def feed(self, words: str) -> list[Spoken]:
        return self.take([Words(words)] if self.parser is None else self.parser.feed(words))

    def rest(self) -> list[Spoken]:
        return [] if self.parser is None else self.take(self.parser.rest())

    def take(self, parts: list[Spoken]) -> list[Spoken]:
        for part in parts:
            if isinstance(part, Words):
                self.text += part.text
            elif isinstance(part, CallBegun):
                self.calls.append((part.name, ""))
            else:
                name, arguments = self.calls[-1]
                self.calls[-1] = name, arguments + part.text
        return parts

    def reason(self, reason: str) -> str:
        """Why the answer ended, where it may have ended with calls."""
        return "tool_calls" if self.calls and reason == "stop" else reason

    def events(self, writer: ChatWriter, words: str | None) -> Iterator[bytes]:
        """What `words` complete, or with None what was kept back, as events."""
        calls = len(self.calls)
        for part in self.rest() if words is None else self.feed(words):
            if isinstance(part, Words):
                yield writer.delta(part.text)
            elif isinstance(part, CallBegun):
                yield writer.call(calls, part.name)
                calls += 1
            else:
                yield writer.arguments(calls - 1, part.text)


async def _words(answer: Answer, stop: StopSequences) -> AsyncIterator[tuple[bool, str]]:
    """The answer's pieces, each with whether it is a thought, up to the answer's first stop sequence, at which it is ended."""
    async for thought, words in answer.pieces():
        if not stop.met and (shown := words if thought else stop.feed(words)):
            yield thought, shown
        if stop.met:
            answer.cancel()
    if rest := stop.rest():
        yield False, rest


def _reason(answer: Answer, stop: StopSequences) -> str:
    return "stop" if stop.met else answer.finish_reason or "stop"


async def _events(
    writer: ChatWriter, answer: Answer, stop: StopSequences, said: _Said, stack: AsyncExitStack
) -> AsyncIterator[bytes]:
    async with stack:
        yield writer.begin()
        async for thought, words in _words(answer, stop):
            for event in [writer.thought(words)] if thought else said.events(writer, words):
                yield event
        for event in said.events(writer, None):
            yield event
        if answer.finish_reason == "failed":
            yield writer.broken(answer.error or BROKE)
        elif answer.finish_reason == "cancelled" and not stop.met:
            yield writer.broken(SHUT_DOWN)
        else:
            usage = answer.usage
            tokens = usage.prompt_tokens, usage.completion_tokens
            yield writer.end(said.reason(_reason(answer, stop)), *tokens, usage.reasoning_tokens)


@asynccontextmanager
async def while_there(request: Request, answer: Answer) -> AsyncIterator[None]:
    """Cancels the answer when the client leaves meanwhile."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        answer.cancel()

    watch = asyncio.create_task(gone())
    try:
        yield
    finally:
        watch.cancel()
