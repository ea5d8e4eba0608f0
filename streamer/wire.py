"""How a client reaches a daemon: addresses, what is fetched over HTTP, and refusals in one line. Needs only the `websockets` package."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus

DEFAULT_URL = "http://127.0.0.1:8765"
NOBODY = "No daemon answers at {url}: start one with 'streamer run', or name it with --url."
CLOSED = "The client is not connected: use it in a 'with' block."
FETCH_SECONDS = 300.0
"""That an answer over HTTP may take: a clip may have to be encoded first."""


class ClientError(Exception):
    """The daemon refused something, or can't be reached.

    Attributes:
        code: machine-readable reason, such as `unknown_stream`, `unreachable` or `closed`.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


def fetch(
    url: str,
    path: str,
    query: Mapping[str, Any],
    *,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    method: str = "GET",
    body: Mapping[str, Any] | Path | None = None,
) -> bytes:
    """What the daemon at `url` says at `/v1/PATH`; of `query`, what is None is left out. Waits.

    `body` goes along as JSON, or as a file's bytes. Raises ClientError, and OSError where that can't be read.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    base = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    chosen = urlencode({key: value for key, value in query.items() if value is not None})
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if isinstance(body, Path):
        headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(body.stat().st_size)}
    elif body is not None:
        headers["Content-Type"] = "application/json"
    with body.open("rb") if isinstance(body, Path) else nullcontext() as file:
        data = file or (None if body is None else json.dumps(body).encode())
        return _sent(base, urllib.request.Request(f"{base}/v1/{path}?{chosen}", data, headers, method=method), tls)


class _Patient(http.client.HTTPConnection):
    """Reads the answer also where the daemon refuses a file before all of it is sent, and reads no more of it (RFC 9112, 9.6)."""

    def request(self, *args: Any, **options: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            super().request(*args, **options)


class _PatientTls(_Patient, http.client.HTTPSConnection):
    """The same over TLS."""


class _Plain(urllib.request.HTTPHandler):
    def http_open(self, asked: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Patient, asked)


class _Tls(urllib.request.HTTPSHandler):
    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(context=tls)
        self.tls = tls

    def https_open(self, asked: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PatientTls, asked, context=self.tls)


def _sent(base: str, asked: urllib.request.Request, tls: ssl.SSLContext | None) -> bytes:
    try:
        with urllib.request.build_opener(_Plain(), _Tls(tls)).open(asked, timeout=FETCH_SECONDS) as reply:
            told: bytes = reply.read()
            return told
    except urllib.error.HTTPError as error:
        with error:
            try:
                refused = json.load(error)["error"]
            except (ValueError, KeyError):
                refused = {"code": "unreachable", "message": f"What listens at {base} is not a streamer daemon."}
        raise ClientError(refused["code"], refused["message"]) from None
    except (OSError, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        trusted = not isinstance(cause, ssl.SSLCertVerificationError)
        if trusted and isinstance(cause, ConnectionRefusedError | ssl.SSLError):
            raise ClientError("unreachable", unreached(base, cause)) from None
        raise ClientError("unreachable", f"No daemon answers at {base} ({cause}): name it with --url.") from None


def unreached(url: str, error: OSError) -> str:
    """Why there is no connection, of `error`, which is not that a certificate is not trusted."""
    if isinstance(error, ssl.SSLError):
        return f"What listens at {url} does not speak TLS as it should ({error.reason}): write http:// if it has none."
    return NOBODY.format(url=url)


def websocket_url(url: str, stream: str | None) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    try:
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number up to 65535
        named = False
    if scheme is None or not named:
        raise ClientError("bad_url", f"{url} is no address of a daemon: use {DEFAULT_URL} or the like.")
    query = f"?stream={quote(stream, safe='')}" if stream else ""
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/v1/realtime{query}"


def refusal(error: InvalidStatus, url: str) -> tuple[str, str]:
    status = error.response.status_code
    if status == 401:
        return "unauthorized", f"{url} wants a token: set STREAMER_TOKEN or pass --token-file."
    if status == 403:
        return "forbidden", f"{url} refuses that: the token's scope does not reach so far, or the path is wrong."
    if status in (429, 503):
        return "overloaded", f"{url} takes no more connections now: try again later."
    return "unreachable", f"What listens at {url} answers {status}: it is not a streamer daemon."


def lost(error: ConnectionClosed) -> ClientError:
    reason = error.rcvd.reason if error.rcvd else ""
    return ClientError("closed", f"The daemon closed the connection{f': {reason}' if reason else ''}.")


def raise_for(response: dict[str, Any]) -> None:
    if response["status"] in ("completed", "incomplete"):
        return
    error = (response.get("status_details") or {}).get("error") or {}
    raise ClientError(
        error.get("code") or response["status"], error.get("message") or f"The answer was {response['status']}."
    )
