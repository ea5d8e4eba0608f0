"""Which hosts a remote client may have a source reach: none of this machine or its private networks (server-side request forgery)."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from capture.redaction import redact
from capture.source import NETWORK, SourceError, check_length

HARMLESS = ("demo", "push", "whip")
"""Schemes that reach for nothing."""
MEND = "name a public host, or allow private sources (server.private_sources)"


def resolve(host: str) -> list[str]:
    """All addresses of a host. Raises OSError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the world at large; an IPv4 address inside an IPv6 one is judged as such."""
    outer = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(outer, "ipv4_mapped", None) or getattr(outer, "sixtofour", None) or outer
    return bool(inner.is_global and not inner.is_multicast and outer.is_global)


def public_addresses(host: str) -> list[str]:
    """All addresses of a host, none of them private. Raises SourceError."""
    try:
        addresses = resolve(host)
        private = [address for address in addresses if not is_public(address)]
    except (OSError, ValueError) as error:
        raise SourceError(f"the host {host[:253]!r} can't be found: {error}") from None
    if private:
        raise SourceError(f"the host {host[:253]!r} is at the private address {private[0]}; {MEND}")
    return addresses


def refuse_private(url: str) -> None:
    """Raises SourceError for a source that a remote client may not name: files, devices, and hosts with any address that is not public.

    What a host resolves to later, and where it sends a source on to, is held by `capture.network.proxy.Relay`.
    """
    scheme = check_length(url).partition(":")[0].lower()
    if scheme in HARMLESS:
        return
    if scheme not in NETWORK:
        raise SourceError(
            f"source {redact(url)}: a remote client may not name this machine's files and devices; {MEND}"
        )
    try:
        public_addresses(urlsplit(url).hostname or "")
    except ValueError as error:
        raise SourceError(f"source {redact(url)}: {error}") from None
