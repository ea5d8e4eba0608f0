"""JPEG pictures cut out of a stream of bytes, whatever stands between them: `multipart/x-mixed-replace` as cameras write it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from capture.source import SourceError

MOST_BYTES = 32 * 2**20
"""Bytes that one picture, or what stands before it, may have."""
BEGIN, END = b"\xff\xd8\xff", b"\xff\xd9"
BARE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers that no length follows (ITU-T T.81, B.1.1.3)."""
AFTER_SCAN = re.compile(rb"\xff[\xc4\xd8-\xdd\xe0-\xef\xfe]")
"""What may stand behind the coded data of a scan: the end, tables, another scan, or the next picture where the end is missing."""


class JpegStream:
    """Finds pictures by their own markers alone.

    Cameras leave out the first boundary or the lengths, quote the boundary or count its dashes differently, and call the type
    `image/jpg`; and where only the next boundary tells that a picture is over, each would come a whole period late.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.at = 0
        """Where in `data`, which begins with a picture if this is not 0, there is more to be read."""
        self.scan = False
        self.passed = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pictures that end in `data`. Raises SourceError where there are none in a lot of it."""
        self.data += data
        while (picture := self.step()) is not None:
            if picture:
                yield picture
        if self.passed + len(self.data) > MOST_BYTES:
            raise SourceError("it sends something else than JPEG pictures")

    def step(self) -> bytes | None:
        """The next picture, nothing where one more step must be done, None where more data is needed."""
        data = self.data
        if self.at == 0:
            begin = data.find(BEGIN)
            passed = begin if begin >= 0 else max(len(data) - len(BEGIN) + 1, 0)
            self.passed += passed
            del data[:passed]
            if begin < 0:
                return None
            self.passed = 0
            self.at, self.scan = 2, False
        if self.scan:
            found = AFTER_SCAN.search(data, self.at)
            self.at = found.start() if found else max(self.at, len(data) - 1)
            if found is None:
                return None
            self.scan = False
        if len(data) < self.at + 2:
            return None
        marker = data[self.at + 1]
        if data[self.at] != 0xFF or (marker == 0xD8 and self.at == 2):
            return self.cut(2, b"", b"")
        if marker == 0xD9:
            return self.cut(self.at + 2, bytes(data[: self.at]), END)
        if marker == 0xD8:
            return self.cut(self.at, bytes(data[: self.at]), END)
        if marker == 0xFF or marker in BARE:
            self.at += 1 if marker == 0xFF else 2
            return b""
        length = int.from_bytes(data[self.at + 2 : self.at + 4])
        if len(data) < self.at + max(2 + length, 4):
            return None
        self.at += 2 + max(length, 2)
        self.scan = marker == 0xDA
        return b""

    def cut(self, end: int, picture: bytes, tail: bytes) -> bytes:
        """Goes on behind byte `end`; `picture` and what it ends with."""
        del self.data[:end]
        self.at = 0
        return picture + tail
