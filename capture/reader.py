"""A process that reads sources for another, whose last argument is the descriptor of its end of the channel.

What is read comes over the channel, so that no address with its password stands in a command line. The process lasts as long as
the other end.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from dataclasses import replace

from capture.frame import Frame
from capture.lifecycle import State
from capture.mailbox import Mailbox
from capture.opening import open_source
from capture.readers.channel import Channel
from capture.readers.messages import Counted, Free, Logged, Open, Packets, Shown, Stop, Stopped, Told
from capture.readers.slots import COUNT, Slots
from capture.recorder import Coded, Coding
from capture.source import Source, SourceError, SourceStatus

TICK = 0.25
"""Seconds between two tellings of counts, and after which packets are handed on at the latest."""


class Outlet:
    """One source here: its frames go into slots as these become free, the newest first to be kept, as in any mailbox."""

    def __init__(self, channel: Channel, opening: Open, slots: Slots) -> None:
        self.channel, self.number, self.slots = channel, opening.source, slots
        # Under "every" one at a time, which the taker may keep waiting.
        self.places = 1 if opening.policy == "every" else COUNT
        self.free = deque(range(self.places))
        self.lock = threading.RLock()
        self.mailbox = Mailbox(opening.capacity, policy=opening.policy, most_bytes=opening.most_bytes, on_put=self.ship)
        self.recorded = opening.recorded
        self.packets_of: dict[int, int] = {}
        """By a frame's sequence, the number of its packet."""
        self.came: list[Coding | Coded | None] = []
        self.ended: SourceStatus | None = None
        self.counted: tuple[SourceStatus, int] | None = None
        self.source: Source | None = None
        try:
            self.source = open_source(opening.url, replace(opening.options, readers=0))
            self.source.name = opening.name
        except SourceError as error:
            self.told(SourceStatus(State.ENDED, time.monotonic(), str(error)))

    def start(self) -> None:
        if self.source is not None:
            if self.recorded:
                self.source.record(self)
            self.source.start(self.mailbox, self.told)

    def stop(self, timeout: float) -> None:
        """Ends the source, and tells that."""
        if self.source is not None:
            self.source.stop(timeout)
        self.channel.send(Stopped(self.number))

    def ship(self, freed: int | None = None) -> None:
        """Sends frames, as far as there are slots for them; and once all have been taken, that the source has ended."""
        with self.lock:
            if freed is not None:
                self.free.append(freed)
            while self.free and (taken := self.mailbox.take(1)):
                self.flush()
                self.show(self.free.popleft(), taken[0])
            if self.ended is not None and len(self.free) == self.places and not len(self.mailbox):
                self.flush()
                self.channel.send(Told(self.number, self.ended))
                self.ended = None

    def show(self, slot: int, frame: Frame) -> None:
        number = self.packets_of.get(frame.sequence)
        self.packets_of = {each: packet for each, packet in self.packets_of.items() if each > frame.sequence}
        self.slots.write(slot, frame.pixels)
        self.channel.send(
            Shown(
                self.number,
                slot,
                frame.pixels.shape,
                frame.captured,
                frame.time,
                frame.sequence,
                frame.wall,
                frame.discontinuity,
                number,
            )
        )

    def told(self, status: SourceStatus) -> None:
        """A change of state; an end waits until the frames before it have been taken."""
        with self.lock:
            if status.state is State.ENDED:
                self.ended = status
                self.ship()
            else:
                self.flush()
                self.channel.send(Told(self.number, status))

    def tick(self) -> None:
        """Tells counts that have changed, and hands packets on."""
        with self.lock:
            self.flush()
            if self.source is None:
                return
            counted = (self.source.status, self.mailbox.dropped)
            if counted != self.counted and counted[0].state is not State.ENDED:
                self.counted = counted
                self.channel.send(Counted(self.number, *counted))

    def flush(self) -> None:
        with self.lock:
            came, self.came = self.came, []
            if came:
                self.channel.send(Packets(self.number, came))

    def connected(self, coding: Coding | None) -> None:
        """See `Recorder.connected`."""
        with self.lock:
            self.came.append(coding)

    def packet(self, packet: Coded) -> None:
        """See `Recorder.packet`."""
        with self.lock:
            self.came.append(packet)

    def frame(self, frame: Frame, number: int | None) -> None:
        """See `Recorder.frame`."""
        if number is not None:
            with self.lock:
                self.packets_of[frame.sequence] = number


class Upward(Channel):
    """The way to whom all is told, without whom there is nothing to do here."""

    def send(self, message: object, *files: int) -> None:
        """See `Channel.send`."""
        try:
            super().send(message, *files)
        except OSError:
            os._exit(0)  # no thread that hangs may keep the process


class Log(logging.Handler):
    """Hands the log's lines on."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self.channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.channel.send(Logged(record.name, record.levelno, self.format(record)))


def run(channel: Channel) -> None:
    """Reads what is asked for until the other end is gone."""
    outlets: dict[int, Outlet] = {}
    threading.Thread(target=tick, args=(outlets, os.getppid()), name="tick", daemon=True).start()
    while True:
        message, files = channel.receive()
        if isinstance(message, Open):
            [file] = files
            outlets[message.source] = outlet = Outlet(channel, message, Slots(file))
            os.close(file)
            outlet.start()
        elif isinstance(message, Free) and message.source in outlets:
            outlets[message.source].ship(message.slot)
        elif isinstance(message, Stop) and message.source in outlets:
            stopped = outlets.pop(message.source)
            threading.Thread(target=stopped.stop, args=(message.timeout,), name="stop", daemon=True).start()


def tick(outlets: dict[int, Outlet], parent: int) -> None:
    """Has all of them tell of themselves; ends the process where its parent has, though another kept its end open."""
    while os.getppid() == parent:
        time.sleep(TICK)
        for outlet in list(outlets.values()):
            outlet.tick()
    os._exit(0)


def main() -> None:
    """The process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all of a service's processes; the daemon ends it in time
    channel = Upward(socket.socket(fileno=int(sys.argv[-1])))
    logging.basicConfig(handlers=[Log(channel)], level=logging.INFO)
    try:
        run(channel)
    except (EOFError, OSError):
        os._exit(0)
