"""What every source of frames is, how it is read, and what of its URL may be shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from capture.lifecycle import Patience, State
from capture.mailbox import Mailbox
from capture.recorder import Recorder
from capture.redaction import redact


class SourceError(ValueError):
    """A source that can never work as named; the message is one line with the value and the mend."""


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server, by its URLs (`stun:host:3478`, `turn:host:3478?transport=udp`)."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source is read. Times are in seconds."""

    loop: bool = False
    """A file begins again at its end."""
    start: float = 0.0
    """Offset into a file."""
    realtime: bool = True
    """A file plays at its own pace; otherwise as fast as it is taken."""
    transport: Literal["tcp", "udp"] = "tcp"
    """How RTSP carries its pictures."""
    audio: bool = False
    """Whoever records is handed the sound's packets too, where a container has some that MP4 can hold."""
    fps: float | None = None
    """At most this many frames a second are handed over, and no others have their colours converted; None is all.

    A still is asked for so often, and once a second where this is None.
    """
    change: float | None = None
    """Frames that differ from the last one handed over by less than this (levels of 255 in the most changed part) are left out."""
    change_floor: float = 1.0
    """So many frames a second are handed over even where nothing changes."""
    largest_side: int = 640
    """Pictures are scaled down, in the step that converts their colours, until their longer side fits; that step is the dearest."""
    threads: int = 1
    """Decoder threads."""
    hwaccel: Literal["auto", "cuda", "none"] = "none"
    """Hardware that decodes; where it can't, the CPU does, which is logged."""
    camera_size: tuple[int, int] | None = None
    """Width and height asked of a local camera."""
    camera_rate: float | None = None
    """Frames a second asked of a local camera."""
    pixel_format: str | None = None
    """Pixel format asked of a local camera: FFmpeg's name (`mjpeg`, `yuyv422`) for v4l2://, a FourCC (`MJPG`) for camera://."""
    public_only: bool = False
    """A network source reaches public addresses alone, whatever its redirects and playlists name and its host resolves to."""
    ice_servers: tuple[IceServer, ...] = ()
    """What WebRTC asks for its addresses."""
    readers: int = 0
    """What is read apart, in processes of their own, is so in this many at most; 0 is in this process's threads."""
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source at one moment; `since` is monotonic seconds, `reason` one clear line or empty.

    `frames` counts what was decoded, `thinned` what `fps` left out of it, `unchanged` what the change gate left out, and
    `damaged` packets that could not be decoded. `gap` is the length in seconds of the last interruption. `changes` counts how often
    the source came into each of its states, `frozen` told apart from `live`. `jumps` counts how often timestamps jumped, or began
    or ceased to be there, within a connection; that a looped recording begins again is none.
    """

    state: State = State.CONNECTING
    since: float = 0.0
    reason: str = ""
    frozen: bool = False
    frames: int = 0
    frames_per_second: float = 0.0
    reconnects: int = 0
    width: int = 0
    height: int = 0
    thinned: int = 0
    unchanged: int = 0
    damaged: int = 0
    gap: float = 0.0
    changes: Mapping[str, int] = field(default_factory=dict)
    jumps: int = 0


class Source(Protocol):
    """Where a stream's frames come from. `name` is its URL with credentials left out."""

    name: str

    def record(self, recorder: Recorder) -> None:
        """Lets a recorder have all that comes; before `start`."""
        ...

    def start(self, mailbox: Mailbox, notify: Callable[[SourceStatus], None]) -> None:
        """Begins to put frames into `mailbox`; `notify` is called, from a thread of the source's, at every change of state."""
        ...

    def stop(self, timeout: float = 2.0) -> None:
        """Ends the source and waits up to `timeout` seconds for its thread."""
        ...

    @property
    def status(self) -> SourceStatus:
        """How the source is now."""
        ...


LONGEST_SOURCE = 2_048
"""Characters of the longest source that is taken."""
NETWORK = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https")
"""Schemes that FFmpeg opens over the network."""
SCHEMES = (*NETWORK, "v4l2", "camera", "push", "whip")


def check_length(url: str) -> str:
    """`url`, which is no longer than a source may be. Raises SourceError."""
    if len(url) > LONGEST_SOURCE:
        raise SourceError(
            f"source {redact(url[:LONGEST_SOURCE])[:40]}… has {len(url):,} characters: {LONGEST_SOURCE:,} are the most"
        )
    return url
