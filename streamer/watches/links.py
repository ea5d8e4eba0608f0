"""Links to evidence that open without a token for as long as it is kept, signed with a key of this daemon's own."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

log = logging.getLogger("streamer")
FILE = "links.key"
MARK = "signature="


class Links:
    """Signs and recognises links.

    A signature is the HMAC-SHA-256 of the path and all of the query before it, so that a link opens one thing alone. It does
    so until what it opens is kept no longer.

    Args:
        events, recordings: seconds for which the picture of an event, and what was recorded, are kept.
    """

    def __init__(self, key: bytes, events: float, recordings: float) -> None:
        self._key = key
        self._kept = {"still": events, "frame": recordings, "clip": recordings}
        self.address = ""
        """What links begin with: a URL, or of one the path alone, without a slash at its end. No part of what is signed."""

    def signed(self, place: str, until: float) -> str:
        """A place of this daemon's (path and query) as a link that opens it up to this time, Unix seconds."""
        whole = f"{place}{'&' if '?' in place else '?'}expires={ceil(until)}"
        return f"{self.address}{whole}&{MARK}{self._signature(whole)}"

    def holds(self, path: str, query: str, now: float) -> bool:
        """Whether somebody who asks for this path and query bears a link that was signed here and has not expired."""
        before, found, signature = f"{path}?{query}".rpartition("&" + MARK)
        if not found or not hmac.compare_digest(self._signature(before).encode(), signature.encode()):
            return False
        expires = before.rpartition("expires=")[2]
        return expires.isdecimal() and now < int(expires)

    def of(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """An event as plain data, its places of evidence made links."""
        at = event["captured_at"]
        places = {key: self.signed(event[key], at + kept) for key, kept in self._kept.items() if event[key] is not None}
        return {**event, **places}

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
