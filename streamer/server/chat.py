"""`POST /v1/chat/completions`: one question, its answer whole or as server-sent events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from model.families.tools import CallBegun, Spoken, Words
from protocols.chat import ChatRequest, StopSequences
from protocols.completion import ChatWriter
from streamer.assistant import Answer
from streamer.engine.answer import Progress
from streamer.server.auth import Visitor
from streamer.server.errors import RequestError
from streamer.server.questions import Questions
from streamer.server.said import Said

BROKE = "The answer broke off."
SHUT_DOWN = "The daemon is shutting down."


async def complete(request: Request, asked: ChatRequest, visitor: Visitor, questions: Questions) -> Response:
    """Answers; a client that leaves ends its answer. Raises what `Questions.ask` raises."""
    writer = ChatWriter(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), asked.model, asked.include_usage)
    stop = StopSequences(asked.stop)
    async with AsyncExitStack() as stack:
        answer, _ = await stack.enter_async_context(questions.ask(visitor, asked.question))
        said = Said(questions.call_parser(asked.question))
        if asked.streaming:
            # The answer outlives this call: whoever sends the events lets it go.
            events = _events(writer, answer, stop, said, stack.pop_all())
            return StreamingResponse(events, media_type="text/event-stream")
        async with while_there(request, answer):
            pieces = [piece async for piece in _words(answer, stop) if not isinstance(piece, Progress)]
        text, thoughts = ("".join(words for thought, words in pieces if thought == kind) for kind in (False, True))
        said.feed(text)
        said.rest()
        if answer.finish_reason == "failed":
            raise RequestError("failed", answer.error or BROKE)
        usage = answer.usage
        tokens = usage.prompt_tokens, usage.completion_tokens
        reason = _reason(answer, stop, said)
        whole = _of_moment(writer, answer).whole(
            said.text, reason, *tokens, thoughts, usage.reasoning_tokens, said.calls
        )
        return JSONResponse(whole)


def _of_moment(writer: ChatWriter, answer: Answer) -> ChatWriter:
    """Tells of the moment that the answer speaks of, as it is reached by now."""
    return writer if answer.moment is None else replace(writer, moment=answer.moment.facts())


def _written(writer: ChatWriter, said: Said, parts: Sequence[Spoken]) -> Iterator[bytes]:
    """What was just said, as events."""
    calls = len(said.calls) - sum(isinstance(part, CallBegun) for part in parts)
    for part in parts:
        if isinstance(part, Words):
            yield writer.delta(part.text)
        elif isinstance(part, CallBegun):
            yield writer.call(calls, part.name)
            calls += 1
        else:
            yield writer.arguments(calls - 1, part.text)


async def _words(answer: Answer, stop: StopSequences) -> AsyncIterator[tuple[bool, str] | Progress]:
    """The answer's pieces, each with whether it is a thought, up to the answer's first stop sequence, at which it is ended."""
    async for piece in answer.news():
        if isinstance(piece, Progress):
            yield piece
            continue
        thought, words = piece
        if not stop.met and (shown := words if thought else stop.feed(words)):
            yield thought, shown
        if stop.met:
            answer.cancel()
    if rest := stop.rest():
        yield False, rest


def _reason(answer: Answer, stop: StopSequences, said: Said) -> str:
    reason = "stop" if stop.met else answer.finish_reason or "stop"
    return "tool_calls" if said.calls and reason == "stop" else reason


async def _events(
    writer: ChatWriter, answer: Answer, stop: StopSequences, said: Said, stack: AsyncExitStack
) -> AsyncIterator[bytes]:
    async with stack:
        writer = _of_moment(writer, answer)
        yield writer.begin()
        async for piece in _words(answer, stop):
            if isinstance(piece, Progress):
                writer = _of_moment(writer, answer)
                yield writer.replaying(piece.shown, piece.of)
                continue
            thought, words = piece
            for event in [writer.thought(words)] if thought else _written(writer, said, said.feed(words)):
                yield event
        writer = _of_moment(writer, answer)
        for event in _written(writer, said, said.rest()):
            yield event
        if answer.finish_reason == "failed":
            yield writer.broken(answer.error or BROKE)
        elif answer.finish_reason == "cancelled" and not stop.met:
            yield writer.broken(SHUT_DOWN)
        else:
            usage = answer.usage
            tokens = usage.prompt_tokens, usage.completion_tokens
            yield writer.end(_reason(answer, stop, said), *tokens, usage.reasoning_tokens)


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
