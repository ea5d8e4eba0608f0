"""The OpenAI Realtime dialect for text and pictures, with `stream.*` events of our own: one session, without I/O.

Messages of a client and news from the daemon go in; decisions come out, in order. Source: the GA event reference of the
Realtime API as the `openai` client types it; our extensions are in `asyncapi.yaml`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from protocols.conversation import Conversation, Item, read_question
from protocols.fields import ProtocolError, picture_file, read_object
from protocols.question import Question, Sampling
from protocols.realtime import client_events as events
from protocols.realtime import server_events as told
from protocols.realtime.commands import MEMORY_REPLIES, REPLIES, WATCH_REPLIES, read_command, unknown_stream
from protocols.realtime.decisions import Ask, Cancel, Command, Decision, Listen, Push, Send, WatchCommand
from protocols.realtime.output import OpenAnswer, Usage
from protocols.realtime.server_events import ServerEvent
from protocols.realtime.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may hold: open answers, items kept, and characters of history that go along with a question."""

    answers: int = 4
    items: int = 64
    history_characters: int = 2_000


def _random_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


class RealtimeSession:
    """One client's conversation. Every method returns what to do next, in order.

    Args:
        model: name shown to the client.
        stream: the stream that the client named when it connected, or None.
        limits: what the session may hold.
        calls_tools: whether the model can call tools.
        new_id: makes ids; takes the kind ("event", "resp", "item", ...), which becomes the prefix.
    """

    def __init__(
        self,
        model: str,
        *,
        stream: str | None = None,
        limits: Limits = Limits(),
        calls_tools: bool = True,
        new_id: Callable[[str], str] = _random_id,
    ) -> None:
        self.stream = stream
        self._limits = limits
        self._new_id = new_id
        self._conversation = Conversation(limits.items)
        self._conversation_id = new_id("conv")
        self._responses: dict[str, OpenAnswer] = {}
        self._settings = Settings(new_id("sess"), model, stream, calls_tools=calls_tools)

    # -- what the client does ---------------------------------------------------------------------------------------

    def open(self, streams: Collection[str]) -> list[Decision]:
        """The socket is open; `streams` are the names of those attached."""
        out: list[Decision] = [self._send(told.SessionCreated, session=self._settings.view)]
        if self.stream is not None:
            if self.stream not in streams:
                out.append(self._error(unknown_stream(self.stream, streams, "stream", None)))
            out.append(Listen(self.stream))
        return out

    def receive(self, message: str | bytes, streams: Collection[str]) -> list[Decision]:
        """One message of the client: JSON text, or a picture's bytes for the session's stream."""
        try:
            if isinstance(message, bytes):
                try:
                    return [Push(self.stream, picture_file(message))]
                except ValueError as error:
                    raise ProtocolError("invalid_value", f"A binary message {error}.") from None
            return self._handle(read_object(message), streams)
        except ProtocolError as error:
            return [self._error(error)]

    def close(self) -> list[Decision]:
        """The client is gone: its answers end."""
        return [Cancel(response) for response in self._responses]

    def shut_down(self) -> list[Decision]:
        """The daemon ends: every open answer is closed with what was said so far."""
        out: list[Decision] = []
        for response_id in list(self._responses):
            out.append(Cancel(response_id))
            out.extend(self.finished(response_id, "cancelled", error=("shutting_down", "The daemon is shutting down.")))
        return out

    def _handle(self, data: dict[str, Any], streams: Collection[str]) -> list[Decision]:
        if data.get("type") == "session.update":
            return self._update(*events.read_update(data), streams)
        event = events.read_event(data)
        match event:
            case events.ItemCreate():
                return self._create_item(event)
            case events.ItemRetrieve():
                item = self._item(event.item_id, event.event_id)
                return [self._send(told.ItemRetrieved, item=item.view())]
            case events.ItemDelete():
                item = self._item(event.item_id, event.event_id)
                self._conversation.items.remove(item)
                return [self._send(told.ItemDeleted, item_id=item.id)]
            case events.ItemTruncate():
                return self._truncate(event)
            case events.ResponseCreate():
                return self._create_response(event, streams)
            case events.ResponseCancel():
                return self._cancel(event)
        return [read_command(event, data["type"], self.stream, streams)]

    def _update(
        self, event: events.SessionUpdate, refused: list[ProtocolError], streams: Collection[str]
    ) -> list[Decision]:
        """What can't be done is refused key by key; the rest stays."""
        asked = event.session
        given = set(asked.model_fields_set)
        if asked.stream is not None and asked.stream not in streams:
            refused = [*refused, unknown_stream(asked.stream, streams, "session.stream", event.event_id)]
            given.discard("stream")
        try:
            self._settings.choose(asked, given & {"tools", "tool_choice"})
        except ProtocolError as error:
            refused = [*refused, ProtocolError(error.code, error.message, error.param, event.event_id)]
            given -= {"tools", "tool_choice"}
        out: list[Decision] = []
        if given or not refused:
            self._settings.take(asked, given)
            out.append(self._send(told.SessionUpdated, session=self._settings.view))
        if "stream" in given and asked.stream != self.stream:
            self.stream = asked.stream
            out.append(Listen(self.stream))
        return [*out, *map(self._error, refused)]

    def _create_item(self, event: events.ItemCreate) -> list[Decision]:
        item = self._read_item(event.item, "item", event.event_id)
        if self._conversation.find(item.id):
            raise ProtocolError("item_exists", f"Item {item.id!r} exists already.", "item.id", event.event_id)
        try:
            previous = self._conversation.insert(item, event.previous_item_id)
        except KeyError:
            raise ProtocolError(
                "item_not_found", f"No item {event.previous_item_id!r}.", "previous_item_id", event.event_id
            ) from None
        return [
            self._send(told.ItemAdded, previous_item_id=previous, item=item.view()),
            self._send(told.ItemDone, previous_item_id=previous, item=item.view()),
            *self._trim(),
        ]

    def _truncate(self, event: events.ItemTruncate) -> list[Decision]:
        item = self._item(event.item_id, event.event_id)
        if item.role != "assistant" or item.kind != "message":
            raise ProtocolError("invalid_value", "Only an assistant's item can be cut.", "item_id", event.event_id)
        if event.audio_end_ms:
            raise ProtocolError(
                "invalid_value", "There is no audio: audio_end_ms can only be 0.", "audio_end_ms", event.event_id
            )
        item.text = ""
        return [self._send(told.ItemTruncated, item_id=item.id)]

    def _create_response(self, event: events.ResponseCreate, streams: Collection[str]) -> list[Decision]:
        asked = event.response or events.ResponseSettings()
        in_conversation = asked.conversation == "auto"
        if in_conversation and any(response.conversation for response in self._responses.values()):
            raise ProtocolError(
                "conversation_already_has_active_response",
                "An answer in this conversation is still open: wait for response.done, cancel it, or use "
                "conversation 'none'.",
                None,
                event.event_id,
            )
        if len(self._responses) >= self._limits.answers:
            raise ProtocolError(
                "too_many_answers", f"{self._limits.answers} answers are open already.", None, event.event_id
            )
        stream = None if asked.recording else asked.stream or self.stream
        if stream is not None and stream not in streams:
            raise unknown_stream(
                stream, streams, "response.stream" if asked.stream else "session.stream", event.event_id
            )
        tools, call = self._settings.callable(asked)
        question = self._question(asked, bool(tools), event.event_id)
        tokens = asked.max_output_tokens or asked.max_response_output_tokens or self._settings.view["max_output_tokens"]
        response = OpenAnswer(
            self._new_id("resp"),
            event.event_id,
            self._conversation if in_conversation else None,
            stream,
            tokens,
            asked.metadata or None,
            self._new_id,
        )
        self._responses[response.id] = response
        question = replace(
            question,
            stream=stream,
            sampling=asked.over(Sampling(temperature=self._settings.view["temperature"])),
            max_tokens=None if tokens == "inf" else tokens,
            thinking=asked.tokens(),
            format=self._settings.text.form("session.text") if asked.text is None else asked.text.form("response.text"),
            tools=tools,
            call=call,
            at=asked.at,
            since=asked.since,
            until=asked.until,
            recording=asked.recording,
        )
        return [Ask(response.id, question)]

    def _question(self, asked: events.ResponseSettings, tools: bool, event_id: str | None) -> Question:
        """The question with its instructions: the response's own, else the session's, then the system items'."""
        items: list[Item] = self._conversation.items
        if asked.input is not None:
            items = []
            for index, part in enumerate(asked.input):
                path = f"response.input[{index}]"
                if isinstance(part, events.ReferenceItem):
                    items.append(self._item(part.id, event_id, f"{path}.id"))
                else:
                    items.append(self._read_item(part, path, event_id))
        question = read_question(items, self._limits.history_characters, tools=tools)
        lead = asked.instructions if asked.instructions is not None else self._settings.view["instructions"]
        if not question.text.strip() and asked.instructions:
            question = replace(question, text=asked.instructions)
            lead = self._settings.view["instructions"]
        if not question.text.strip():
            raise ProtocolError(
                "empty_question",
                "There is no question: add a user item with text first, or give the response an 'input'.",
                "response.input",
                event_id,
            )
        return replace(question, instructions="\n".join(filter(None, (lead, question.instructions))))

    def _cancel(self, event: events.ResponseCancel) -> list[Decision]:
        if event.response_id is not None:
            response = self._responses.get(event.response_id)
        else:
            response = next((each for each in self._responses.values() if each.conversation), None)
        if response is None:
            raise ProtocolError(
                "response_cancel_not_active", "There is no such open answer.", "response_id", event.event_id
            )
        return [Cancel(response.id)]

    # -- what the daemon tells ----------------------------------------------------------------------------------------

    def accepted(
        self,
        response_id: str,
        rate_limits: Sequence[Mapping[str, Any]] = (),
        moment: dict[str, Any] | None = None,
    ) -> list[Decision]:
        """The answer is on its way; `rate_limits` as `rate_limits.updated` shows them, `moment` of the past that it speaks of.

        One that was shut down meanwhile says nothing.
        """
        response = self._responses.get(response_id)
        if response is None:
            return []
        response.moment = moment
        out: list[Decision] = [
            self._send(told.ResponseCreated, response=response.view(self._conversation_id, "in_progress"))
        ]
        if rate_limits:
            out.append(self._send(told.RateLimitsUpdated, rate_limits=[dict(limit) for limit in rate_limits]))
        return out

    def refused(self, response_id: str, code: str, message: str, param: str | None = None) -> list[Decision]:
        """The answer can't start (one that was shut down meanwhile says nothing)."""
        response = self._responses.pop(response_id, None)
        if response is None:
            return []
        param = {"unknown_stream": "session.stream", "empty_question": "response.input"}.get(code, param)
        return [self._error(ProtocolError(code, message, param, response.event_id))]

    def replaying(self, response_id: str, shown: int, of: int, moment: dict[str, Any] | None) -> list[Decision]:
        """So many steps of the past have been shown to the answer's state, which speaks of `moment` by now."""
        response = self._responses.get(response_id)
        if response is None:
            return []
        response.moment = moment
        return [self._send(told.ResponseReplaying, response_id=response_id, shown=shown, of=of, moment=moment)]

    def delta(self, response_id: str, text: str) -> list[Decision]:
        """More words of an answer (one that was shut down meanwhile says nothing)."""
        response = self._responses.get(response_id)
        if response is None or not text:
            return []
        return [*response.words(text)]

    def thought(self, response_id: str, text: str) -> list[Decision]:
        """More of what the model thinks before its answer, which is no part of it (one that was shut down meanwhile says nothing)."""
        response = self._responses.get(response_id)
        return [] if response is None or not text else [*response.thought(text)]

    def call(self, response_id: str, name: str) -> list[Decision]:
        """A call of a tool begins (one that was shut down meanwhile says nothing)."""
        response = self._responses.get(response_id)
        return [] if response is None else [*response.call(name)]

    def arguments(self, response_id: str, text: str) -> list[Decision]:
        """More of the call's arguments (one that was shut down meanwhile says nothing)."""
        response = self._responses.get(response_id)
        return [] if response is None or not text else [*response.arguments(text)]

    def finished(
        self,
        response_id: str,
        reason: Literal["stop", "length", "cancelled", "failed"],
        usage: Usage | None = None,
        error: tuple[str, str] | None = None,
        moment: dict[str, Any] | None = None,
    ) -> list[Decision]:
        """The answer is over. `error` is (code, message), for "failed" and for a shutdown; `moment` as it was reached at last."""
        response = self._responses.get(response_id)
        if response is None:
            return []
        response.moment = moment or response.moment
        status = {"stop": "completed", "length": "incomplete", "cancelled": "cancelled", "failed": "failed"}[reason]
        details: dict[str, Any] = {"type": status}
        if reason == "length":
            details["reason"] = "max_output_tokens"
        elif reason == "cancelled" and error is None:
            details["reason"] = "client_cancelled"
        if error is not None:
            details["error"] = {"type": "server_error", "code": error[0], "message": error[1]}
        out: list[Decision] = [*response.end(whole=reason == "stop", answered=reason in ("stop", "length"))]
        del self._responses[response_id]
        view = response.view(self._conversation_id, status, None if reason == "stop" else details, usage or Usage())
        out.append(self._send(told.ResponseDone, response=view))
        return out + self._trim()

    def news(self, event: Mapping[str, Any]) -> list[Decision]:
        """Something happened to a stream: `event` has its `type` (`stream.…`), `stream`, and what there is to tell."""
        rest = {key: value for key, value in event.items() if key not in ("type", "stream")}
        return [self._send(told.STREAM_NEWS[event["type"]], stream=event["stream"], told=rest)]

    def performed(self, command: Command, **rest: Any) -> list[Decision]:
        """A command has been carried out; `rest` goes into its reply, with the `stream` that it was about."""
        if command.verb == "list":
            return [self._send(told.StreamListed, streams=rest["streams"])]
        if command.verb in MEMORY_REPLIES:
            return [self._send(MEMORY_REPLIES[command.verb], **rest)]
        if command.verb == "detach" and command.stream == self.stream:
            self.stream = None
            self._settings.leave()
        return [self._send(REPLIES[command.verb], stream=rest.pop("stream"), told=rest)]

    def watched(self, command: WatchCommand, **told_of: Any) -> list[Decision]:
        """A command about watches has been carried out; `told_of` are the keys of its reply."""
        return [self._send(WATCH_REPLIES[command.verb], **told_of)]

    def remembered(self, stream: str, entry: Mapping[str, Any]) -> list[Decision]:
        """Something was added to a stream's timeline."""
        return [self._send(told.MemoryAdded, stream=stream, entry=entry)]

    def forgotten(self, stream: str, since: float | None, until: float | None) -> list[Decision]:
        """A span of a stream's timeline is gone, in Unix seconds; None is the beginning, or the end, of all."""
        return [self._send(told.MemoryForgotten, stream=stream, since=since, until=until)]

    def alarm(self, event: Mapping[str, Any]) -> list[Decision]:
        """A watch has something to tell: `event` has its `type` (`watch.…`), `id`, and what there is to tell."""
        if event["type"] == "watch.missed":
            return [self._send(told.WatchMissed, missed=event["missed"], after=event["after"])]
        rest = {key: value for key, value in event.items() if key != "type"}
        return [self._send(told.WATCH_NEWS[event["type"]], told=rest)]

    def failed(
        self, request: Command | WatchCommand | Push, code: str, message: str, param: str | None = "stream"
    ) -> list[Decision]:
        """A command or a pushed picture can't be carried out."""
        return [self._error(ProtocolError(code, message, param, request.event_id))]

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _read_item(self, given: events.NewItem, path: str, event_id: str | None) -> Item:
        own = given.id or self._new_id("item")
        if isinstance(given, events.CallItem):
            call = given.call_id or self._new_id("call")
            return Item(own, "assistant", given.arguments, kind=given.type, call_id=call, name=given.name)
        if isinstance(given, events.CallOutputItem):
            return Item(own, "user", given.output, kind=given.type, call_id=given.call_id)
        message = given
        texts = [part.text for part in message.content if isinstance(part, events.TextPart)]
        images = tuple(part.image_url for part in message.content if isinstance(part, events.ImagePart))
        text = "\n".join(texts)
        if message.role == "user" and not text.strip() and not images:
            raise ProtocolError(
                "empty_question", "A user's item needs text: say what you ask.", f"{path}.content", event_id
            )
        if images and message.role != "user":
            raise ProtocolError("invalid_value", "Only a user's item may hold pictures.", f"{path}.content", event_id)
        return Item(own, message.role, text, images)

    def _item(self, item_id: str, event_id: str | None, param: str = "item_id") -> Item:
        item = self._conversation.find(item_id)
        if item is None:
            raise ProtocolError("item_not_found", f"No item {item_id!r} in this conversation.", param, event_id)
        return item

    def _trim(self) -> list[Decision]:
        return [self._send(told.ItemDeleted, item_id=item.id) for item in self._conversation.trim()]

    def _send(self, event: type[ServerEvent], **fields: Any) -> Send:
        return Send(event(event_id=self._new_id("event"), **fields))

    def _error(self, error: ProtocolError) -> Send:
        kind = "server_error" if error.code in ("failed", "not_ready") else "invalid_request_error"
        return self._send(
            told.Error,
            error={
                "type": kind,
                "code": error.code,
                "message": error.message,
                "param": error.param,
                "event_id": error.event_id,
            },
        )
