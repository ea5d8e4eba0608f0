"""A container's own packets for whoever records them, and how they are coded."""

from __future__ import annotations

import io
import logging
import time
from contextlib import suppress
from typing import Any

import av
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from capture.recorder import Coded, Coding, Recorder
from capture.sources.sound import SoundEncoder
from capture.sources.tracks import interlaced

log = logging.getLogger(__name__)
FRAGMENTED = "empty_moov+default_base_moof+frag_keyframe"
"""FFmpeg's flags for MP4 that can be read up to its last fragment, whatever happens to who writes it."""
KEY_UNITS = {"h264": ((0x1F, 0), frozenset({7, 8})), "hevc": ((0x3F, 1), frozenset({32, 33, 34}))}
"""By codec, the mask and shift of a NAL unit's type, and the types that say how pictures are coded."""


class PacketTap:
    """Hands the packets of one connection to a recorder; what its frames are made of, they tell as `opaque`."""

    def __init__(
        self, recorder: Recorder, stream: VideoStream, context: VideoCodecContext, sound: AudioStream | None = None
    ) -> None:
        """The packets of `sound`, if there are some that are wanted, go along."""
        self.recorder, self.stream, self.sound = recorder, stream, sound
        context.copy_opaque = True
        self.number = 0
        self.coding: Coding | None = None
        self.encoder: SoundEncoder | None = None
        """For sound that MP4 does not hold as it comes."""

    def take(self, packet: Packet[Any]) -> None:
        """Hands a packet over, before it is decoded; all before the first key frame are left out."""
        if not packet.size:
            return
        if self.number == 0:
            if not packet.is_keyframe:
                return
            self.coding = coding_of(self.stream, bytes(packet), self.sound)
            if self.coding is None and self.sound is not None:
                with suppress(ValueError, av.error.FFmpegError):
                    self.encoder = SoundEncoder(self.sound)
                    self.coding = coding_of(self.stream, bytes(packet), self.encoder)
            if self.coding is None and self.sound is not None:
                self.coding = coding_of(self.stream, bytes(packet))
                log.warning(
                    "the sound (%s) can't be recorded: MP4 does not hold it, nor can it be encoded",
                    self.sound.codec_context.name,
                )
            self.recorder.connected(self.coding)
        self.number += 1
        if self.coding is not None:
            packet.opaque = self.number
            self.recorder.packet(coded(packet, self.number, time.monotonic()))

    def hear(self, packet: Packet[Any]) -> None:
        """Hands a packet of the sound over."""
        if not packet.size or packet.pts is None or self.coding is None or self.coding.sound is None:
            return
        for each in [packet] if self.encoder is None else self.encoder.encode(packet):
            self.recorder.packet(coded(each, self.number, time.monotonic(), sound=True))


def coding_of(stream: VideoStream, key: bytes = b"", sound: AudioStream | SoundEncoder | None = None) -> Coding | None:
    """How a stream's packets are coded, and those of `sound`; None where MP4 can't hold them.

    `key` is its first key frame: some cameras say only there how pictures are coded.
    """
    context = stream.codec_context
    extradata, buffer = context.extradata, io.BytesIO()
    if not extradata and context.name in KEY_UNITS:
        extradata = parameter_sets(key, context.name)
        if not extradata:
            return None
    try:
        with av.open(buffer, "w", format="mp4", options={"movflags": FRAGMENTED}) as container:
            copy = container.add_stream_from_template(stream, opaque=True)
            copy.codec_context.extradata = extradata
            if isinstance(sound, SoundEncoder):
                sound.add_to(container)
            elif sound is not None:
                if sound.codec_context.name == "aac" and not sound.codec_context.extradata:
                    return None  # in the form that broadcasts have (ADTS), which says in each packet what MP4 says once
                container.add_stream_from_template(sound)
            container.start_encoding()
            header = buffer.getvalue()
        with av.open(io.BytesIO(header)):
            pass
    except (av.error.FFmpegError, ValueError):
        return None
    if stream.time_base is None:
        return None
    return Coding(
        header,
        extradata,
        stream.time_base,
        context.reorder_depth,
        stream.sample_aspect_ratio,
        interlaced(stream),
        sound.unit if isinstance(sound, SoundEncoder) else None if sound is None else sound.time_base,
    )


def parameter_sets(data: bytes, codec: str) -> bytes:
    """The NAL units of a packet (ITU-T H.264 and H.265, annex B) that say how pictures are coded, as they stand there."""
    (mask, shift), wanted = KEY_UNITS[codec]
    out = b""
    for unit in data.split(b"\0\0\1")[1:]:
        if unit and unit[0] >> shift & mask in wanted:
            out += b"\0\0\0\1" + unit.rstrip(b"\0")
    return out


def coded(packet: Packet[Any], number: int, arrived: float, *, sound: bool = False) -> Coded:
    """A copy of a packet, which the container keeps no hold of."""
    key = packet.is_keyframe and not sound
    return Coded(number, bytes(packet), packet.pts, packet.dts, packet.duration or 0, key, arrived, sound)
