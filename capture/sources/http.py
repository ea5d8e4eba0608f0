"""`http://` and `https://`: a still, MJPEG, a playlist or a container, whichever the answer turns out to be."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from functools import partial
from urllib.parse import unquote, urlsplit, urlunsplit

import av
import httpx
from av.container import InputContainer

from capture.gate import Selection
from capture.image import decode_image, image_format
from capture.lifecycle import PLAYED
from capture.network.proxy import Relay, unverified
from capture.redaction import redact
from capture.source import SourceError, SourceOptions
from capture.sources.base import Over
from capture.sources.container import BROKEN, NO_HOST, REFUSED, SILENT, STATUS, ContainerSource, live_lack
from capture.sources.hls import EDGE, Broadcast, Playlist, nearest, read_playlist
from capture.sources.jpegs import JpegStream
from capture.sources.rtsp import FOREIGN, WRONG
from capture.sources.still import StillPoll

log = logging.getLogger(__name__)
# It would write a line for each still that is asked for, with the credentials of its URL.
logging.getLogger("httpx").setLevel(logging.WARNING)

LOOKED_AT = 512
"""Bytes of an answer by which its kind is told."""
LONGEST_PLAYLIST = 4 * 2**20
MOST_REDIRECTS = 5
BROADCAST_OVER = "the broadcast is over"
WHOLE_SEGMENTS = (
    "of its low-latency HLS whole segments are read, not their parts: it is seen {:.0f} s late or more; RTSP is sooner"
)
SDP = b"v=0"
"""What a description of RTP begins with, which FFmpeg reads."""
OTHER_PICTURES = re.compile(rb"\x89PNG\r\n\x1a\n|RIFF....WEBP", re.DOTALL)
UNPRINTED = re.compile(rb"[^\t\n\r -~]")
NONE: Mapping[str, str] = {}


class Kind(StrEnum):
    """What an HTTP server sends."""

    STILL = "still"
    MOTION = "JPEG after JPEG"
    PLAYLIST = "playlist"
    PAGE = "page"
    DASH = "DASH"
    TEXT = "text"
    NOTHING = "nothing"
    CONTAINER = "container"


REFUSALS = {
    Kind.PAGE: "there is a web page, not a video: name the address of the camera's picture or stream itself",
    Kind.TEXT: "there is text, not a video, as cameras answer what they don't understand: check the path and what follows it",
    Kind.NOTHING: "the server's answer is empty: check the path",
    Kind.DASH: "there is DASH (.mpd), which is not read: name the HLS (.m3u8) or RTSP address of the same video",
}


def kind_of(content_type: str, head: bytes) -> Kind:
    """What an answer is by its first bytes, and where they don't tell by its type (the `Content-Type` field)."""
    content_type = content_type.partition(";")[0].strip().lower()
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if content_type.startswith("multipart/") or (text.startswith(b"--") and b"content-type: image/" in text):
        return Kind.MOTION
    if image_format(head) is not None:
        return Kind.MOTION if content_type.startswith("video/") else Kind.STILL
    if text.startswith(b"#extm3u"):
        return Kind.PLAYLIST
    if content_type == "application/dash+xml" or b"<mpd" in text:
        return Kind.DASH
    if text.startswith((b"<!doctype html", b"<html")) or (content_type == "text/html" and text.startswith(b"<")):
        return Kind.PAGE
    if not head:
        return Kind.NOTHING
    return Kind.TEXT if text.isascii() and not text.startswith(SDP) and not UNPRINTED.search(text) else Kind.CONTAINER


class HttpSource(ContainerSource):
    """Whatever an HTTP server shows. Cameras' stills are polled; what FFmpeg reads better is left to it."""

    def __init__(self, url: str, options: SourceOptions) -> None:
        super().__init__(url, options, live=True)
        self.kind: Kind | None = None
        self.broadcast = Broadcast()
        self.live = False
        """Whether the playlist that is watched had no end when it was joined."""
        self.again: float | None = None
        """The timestamp from which a broadcast that has ended in the meantime is played on."""
        self.behind = 0.0

    def describe(self, error: Exception) -> str:
        """See `SourceShell.describe`."""
        if isinstance(error, av.error.HTTPUnauthorizedError) and self.kind is not None:
            return f"{self.name}: {FOREIGN.format('another algorithm than MD5')}"
        if (
            isinstance(error, httpx.HTTPStatusError)
            and error.response.status_code == 401
            and "@" in urlsplit(self.url).netloc
        ):
            return f"{self.name}: {WRONG}"
        if isinstance(error, httpx.HTTPError | httpx.InvalidURL) and not (self.relay and self.relay.trouble):
            return f"{self.name}: {said(error)}"
        return super().describe(error)

    def connect(self, generation: int) -> None:
        """See `SourceShell.connect`."""
        self.target, self.asked = self.url, {}
        if self.kind is not Kind.CONTAINER:
            self.kind = None
            with Relay(self.url) if self.relayed else nullcontext() as self.relay, self.client() as client:
                try:
                    self.watch(client, generation)
                except httpx.RemoteProtocolError:
                    if self.kind is not None:
                        raise
                    # Some cameras speak an HTTP of their own, which FFmpeg takes.
                    self.kind = Kind.CONTAINER
        if self.kind not in (Kind.CONTAINER, Kind.PLAYLIST) or not self.wanted(generation):
            return
        super().connect(generation)
        if self.kind is Kind.PLAYLIST and self.wanted(generation):
            self.conclude()

    def watch(self, client: httpx.Client, generation: int) -> None:
        """Looks at what the server sends, and shows stills and MJPEG for as long as they come."""
        with answered(client, self.address()) as answer:
            chunks = answer.iter_bytes()
            head = b""
            multipart = answer.headers.get("Content-Type", "").lower().lstrip().startswith("multipart/")
            while len(head) < LOOKED_AT and not multipart and (chunk := next(chunks, b"")):
                head += chunk
            self.kind = kind_of(answer.headers.get("Content-Type", ""), head)
            chunks = itertools.chain([head], chunks)
            if self.kind in (Kind.STILL, Kind.MOTION):
                self.refuse_recordings_options()
            if self.kind is Kind.STILL:
                self.selection = Selection(
                    None, self.options.change, self.options.change_floor, phase=self.selection.phase
                )
                poll = StillPoll(self, generation)
                more = poll.take(answer, chunks)
            elif self.kind is Kind.MOTION:
                self.show(chunks, generation)
            elif self.kind is Kind.CONTAINER:
                self.whole = is_file(answer.headers)
            elif self.kind in REFUSALS:
                raise SourceError(REFUSALS[self.kind])
            elif self.kind is Kind.PLAYLIST:
                playlist = read_playlist(text_of(chunks), str(answer.url))
        if self.kind is Kind.STILL:
            while more and poll.wait():
                with answered(client, self.address(), poll.conditions) as answer:
                    more = poll.take(answer, answer.iter_bytes())
        elif self.kind is Kind.PLAYLIST:
            self.join(client, playlist)

    def refuse_recordings_options(self) -> None:
        """Raises SourceError for good where something was asked for that only recordings have."""
        if lack := live_lack(self.options):
            self.retries = False
            raise SourceError(lack)

    def show(self, chunks: Iterator[bytes], generation: int) -> None:
        """Hands over JPEG after JPEG."""
        pictures, found = JpegStream(), False
        for chunk in chunks:
            self.lifecycle.heard(generation, time.monotonic())
            for data in pictures.feed(chunk):
                picture, found = partial(decode_image, data, self.options.largest_side), True
                try:
                    if not self.deliver(generation, picture, None, time.monotonic()):
                        return
                except SourceError:
                    self.damaged += 1
            if not found and OTHER_PICTURES.search(chunk):
                raise SourceError("it sends PNG or WebP after another, of which only stills are read: choose JPEG")
            if not self.wanted(generation):
                return
        if not found:
            raise SourceError(
                "it ended without a whole JPEG picture: other pictures are not read from a stream of them"
            )

    def join(self, client: httpx.Client, playlist: Playlist) -> None:
        """Decides which of a broadcast's sizes FFmpeg opens, and where in it. Raises Over."""
        locked = playlist.locked
        if playlist.variants:
            variant = nearest(playlist.variants, self.options.largest_side).url
            self.target = self.with_user(variant)
            look_for(client, self.address())
            playlist = self.playlist(client)
        if locked := locked or playlist.locked:
            self.retries = False
            raise SourceError(
                f"it is encrypted for some players alone ({locked}, DRM), which is not read: name another"
            )
        fruitless = self.broadcast.span is None
        index = self.broadcast.join(playlist)
        reached = self.broadcast.reached
        self.seen = reached if self.seen is None or reached is None else self.seen
        self.again = self.seen if playlist.ended else None
        if index is None:
            raise Over(BROADCAST_OVER)
        if index >= len(playlist.segments):
            raise SourceError("its playlist names no segment of video, or none yet")
        self.live = self.live or not playlist.ended
        if self.live:
            self.refuse_recordings_options()
            if playlist.parts and not self.complained:
                self.complained = True
                late = EDGE * max(playlist.durations, default=0.0)
                log.warning("source %s: %s", self.name, WHOLE_SEGMENTS.format(late))
        elif len(set(playlist.formats)) > 1:
            # FFmpeg passes over whatever is not like the first; a live one is joined anew where it changes.
            self.retries = False
            raise SourceError(
                "its segments are partly TS and partly fMP4, which is not read: name a variant of one format"
            )
        if fruitless:
            look_for(client, playlist.segments[index])
        # Cameras' servers name their segments as they like.
        self.asked = {"live_start_index": str(index), "extension_picky": "0", "fpsprobesize": "0"}
        self.behind = 0.0 if playlist.ended else sum(playlist.durations[index : len(playlist.durations) - EDGE])

    def playlist(self, client: httpx.Client) -> Playlist:
        """What `target`'s playlist says now."""
        with answered(client, self.address()) as answer:
            return read_playlist(text_of(answer.iter_bytes()), str(answer.url))

    def conclude(self) -> None:
        """FFmpeg came to an end of a broadcast, be it the broadcast's or the connection's. Raises Over or SourceError."""
        with Relay(self.url) if self.relayed else nullcontext() as self.relay, self.client() as client:
            ended = self.playlist(client).ended
        if ended:
            raise Over(BROADCAST_OVER if self.live else PLAYED)
        raise SourceError("the broadcast broke off")

    def news(self, timestamp: float | None) -> bool:
        """See `ContainerSource.news`."""
        if self.kind is not Kind.PLAYLIST or timestamp is None:
            return True
        cast = self.broadcast
        if cast.span is None:
            self.hasty_until = timestamp + self.behind
        span = cast.picture(timestamp)
        if self.seen is not None and timestamp <= self.seen and span < cast.overlap:
            return False
        self.seen = None
        return True

    def beginning(self, container: InputContainer, first: bool) -> float:
        """See `ContainerSource.beginning`."""
        again, self.again = self.again, None
        return super().beginning(container, first) if again is None else again

    def with_user(self, url: str) -> str:
        """A URL from a playlist with this source's user and password, if it names the same server."""
        own, other = urlsplit(self.url), urlsplit(url)
        user, at, host = own.netloc.rpartition("@")
        return urlunsplit(other._replace(netloc=f"{user}{at}{host}")) if other.netloc == host else url

    def address(self) -> str:
        """`target` without its user and password."""
        parts = urlsplit(self.target)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))

    def client(self) -> httpx.Client:
        """What speaks to the server, as FFmpeg would: it takes cameras' own certificates."""
        parts, patience = urlsplit(self.url), self.options.patience
        relay = self.relay
        return httpx.Client(
            auth=CameraAuth(parts.hostname or "", parts.username or "", parts.password or "")
            if "@" in parts.netloc
            else None,
            verify=unverified(),
            proxy=None if relay is None else f"http://127.0.0.1:{relay.port}",
            trust_env=relay is None,
            # The relay takes one request a connection.
            limits=httpx.Limits(max_keepalive_connections=0 if relay is not None else 1),
            timeout=httpx.Timeout(patience.stall + patience.give_up, connect=patience.open),
            follow_redirects=True,
            max_redirects=MOST_REDIRECTS,
        )


class CameraAuth(httpx.Auth):
    """Basic or Digest (RFC 7617 and 7616), whichever a server of this host asks for; Digest where it takes both."""

    def __init__(self, host: str, user: str, password: str) -> None:
        self.host = host
        user, password = unquote(user), unquote(password)
        self.basic, self.digest = httpx.BasicAuth(user, password), httpx.DigestAuth(user, password)
        self.chosen: httpx.Auth | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        if request.url.host != self.host:
            yield request
            return
        if self.chosen is None:
            answer = yield request
            if answer.status_code != httpx.codes.UNAUTHORIZED:
                return
            asked = answer.headers.get("WWW-Authenticate", "").lower()
            self.chosen = self.digest if "digest" in asked else self.basic
        yield from self.chosen.auth_flow(request)


@contextmanager
def answered(client: httpx.Client, address: str, conditions: Mapping[str, str] = NONE) -> Iterator[httpx.Response]:
    """An answer whose body is still to be read. Raises httpx.HTTPError, also where the server's status tells of one."""
    try:
        answer = client.send(client.build_request("GET", address, headers=conditions), stream=True)
    except httpx.RemoteProtocolError:
        # A camera that hung up on a connection just as it was taken again.
        answer = client.send(client.build_request("GET", address, headers=conditions), stream=True)
    try:
        if answer.is_error:
            answer.raise_for_status()
        yield answer
    finally:
        answer.close()


def is_file(headers: httpx.Headers) -> bool:
    """Whether an answer is a file, which ends, by what only servers of files tell of one: cameras make up lengths alone."""
    told = any(headers.get(name) for name in ("Last-Modified", "ETag")) or bool(headers.get("Accept-Ranges") == "bytes")
    return told and bool(headers.get("Content-Length", "0") != "0")


def look_for(client: httpx.Client, segment: str) -> None:
    """Raises SourceError where a server has no segment that its playlist names: FFmpeg would look for the next one for ever."""
    try:
        with answered(client, segment):
            pass
    except httpx.HTTPStatusError as error:
        name, status = redact(segment), error.response.status_code
        raise SourceError(
            f"its playlist is there, but not what it names: the server answers {status} to {name}"
        ) from None


def text_of(chunks: Iterator[bytes]) -> str:
    """A playlist's text. Raises SourceError."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > LONGEST_PLAYLIST:
            raise SourceError(f"its playlist has more than {LONGEST_PLAYLIST >> 20} MiB")
    return data.decode("utf-8", "replace")


def said(error: Exception) -> str:
    """An HTTP client's error as one clear line."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return STATUS.get(status) or STATUS.get(status // 100) or f"the server refuses ({status})"
    if isinstance(error, httpx.TimeoutException):
        return SILENT
    if isinstance(error, httpx.ConnectError):
        known = {
            "refused": REFUSED,
            "Name or service": NO_HOST,
            "No address": NO_HOST,
            "Temporary failure in name": NO_HOST,
        }
        return next((line for part, line in known.items() if part in str(error)), redact(str(error)))
    if isinstance(error, httpx.TooManyRedirects):
        return f"the server sends its clients on more than {MOST_REDIRECTS} times"
    return BROKEN if isinstance(error, httpx.TransportError) else redact(str(error))
