"""The daemon's output: a log on stderr, lines for a person at a terminal and JSON objects for anything else; and writing that never waits.

A pipe that nobody reads or a full disk must hold nobody up and end nothing: what is written goes through a bounded queue to
a thread of its own, and what finds no room there, or can't be written, is dropped and counted.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

log = logging.getLogger("streamer.logs")
MOST_BYTES = 2**20
"""What may wait to be written, of each of stdout and stderr."""
LONGEST_LINE = 8_192
"""Characters of a message, and of each line of a traceback."""
LAST_SECONDS = 1.0
"""How long the end waits for what is not written yet."""
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""C0 and C1 controls, line separators, and what turns the direction of writing (Unicode's bidirectional formats)."""


def escaped(text: str) -> str:
    """Text in one line of a bounded length, without what steers a terminal: controls as `\\x1b` or `\\u2028`."""
    if len(text) > LONGEST_LINE:
        text = f"{text[:LONGEST_LINE]}… and {len(text) - LONGEST_LINE} characters more"
    return _CONTROLS.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


_ABOUT: dict[str, str] = {}
"""What is so of every line of this process: its node, its engine."""
_NAMED = re.compile(r"\b(stream|engine) %s")
_FIELD = re.compile(r"%[-+ #0]*[\d.]*[a-z]")


def about(**facts: str) -> None:
    """Has every line from now on say where it is from: the `node`, the `engine`."""
    _ABOUT.update(facts)


def named(record: logging.LogRecord) -> dict[str, str]:
    """The stream and the engine that a message names as `stream %s` and `engine %s`."""
    if not isinstance(record.args, tuple) or not isinstance(record.msg, str):
        return {}
    text = record.msg.replace("%%", "  ")
    out: dict[str, str] = {}
    for found in _NAMED.finditer(text):
        index = len(_FIELD.findall(text[: found.start()]))
        if index < len(record.args):
            out.setdefault(found[1], escaped(str(record.args[index])))
    return out


class LineFormatter(logging.Formatter):
    """One line for a person: the time of day and the message; an error's traceback is indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        where = f"{_ABOUT['engine']}: " if "engine" in _ABOUT else ""
        line = f"{when} {where}{escaped(record.getMessage())}"
        if record.exc_info:
            told = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n    {escaped(each)}" for each in told)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, message, the stream that it is about and where in a fleet it is from,
    and the error's traceback where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        facts = {"time": when, "level": record.levelname.lower(), "message": escaped(record.getMessage())}
        facts |= named(record) | _ABOUT
        if record.exc_info:
            facts["error"] = self.formatException(record.exc_info)[-LONGEST_LINE:]
        # JSON escapes C0 by itself; the rest is escaped in JSON's own way, so that it reads back as it was.
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(facts, ensure_ascii=False))


class Output(io.TextIOBase):
    """A stream of text over a file descriptor whose writers never wait.

    Attributes:
        dropped: lines that were not written, since it began.
    """

    def __init__(self, beneath: TextIO, name: str) -> None:
        self._beneath, self._file, self._name = beneath, beneath.fileno(), name
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ending = False
        self._untold, self._why = 0, ""
        self.dropped = 0
        threading.Thread(target=self._write_all, daemon=True, name=f"output {name}").start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._beneath.encoding

    def fileno(self) -> int:
        return self._file

    def isatty(self) -> bool:
        return self._beneath.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Takes text along; drops and counts it where more than `MOST_BYTES` wait already."""
        data = text.encode(self.encoding, "backslashreplace")
        with self._changed:
            if self._bytes + len(data) > MOST_BYTES:
                self._drop(data, "nobody reads it")
            elif data:
                self._waiting.append(data)
                self._bytes += len(data)
                self._changed.notify_all()
        return len(text)

    def finish(self, seconds: float = LAST_SECONDS) -> None:
        """Waits until all is written, but no longer than `seconds`; nothing is taken along afterwards."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, seconds)
            self._ending = True
            self._changed.notify_all()

    def _drop(self, data: bytes, why: str) -> None:
        lines = max(1, data.count(b"\n"))
        self.dropped += lines
        self._untold, self._why = self._untold + lines, why

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if not self._waiting:
                    return
                data = self._waiting.popleft()
            why = self._written(data)
            with self._changed:
                self._bytes -= len(data)
                if why:
                    self._drop(data, why)
                untold, said = (0, "") if why else (self._untold, self._why)
                self._untold -= untold
                self._changed.notify_all()
            if untold:
                log.warning("%d lines for %s were dropped: %s", untold, self._name, said)

    def _written(self, data: bytes) -> str:
        """Writes, however long that takes; why it could not, or nothing."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._file, left) :]
            except BlockingIOError:
                select.select([], [self._file], [])
            except OSError as error:
                return os.strerror(error.errno or errno.EIO)
        return ""


def dropped_lines() -> dict[str, int]:
    """By stdout and stderr, how many lines were not written; of neither where `output_aside` is not."""
    outputs = {"stdout": sys.stdout, "stderr": sys.stderr}
    return {name: output.dropped for name, output in outputs.items() if isinstance(output, Output)}


def log_to_stderr() -> None:
    """The project's log goes to stderr, which somebody else holds."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


@contextmanager
def output_aside() -> Iterator[None]:
    """Meanwhile what this process writes to stdout and stderr holds nobody up, and the project's log goes to stderr."""
    stdout, stderr = sys.stdout, sys.stderr
    outputs = [Output(stdout, "stdout"), Output(stderr, "stderr")]
    sys.stdout, sys.stderr = outputs
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter() if stderr.isatty() else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for output in outputs:
            output.finish()
        sys.stdout, sys.stderr = stdout, stderr
