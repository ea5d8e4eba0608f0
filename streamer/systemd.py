"""What systemd wants to know of a service (sd_notify(3)): ready, alive, stopping. Without systemd, nothing is sent."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Sends one state, such as "READY=1", to the service manager that started us, if one did."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
        door.connect("\0" + address[1:] if address.startswith("@") else address)
        door.sendall(state.encode())


def watchdog_seconds() -> float | None:
    """How often the service manager wants to hear that we are alive: half its limit; None if it does not."""
    limit, process = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not limit or not limit.isdecimal() or (process and process != str(os.getpid())):
        return None
    return int(limit) / 2e6
