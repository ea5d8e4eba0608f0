"""Sources by their URLs."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from capture.readers.apart import ApartSource
from capture.readers.pool import READERS
from capture.redaction import HIDDEN, redact
from capture.source import NETWORK, SCHEMES, Source, SourceError, SourceOptions, check_length
from capture.sources.camera import CameraSource
from capture.sources.container import ContainerSource, live_lack
from capture.sources.demo import demo_source
from capture.sources.http import REFUSALS, HttpSource, Kind
from capture.sources.picture import file_source
from capture.sources.push import PushSource
from capture.sources.rtsp import PASSWORD_MEND


def open_source(url: str, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008
    """A source for a file's path, `file://`, one of SCHEMES or `demo:`. Raises SourceError for what can never work.

    With `options.readers` what FFmpeg opens is read in one of so many processes, but for what a GPU decodes: each process would
    take memory there.
    """
    source = source_here(url, options)
    if (
        not options.readers
        or options.hwaccel != "none"
        or not isinstance(source, ContainerSource)
        or not sys.executable
    ):
        return source
    endless = source.lifecycle.endless
    return ApartSource(source.name, url, source.options, endless=endless, assign=READERS.assign)


def source_here(url: str, options: SourceOptions) -> Source:
    """As `open_source`, and read in this process."""
    scheme, colon, rest = check_length(url).partition(":")
    scheme = scheme.lower() if rest.startswith("//") else scheme
    url = f"{scheme}{colon}{rest}"
    rest = rest.removeprefix("//")
    if scheme == "demo" and not rest:
        return demo_source(options)
    if scheme in NETWORK:
        check_address(url, scheme)
        return HttpSource(url, options) if scheme in ("http", "https") else ContainerSource(url, options, live=True)
    if scheme in ("camera", "push", "whip") and (lack := live_lack(options)):
        raise SourceError(f"source {redact(url)}: {lack}")
    if scheme == "v4l2":
        if not Path(rest).exists():
            raise SourceError(f"source {url}: there is no such device; `ls /dev/video*` shows those there are")
        return ContainerSource(url, options, live=True)
    if scheme == "camera":
        return CameraSource(url, options)
    if scheme == "push":
        return PushSource(url, options)
    if scheme == "whip":
        # Only where it is needed: aiortc takes as long to import as all else here.
        from capture.sources.webrtc import WhipSource

        return WhipSource(url, options)
    if "://" in url and scheme != "file":
        raise SourceError(
            f"source {redact(url)}: unknown scheme {scheme!r}; use a file's path, {', '.join(f'{s}://' for s in SCHEMES)} or demo:"
        )
    try:
        path = Path(local_path(rest) if scheme == "file" else url)
        with suppress(RuntimeError):  # "~name" of nobody known here is a name like any other
            path = path.expanduser()
        folder, there = path.is_dir(), path.exists()
    except OSError as error:
        raise SourceError(f"source {redact(url)[:80]}… can't be looked for: {error.strerror}") from None
    if folder:
        raise SourceError(f"source {url} is a folder: name a video file")
    if not there:
        mend = "; of a camera begin with rtsp:// or http://" if HIDDEN in redact(url) else ""
        raise SourceError(f"source {redact(url)}: there is no such file{mend}")
    if path.suffix.lower() == ".mpd":
        raise SourceError(f"source {url}: {REFUSALS[Kind.DASH]}")
    return file_source(path, options)


def check_address(url: str, scheme: str) -> None:
    """Raises SourceError for a URL of `scheme` that names no host, or whose password hides it."""
    if any(letter.isspace() for letter in url):
        # Not shown: where a password ends can't be told.
        raise SourceError(f"source {scheme}://… has a space in it: write it as %20")
    try:
        parts = urlsplit(url)
        host, _, user = parts.hostname, parts.port, parts.username
    except ValueError:
        host = user = None
    if user is None and redact(url).startswith(f"{scheme}://{HIDDEN}@"):
        raise SourceError(f"source {redact(url)} has a password that hides its host: {PASSWORD_MEND}")
    if not host:
        raise SourceError(f"source {redact(url)} names no host, or an impossible port: write {scheme}://host/path")


def local_path(rest: str) -> str:
    """The path of a `file://` URL without its scheme: of this machine, percent-encoded or as it is. Raises SourceError."""
    host, slash, path = rest.partition("/")
    if slash and host.lower() == "localhost":
        rest = slash + path
    elif slash and host not in ("", "~", ".", "..") and not Path(rest).exists():
        raise SourceError(
            f"source {redact(f'file://{rest}')} names the machine {host!r}: a file of this machine is file:///path"
        )
    return rest if Path(rest).exists() else unquote(rest)
