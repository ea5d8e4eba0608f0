"""Links to evidence that open without a token until they expire, signed with a key of this daemon's own."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("streamer")
LASTS = 7 * 86_400
"""Seconds for which a link opens what it leads to, or up to an hour longer: whoever is told on a Friday looks on Monday."""
STEP = 3_600
"""Seconds within which a link is the same however often it is asked for, so that browsers keep what is behind it."""
FILE = "links.key"
MARK = "signature="


class Links:
    """Signs and recognises links. Pure.

    A signature is the HMAC-SHA-256 of the path and all of the query before it, so that a link opens one thing alone.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def signed(self, place: str, now: float) -> str:
        """A place of this daemon's (path and query) as a link; `now` in Unix seconds."""
        expires = (int(now) // STEP + 1) * STEP + LASTS
        whole = f"{place}{'&' if '?' in place else '?'}expires={expires}"
        return f"{whole}&{MARK}{self._signature(whole)}"

    def holds(self, path: str, query: str, now: float) -> bool:
        """Whether somebody who asks for this path and query bears a link that was signed here and has not expired."""
        before, found, signature = f"{path}?{query}".rpartition("&" + MARK)
        if not found or not hmac.compare_digest(self._signature(before).encode(), signature.encode()):
            return False
        expires = before.rpartition("expires=")[2]
        return expires.isdecimal() and now < int(expires)

    def of(self, event: Mapping[str, Any], now: float) -> dict[str, Any]:
        """An event as plain data, its places of evidence made links."""
        places = {key: event[key] for key in ("still", "clip") if event[key] is not None}
        return {**event, **{key: self.signed(place, now) for key, place in places.items()}}

    def _signature(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def kept_key(folder: Path | None) -> bytes:
    """The key of a state folder, made there if need be, readable by its owner alone; waits for the disk.

    Where it can't be kept, and without a folder, links end with the process.
    """
    fresh = secrets.token_bytes(32)
    if folder is None:
        return fresh
    path = folder / FILE
    try:
        if path.exists() and len(kept := path.read_bytes()) >= len(fresh):
            return kept
        beside = path.with_suffix(".new")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(fresh)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        log.warning("links to evidence end with this process, as %s can't be kept: %s", path, error.strerror)
    return fresh
