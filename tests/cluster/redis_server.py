"""A real Redis on loopback, which can be killed and come back, with what it had or with nothing."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.capture.lab import kept_port

REDIS = shutil.which("redis-server")


class RedisServer:
    """Each write is on its disk before it is answered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept = kept_port()
        self.port: int = self.kept.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        assert REDIS is not None
        told = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", "--appendonly", "yes",
                "--appendfsync", "always", "--loglevel", "warning"]  # fmt: skip
        self.process = subprocess.Popen([REDIS, *told], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as link:
                    link.sendall(b"PING\r\n")
                    if link.recv(16).startswith(b"+PONG"):
                        return
            except OSError:
                pass
            time.sleep(0.02)
        raise TimeoutError("redis-server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Kills it for good."""
        self.kill()
        self.kept.close()

    def empty(self) -> None:
        """Its disk is lost while it is down."""
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
