"""What a client asks of streams and watches, beside questions: its event as a command, and the event that replies to one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from protocols.fields import ProtocolError
from protocols.realtime import client_events as events
from protocols.realtime import server_events as told
from protocols.realtime.decisions import Command, Push, WatchCommand

REPLIES: Mapping[str, type[told.StreamEvent]] = {
    "attach": told.StreamAttached,
    "detach": told.StreamDetached,
    "status": told.StreamStatus,
    "frame": told.StreamFrame,
}
"""By a command's verb."""
MEMORY_REPLIES: Mapping[str, type[told.ServerEvent]] = {
    "memory": told.MemoryListed,
    "memory_subscribe": told.MemorySubscribed,
}
"""By the verb of a command about timelines."""
WATCH_REPLIES: Mapping[str, type[told.ServerEvent]] = {
    "subscribe": told.WatchSubscribed,
    "list": told.WatchListed,
    "add": told.WatchAdded,
    "update": told.WatchUpdated,
    "remove": told.WatchRemoved,
    "feedback": told.WatchJudged,
}
"""By a watch command's verb."""


def read_command(
    event: events.ClientEvent, kind: str, own: str | None, streams: Collection[str]
) -> Command | WatchCommand | Push:
    """What is to be done for an event, whose `type` is `kind`; `own` is the session's stream, `streams` are all.

    Raises ProtocolError where no stream is meant, or one that there isn't.
    """
    match event:
        case events.StreamList():
            return Command("list", event.event_id)
        case events.StreamAttach():
            return Command("attach", event.event_id, event.stream, event.source, event.options or {})
        case events.VideoAppend():
            return Push(event.stream or own, event.video.data, event.timestamp, event.event_id)
        case events.WatchSubscribe():
            return WatchCommand("subscribe", event.event_id, event.after or "")
        case events.WatchList():
            return WatchCommand("list", event.event_id)
        case events.WatchAdd():
            return WatchCommand("add", event.event_id, fields=event.watch)
        case events.WatchUpdate():
            given = {key: getattr(event, key) for key in ("paused", "snooze") if getattr(event, key) is not None}
            return WatchCommand("update", event.event_id, event.name, {**(event.watch or {}), **given})
        case events.WatchNamed():
            return WatchCommand("remove", event.event_id, event.name)
        case events.WatchFeedback():
            return WatchCommand("feedback", event.event_id, event.id, {"feedback": event.feedback})
        case events.StreamNamed() | events.StreamDetach():
            stream = event.stream or own or (next(iter(streams)) if len(streams) == 1 else None)
            if stream is None:
                raise ProtocolError("missing_required_parameter", "Name a stream.", "stream", event.event_id)
            if stream not in streams:
                raise unknown_stream(stream, streams, "stream", event.event_id)
            if isinstance(event, events.MemoryList):
                query: dict[str, Any] = {"from": event.since, "to": event.until, "kind": event.kinds}
                query |= {"search": event.search, "limit": event.limit, "before": event.before}
                return Command("memory", event.event_id, stream, options=query)
            if isinstance(event, events.MemorySubscribe):
                return Command("memory_subscribe", event.event_id, stream)
            verb: Any = kind.removeprefix("stream.")
            return Command(verb, event.event_id, stream)
    raise AssertionError(f"no branch for {type(event).__name__}")


def unknown_stream(stream: str, streams: Collection[str], param: str, event_id: str | None) -> ProtocolError:
    """Says that there is no such stream, and which there are."""
    known = ", ".join(sorted(streams)[:10]) or "none attached"
    return ProtocolError("unknown_stream", f"There is no stream {stream!r}; known: {known}.", param, event_id)
