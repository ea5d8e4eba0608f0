"""Which sources a remote client may name: nothing on this machine, nothing on its private networks (server-side request forgery)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from capture.source import NETWORK, SourceError, redact

HARMLESS = ("demo", "push", "whip")
"""Schemes that reach for nothing."""


def resolve(host: str) -> list[str]:
    """All addresses of a host. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)]


def refuse_private(url: str, resolve: Callable[[str], list[str]] = resolve) -> None:
    """Raises SourceError for a source that a remote client may not name: files, devices, and hosts with any address that is not public.

    A name that resolves to something else later is beyond this check.
    """
    scheme = url.partition(":")[0].lower()
    if scheme in HARMLESS:
        return
    mend = "name a public host, or allow private sources (server.private_sources)"
    if scheme not in NETWORK:
        raise SourceError(
            f"source {redact(url)}: a remote client may not name this machine's files and devices; {mend}"
        )
    try:
        host = urlsplit(url).hostname or ""
        addresses = [ipaddress.ip_address(found.partition("%")[0]) for found in resolve(host)]
    except (OSError, ValueError) as error:
        raise SourceError(f"source {redact(url)}: its host can't be found: {error}") from None
    for address in addresses:
        inner = getattr(address, "ipv4_mapped", None) or address
        if not inner.is_global or inner.is_multicast:
            raise SourceError(f"source {redact(url)}: its host is at the private address {inner}; {mend}")
