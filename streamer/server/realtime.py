"""One client of `/v1/realtime`: a socket around the sans-I/O session, with a bounded queue towards the client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from math import isinf
from typing import Any

from starlette.websockets import WebSocket

from capture.image import PictureError
from model.families.tools import CallBegun, Spoken, Words
from protocols.fields import ProtocolError
from protocols.realtime.beta import beta_event
from protocols.realtime.decisions import Ask, Cancel, Command, Decision, Listen, Push, Send, WatchCommand
from protocols.realtime.output import Usage
from protocols.realtime.server_events import Error, ServerEvent
from protocols.realtime.session import RealtimeSession
from streamer.assistant import Answer, Assistant
from streamer.engine.answer import Progress
from streamer.errors import AssistantError
from streamer.memory.timeline import Forgotten
from streamer.server.attachments import decoded
from streamer.server.auth import Visitor
from streamer.server.connections import CLOSE_SECONDS
from streamer.server.errors import RequestError
from streamer.server.limits import message_bucket, message_cost
from streamer.server.outbox import Outbox
from streamer.server.questions import Questions
from streamer.server.said import Said
from streamer.server.timeline import Timelines
from streamer.server.views import event_view, frame_view, stream_view
from streamer.server.watches import alarms, perform

OUTGOING_BYTES = 256 * 1024
"""Words and news that may wait for a client that reads slowly; beyond it the connection is closed with 1013."""
GOING_AWAY, POLICY_VIOLATION, TRY_AGAIN_LATER = 1001, 1008, 1013


def _too_many(event: ServerEvent) -> bool:
    return isinstance(event, Error) and event.error["code"] == "too_many_answers"


class RealtimeConnection:
    """Carries out what one client's session decides."""

    def __init__(
        self,
        websocket: WebSocket,
        assistant: Assistant,
        session: RealtimeSession,
        visitor: Visitor,
        questions: Questions,
        timelines: Timelines,
        *,
        beta: bool = False,
    ) -> None:
        self._websocket = websocket
        self._socket = websocket.scope["extensions"]["streamer.socket"]
        self._assistant = assistant
        self._session = session
        self._visitor = visitor
        self._questions, self._streams, self._timelines = questions, questions.streams, timelines
        self._beta = beta
        self._outbox = Outbox()
        self._answers: dict[str, Answer | None] = {}
        """Those that are open; None until they are accepted."""
        self._cancelled: set[str] = set()
        """Those that were cancelled before."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.Task[None] | None = None
        self._ear: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._remembering: Callable[[], None] = lambda: None
        """Ends what is told of a timeline."""
        self._closed = asyncio.Event()

    async def serve(self) -> None:
        """Runs until either side closes; the websocket is accepted already."""
        self._writer = self._spawn(self._outbox.send_all(self._websocket))
        try:
            bucket = message_bucket(time.monotonic())
            self._do(self._session.open(self._streams.names()))
            while True:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                text, data = message.get("text"), message.get("bytes")
                for decision in self._session.receive(text if text is not None else data or b"", self._streams.names()):
                    if isinstance(decision, Send) and _too_many(decision.told):
                        self._questions.turned_away()
                    await self._carry_out(decision)
                await self._outbox.room()
                # Whoever sends faster than is fair is read more slowly; even the fastest leaves room for others between.
                now, cost = time.monotonic(), message_cost(len(text or data or b""))
                shared = self._questions.limits.message(self._visitor.name, now, cost)
                await asyncio.sleep(max(bucket.take(now, cost), shared))
        finally:
            self._do(self._session.close())
            self._closed.set()
            self._remembering()
            self._writer.cancel()
            for task in filter(None, (self._ear, self._watching)):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def revoke_unless(self, stands: Callable[[Visitor], bool]) -> None:
        """Closes with 1008 where the visitor may no longer be here."""
        if not stands(self._visitor):
            self._cut(POLICY_VIOLATION, "this token is no longer good")

    async def shut_down(self) -> None:
        """Ends every answer as cancelled and closes with 1001; returns when the client has gone, or after a second."""
        self._do(self._session.shut_down())
        self._outbox.close(GOING_AWAY, "the daemon is shutting down")
        try:
            await asyncio.wait_for(self._closed.wait(), CLOSE_SECONDS)
        except TimeoutError:
            self._cut(GOING_AWAY, "the daemon is shutting down")

    async def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, Command):
            try:
                self._do(self._session.performed(decision, **await self._perform(decision)))
            except (AssistantError, RequestError) as error:
                self._do(self._session.failed(decision, error.code, error.message))
        elif isinstance(decision, WatchCommand):
            try:
                reply = await perform(self._assistant, self._streams, self._visitor, decision)
                self._do(self._session.watched(decision, **reply))
                if decision.verb == "subscribe":
                    self._subscribe(decision.name)
            except (AssistantError, RequestError, ProtocolError) as error:
                param = getattr(error, "param", None)
                self._do(self._session.failed(decision, error.code, error.message, param))
        elif isinstance(decision, Push):
            try:
                await self._push(decision)
            except PictureError as error:
                self._do(self._session.failed(decision, "invalid_value", str(error), "video"))
            except (AssistantError, RequestError) as error:
                self._do(self._session.failed(decision, error.code, error.message))
        else:
            self._do([decision])

    async def _push(self, push: Push) -> None:
        self._visitor.need("publish")
        stream = self._streams.chosen(push.stream)
        pixels = await decoded(push.picture)
        self._assistant.push(stream, pixels, push.timestamp)

    def _do(self, decisions: Iterable[Decision], *, unasked: bool = False) -> None:
        for decision in decisions:
            match decision:
                case Send():
                    self._send(decision.event, unasked)
                case Ask():
                    self._answers[decision.response] = None
                    self._spawn(self._answer(decision))
                case Cancel():
                    if (answer := self._answers.get(decision.response)) is not None:
                        answer.cancel()
                    elif decision.response in self._answers:
                        self._cancelled.add(decision.response)
                case Listen():
                    if self._ear is not None:
                        self._ear.cancel()
                    self._ear = None
                    if decision.stream is not None and self._visitor.may("view"):
                        self._ear = self._spawn(self._listen(decision.stream))

    def _send(self, event: dict[str, Any], unasked: bool) -> None:
        shown = beta_event(event) if self._beta else event
        if shown is None:
            return
        self._outbox.put(json.dumps(shown, ensure_ascii=False, separators=(",", ":")), unasked)
        writable: asyncio.Event = self._socket["writable"]
        if self._outbox.unasked_bytes > OUTGOING_BYTES and not writable.is_set():
            self._cut(TRY_AGAIN_LATER, "this client reads too slowly")

    def _cut(self, code: int, reason: str) -> None:
        if self._writer is not None:
            self._writer.cancel()
        cut: Callable[[int, str], None] = self._socket["cut"]
        cut(code, reason)

    async def _answer(self, ask: Ask) -> None:
        """One answer from its question to its end."""
        try:
            async with self._questions.ask(self._visitor, ask.question) as (answer, limit):
                self._answers[ask.response] = answer
                if ask.response in self._cancelled:
                    answer.cancel()
                self._do(self._session.accepted(ask.response, [limit], _moment(answer)))
                said = Said(self._questions.call_parser(ask.question))
                async for piece in answer.news():
                    if isinstance(piece, Progress):
                        told = self._session.replaying(ask.response, piece.shown, piece.of, _moment(answer))
                        self._do(told, unasked=True)
                    elif piece[0]:
                        self._do(self._session.thought(ask.response, piece[1]), unasked=True)
                    else:
                        self._tell(ask.response, said.feed(piece[1]))
                self._tell(ask.response, said.rest())
        except (AssistantError, RequestError) as error:
            param = error.param if isinstance(error, AssistantError) else None
            self._do(self._session.refused(ask.response, error.code, error.message, param))
            return
        finally:
            self._answers.pop(ask.response, None)
            self._cancelled.discard(ask.response)
        reason = answer.finish_reason or "failed"
        trouble = ("failed", answer.error or "The answer broke off.") if reason == "failed" else None
        shown = len(ask.question.attachments) * self._assistant.model.tokens_per_step
        usage = Usage(answer.usage.prompt_tokens + shown, answer.usage.completion_tokens, shown)
        self._do(self._session.finished(ask.response, reason, usage, trouble, _moment(answer)), unasked=True)

    def _tell(self, response: str, parts: Iterable[Spoken]) -> None:
        for part in parts:
            match part:
                case Words():
                    told = self._session.delta(response, part.text)
                case CallBegun():
                    told = self._session.call(response, part.name)
                case _:
                    told = self._session.arguments(response, part.text)
            self._do(told, unasked=True)

    async def _listen(self, stream: str) -> None:
        if stream not in self._streams.names():
            return
        subscription = self._assistant.subscribe(stream)
        try:
            async for event in subscription:
                self._do(self._session.news(event_view(event)), unasked=True)
        finally:
            subscription.close()

    def _subscribe(self, after: str) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._spawn(self._hear(after))

    async def _hear(self, after: str) -> None:
        async for event in alarms(self._assistant, after):
            self._do(self._session.alarm(event), unasked=True)

    async def _remember(self, stream: str) -> dict[str, Any]:
        """Tells what is added to a stream's timeline, and to no other's any more."""

        def tell(event: dict[str, Any] | Forgotten) -> None:
            if isinstance(event, Forgotten):
                bounds = (None if isinf(each) else each for each in (event.since, event.until))
                self._do(self._session.forgotten(stream, *bounds), unasked=True)
            else:
                self._do(self._session.remembered(stream, event), unasked=True)

        end = await self._timelines.subscribe(self._visitor, stream, tell)
        self._remembering()
        self._remembering = end
        return {"stream": stream}

    async def _perform(self, command: Command) -> dict[str, Any]:
        self._visitor.need("admin" if command.verb in ("attach", "detach") else "view")
        match command.verb:
            case "list":
                self._streams.check_loaded()
                return {"streams": [stream_view(status) for status in self._streams.all()]}
            case "attach":
                status = await self._streams.attach(
                    self._visitor, command.stream or "", command.source, command.options
                )
                return {"stream": status.name, **stream_view(status)}
            case "detach":
                await self._streams.detach(command.stream or "")
                return {"stream": command.stream}
            case "frame":
                frame = self._streams.frame(command.stream or "")
                if frame is None:
                    raise AssistantError("no_frame", f"Stream {command.stream!r} has shown no frame yet.")
                return {"stream": command.stream, **await asyncio.to_thread(frame_view, frame)}
            case "memory_subscribe":
                return await self._remember(command.stream or "")
            case "memory":
                return await self._timelines.entries(self._visitor, command.stream or "", command.options)
            case "status":
                status = self._streams.status(command.stream or "")
                return {"stream": status.name, **stream_view(status)}

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _moment(answer: Answer) -> dict[str, Any] | None:
    return None if answer.moment is None else answer.moment.facts()
