"""How far the packets of a container have come in its time."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Any

from av.packet import Packet


@dataclass(slots=True)
class Reach:
    """How far the packets of a container have come, in seconds of its time."""

    others: float = -inf
    """The end of the other streams."""
    last: float = -inf
    """When the last picture begins."""
    shown: float = -inf
    """The end of the last picture, by what its packet says."""
    untold: bool = False
    """The last picture's packet does not say how long it is shown."""
    torn: bool = False
    """The last picture's packet is not whole."""
    step: float = 0.0
    """The longest time from one picture to the next."""

    def take(self, packet: Packet[Any], *, shown: bool) -> None:
        """Goes as far as a packet, which is of the video that is `shown` or of another stream."""
        if shown and packet.size:
            self.torn = packet.is_corrupt
        begins = packet.pts if packet.pts is not None else packet.dts
        if begins is None or packet.time_base is None:
            return
        end = seconds(begins + (packet.duration or 0), packet.time_base)
        if not shown:
            self.others = max(self.others, end)
        elif (begin := seconds(begins, packet.time_base)) >= self.last:
            # Of pictures that are out of order MP4 says how long until the next is decoded, which may be after a long still.
            self.last, self.shown, self.untold = begin, end, not packet.duration

    @property
    def end(self) -> float:
        """Of whichever stream."""
        return max(self.others, self.shown)


def seconds(count: int, base: Fraction) -> float:
    """So many of a time base, without the arithmetic of fractions, which takes longer than all else that is done for a packet."""
    return count * base.numerator / base.denominator
