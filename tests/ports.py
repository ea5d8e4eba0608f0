"""Ports for servers that begin later, or begin again, where a test expects them."""

import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The ports that whoever asks for any is given, as every connection on this machine does."""
CHANCE = random.Random()
"""Not the one that tests may seed."""
HELD: list[socket.socket] = []
"""By their names other processes with tests know which ports this one has drawn."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has, and that nobody is given before this process ends."""
    lowest, highest = map(int, RANGE.read_text().split()) if RANGE.exists() else (32_768, 60_999)
    several = [port for port in range(15_000, 65_536) if not lowest <= port <= highest]
    while True:
        port, name = CHANCE.choice(several), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0a port of streamer's tests: {port}")
            socket.create_server((host, port)).close()
        except OSError:
            name.close()
            continue
        HELD.append(name)
        return port
