"""The world as frames: sources, their lifecycle and the hand-over of the newest frame."""

from capture.frame import Frame
from capture.lifecycle import Patience, State
from capture.mailbox import Mailbox
from capture.source import Source, SourceError, SourceOptions, SourceStatus, open_source, redact

__all__ = [
    "Frame",
    "Mailbox",
    "Patience",
    "Source",
    "SourceError",
    "SourceOptions",
    "SourceStatus",
    "State",
    "open_source",
    "redact",
]
