"""The OpenAI Realtime dialect for text and pictures, with `stream.*` events of our own: one session, without I/O.

Messages of a client and news from the daemon go in; decisions come out, in order. Source: the GA event reference of the
Realtime API as the `openai` client types it; our extensions are in `asyncapi.yaml`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from protocols.conversation import Conversation, Item, read_question
from protocols.fields import ProtocolError, picture_file, read_object
from protocols.json_format import TextSettings
from protocols.question import Question, Sampling, Tool
from protocols.realtime import client_events as events
from protocols.realtime import server_events as told
from protocols.realtime.decisions import Ask, Cancel, Command, Decision, Listen, Push, Send, WatchCommand
from protocols.realtime.output import OpenAnswer
from protocols.realtime.server_events import ResponseView, ServerEvent, SessionView, UsageView
from protocols.tools import FlatTool, FlatToolChoice, chosen

INSTRUCTIONS = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may hold: open answers, items kept, and characters of history that go along with a question."""

    answers: int = 4
    items: int = 64
    history_characters: int = 2_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer; `image` counts those of pictures given with the question."""

    input_tokens: int = 0
    output_tokens: int = 0
    image_tokens: int = 0

    def view(self) -> UsageView:
        return {
            "total_tokens": self.input_tokens + self.output_tokens,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "input_token_details": {
                "text_tokens": self.input_tokens - self.image_tokens,
                "image_tokens": self.image_tokens,
                "audio_tokens": 0,
                "cached_tokens": 0,
            },
            "output_token_details": {"text_tokens": self.output_tokens, "audio_tokens": 0},
        }


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
        self._calls_tools = calls_tools
        self._new_id = new_id
        self._conversation = Conversation(limits.items)
        self._conversation_id = new_id("conv")
        self._responses: dict[str, OpenAnswer] = {}
        self._text = TextSettings()
        self._tools: list[FlatTool] = []
        self._tool_choice: FlatToolChoice = "auto"
        self._settings: SessionView = {
            "type": "realtime",
            "object": "realtime.session",
            "id": new_id("sess"),
            "model": model,
            "output_modalities": ["text"],
            "instructions": INSTRUCTIONS,
            "max_output_tokens": "inf",
            "temperature": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "auto",
            "text": {},
            "stream": stream,
        }

    # -- what the client does ---------------------------------------------------------------------------------------

    def open(self, streams: Collection[str]) -> list[Decision]:
        """The socket is open; `streams` are the names of those attached."""
        out: list[Decision] = [self._send(told.SessionCreated, session=self._settings)]
        if self.stream is not None:
            if self.stream not in streams:
                out.append(self._error(_unknown_stream(self.stream, streams, "stream", None)))
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
            case events.StreamList():
                return [Command("list", event.event_id)]
            case events.StreamAttach():
                return [Command("attach", event.event_id, event.stream, event.source, event.options or {})]
            case events.VideoAppend():
                return [Push(event.stream or self.stream, event.video.data, event.timestamp, event.event_id)]
            case events.WatchSubscribe():
                return [WatchCommand("subscribe", event.event_id, event.after or "")]
            case events.WatchList():
                return [WatchCommand("list", event.event_id)]
            case events.WatchAdd():
                return [WatchCommand("add", event.event_id, fields=event.watch)]
            case events.WatchUpdate():
                given = {key: getattr(event, key) for key in ("paused", "snooze") if getattr(event, key) is not None}
                return [WatchCommand("update", event.event_id, event.name, given)]
            case events.WatchNamed():
                return [WatchCommand("remove", event.event_id, event.name)]
            case events.WatchFeedback():
                return [WatchCommand("feedback", event.event_id, event.id, {"feedback": event.feedback})]
            case events.StreamNamed() | events.StreamDetach():
                stream = event.stream or self.stream or (next(iter(streams)) if len(streams) == 1 else None)
                if stream is None:
                    raise ProtocolError("missing_required_parameter", "Name a stream.", "stream", event.event_id)
                if stream not in streams:
                    raise _unknown_stream(stream, streams, "stream", event.event_id)
                if isinstance(event, events.MemoryList):
                    query: dict[str, Any] = {"from": event.since, "to": event.until, "kind": event.kinds}
                    query |= {"search": event.search, "limit": event.limit, "before": event.before}
                    return [Command("memory", event.event_id, stream, options=query)]
                verb = data["type"].removeprefix("stream.")
                return [Command(verb, event.event_id, stream)]
        raise AssertionError(f"no branch for {type(event).__name__}")

    def _update(
        self, event: events.SessionUpdate, refused: list[ProtocolError], streams: Collection[str]
    ) -> list[Decision]:
        """What can't be done is refused key by key; the rest stays."""
        asked = event.session
        given = set(asked.model_fields_set)
        if asked.stream is not None and asked.stream not in streams:
            refused = [*refused, _unknown_stream(asked.stream, streams, "session.stream", event.event_id)]
            given.discard("stream")
        try:
            self._choose(asked, given & {"tools", "tool_choice"})
        except ProtocolError as error:
            refused = [*refused, ProtocolError(error.code, error.message, error.param, event.event_id)]
            given -= {"tools", "tool_choice"}
        out: list[Decision] = []
        if given or not refused:
            changed = {key: getattr(asked, key) for key in given - {"type", "model", "tools", "tool_choice"}}
            for beta, key in (("modalities", "output_modalities"), ("max_response_output_tokens", "max_output_tokens")):
                if beta in changed:
                    changed.setdefault(key, changed.pop(beta))
                    changed.pop(beta, None)
            defaults = {"instructions": INSTRUCTIONS, "max_output_tokens": "inf", "output_modalities": ["text"]}
            if "text" in changed:
                self._text = changed.pop("text") or TextSettings()
                changed["text"] = self._text.model_dump(by_alias=True, exclude_none=True)
            settled = {key: defaults.get(key) if value is None else value for key, value in changed.items()}
            settled |= {
                "tools": [tool.model_dump(exclude_none=True) for tool in self._tools],
                "tool_choice": _dumped(self._tool_choice),
            }
            self._settings = cast(SessionView, {**self._settings, **settled})
            out.append(self._send(told.SessionUpdated, session=self._settings))
        if "stream" in given and asked.stream != self.stream:
            self.stream = asked.stream
            out.append(Listen(self.stream))
        return [*out, *map(self._error, refused)]

    def _choose(self, asked: events.SessionSettings, given: Collection[str]) -> None:
        """Takes the session's tools and which of them is to be called. Raises ProtocolError."""
        tools = (asked.tools or []) if "tools" in given else self._tools
        choice = (asked.tool_choice or "auto") if "tool_choice" in given else self._tool_choice
        if tools and not self._calls_tools:
            raise ProtocolError("no_tools", "This model calls no tools: leave them out.", "session.tools")
        chosen(tools, choice, "session.")
        self._tools, self._tool_choice = tools, choice

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
        stream = asked.stream or self.stream
        if stream is not None and stream not in streams:
            raise _unknown_stream(
                stream, streams, "response.stream" if asked.stream else "session.stream", event.event_id
            )
        tools, call = self._callable(asked)
        question = self._question(asked, bool(tools), event.event_id)
        tokens = asked.max_output_tokens or self._settings["max_output_tokens"]
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
            sampling=asked.over(Sampling(temperature=self._settings["temperature"])),
            max_tokens=None if tokens == "inf" else tokens,
            thinking=asked.tokens(),
            format=self._text.form("session.text") if asked.text is None else asked.text.form("response.text"),
            tools=tools,
            call=call,
            at=asked.at,
        )
        return [Ask(response.id, question)]

    def _callable(self, asked: events.ResponseSettings) -> tuple[tuple[Tool, ...], bool]:
        """The tools that may be called: the response's own, else the session's; and whether one must be. Raises ProtocolError."""
        own = asked.tools is not None or asked.tool_choice is not None
        tools = self._tools if asked.tools is None else asked.tools
        return chosen(tools, asked.tool_choice or self._tool_choice, "response." if own else "session.")

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
        lead = asked.instructions if asked.instructions is not None else self._settings["instructions"]
        if not question.text.strip() and asked.instructions:
            question = replace(question, text=asked.instructions)
            lead = self._settings["instructions"]
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
        out: list[Decision] = [self._send(told.ResponseCreated, response=self._view(response, "in_progress"))]
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
        usage: Usage = Usage(),
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
        view = self._view(response, status, None if reason == "stop" else details, usage)
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
        if command.verb == "memory":
            return [self._send(told.MemoryListed, **rest)]
        if command.verb == "detach" and command.stream == self.stream:
            self.stream = None
            self._settings = {**self._settings, "stream": None}
        return [self._send(_REPLIES[command.verb], stream=rest.pop("stream"), told=rest)]

    def watched(self, command: WatchCommand, **told_of: Any) -> list[Decision]:
        """A command about watches has been carried out; `told_of` are the keys of its reply."""
        return [self._send(_WATCH_REPLIES[command.verb], **told_of)]

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

    def _view(
        self,
        response: OpenAnswer,
        status: str,
        details: dict[str, Any] | None = None,
        usage: Usage | None = None,
    ) -> ResponseView:
        return {
            "object": "realtime.response",
            "id": response.id,
            "status": status,
            "status_details": details,
            "output": [item.view() for item in response.items],
            "conversation_id": self._conversation_id if response.conversation else None,
            "output_modalities": ["text"],
            "max_output_tokens": response.max_output_tokens,
            "metadata": response.metadata,
            "usage": usage.view() if usage else None,
            "stream": response.stream,
            "moment": response.moment,
        }

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


_REPLIES: Mapping[str, type[told.StreamEvent]] = {
    "attach": told.StreamAttached,
    "detach": told.StreamDetached,
    "status": told.StreamStatus,
    "frame": told.StreamFrame,
}


_WATCH_REPLIES: Mapping[str, type[ServerEvent]] = {
    "subscribe": told.WatchSubscribed,
    "list": told.WatchListed,
    "add": told.WatchAdded,
    "update": told.WatchUpdated,
    "remove": told.WatchRemoved,
    "feedback": told.WatchJudged,
}


def _dumped(choice: FlatToolChoice) -> str | dict[str, str]:
    return choice if isinstance(choice, str) else choice.model_dump()


def _unknown_stream(stream: str, streams: Collection[str], param: str, event_id: str | None) -> ProtocolError:
    known = ", ".join(sorted(streams)[:10]) or "none attached"
    return ProtocolError("unknown_stream", f"There is no stream {stream!r}; known: {known}.", param, event_id)
