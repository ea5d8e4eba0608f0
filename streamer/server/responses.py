"""`POST /v1/responses`: one question, its answer whole or as server-sent events."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from model.families.tools import CallBegun, Spoken, Words
from protocols.responses import ResponseRequest, ResponseWriter
from streamer.assistant import Answer
from streamer.engine.answer import Progress
from streamer.server.auth import Visitor
from streamer.server.chat import BROKE, SHUT_DOWN, while_there
from streamer.server.errors import RequestError
from streamer.server.questions import Questions
from streamer.server.said import Said


async def respond(request: Request, asked: ResponseRequest, visitor: Visitor, questions: Questions) -> Response:
    """Answers; a client that leaves ends its answer. Raises what `Questions.ask` raises."""
    writer = ResponseWriter(f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}", int(time.time()), asked)
    async with AsyncExitStack() as stack:
        answer, _ = await stack.enter_async_context(questions.ask(visitor, asked.question))
        said = Said(questions.call_parser(asked.question))
        if asked.streaming:
            # The answer outlives this call: whoever sends the events lets it go.
            return StreamingResponse(_events(writer, answer, said, stack.pop_all()), media_type="text/event-stream")
        async with while_there(request, answer):
            async for words in answer:
                said.feed(words)
        said.rest()
        if answer.finish_reason == "failed":
            raise RequestError("failed", answer.error or BROKE)
        usage = answer.usage
        tokens = usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens
        writer.moment = _moment(answer)
        return JSONResponse(writer.whole(said.text, answer.finish_reason or "stop", *tokens, calls=said.calls))


def _moment(answer: Answer) -> dict[str, Any] | None:
    """What it tells of the past, as that is reached by now."""
    return None if answer.moment is None else answer.moment.facts()


def _written(writer: ResponseWriter, parts: Sequence[Spoken]) -> bytes:
    """What was just said, as events."""
    out = b""
    for part in parts:
        if isinstance(part, Words):
            out += writer.delta(part.text)
        elif isinstance(part, CallBegun):
            out += writer.call(part.name)
        else:
            out += writer.arguments(part.text)
    return out


async def _events(writer: ResponseWriter, answer: Answer, said: Said, stack: AsyncExitStack) -> AsyncIterator[bytes]:
    async with stack:
        writer.moment = _moment(answer)
        yield writer.begin()
        async for piece in answer.news():
            if isinstance(piece, Progress):
                writer.moment = _moment(answer)
                yield writer.replaying(piece.shown, piece.of)
                continue
            thought, words = piece
            if not thought and (told := _written(writer, said.feed(words))):
                yield told
        writer.moment = _moment(answer)
        if told := _written(writer, said.rest()):
            yield told
        reason, usage = answer.finish_reason or "stop", answer.usage
        trouble = {"failed": answer.error or BROKE, "cancelled": SHUT_DOWN}.get(reason)
        tokens = usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens
        yield writer.end(reason, *tokens, trouble)
