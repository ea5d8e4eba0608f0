"""Programs in processes of their own that begin with everything imported: forked from a server that has done nothing else.

To import torch and the daemon anew takes three seconds of a core each time. What a whole interpreter does from its first
line to its last is for tests that start one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.popen_forkserver import Popen
from types import TracebackType
from typing import Self, TextIO

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.streamer.serve", "streamer.cli.main"])


class OnePoll(Popen):
    """Its exit code can be read only once, and whoever starts a process asks for those of all others: one thread at a time does."""

    def __init__(self, process: ForkServerProcess) -> None:
        self.polled = threading.Lock()
        super().__init__(process)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        with self.polled:
            return super().poll(flag)


class Process(ForkServerProcess):
    _Popen = staticmethod(OnePoll)


Main = Callable[[Sequence[str]], int]


def script(arguments: Sequence[str]) -> int:
    """A `main` that runs the file of the first argument as a program, with the rest for its arguments."""
    sys.argv = list(arguments)
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def _program(
    main: Main, arguments: Sequence[str], environment: Mapping[str, str], out: Connection, told: Connection
) -> None:
    for number, end in ((1, out), (2, told)):
        os.dup2(end.fileno(), number)
        end.close()
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(arguments))


def _reader(end: Connection) -> TextIO:
    with end:
        return os.fdopen(os.dup(end.fileno()))


class Forked:
    """`main(arguments)` as a process, whose exit code that returns; `subprocess.Popen` as far as tests use it."""

    def __init__(self, main: Main, arguments: Sequence[str], **environment: str) -> None:
        """`main` is a module's function; `environment` goes over this process's."""
        (read_out, out), (read_told, told) = CONTEXT.Pipe(duplex=False), CONTEXT.Pipe(duplex=False)
        given = (main, list(arguments), os.environ | environment, out, told)
        self.process = Process(target=_program, args=given)
        self.process.start()
        out.close()
        told.close()
        self.stdout, self.stderr = _reader(read_out), _reader(read_told)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait(60)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code; of one that a signal ended, the signal's number below zero. Raises TimeoutExpired."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.process), timeout)
        return self.process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """All that it still says on stdout and stderr until it ends, little enough for a pipe to hold. Raises TimeoutExpired."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: signal.Signals) -> None:
        if self.process.exitcode is None:
            assert self.process.pid is not None
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
