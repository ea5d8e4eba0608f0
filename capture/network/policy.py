"""Which hosts a remote client may have a source reach: none of this machine or its private networks (server-side request forgery)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar
from urllib.parse import urlsplit

from capture.redaction import redact
from capture.source import NETWORK, SourceError, check_length

HARMLESS = ("demo", "push", "whip")
"""Schemes that reach for nothing."""
PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            # IANA's special-purpose IPv4 addresses (RFC 6890 and after), with all of what is for protocols and for documents.
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
            *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            # Of IPv6's global unicast: protocols with Teredo and ORCHID, and documents (RFC 2928, 3849, 9637).
            *("2001::/23", "2001:db8::/32", "3fff::/20"),
        ),
    )
)
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IANA hands out to the world; what lies outside is local, reserved or multicast (RFC 4291 and its registry)."""
TRANSLATED = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")))
"""Prefixes whose last 32 bits are the IPv4 address that is reached: mapped, translated (SIIT), NAT64's well-known one."""
MEND = "name a public host, or allow private sources (server.private_sources)"
LOOKUP_SECONDS = 5.0
LOOKUPS = threading.BoundedSemaphore(64)
"""Names that are looked up at once for event loops."""
T = TypeVar("T")


async def looked_up(look: Callable[[str], T], asked: str) -> T:
    """`look(asked)`, which looks up a host, off the event loop and in a thread of its own.

    Name servers that are silent hold the C library for half a minute: none of that holds up what shares the loop's threads, or
    the program's end. Raises OSError where they are, and what `look` raises.
    """
    if not LOOKUPS.acquire(blocking=False):
        raise OSError("its host can't be looked up: too many are being looked up; try again in half a minute")
    found: Future[T] = Future()
    found.set_running_or_notify_cancel()

    def work() -> None:
        try:
            found.set_result(look(asked))
        except Exception as error:
            found.set_exception(error)
        finally:
            LOOKUPS.release()

    threading.Thread(target=work, name="lookup", daemon=True).start()
    try:
        return await asyncio.wait_for(asyncio.wrap_future(found), LOOKUP_SECONDS)
    except TimeoutError:
        raise OSError(f"its host can't be found: no name server has answered within {LOOKUP_SECONDS:g} s") from None


def resolve(host: str) -> list[str]:
    """All addresses of a host. Raises OSError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the world at large; an IPv4 address inside an IPv6 one is judged as such.

    What `PRIVATE` names is refused whatever Python's own table, which changes with its version, says of it. Raises ValueError
    for what is no address.
    """
    outer = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(outer, ipaddress.IPv4Address):
        return outer.is_global and not outer.is_multicast and not any(outer in net for net in PRIVATE)
    inner = inner_address(outer)
    if inner is not None:
        return is_public(str(inner))
    return outer in GLOBAL_UNICAST and outer.is_global and not any(outer in net for net in PRIVATE)


def inner_address(outer: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for, where packets to it end up (RFC 4291, 3056, 6052, 5214), or None."""
    number = int(outer)
    if any(outer in net for net in TRANSLATED):
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if outer.sixtofour is not None:
        return outer.sixtofour
    if number >> 32 & 0xFFFF == 0x5EFE:
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return None


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
