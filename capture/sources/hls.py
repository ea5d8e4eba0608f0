"""HTTP live streaming (RFC 8216): what a playlist says of its segments, and where a broadcast that broke off goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urljoin

ATTRIBUTE = re.compile(r'([A-Z0-9-]++)=("[^"]*+"|[^,]*+)')
SUFFIX = re.compile(r"\.(ts|m4s|mp4|m4v|cmfv)(?=[?#]|$)", re.IGNORECASE)
EDGE = 2
"""Segments before its end at which a broadcast is joined."""
MOST_BEHIND = 60.0
"""Seconds by which a broadcast may have gone on while it was not reached, and still be watched from where it broke off."""
LONGEST_STEP = 10.0
"""The longest step, in seconds, between two pictures whose timestamps did not jump."""
TOLERANCE = 0.5
"""Seconds by which a segment may be shorter than its playlist says."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of a broadcast's sizes."""

    url: str
    bandwidth: int
    longer_side: int
    """In pixels; 0 where the playlist does not tell."""


@dataclass(frozen=True, slots=True)
class Playlist:
    """A media playlist with the lengths in seconds of its segments, the first of which has the number `sequence`.

    `segments` are their URLs, and `formats` what they are, "TS" or "fMP4"; `gaps` are the numbers of those that the server does
    not have, and `parts` says that there are parts of them too (low latency). A master playlist has `variants` and no segments.
    """

    sequence: int = 0
    durations: tuple[float, ...] = ()
    ended: bool = False
    variants: tuple[Variant, ...] = ()
    segments: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    gaps: frozenset[int] = frozenset()
    parts: bool = False
    locked: str = ""
    """How it is encrypted, where that is for players of a kind alone (DRM)."""

    @property
    def end(self) -> int:
        """The number of the segment after the last."""
        return self.sequence + len(self.durations)


def read_playlist(text: str, url: str) -> Playlist:
    """What a playlist from `url` says; what can't be understood counts as not said."""
    sequence, ended, parts, locked = 0, False, False, ""
    durations: list[float] = []
    variants: list[Variant] = []
    described: dict[str, str] | None = None
    segments: list[str] = []
    formats: list[str] = []
    gaps: set[int] = set()
    missing, usual = False, "TS"
    for line in map(str.strip, text.splitlines()):
        tag, _, value = line.partition(":")
        if tag == "#EXT-X-MEDIA-SEQUENCE" and value.isdigit():
            sequence = int(value)
        elif tag == "#EXTINF":
            seconds = re.match(r"\d+(?:\.\d*)?", value)
            durations.append(float(seconds[0]) if seconds else 0.0)
        elif tag in ("#EXT-X-KEY", "#EXT-X-SESSION-KEY"):
            key = {name: said.strip('"') for name, said in ATTRIBUTE.findall(value)}
            if key.get("METHOD", "NONE") not in ("NONE", "AES-128") or key.get("KEYFORMAT", "identity") != "identity":
                locked = key.get("METHOD", "")
        elif tag == "#EXT-X-MAP":
            usual = "fMP4"
        elif tag in ("#EXT-X-PART", "#EXT-X-PART-INF"):
            parts = True
        elif tag == "#EXT-X-GAP":
            missing = True
        elif tag == "#EXT-X-ENDLIST":
            ended = True
        elif tag == "#EXT-X-STREAM-INF":
            described = {name: said.strip('"') for name, said in ATTRIBUTE.findall(value)}
        elif line and not line.startswith("#") and described is not None:
            sides = [int(side) for side in re.findall(r"\d+", described.get("RESOLUTION", ""))]
            bandwidth = described.get("BANDWIDTH", "")
            if sides or not re.fullmatch(r"(mp4a|ac-3|ec-3|opus)[^,]*", described.get("CODECS", "")):
                bits = int(bandwidth) if bandwidth.isdigit() else 0
                variants.append(Variant(urljoin(url, line), bits, max(sides, default=0)))
            described = None
        elif line and not line.startswith("#") and len(segments) < len(durations):
            if missing:
                gaps.add(len(segments))
            missing = False
            segments.append(urljoin(url, line))
            named = SUFFIX.search(line)
            formats.append(usual if named is None else "TS" if named[1].lower() == "ts" else "fMP4")
    return Playlist(
        sequence,
        tuple(durations),
        ended,
        tuple(variants),
        tuple(segments),
        tuple(formats),
        frozenset(sequence + n for n in gaps),
        parts,
        locked,
    )


def nearest(variants: tuple[Variant, ...], longer_side: int) -> Variant:
    """The smallest variant that is at least as large as is asked for, in pixels of its longer side; else the largest."""
    told = [variant for variant in variants if variant.longer_side] or list(variants)
    enough = [variant for variant in told if variant.longer_side >= longer_side]
    if enough:
        return min(enough, key=lambda variant: (variant.longer_side, variant.bandwidth))
    return max(told, key=lambda variant: (variant.longer_side, variant.bandwidth))


@dataclass(slots=True)
class Broadcast:
    """What was played of a live playlist, so that after a fault it goes on where it broke off and nothing is played again.

    `first` is the number of the segment at which the connection began, `span` the seconds of video that came since, None
    before the first picture, and `reached` the timestamp (seconds) of the last picture. Timestamps may jump.
    """

    first: int = 0
    span: float | None = None
    reached: float | None = None
    durations: dict[int, float] = field(default_factory=dict)

    def join(self, playlist: Playlist) -> int | None:
        """The index in `playlist` of the segment to begin with, behind its last where that is still to come; None where all was played.

        A broadcast whose numbers have begun anew, or which is far ahead, is joined as if it were new: near its end.
        """
        self.durations |= {playlist.sequence + n: seconds for n, seconds in enumerate(playlist.durations)}
        upcoming = None if self.reached is None else self.upcoming()
        edge = playlist.sequence if playlist.ended else max(playlist.end - EDGE, playlist.sequence)
        if upcoming is None or playlist.end < upcoming:
            self.first, self.reached = edge, None
        elif upcoming == playlist.end and playlist.ended:
            return None
        else:
            behind = sum(playlist.durations[max(upcoming - playlist.sequence, 0) :])
            oldest, newest = playlist.sequence, max(playlist.end - 1, playlist.sequence)
            far = behind > MOST_BEHIND and not playlist.ended
            self.first = edge if far else min(max(upcoming, oldest), newest)
        while self.first in playlist.gaps:
            self.first += 1
        self.durations = {n: seconds for n, seconds in self.durations.items() if self.first <= n < playlist.end}
        self.span = None
        return self.first - playlist.sequence

    def upcoming(self) -> int:
        """The number of the first segment that was not played to its end."""
        number, usual = self.first, max(self.durations.values(), default=1.0) or 1.0
        left = -usual if self.span is None else self.span
        while left >= 0:
            length = self.durations.get(number, usual) or usual
            left -= length
            number += left > -min(TOLERANCE, length / 2)
        return number

    def picture(self, timestamp: float) -> float:
        """A picture of the present connection came; the seconds of video that are between its first one and this."""
        step = 0.0 if self.reached is None else timestamp - self.reached
        self.span = 0.0 if self.span is None else self.span + (step if 0 < step < LONGEST_STEP else 0.0)
        self.reached = timestamp
        return self.span

    @property
    def overlap(self) -> float:
        """Seconds from a connection's first picture within which there may be some that were handed over before."""
        return 2 * max(self.durations.values(), default=0.0) + TOLERANCE
