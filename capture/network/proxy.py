"""A relay on loopback through which a source reaches public addresses and no others, wherever its servers send it on to."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from urllib.parse import urlsplit, urlunsplit

from capture.network.policy import public_addresses
from capture.source import SourceError, SourceOptions

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Way = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

LONGEST_HEAD = 64 * 1024
DIAL_SECONDS = 10.0
CHUNK = 64 * 1024
PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80}
HOP = re.compile(rb"^(?:proxy-|connection:|keep-alive:)", re.IGNORECASE)
"""Headers that are for the relay and not for the server behind it (RFC 9110, 7.6.1)."""
ONWARD = re.compile(rb"RTSP/[^ \t\n]*[ \t]+[^ \t\n1245]")
"""A reply by which an RTSP server sends its client elsewhere: a status of 3xx, however FFmpeg may be brought to read one."""
LONGEST_LINE = 8192
NESTED = {"http": "http,https,httpproxy,tls,tcp,crypto,data", "rtsp": "rtsp,tcp", "rtmp": "rtmp,tcp"}
"""The protocols that FFmpeg may still speak, so that nothing but the relay is dialled."""


class Relay:
    """Carries the connections of one source while it is entered; runs a thread of its own.

    A host is resolved once, and what it resolved to is judged and dialled: it can't be another host in between. HTTP goes
    through it as through a proxy, each redirect, playlist and segment anew; of RTSP and RTMP it is the server, which speaks
    TLS to the true one, and lets no RTSP redirect pass. `trouble` says, as one line, what could last not be reached.
    """

    def __init__(self, url: str) -> None:
        self.parts = urlsplit(url)
        self.kind = self.parts.scheme.removesuffix("s")
        self.trouble = ""
        self.port = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.listening, self.over = threading.Event(), asyncio.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve()), name="relay", daemon=True)

    def __enter__(self) -> Relay:
        self.thread.start()
        self.listening.wait(DIAL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        if self.loop is not None:
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(1.0)

    @property
    def url(self) -> str:
        """What FFmpeg is to open."""
        if self.kind == "http":
            return urlunsplit(self.parts)
        user, at, _ = self.parts.netloc.rpartition("@")
        return urlunsplit(self.parts._replace(scheme=self.kind, netloc=f"{user}{at}127.0.0.1:{self.port}"))

    @property
    def options(self) -> dict[str, str]:
        """FFmpeg's options, beside those of the scheme."""
        options = {"protocol_whitelist": NESTED[self.kind]}
        if self.kind == "http":
            options["http_proxy"] = f"http://127.0.0.1:{self.port}"
        if self.kind == "rtmp":
            host = self.parts.netloc.rpartition("@")[2]
            options["rtmp_tcurl"] = f"{self.parts.scheme}://{host}/{self.parts.path.strip('/').partition('/')[0]}"
        return options

    async def serve(self) -> None:
        """Listens until the relay is left."""
        self.loop = asyncio.get_running_loop()
        handle = self.proxied if self.kind == "http" else self.forwarded
        carrying: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self.carry(handle, reader, writer))
            carrying.add(task)
            task.add_done_callback(carrying.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=LONGEST_HEAD)
        self.port = server.sockets[0].getsockname()[1]
        self.listening.set()
        await self.over.wait()
        server.close()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    async def carry(self, handle: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of FFmpeg's."""
        try:
            await handle(reader, writer)
        except SourceError as error:
            self.trouble = str(error)
            if self.kind == "http":
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        except (OSError, ValueError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            await closed(writer)

    async def proxied(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A request to an HTTP proxy (RFC 9112, 3.2.2 and 3.2.3), of which there is one a connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        request, *headers = head.rstrip(b"\r\n").split(b"\r\n")
        method, target, version = request.decode("latin-1").split(" ")
        if method == "CONNECT":
            asked = urlsplit(f"//{target}")
            server = await self.dial(asked.hostname or "", asked.port or 443)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            asked = urlsplit(target)
            server = await self.dial(asked.hostname or "", asked.port or PORTS["http"])
            path = urlunsplit(("", "", asked.path or "/", asked.query, ""))
            kept = [header for header in headers if not HOP.match(header)]
            first = f"{method} {path} {version}".encode("latin-1")
            server[1].write(b"\r\n".join([first, *kept, b"Connection: close", b"", b""]))
        await exchange((reader, writer), server, pump)

    async def forwarded(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection to the one server that the URL names."""
        port = self.parts.port or PORTS[self.parts.scheme]
        server = await self.dial(self.parts.hostname or "", port, secure=self.parts.scheme.endswith("s"))
        await exchange((reader, writer), server, self.watched if self.kind == "rtsp" else pump)

    async def dial(self, host: str, port: int, *, secure: bool = False) -> Ends:
        """A connection to a host that is public. Raises SourceError."""
        trouble = ""
        for address in await asyncio.to_thread(public_addresses, host):
            try:
                return await asyncio.wait_for(
                    asyncio.open_connection(
                        address, port, ssl=unverified() if secure else None, server_hostname=host if secure else None
                    ),
                    DIAL_SECONDS,
                )
            except OSError as error:
                trouble = error.strerror or type(error).__name__
        raise SourceError(f"the host {host!r} can't be reached at port {port}: {trouble}")

    async def watched(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What an RTSP server says, up to a redirect. Raises SourceError for that."""
        said = b""
        while data := await reader.read(CHUNK):
            said = said[-LONGEST_LINE:] + data.replace(b"\r", b"")
            if ONWARD.search(said):
                raise SourceError("the server sends its clients on to another one: name that one")
            writer.write(data)
            await writer.drain()


def relay_lack(scheme: str, options: SourceOptions) -> str:
    """Why a source can't be held to public hosts; empty where it can."""
    if options.transport == "udp":
        return "RTSP over UDP can't be held to public hosts: choose transport tcp"
    if scheme in ("http", "https") and os.environ.get("no_proxy"):
        return "HTTP can't be held to public hosts where the environment has no_proxy: start the daemon without that variable"
    return ""


@cache
def unverified() -> ssl.SSLContext:
    """TLS as FFmpeg speaks it to cameras, whose certificates are their own."""
    # Without the authorities of the default one, which take 20 ms to load.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carries bytes one way, no faster than they are taken, until the end."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


async def exchange(client: Ends, server: Ends, down: Way) -> None:
    """Carries bytes both ways until either end is done; what comes from the server goes through `down`."""
    ways = [asyncio.ensure_future(down(server[0], client[1])), asyncio.ensure_future(pump(client[0], server[1]))]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in done:
            way.result()
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        await closed(server[1])


async def closed(writer: asyncio.StreamWriter) -> None:
    """Closes a connection, whatever state it is in."""
    with suppress(OSError, asyncio.CancelledError, ssl.SSLError):
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), 1.0)
