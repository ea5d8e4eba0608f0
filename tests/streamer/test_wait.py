"""Commands and a daemon that is not there, or not yet: all of them say the same, and wait as long as they are told to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from streamer.cli.main import main


class Early(BaseHTTPRequestHandler):
    """Answers as a daemon without watches does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"watches": []}')

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of which nobody takes connections."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.mark.parametrize(
    "command", [["ask", "What?"], ["status"], ["watch", "list"], ["watch", "add", "a", "Is it?"], ["timeline"]]
)
def test_each_command_says_at_once_that_no_daemon_is_there(
    port: int, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{port}"
    assert main([*command, "--url", url]) == 1
    assert (
        f"No daemon answers at {url}: start one with 'streamer run', or name it with --url." in capsys.readouterr().err
    )


@pytest.mark.parametrize("command", [["ask", "What?"], ["watch", "list"]])
def test_it_waits_for_one_no_longer_than_it_is_told(
    port: int, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert main([*command, "--url", f"http://127.0.0.1:{port}", "--wait", "0.3s"]) == 1
    waiting, refused = capsys.readouterr().err.splitlines()
    assert waiting.endswith(f"no daemon answers at http://127.0.0.1:{port}: waiting") and "streamer run" in refused
    assert time.monotonic() - began >= 0.3


def test_one_that_comes_while_it_waits_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    served = HTTPServer(("127.0.0.1", 0), Early, bind_and_activate=False)
    served.server_bind()  # at once, so that nobody else is given the port meanwhile; it takes connections later

    def come() -> None:
        time.sleep(0.2)
        served.server_activate()
        served.serve_forever()

    threading.Thread(target=come, daemon=True).start()
    assert main(["watch", "list", "--url", f"http://127.0.0.1:{served.server_port}", "--wait", "1m"]) == 0
    assert capsys.readouterr().out == "no watches\n"
    served.shutdown()
    served.server_close()
