"""The assistant's objects as plain JSON data, one shape for every door."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

from capture import Frame
from capture.image import encode_jpeg
from streamer.assistant import Assistant, StreamEvent, StreamStatus
from streamer.server.attachments import PREFIX


def stream_view(status: StreamStatus) -> dict[str, Any]:
    """One stream's figures; units are in the names."""
    return asdict(status)


def event_view(event: StreamEvent) -> dict[str, Any]:
    """A `stream.*` event: type, stream, and what it tells."""
    return {"type": event.type, "stream": event.stream, **event.facts}


def frame_view(frame: Frame, side: int = 640) -> dict[str, Any]:
    """What the model last saw: a JPEG data URI, at most `side` pixels wide or high, and the frame's place in time."""
    picture = base64.b64encode(encode_jpeg(frame.pixels, side)).decode()
    return {
        "image_url": f"data:image/jpeg;base64,{picture}",
        "time": frame.time,
        "sequence": frame.sequence,
        "source": frame.source,
    }


def health_view(assistant: Assistant) -> dict[str, Any]:
    """What runs here: the model, whether its weights are trained, how many streams are attached, and why nothing can be kept."""
    fault = None if assistant.keeper is None else assistant.keeper.fault
    storage = {} if fault is None else {"storage": fault}
    if not assistant.ready:
        return {"status": "unready", "reason": assistant.trouble, **storage}
    model = assistant.model
    return {
        "status": "ok",
        "model": {
            "name": model.name,
            "trained": model.trained,
            "weights": "trained" if model.trained else "random weights: answers mean nothing",
            "state_bytes": model.state_bytes,
        },
        "streams": sum(not status.name.startswith(PREFIX) for status in assistant.streams()),
        **storage,
    }
