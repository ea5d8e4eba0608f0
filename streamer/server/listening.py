"""Takes a port and serves an app there."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from streamer.config import Config, ServerConfig
from streamer.server.connections import HttpProtocol, WebSocketProtocol

LONGEST_HEAD = 64 * 1024
"""Bytes of a request's head that comes in pieces; h11's own 16 KiB refused by chance what came whole another time."""


class DaemonError(Exception):
    """Why the daemon can't run, in one line with the mend."""


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the daemon has an order in which things stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_options(config: Config) -> dict[str, Any]:
    """What uvicorn must be told for this app, beside its socket."""
    return {
        "http": HttpProtocol,
        "ws": WebSocketProtocol,
        "h11_max_incomplete_event_size": LONGEST_HEAD,
        "proxy_headers": bool(config.server.proxies),
        "forwarded_allow_ips": list(config.server.proxies),
        "ws_max_size": config.server.max_message_bytes,
        "ws_per_message_deflate": False,
        "access_log": False,
        "log_level": "critical",
        "server_header": False,
        "timeout_graceful_shutdown": 1,
    }


def url_of(listener: socket.socket, server: ServerConfig) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if server.certificate else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def listen(server: ServerConfig) -> socket.socket:
    """The daemon's socket. Raises DaemonError."""
    where = f"{server.host}:{server.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise DaemonError(f"can't listen at {where}: {error.strerror or error}; check server.host") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise DaemonError(
                f"port {server.port} at {server.host} is in use: stop what uses it, or choose another with --port"
            ) from None
        raise DaemonError(f"can't listen at {where}: {error.strerror}; choose another host or port") from None
    return listener
