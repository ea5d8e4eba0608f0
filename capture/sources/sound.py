"""Sound as MP4 holds it: what comes otherwise, as from most cameras (G.711), is encoded as AAC."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet

CODEC, RATE = "aac", 48_000
"""Whatever the rate was: a packet has 1,024 samples, and at 8,000 Hz each would come an eighth of a second late."""


class SoundEncoder:
    """Encodes the packets of a stream, in one or two channels."""

    def __init__(self, sound: AudioStream) -> None:
        """Raises ValueError, av.error.FFmpegError: its codec is none that this can do."""
        self._sound = sound
        self.layout = "mono" if sound.channels == 1 else "stereo"
        self.unit = Fraction(1, RATE)
        """Seconds that the packets' times count in."""
        self._encoder = cast(AudioCodecContext, av.CodecContext.create(CODEC, "w"))
        self._encoder.sample_rate, self._encoder.layout, self._encoder.format = RATE, self.layout, "fltp"
        self._encoder.time_base = self.unit
        self._encoder.open()

    def add_to(self, container: OutputContainer) -> None:
        """Adds a track for what is encoded."""
        container.add_stream(CODEC, rate=RATE, layout=self.layout)

    def encode(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """What is whole by now; of a packet that can't be decoded nothing."""
        try:
            for frame in self._sound.codec_context.decode(packet):
                yield from self._encoder.encode(frame)
        except (ValueError, av.error.FFmpegError):
            return
