"""The world as frames: sources, their lifecycle and the hand-over of the newest frame."""

from capture.drain import drained
from capture.frame import Frame
from capture.lifecycle import Patience, State
from capture.mailbox import Mailbox
from capture.opening import open_source
from capture.recorder import Coded, Coding, Recorder
from capture.redaction import redact
from capture.source import IceServer, Source, SourceError, SourceOptions, SourceStatus
from capture.sources.camera import list_cameras
from capture.sources.push import PushSource

__all__ = [
    "Coded",
    "Coding",
    "Frame",
    "IceServer",
    "Mailbox",
    "Patience",
    "PushSource",
    "Recorder",
    "Source",
    "SourceError",
    "SourceOptions",
    "SourceStatus",
    "State",
    "drained",
    "list_cameras",
    "open_source",
    "redact",
]
