"""What every source of frames is, and how one is opened by its URL."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from capture.lifecycle import Patience, State
from capture.mailbox import Mailbox


class SourceError(ValueError):
    """A source that can never work as named; the message is one line with the value and the mend."""


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
    largest_side: int = 640
    """Pictures are scaled down, in the step that converts their colours, until their longer side fits; that step is the dearest."""
    threads: int = 1
    """Decoder threads."""
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source at one moment; `since` is monotonic seconds, `reason` one clear line or empty."""

    state: State = State.CONNECTING
    since: float = 0.0
    reason: str = ""
    frozen: bool = False
    frames: int = 0
    frames_per_second: float = 0.0
    reconnects: int = 0
    width: int = 0
    height: int = 0


class Source(Protocol):
    """Where a stream's frames come from. `name` is its URL with credentials left out."""

    name: str

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


def redact(text: str) -> str:
    """`text` with the credentials of every URL in it left out."""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)


NETWORK = ("rtsp", "rtsps")
"""Schemes that FFmpeg opens over the network."""


def open_source(url: str, options: SourceOptions = SourceOptions()) -> Source:
    """A source for a file's path, `file://`, `rtsp://`, `rtsps://` or `demo:`. Raises SourceError for what can never work."""
    from capture.container import ContainerSource
    from capture.synthetic import demo_source

    scheme, _, rest = url.partition(":")
    if scheme == "demo" and not rest:
        return demo_source(options)
    if scheme in NETWORK:
        return ContainerSource(url, options, live=True)
    if "://" in url and scheme != "file":
        raise SourceError(
            f"source {redact(url)}: unknown scheme {scheme!r}; use a file's path, {', '.join(f'{s}://' for s in NETWORK)} or demo:"
        )
    path = Path(rest.removeprefix("//") if scheme == "file" else url).expanduser()
    if not path.is_file():
        raise SourceError(
            f"source {url}: there is no such file"
            if not path.is_dir()
            else f"source {url} is a folder: name a video file"
        )
    return ContainerSource(str(path), options, live=False)
