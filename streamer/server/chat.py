"""`POST /v1/chat/completions`: one question, its answer whole or as server-sent events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from protocols.chat import ChatRequest, ChatWriter, StopSequences
from streamer.assistant import Answer
from streamer.server.auth import Visitor
from streamer.server.errors import RequestError
from streamer.server.questions import Questions


async def complete(request: Request, asked: ChatRequest, visitor: Visitor, questions: Questions) -> Response:
    """Answers; a client that leaves ends its answer. Raises what `Questions.ask` raises."""
    writer = ChatWriter(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), asked.model, asked.include_usage)
    stop = StopSequences(asked.stop)
    async with AsyncExitStack() as stack:
        answer, _ = await stack.enter_async_context(questions.ask(visitor, asked.question))
        if answer.moment is not None:
            writer = replace(writer, moment=answer.moment.facts())
        if asked.streaming:
            # The answer outlives this call: whoever sends the events lets it go.
            return StreamingResponse(_events(writer, answer, stop, stack.pop_all()), media_type="text/event-stream")
        async with while_there(request, answer):
            pieces = [piece async for piece in _words(answer, stop)]
        text, thoughts = ("".join(words for thought, words in pieces if thought == kind) for kind in (False, True))
        if answer.finish_reason == "failed":
            raise RequestError("failed", answer.error or "The answer broke off.")
        usage = answer.usage
        tokens = usage.prompt_tokens, usage.completion_tokens
        return JSONResponse(writer.whole(text, _reason(answer, stop), *tokens, thoughts, usage.reasoning_tokens))


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
    writer: ChatWriter, answer: Answer, stop: StopSequences, stack: AsyncExitStack
) -> AsyncIterator[bytes]:
    async with stack:
        yield writer.begin()
        async for thought, words in _words(answer, stop):
            yield writer.thought(words) if thought else writer.delta(words)
        if answer.finish_reason == "failed":
            yield writer.broken(answer.error or "The answer broke off.")
        elif answer.finish_reason == "cancelled" and not stop.met:
            yield writer.broken("The daemon is shutting down.")
        else:
            usage = answer.usage
            tokens = usage.prompt_tokens, usage.completion_tokens
            yield writer.end(_reason(answer, stop), *tokens, usage.reasoning_tokens)


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
