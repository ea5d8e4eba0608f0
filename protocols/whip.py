"""WHIP, WebRTC-HTTP ingestion (RFC 9725): requests in, what to do and responses out; no sockets, no ICE.

A publisher POSTs an SDP offer to an endpoint and gets an answer with a session URL that can't be guessed; it may PATCH
candidates there (trickle ICE) and DELETEs it to end. ICE restarts are refused, as RFC 9725 section 4.3 allows.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protocols.fields import ProtocolError

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"
CODECS = ("VP8", "H264")
LARGEST = 256 * 1024
MOST_CANDIDATES = 100
"""Of one session; each that is taken is tried against every address of ours."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""


@dataclass(frozen=True, slots=True)
class Publish:
    """Answer this offer; tell `published` with the answer, or `refused`."""

    stream: str
    offer: str


@dataclass(frozen=True, slots=True)
class Trickle:
    """More candidates (the values of `a=candidate` lines) for a session; tell nothing."""

    stream: str
    session: str
    candidates: tuple[str, ...]
    reply: Reply


@dataclass(frozen=True, slots=True)
class End:
    """The publisher ends its session."""

    stream: str
    session: str
    reply: Reply


Decision = Reply | Publish | Trickle | End


@dataclass(slots=True)
class _Session:
    stream: str
    ufrag: str
    candidates: int = 0


class WhipEndpoint:
    """Every publisher's session.

    Args:
        path: where the endpoint is, such as `/whip`; a stream's is `/whip/NAME`.
        new_id: makes session ids that can't be guessed.
    """

    def __init__(self, path: str = "/whip", new_id: Callable[[], str] = lambda: secrets.token_urlsafe(24)) -> None:
        self._path = path
        self._new_id = new_id
        self._sessions: dict[str, _Session] = {}

    def request(
        self, method: str, stream: str, session: str | None, headers: Mapping[str, str], body: bytes
    ) -> Decision:
        """One request; header names in lower case. Raises ProtocolError for what is refused.

        Its codes: method_not_allowed, not_found, unsupported_media_type, payload_too_large, invalid_sdp,
        unsupported_codec, precondition_failed, ice_restart.
        """
        allowed = ("OPTIONS", "POST") if session is None else ("OPTIONS", "PATCH", "DELETE")
        if method == "OPTIONS":
            accept = {"Accept-Post": SDP} if session is None else {"Accept-Patch": FRAGMENT}
            return Reply(204, {"Allow": ", ".join(allowed), **accept})
        if method not in allowed:
            raise ProtocolError("method_not_allowed", f"Use {' or '.join(allowed)} here.")
        if len(body) > LARGEST:
            raise ProtocolError("payload_too_large", f"A session description may hold {LARGEST // 1024} KiB at most.")
        if session is None:
            return self._post(stream, headers, body)
        known = self._sessions.get(session)
        if known is None or known.stream != stream:
            raise ProtocolError("not_found", "There is no such session.")
        if method == "DELETE":
            del self._sessions[session]
            return End(stream, session, Reply(200))
        return self._patch(session, known, headers, body)

    def published(self, publish: Publish, answer: str) -> tuple[str, Reply]:
        """The session's id and the reply to its publisher."""
        session = self._new_id()
        self._sessions[session] = _Session(publish.stream, _attribute(publish.offer, "ice-ufrag"))
        location = f"{self._path}/{publish.stream}/{session}"
        return session, Reply(201, {"Content-Type": SDP, "Location": location, "ETag": f'"{session[:8]}"'}, answer)

    def ended(self, session: str) -> None:
        """A session is over on our side: its peer is gone or its stream was removed."""
        self._sessions.pop(session, None)

    def session_of(self, stream: str) -> str | None:
        """The session that publishes a stream now."""
        return next((name for name, each in self._sessions.items() if each.stream == stream), None)

    def _post(self, stream: str, headers: Mapping[str, str], body: bytes) -> Publish:
        if not NAME.fullmatch(stream):
            raise ProtocolError("not_found", "A stream's name has letters, digits, '_', '-' and '.', 64 at most.")
        _want(headers, SDP)
        try:
            offer = body.decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolError("invalid_sdp", "The session description is not UTF-8.") from None
        if offer.count("\na=candidate:") > MOST_CANDIDATES:
            raise ProtocolError("payload_too_large", f"A session may have {MOST_CANDIDATES} candidates at most.")
        check_offer(offer)
        return Publish(stream, offer)

    def _patch(self, session: str, known: _Session, headers: Mapping[str, str], body: bytes) -> Trickle:
        _want(headers, FRAGMENT)
        match = headers.get("if-match")
        if match is not None and match not in ("*", f'"{session[:8]}"'):
            raise ProtocolError("precondition_failed", "The session has another ETag.")
        text = body.decode("utf-8", "replace")
        ufrag = _attribute(text, "ice-ufrag")
        if match == "*" or (ufrag and ufrag != known.ufrag):
            raise ProtocolError("ice_restart", "ICE restarts are not supported: end the session and publish anew.")
        candidates = tuple(re.findall(r"^a=(candidate:[^\r\n]+)", text, re.MULTILINE))
        known.candidates += len(candidates)
        if known.candidates > MOST_CANDIDATES:
            raise ProtocolError("payload_too_large", f"A session may have {MOST_CANDIDATES} candidates at most.")
        return Trickle(known.stream, session, candidates, Reply(204))


def check_offer(offer: str) -> None:
    """Raises ProtocolError unless an SDP offers to send one video in a codec that can be decoded here."""
    if not offer.startswith("v=0"):
        raise ProtocolError("invalid_sdp", "A session description begins with v=0.")
    for name in ("ice-ufrag", "ice-pwd", "fingerprint", "setup"):
        if not _attribute(offer, name):
            raise ProtocolError("invalid_sdp", f"The offer has no a={name}: it is not WebRTC's.")
    session, *media = re.split(r"^m=", offer, flags=re.MULTILINE)
    videos = [each for each in media if each.startswith("video ") and not each.startswith("video 0 ")]
    if len(videos) != 1:
        raise ProtocolError("invalid_sdp", f"The offer has {len(videos)} videos: send one.")
    direction = re.search(r"^a=(sendrecv|sendonly|recvonly|inactive)", videos[0], re.MULTILINE) or re.search(
        r"^a=(sendrecv|sendonly|recvonly|inactive)", session, re.MULTILINE
    )
    if direction is not None and direction[1] not in ("sendrecv", "sendonly"):
        raise ProtocolError("invalid_sdp", f"The offer's video is {direction[1]}: a publisher sends.")
    codecs = list(dict.fromkeys(re.findall(r"^a=rtpmap:\d+ ([\w.-]+)/", videos[0], re.MULTILINE)))
    if not any(codec.upper() in CODECS for codec in codecs):
        raise ProtocolError(
            "unsupported_codec", f"The offer has {', '.join(codecs) or 'no codec'}: {' or '.join(CODECS)} is needed."
        )


def _attribute(sdp: str, name: str) -> str:
    found = re.search(rf"^a={name}:([^\r\n]+)", sdp, re.MULTILINE)
    return found[1].strip() if found else ""


def _want(headers: Mapping[str, str], kind: str) -> None:
    given = headers.get("content-type", "").split(";")[0].strip().lower()
    if given != kind:
        raise ProtocolError("unsupported_media_type", f"The body is {given or 'nothing'}: send {kind}.")
