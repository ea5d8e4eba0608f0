"""The processes that read sources, as they are seen from here: which reads what, and what becomes of it where one ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from itertools import count

from capture.readers.apart import ApartSource
from capture.readers.channel import Channel
from capture.readers.messages import Counted, Free, Logged, Packets, Shown, Stop, Stopped, Told
from capture.readers.slots import Slots, new_memory

log = logging.getLogger(__name__)
SHARE = 8
"""Sources that one process reads before another is begun."""
SMALLEST = 16
"""Pixels of a side that a picture may have whatever `SourceOptions.largest_side` says."""
PROGRAM = "import json, sys; sys.path = json.loads(sys.argv.pop(1)); from capture.reader import main; main()"
"""Finds its modules where this process does."""
BACKOFF, BACKOFF_MOST = 0.5, 30.0
"""Seconds before a process is begun anew, which double while it does not last."""
HEALTHY = 60.0
"""Seconds after which it has lasted."""
END_SECONDS = 2.0
"""How long a process may take to end once nothing is asked of it."""


class Reader:
    """One process that reads, begun anew where it ends, for as long as it has sources. Its thread takes what comes from it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.numbers = count(1)
        self.sources: dict[int, ApartSource] = {}
        self.places: dict[int, Slots] = {}
        self.channel: Channel | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.run, name="source reader", daemon=True)

    def add(self, source: ApartSource) -> bool:
        """Has a source read, now or once the process is there; False where this reads no more."""
        with self.lock:
            if self.closed.is_set():
                return False
            source.reads, source.number = self, next(self.numbers)
            self.sources[source.number] = source
            if self.channel is not None:
                self.open(source)
            if self.thread.ident is None:
                self.thread.start()
            return True

    def open(self, source: ApartSource) -> None:
        """Hands a source to the process; the lock is held."""
        try:
            file = new_memory(max(source.options.largest_side, SMALLEST))
        except OSError as error:
            source.end(f"{source.name}: no memory for its pictures can be had: {error.strerror}")
            return
        try:
            self.places[source.number] = Slots(file)  # first: its frames may come at once
            self.send(source.opening(), file)
        finally:
            os.close(file)

    def send(self, message: object, *files: int) -> None:
        """Where the process has ended its thread hears of that."""
        channel = self.channel
        if channel is not None:
            with suppress(OSError):
                channel.send(message, *files)

    def stop(self, source: ApartSource, timeout: float) -> None:
        """See `Reads.stop`."""
        with self.lock:
            there = self.channel is not None and source.number in self.places
        if there:
            self.send(Stop(source.number, timeout))
        else:
            self.forget(source)

    def forget(self, source: ApartSource) -> None:
        """A source is read no more; without any the process ends."""
        with self.lock:
            self.sources.pop(source.number, None)
            self.places.pop(source.number, None)
            if not self.sources:
                self.closed.set()
                if self.channel is not None:
                    self.channel.close()
        source.gone.set()

    def run(self) -> None:
        """The thread: one process after the other."""
        wait = BACKOFF
        while not self.closed.is_set():
            began = time.monotonic()
            try:
                self.begin()
                reason = self.listen()
            except OSError as error:
                reason = f"could not be begun ({error.strerror or error})"
            with self.lock:
                self.channel = None
                self.places.clear()
            for source in [each for each in list(self.sources.values()) if each.over]:
                self.forget(source)
            if self.closed.is_set():
                return
            sources = list(self.sources.values())
            wait = BACKOFF if time.monotonic() - began > HEALTHY else wait
            what = f"{len(sources)} sources" if len(sources) > 1 else sources[0].name
            log.warning("the process that reads %s %s: a new one reconnects in %.1f s", what, reason, wait)
            for source in sources:
                source.lost(f"the process that read it {reason}")
            self.closed.wait(wait)
            wait = min(2 * wait, BACKOFF_MOST)

    def begin(self) -> None:
        """Begins a process and has it open all sources. Raises OSError."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, json.dumps(sys.path), str(there.fileno())],
                env=os.environ | alone,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                start_new_session=True,  # what a terminal sends to all, the daemon answers for them
            )
        except OSError:
            here.close()
            raise
        finally:
            there.close()
        with self.lock:
            self.channel = Channel(here)
            if self.closed.is_set():
                self.channel.close()
            for source in self.sources.values():
                self.open(source)

    def listen(self) -> str:
        """Takes what comes until the process has ended; how that came."""
        channel, process = self.channel, self.process
        assert channel is not None and process is not None
        with suppress(EOFError, OSError):
            while True:
                message, _ = channel.receive()
                try:
                    self.take(message, channel)
                except Exception:  # one listener's fault must not end the others' sources
                    log.exception("a listener failed")
        channel.close()
        try:
            code = process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    @staticmethod
    def free(channel: Channel, slot: Free) -> None:
        """Gives a slot back to the process that it came from, which may have ended."""
        with suppress(OSError):
            channel.send(slot)

    def take(self, message: object, channel: Channel) -> None:
        """One message of the process."""
        if isinstance(message, Logged):
            logging.getLogger(message.name).log(message.level, "%s", message.line)
            return
        assert isinstance(message, Shown | Told | Counted | Packets | Stopped)
        source, slots = self.sources.get(message.source), self.places.get(message.source)
        if source is None or slots is None:
            return
        if isinstance(message, Shown):
            source.shown(message, slots, partial(self.free, channel, Free(message.source, message.slot)))
        elif isinstance(message, Stopped):
            self.forget(source)
        elif isinstance(message, Told):
            source.told(message)
            if source.over:
                self.send(Stop(message.source, 0.0))
        elif isinstance(message, Counted):
            source.counted(message)
        else:
            source.packets(message)


class Readers:
    """All of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.readers: list[Reader] = []

    def assign(self, source: ApartSource) -> Reader:
        """Has a source read by a process that has few: a new one, of `SourceOptions.readers` at most, where the others have many."""
        with self.lock:
            while True:
                self.readers = [reader for reader in self.readers if not reader.closed.is_set()]
                reader = min(self.readers, key=lambda each: len(each.sources), default=None)
                if reader is None or (len(reader.sources) >= SHARE and len(self.readers) < source.options.readers):
                    reader = Reader()
                    self.readers.append(reader)
                if reader.add(source):
                    return reader

    @property
    def processes(self) -> list[int]:
        """Their process ids."""
        with self.lock:
            found = [reader.process for reader in self.readers]
        return [process.pid for process in found if process is not None and process.returncode is None]


READERS = Readers()
