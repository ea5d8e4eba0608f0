"""Who may do what at the doors: bearer tokens with scopes, and where a browser's request may come from. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args
from urllib.parse import urlsplit

from streamer.server.errors import RequestError

Scope = Literal["view", "ask", "publish", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
SHORTEST = 16
"""Characters of a token; shorter ones can be guessed."""
SUBPROTOCOL = "realtime"
HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.~-]{1,253})(?::[0-9]{0,5})?")
ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://([^/\s@]{1,260})")
FORWARDED = frozenset({"forwarded", "via", "x-forwarded-for", "x-real-ip"})
"""Headers of what came through a proxy."""
KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""How a browser, which can set no header on a websocket, names its token (the dialect's own way)."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever stands at a door: a token's name or an address, and what it may do."""

    name: str
    scopes: frozenset[Scope]
    remote: bool = False
    """Comes from another machine."""
    digest: str = field(default="", repr=False, compare=False)
    """Of the token that was shown; none where no token is needed, or a signed one was."""
    expires: float = math.inf
    """When a signed token is no longer good, in seconds since 1970."""

    def may(self, *scopes: Scope) -> bool:
        """Whether any of `scopes` is held; `admin` holds all."""
        return "admin" in self.scopes or not self.scopes.isdisjoint(scopes)

    def need(self, *scopes: Scope) -> None:
        """Raises RequestError: forbidden."""
        if not self.may(*scopes):
            raise RequestError("forbidden", f"This token lacks the scope {' or '.join(map(repr, scopes))}.")


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept: by its SHA-256 only. Tokens are long and random, so that no slow hash is needed."""

    name: str
    digest: str
    scopes: frozenset[Scope]


def new_token() -> str:
    """A random token of 256 bits."""
    return "str_" + secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def read_scopes(text: str) -> frozenset[Scope]:
    """`view,ask` as scopes. Raises ValueError with the mend."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in SCOPES]
    if unknown or not words:
        raise ValueError(f"{', '.join(unknown) or 'nothing'} is no scope: use {', '.join(SCOPES)}")
    return frozenset(scope for scope in SCOPES if scope in words)


def read_tokens(lines: Iterable[str], origin: str) -> list[Token]:
    """Tokens from a file or the environment: one a line, `NAME SCOPES TOKEN`, where TOKEN may be `sha256:HEX`.

    Raises ValueError, naming the line but not what is secret in it.
    """
    tokens: list[Token] = []
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 3:
            raise ValueError(f"{origin}: entry {number}: write NAME SCOPES TOKEN, such as 'phone view,ask {'…'}'")
        name, scopes, secret = words
        try:
            granted = read_scopes(scopes)
        except ValueError as error:
            raise ValueError(f"{origin}: entry {number} ({name}): {error}") from None
        digest = secret.removeprefix("sha256:")
        if digest == secret:
            if len(secret) < SHORTEST:
                raise ValueError(f"{origin}: entry {number} ({name}): the token is shorter than {SHORTEST} characters")
            digest = token_digest(secret)
        elif len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"{origin}: entry {number} ({name}): sha256: wants 64 hexadecimal digits")
        tokens.append(Token(name, digest, granted))
    return tokens


class Signed(Protocol):
    """Recognises tokens that somebody else signs."""

    def visitor(self, token: str, remote: bool) -> Visitor:
        """Who bears it. Raises RequestError: unauthorized."""
        ...


class Gate:
    """Decides who comes in.

    Args:
        tokens: those that are known; with none, and no `signed`, everybody may do everything.
        origins: pages of other origins (`https://cam.example`) that may speak to the daemon from a browser.
        names: this machine's own, by which it may be asked for as by an address.
        signed: asked about tokens that are not among `tokens`.
    """

    def __init__(
        self,
        tokens: Collection[Token],
        origins: Collection[str] = (),
        *,
        names: Collection[str] = (),
        signed: Signed | None = None,
    ) -> None:
        self._tokens: Mapping[str, Token] = {token.digest: token for token in tokens}
        self._signed = signed
        self._open = not tokens and signed is None
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._names = {urlsplit(origin).hostname or "" for origin in self._origins} | {each.lower() for each in names}

    def renew(self, tokens: Collection[Token], origins: Collection[str], signed: Signed | None) -> list[str]:
        """Takes other tokens and origins from now on; says what became of tokens, a line each."""
        before, self._tokens = self._tokens, {token.digest: token for token in tokens}
        lines = [f"token {each.name} is no longer good" for key, each in before.items() if key not in self._tokens]
        lines += [f"token {each.name} is good now" for key, each in self._tokens.items() if key not in before]
        lines += [
            f"token {each.name} may {', '.join(sorted(each.scopes))} now"
            for key, each in self._tokens.items()
            if key in before and before[key].scopes != each.scopes
        ]
        self._signed, self._open = signed, not tokens and signed is None
        own = self._names - {urlsplit(origin).hostname or "" for origin in self._origins}
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._names = own | {urlsplit(origin).hostname or "" for origin in self._origins}
        return lines

    def stands(self, visitor: Visitor, now: float) -> bool:
        """Whether a visitor who came in before might come in as the same now; `now` in seconds since 1970."""
        if visitor.expires < now:
            return False
        if visitor.digest:
            token = self._tokens.get(visitor.digest)
            return token is not None and (token.name, token.scopes) == (visitor.name, visitor.scopes)
        return self._signed is not None if visitor.expires < math.inf else self._open

    def admit(self, headers: Mapping[str, str], address: str) -> Visitor:
        """Who this is, from a request's headers (names in lower case) and its peer's address.

        Raises RequestError: unauthorized, or what `check` raises.
        """
        self.check(headers)
        # What came through a proxy comes from elsewhere, whatever address the proxy has.
        remote = not is_loopback(address) or not FORWARDED.isdisjoint(headers)
        if self._open:
            return Visitor(address, frozenset(SCOPES), remote)
        presented = _presented(headers)
        if presented is None:
            raise RequestError("unauthorized", "A bearer token is needed: send 'Authorization: Bearer …'.")
        token = self._tokens.get(token_digest(presented))
        if token is not None:
            return Visitor(token.name, token.scopes, remote, token.digest)
        if self._signed is not None:
            return self._signed.visitor(presented, remote)
        raise RequestError("unauthorized", "This token is not known here.")

    def check(self, headers: Mapping[str, str]) -> None:
        """What is asked of every request before its token: the name that it knows us by, and the page that it comes from.

        Raises RequestError: invalid_request for a Host or an Origin that is none, forbidden.
        """
        host, origin = headers.get("host"), headers.get("origin")
        name = "" if host is None else _host_name(host)
        known = origin is not None and origin.lower() in self._origins
        if origin is not None and not known:
            same = _origin_host(origin) == (host or "").lower()
            if not same or (self._open and not _is_literal(name)):
                raise RequestError(
                    "forbidden", f"Pages from {origin[:200]} may not speak to this daemon: allow server.origins."
                )
        # A picture that another page shows (`<img>`) comes without an origin; a link that is followed shows nothing to that page.
        followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not known and not followed:
            raise RequestError("forbidden", "Other pages may not show what this daemon sees: allow server.origins.")
        # A page whose name was pointed at this machine (DNS rebinding) sends no origin when it reads; its name tells.
        if self._open and host is not None and name not in self._names and not _is_literal(name):
            raise RequestError(
                "forbidden",
                f"This daemon is not {name[:200]!r}: reach it by its address, as localhost, or allow server.origins.",
            )


def is_loopback(host: str) -> bool:
    """Whether an address to listen at can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """The name in a Host header, in lower case (RFC 9110, 7.2). Raises RequestError."""
    found = HOST.fullmatch(host)
    if found is None:
        raise RequestError("invalid_request", "The Host header names no host.")
    return found[1].strip("[]").lower()


def _origin_host(origin: str) -> str:
    """Host and port of an Origin header, in lower case; nothing for `null` and what is no origin (RFC 6454, 7)."""
    found = ORIGIN.fullmatch(origin)
    return found[1].lower() if found else ""


def _is_literal(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _presented(headers: Mapping[str, str]) -> str | None:
    """The token in an Authorization header or in the dialect's subprotocol."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    before, found, after = headers.get("sec-websocket-protocol", "").partition(KEY_SUBPROTOCOL)
    if found and not before.rpartition(",")[2].strip():
        return after.partition(",")[0].strip()
    return None
