"""What a recorder is handed of a source: the camera's own packets where there are some, and which frames were made of them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from capture.frame import Frame


@dataclass(frozen=True, slots=True)
class Coding:
    """How the packets of one connection are coded.

    `header` is the beginning of an MP4 file (ftyp and moov) that has the codec's parameters and the picture's turn, `extradata`
    those parameters in the form that the packets go with. Times of packets count in `time_base` seconds. Pictures are made of
    them with `aspect` and `combed` as `Pictures.make` takes them; a packet's stands up to `reorder` others later. Where the header
    has a second track, packets of sound come too, whose times count in `sound` seconds.
    """

    header: bytes
    extradata: bytes | None
    time_base: Fraction
    reorder: int
    aspect: Fraction | None
    combed: bool
    sound: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Coded:
    """One packet: its `number` among those of its connection, its times in `Coding.time_base`, and when it arrived (monotonic).

    One of `sound` has no number of its own, and its times are in `Coding.sound`.
    """

    number: int
    data: bytes
    pts: int | None
    dts: int | None
    duration: int
    key: bool
    arrived: float
    sound: bool = False


class Recorder(Protocol):
    """Takes what a source brings, on the source's threads. Nothing here may wait or raise."""

    def connected(self, coding: Coding | None) -> None:
        """A connection begins, whose packets will follow; None where there are none and its frames are all there is."""

    def packet(self, packet: Coded) -> None:
        """A packet came; its pictures, if any, are not handed over yet."""

    def frame(self, frame: Frame, number: int | None) -> None:
        """A frame is handed over, which was decoded from the packet of that number; None where that is not known."""
